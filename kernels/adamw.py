# SPDX-License-Identifier: Apache-2.0
"""adamw: one AdamW update of one tensor, in place (Loshchilov and Hutter, 1711.05101).

param a float type; grad of param's type or float32; exp_avg, exp_avg_sq float32; master float32 or
None; all of one shape and contiguous -> None. With g = grad_scale * grad, p = master (param where None):
    p *= 1 - lr * weight_decay;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
    p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps);  param = p rounded to its type
The arithmetic is that of torch.optim.AdamW, in float32. A 16-bit param without a master loses updates below
its last bit. Elements are independent. Raises ValueError for tensors that do not belong together.
Bytes an element: 28 in float32 (param and moments read and written, grad read); 28 for a 16-bit param and
grad with a master (param is then only written).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import DTYPE_CODE, lib, native_why_not, reject


class AdamwStep(NamedTuple):
    """The numbers of one update; `step` counts from 1, `grad_scale` multiplies the gradient (clipping)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    grad_scale: float = 1.0

    @property
    def step_size(self) -> float:
        return self.lr / (1 - self.beta1**self.step)

    @property
    def root_correction2(self) -> float:
        return float((1 - self.beta2**self.step) ** 0.5)


@torch.no_grad()
def adamw_ref(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, how: AdamwStep
) -> None:
    check_update(param, grad, exp_avg, exp_avg_sq, master, how)
    g = grad.to(exp_avg.dtype) * how.grad_scale
    p = up(param) if master is None else master
    p = p * (1 - how.lr * how.weight_decay)
    exp_avg.lerp_(g, 1 - how.beta1)
    exp_avg_sq.mul_(how.beta2).addcmul_(g, g, value=1 - how.beta2)
    p = p - how.step_size * (exp_avg / (exp_avg_sq.sqrt() / how.root_correction2 + how.eps))
    if master is not None:
        master.copy_(p)
    param.copy_(p)


def check_update(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, how: AdamwStep
) -> None:
    """Raises ValueError for tensors that do not belong together."""
    if how.step < 1:
        raise ValueError(f"adamw: step is {how.step}; it counts from 1")
    state = torch.float64 if param.dtype == torch.float64 else torch.float32
    for name, tensor in (
        ("grad", grad),
        ("exp_avg", exp_avg),
        ("exp_avg_sq", exp_avg_sq),
        ("master", master),
    ):
        if tensor is None:
            continue
        allowed = (state, param.dtype) if name == "grad" else (state,)
        if tensor.shape != param.shape or tensor.dtype not in allowed or tensor.device != param.device:
            have = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(
                f"adamw: {name} must be {state} {list(param.shape)} on {param.device}, it is {have}"
            )


@torch.no_grad()
def _adamw_native(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, how: AdamwStep
) -> None:
    check_update(param, grad, exp_avg, exp_avg_sq, master, how)
    for name, tensor in (
        ("param", param), ("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("master", master)
    ):  # fmt: skip
        if tensor is not None and not (
            tensor.is_contiguous() and tensor.is_cpu and tensor.dtype in DTYPE_CODE
        ):
            reject("adamw", name, tensor, "a contiguous float32, bfloat16 or float16 CPU tensor")
    numbers = (
        how.grad_scale, 1 - how.lr * how.weight_decay, 1 - how.beta1, how.beta2, 1 - how.beta2,
        how.step_size, how.root_correction2, how.eps,
    )  # fmt: skip
    lib.adamw(
        DTYPE_CODE[param.dtype], DTYPE_CODE[grad.dtype], param.numel(), param.data_ptr(), grad.data_ptr(),
        exp_avg.data_ptr(), exp_avg_sq.data_ptr(), 0 if master is None else master.data_ptr(), numbers,
    )  # fmt: skip


ADAMW = Op(
    "adamw",
    adamw_ref,
    (
        Impl("native", _adamw_native, native_why_not),
        Impl("triton", "rzero.kernels.adamw_triton:adamw_triton", triton_why_not),
    ),
)
