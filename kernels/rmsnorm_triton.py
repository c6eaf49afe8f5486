# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""rmsnorm and add_rmsnorm in Triton; the contract is in rmsnorm.py.

One program per row, the whole row in one tile: its sum has the same order whatever the batch. The gradient of
w is summed per block of ROWS rows and then over the blocks, both in a fixed order.
Bytes moved: forward reads x and the residual and writes y and the sum, once each; backward reads x, y's
gradient and the sum's, and writes one gradient.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import needs_grad

ROWS = 32


@triton.jit
def _rmsnorm_forward(
    x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, rstd_ptr, x_stride, residual_stride, D, eps,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    mask = cols < D
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0)
        rounded = (x + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + cols, rounded, mask=mask)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    tl.store(rstd_ptr + row, rstd)
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + cols, (x * rstd * w).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rmsnorm_backward(
    x_ptr, w_ptr, rstd_ptr, grad_y_ptr, extra_ptr, grad_x_ptr, partial_ptr, x_stride, T, D,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """With n = x * rstd: grad_x = rstd * (g*w - n * mean(g*w*n)) + extra; partial[block] = sum of g*n."""
    block = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    mask = cols < D
    grad_w = tl.zeros([BLOCK_D], dtype=tl.float32)
    for row in range(block * ROWS, tl.minimum(block * ROWS + ROWS, T)):
        rstd = tl.load(rstd_ptr + row)
        normed = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32) * rstd
        grad_y = tl.load(grad_y_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        grad_w += grad_y * normed
        # Read anew for each row: kept in registers over the loop, it makes ptxas spill on sm_80.
        scaled = grad_y * tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
        grad_x = rstd * (scaled - normed * (tl.sum(scaled * normed, axis=0) / D))
        if extra_ptr is not None:
            grad_x += tl.load(extra_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + row * D + cols, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + block * D + cols, grad_w, mask=mask)


def _tile(D: int) -> dict[str, int]:
    """The row as one tile. Eight numbers a thread make one 128-bit access in bfloat16; unmeasured."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": min(max(block // 256, 1), 8)}


def _forward(
    x_TD: Tensor, residual_TD: Tensor | None, w_D: Tensor, eps: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y_TD, the sum where there is a residual, and the reciprocal root mean square of each row."""
    check_float("rmsnorm", "x_TD", x_TD, 2)
    T, D = x_TD.shape
    check_like("rmsnorm", "w_D", w_D, x_TD.dtype, (D,), x_TD.device)
    y_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    sum_TD = None
    if residual_TD is not None:
        check_like("rmsnorm", "residual_TD", residual_TD, x_TD.dtype, (T, D), x_TD.device)
        sum_TD = torch.empty_like(y_TD)
    if T:
        residual_stride = 0 if residual_TD is None else residual_TD.stride(0)
        _rmsnorm_forward[(T,)](
            x_TD, residual_TD, w_D, y_TD, sum_TD, rstd_T, x_TD.stride(0), residual_stride, D, eps, **_tile(D)
        )
    return y_TD, sum_TD, rstd_T


def _backward(saved: tuple[Tensor, Tensor, Tensor], grad_y_TD: Tensor, extra_TD: Tensor | None) -> Any:
    """Gradients of the normed rows and of w; `extra_TD`, what flows in past the norm, joins the former."""
    x_TD, w_D, rstd_T = saved
    T, D = x_TD.shape
    grad_x_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    blocks = triton.cdiv(T, ROWS)
    partial_BD = torch.empty((blocks, D), dtype=torch.float32, device=x_TD.device)
    if T:
        extra_TD = None if extra_TD is None else extra_TD.contiguous()
        _rmsnorm_backward[(blocks,)](
            x_TD, w_D, rstd_T, grad_y_TD.contiguous(), extra_TD, grad_x_TD, partial_BD,
            x_TD.stride(0), T, D, ROWS=ROWS, **_tile(D),
        )  # fmt: skip
    return grad_x_TD, partial_BD.sum(0).to(w_D.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
        y_TD, _, rstd_T = _forward(x_TD, None, w_D, eps)
        ctx.save_for_backward(x_TD, w_D, rstd_T)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> Any:
        return *_backward(ctx.saved_tensors, grad_y_TD, None), None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> Any:
        y_TD, sum_TD, rstd_T = _forward(x_TD, residual_TD, w_D, eps)
        ctx.save_for_backward(sum_TD, w_D, rstd_T)
        return y_TD, sum_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor, grad_sum_TD: Tensor) -> Any:
        grad_TD, grad_w_D = _backward(ctx.saved_tensors, grad_y_TD, grad_sum_TD)
        return grad_TD, grad_TD, grad_w_D, None


def rmsnorm_triton(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    if needs_grad(x_TD, w_D):
        y_TD: Tensor = _RmsNorm.apply(x_TD, w_D, eps)
        return y_TD
    return _forward(x_TD, None, w_D, eps)[0]


def add_rmsnorm_triton(x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if needs_grad(x_TD, residual_TD, w_D):
        both: tuple[Tensor, Tensor] = _AddRmsNorm.apply(x_TD, residual_TD, w_D, eps)
        return both
    y_TD, sum_TD, _ = _forward(x_TD, residual_TD, w_D, eps)
    assert sum_TD is not None
    return y_TD, sum_TD
