# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""adamw on a GPU: one pass over memory, one program per 1,024 elements, float32 arithmetic.

Division and square root are those of IEEE; the compiler may fuse a product and a sum into one rounding.
Bytes moved: per element 16 for the moments, and twice param and master, once grad.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rzero.kernels.adamw import AdamwStep, check_update
from rzero.kernels.gpu import FLOATS
from rzero.kernels.native import reject

BLOCK = 1024


class _State(NamedTuple):
    """What one update changes."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    master: Tensor | None


class _Numbers(NamedTuple):
    """keep = 1 - lr * weight_decay, rise = 1 - beta."""

    grad_scale: float
    keep: float
    rise1: float
    beta2: float
    rise2: float
    step_size: float
    root_correction2: float
    eps: float


@triton.jit
def _adamw(state, grad_ptr, how, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_inside = i < count
    g = tl.load(grad_ptr + i, mask=is_inside, other=0.0).to(tl.float32) * how.grad_scale
    m = tl.load(state.exp_avg + i, mask=is_inside, other=0.0)
    v = tl.load(state.exp_avg_sq + i, mask=is_inside, other=0.0)
    if state.master is None:
        p = tl.load(state.param + i, mask=is_inside, other=0.0).to(tl.float32)
    else:
        p = tl.load(state.master + i, mask=is_inside, other=0.0)
    m += how.rise1 * (g - m)
    v = how.beta2 * v + how.rise2 * g * g
    slope = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), how.root_correction2) + how.eps)
    p = p * how.keep - how.step_size * slope
    tl.store(state.exp_avg + i, m, mask=is_inside)
    tl.store(state.exp_avg_sq + i, v, mask=is_inside)
    tl.store(state.param + i, p.to(state.param.dtype.element_ty), mask=is_inside)
    if state.master is not None:
        tl.store(state.master + i, p, mask=is_inside)


@torch.no_grad()
def adamw_triton(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, how: AdamwStep
) -> None:
    check_update(param, grad, exp_avg, exp_avg_sq, master, how)
    for name, tensor in (
        ("param", param), ("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("master", master)
    ):  # fmt: skip
        if tensor is not None and not (tensor.is_contiguous() and tensor.dtype in FLOATS):
            reject("adamw", name, tensor, "a contiguous float32, bfloat16 or float16 tensor")
    numbers = _Numbers(
        how.grad_scale, 1 - how.lr * how.weight_decay, 1 - how.beta1, how.beta2, 1 - how.beta2,
        how.step_size, how.root_correction2, how.eps,
    )  # fmt: skip
    if count := param.numel():
        state = _State(param, exp_avg, exp_avg_sq, master)
        _adamw[(triton.cdiv(count, BLOCK),)](state, grad, numbers, count, BLOCK=BLOCK, num_warps=4)
