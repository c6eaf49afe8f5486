# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter, arXiv:1711.05101) over one role's trained tensors.

Moments are float32. Weights of fewer bits get a float32 master, or updates below half a bit of the weight
would be lost; float32 weights are their own master. Float64 weights (tests) have float64 moments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig
from rzero.kernels import AdamwStep, Kernels

State = dict[str, Tensor | int]
OptimizerName = Literal["adamw", "adamw_8bit"]


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Rate of update number `step` (the first is 1): linear up to `warmup_steps`, then by `cfg.schedule`.

    The first update after the warm-up has the full rate; the rate would be 0 one update after `total_steps`.
    """
    if step <= cfg.warmup_steps:
        return cfg.learning_rate * step / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.learning_rate
    done = min(1.0, (step - 1 - cfg.warmup_steps) / (cfg.total_steps - cfg.warmup_steps))
    left = 1 - done if cfg.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return cfg.learning_rate * left


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
class Held:
    """What AdamW remembers of one tensor, and the tensor whose values the master continues."""

    moments: dict[str, Tensor]
    master: Tensor | None
    of: Tensor


class AdamW:
    """Optimizer state of one role; `step` counts the updates applied."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._held: dict[str, Held] = {}
        self.step = 0

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], cfg: TrainConfig, grad_scale: float
    ) -> None:
        """One update of params, in place, by the gradients of the same names times grad_scale."""
        self.step += 1
        rate = learning_rate(cfg, self.step)
        for name, param in params.items():
            decay = cfg.weight_decay if cfg.decay == "all" or param.ndim > 1 else 0.0
            how = AdamwStep(rate, *cfg.betas, cfg.eps, decay, self.step, grad_scale)
            self._apply(param, grads[name], self._of(name, param), how)

    def is_of(self, params: Mapping[str, Tensor]) -> bool:
        """Whether all that is remembered belongs to these tensors."""
        return all(
            name in params and held.of.shape == params[name].shape for name, held in self._held.items()
        )

    def _apply(self, param: Tensor, grad: Tensor, held: Held, how: AdamwStep) -> None:
        m = held.moments
        self._kernels.adamw(param, grad, m["exp_avg"], m["exp_avg_sq"], held.master, how)

    def _new_moments(self, param: Tensor) -> dict[str, Tensor]:
        dtype = moments_dtype(param.dtype)
        return {name: torch.zeros_like(param, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}

    def _new(self, param: Tensor) -> Held:
        wide = param.detach().to(moments_dtype(param.dtype)) if needs_master(param.dtype) else None
        return Held(self._new_moments(param), wide, param)

    def _of(self, name: str, param: Tensor) -> Held:
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = self._new(param)
        elif held.of is not param:
            # Copied on write, the values go on; replaced by others, the old master would undo that.
            if held.master is not None and not torch.equal(held.master.to(param.dtype), param):
                held.master = param.detach().to(held.master.dtype)
            held.of = param
        return held

    def state(self) -> State:
        """Step count and tensors by name; the tensors are live, so store them before the next update."""
        state: State = {"step": self.step}
        for name, held in self._held.items():
            state |= {f"{part}.{name}": tensor for part, tensor in _parts(held).items()}
        return state

    def load(self, state: Mapping[str, Tensor | int], params: Mapping[str, Tensor]) -> None:
        """Copies a state for these tensors, whose values must be those that it was taken of.

        Raises InputError where names, shapes, types or the masters' values do not fit.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise InputError(f"optimizer state: step is {step!r}; it must be a whole number, 0 or above")
        fresh: dict[str, Held] = {}
        expected = {"step"}
        if step or len(state) > 1:
            for name, param in params.items():
                fresh[name] = self._new(param)
                for part, target in _parts(fresh[name]).items():
                    expected.add(f"{part}.{name}")
                    _copy(state, f"{part}.{name}", target)
                master = fresh[name].master
                if master is not None and not torch.equal(master.to(param.dtype), param):
                    raise InputError(f"optimizer state: master.{name} is not of the role's weights")
        unknown = sorted(set(state) - expected)
        if unknown:
            raise InputError(f"optimizer state: {unknown[0]} belongs to no trained tensor of this role")
        self._held, self.step = fresh, step


def _parts(held: Held) -> dict[str, Tensor]:
    return held.moments if held.master is None else {**held.moments, "master": held.master}


def _copy(state: Mapping[str, Tensor | int], name: str, target: Tensor) -> None:
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise InputError(f"optimizer state: {name} is missing")
    if value.shape != target.shape or value.dtype != target.dtype:
        have = f"{tuple(value.shape)} {value.dtype}"
        raise InputError(f"optimizer state: {name} is {have}, expected {tuple(target.shape)} {target.dtype}")
    target.copy_(value)
