# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter, arXiv:1711.05101) over one role's trained tensors.

Moments are float32. Weights of fewer bits get a float32 master, or updates below half a bit of the weight
would be lost; float32 weights are their own master. Float64 weights (tests) have float64 moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig
from rzero.kernels import AdamwStep, Kernels

State = dict[str, Tensor | int]


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Rate of update number `step` (the first is 1): linear up to `warmup_steps`, then constant."""
    return cfg.learning_rate * min(1.0, step / max(1, cfg.warmup_steps))


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all gradients, a scalar on their device; not finite where any gradient is not."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    return norm


def clip_scale(norm: float, grad_clip: float) -> float:
    """Factor that brings a gradient of this norm to at most `grad_clip` (0 = off), as in clip_grad_norm_."""
    return min(1.0, grad_clip / (norm + 1e-6)) if grad_clip else 1.0


def moments_dtype(dtype: torch.dtype) -> torch.dtype:
    """Number type of moments, masters and accumulated gradients for weights of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def needs_master(dtype: torch.dtype) -> bool:
    return dtype != moments_dtype(dtype)


@dataclass(slots=True)
class Moments:
    """What AdamW remembers of one tensor, and the tensor whose values the master continues."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    master: Tensor | None
    of: Tensor


class AdamW:
    """Optimizer state of one role; `step` counts the updates applied."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._moments: dict[str, Moments] = {}
        self.step = 0

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], cfg: TrainConfig, grad_scale: float
    ) -> None:
        """One update of params, in place, by the gradients of the same names times grad_scale."""
        self.step += 1
        rate = learning_rate(cfg, self.step)
        for name, param in params.items():
            moments = self._of(name, param)
            decay = cfg.weight_decay if cfg.decay == "all" or param.ndim > 1 else 0.0
            how = AdamwStep(rate, *cfg.betas, cfg.eps, decay, self.step, grad_scale)
            self._kernels.adamw(param, grads[name], moments.exp_avg, moments.exp_avg_sq, moments.master, how)

    def _of(self, name: str, param: Tensor) -> Moments:
        moments = self._moments.get(name)
        if moments is None:
            moments = self._moments[name] = new_moments(param)
        elif moments.of is not param:
            # Copied on write, the values go on; replaced by others, the old master would undo that.
            if moments.master is not None and not torch.equal(moments.master.to(param.dtype), param):
                moments.master = param.detach().to(moments.master.dtype)
            moments.of = param
        return moments

    def state(self) -> State:
        """Step count and tensors by name; the tensors are live, so store them before the next update."""
        state: State = {"step": self.step}
        for name, moments in self._moments.items():
            state[f"exp_avg.{name}"] = moments.exp_avg
            state[f"exp_avg_sq.{name}"] = moments.exp_avg_sq
            if moments.master is not None:
                state[f"master.{name}"] = moments.master
        return state

    def load(self, state: Mapping[str, Tensor | int], params: Mapping[str, Tensor]) -> None:
        """Copies a state for these tensors; raises InputError where names, shapes or types do not fit."""
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise InputError(f"optimizer state: step is {step!r}; it must be a whole number, 0 or above")
        fresh: dict[str, Moments] = {}
        expected = {"step"}
        if len(state) > 1:
            for name, param in params.items():
                fresh[name] = new_moments(param)
                for part in ("exp_avg", "exp_avg_sq", "master"):
                    target = getattr(fresh[name], part)
                    if target is not None:
                        expected.add(f"{part}.{name}")
                        _copy(state, f"{part}.{name}", target)
        unknown = sorted(set(state) - expected)
        if unknown:
            raise InputError(f"optimizer state: {unknown[0]} belongs to no trained tensor of this role")
        self._moments, self.step = fresh, step


def new_moments(param: Tensor) -> Moments:
    dtype = moments_dtype(param.dtype)
    master = param.detach().to(dtype) if needs_master(param.dtype) else None
    zeros = torch.zeros_like(param, dtype=dtype)
    return Moments(zeros, torch.zeros_like(zeros), master, param)


def _copy(state: Mapping[str, Tensor | int], name: str, target: Tensor) -> None:
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise InputError(f"optimizer state: {name} is missing")
    if value.shape != target.shape or value.dtype != target.dtype:
        have = f"{tuple(value.shape)} {value.dtype}"
        raise InputError(f"optimizer state: {name} is {have}, expected {tuple(target.shape)} {target.dtype}")
    target.copy_(value)
