# SPDX-License-Identifier: Apache-2.0
"""AdamW whose moments take a byte each (Dettmers et al., arXiv:2110.02861), by bitsandbytes.

Moments are quantized in blocks to a dynamic map of 256 values, each block relative to its largest. Masters
and weights are as in `optimizer.py`, so that small updates are not lost. Small tensors keep float32 moments,
as in bitsandbytes' own optimizers.
"""

from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.optimizer import AdamW, Held, OptimizerName
from rzero.kernels import AdamwStep, Kernels

BLOCK = 256
"""Elements that share one scale."""
SMALLEST = 4096
"""Elements from which on a tensor's moments are quantized."""


class AdamW8bit(AdamW):
    """As AdamW; raises InputError where bitsandbytes is not installed."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels)
        self._functional = _functional()
        self._maps: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _new_moments(self, param: Tensor) -> dict[str, Tensor]:
        if param.numel() < SMALLEST:
            return super()._new_moments(param)
        if param.dtype == torch.float64:
            raise InputError("optimizer adamw_8bit serves float32 and bfloat16 weights, these are float64")
        moments: dict[str, Tensor] = {}
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.zeros_like(param, dtype=torch.uint8)
            blocks = -(-param.numel() // BLOCK)
            moments[f"{name}_largest"] = torch.zeros(blocks, dtype=torch.float32, device=param.device)
        return moments

    def _apply(self, param: Tensor, grad: Tensor, held: Held, how: AdamwStep) -> None:
        m = held.moments
        if "exp_avg_largest" not in m:
            super()._apply(param, grad, held, how)
            return
        wide = param if held.master is None else held.master
        signed, unsigned = self._quantiles(param.device)
        self._functional.optimizer_update_8bit_blockwise(
            "adam",  # with decoupled weight decay
            grad,
            wide,
            m["exp_avg"],
            m["exp_avg_sq"],
            how.beta1,
            how.beta2,
            0.0,
            0.0,
            how.eps,
            how.step,
            how.lr,
            signed,
            unsigned,
            m["exp_avg_largest"],
            m["exp_avg_sq_largest"],
            how.weight_decay,
            how.grad_scale,
        )
        if held.master is not None:
            param.copy_(held.master)

    def _quantiles(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._maps:
            make = self._functional.create_dynamic_map
            self._maps[device] = make(True).to(device), make(False).to(device)
        return self._maps[device]


def usable_optimizer(name: OptimizerName) -> OptimizerName:
    """The name; raises InputError for an unknown optimizer and for one whose package is not installed."""
    if name not in get_args(OptimizerName):
        raise InputError(f"optimizer is {name!r}; it must be one of {', '.join(get_args(OptimizerName))}")
    if name == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise InputError("optimizer adamw_8bit needs bitsandbytes: pip install bitsandbytes")
    return name


def _functional() -> Any:
    usable_optimizer("adamw_8bit")
    from bitsandbytes import functional

    return functional
