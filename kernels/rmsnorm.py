# SPDX-License-Identifier: Apache-2.0
"""rmsnorm: y = x * rsqrt(mean(x^2) + eps) * w per token (1910.07467); add_rmsnorm does it to x + residual.

x_TD [T, D] a float type, last stride 1; residual_TD like x; w_D [D] of x's type; eps a float.
rmsnorm returns y_TD; add_rmsnorm returns (y_TD, sum_TD), where the sum is rounded to x's type before it is
normed. Numerics: float32 inside, one rounding at the store, a fixed order of summation per row: row i of a
batch has the bits of row i alone, with any number of threads. T = 0 is legal. Gradients go to x, residual and
w. Elements moved: 2 T D without, 4 T D with the residual (its sum is written, too).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import address, check, float_code, lib, native_why_not, needs_grad


def rmsnorm_ref(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    x = up(x_TD)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * up(w_D)).to(x_TD.dtype)


def add_rmsnorm_ref(x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    sum_TD = x_TD + residual_TD
    return rmsnorm_ref(sum_TD, w_D, eps), sum_TD


def _forward(
    x_TD: Tensor, residual_TD: Tensor | None, w_D: Tensor, eps: float, keep_rstd: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y_TD, and where asked for the sum and the reciprocal root mean square of each row."""
    code = float_code("rmsnorm", "x_TD", x_TD, 2)
    T, D = x_TD.shape
    check("rmsnorm", "w_D", w_D, x_TD.dtype, (D,))
    y_TD = torch.empty((T, D), dtype=x_TD.dtype)
    sum_TD = None
    if residual_TD is not None:
        check("rmsnorm", "residual_TD", residual_TD, x_TD.dtype, (T, D))
        sum_TD = torch.empty((T, D), dtype=x_TD.dtype)
    rstd_T = torch.empty(T) if keep_rstd else None
    lib.rmsnorm_forward(
        code, T, D, eps,
        x_TD.data_ptr(), x_TD.stride(0),
        address(residual_TD), 0 if residual_TD is None else
        residual_TD.stride(0), w_D.data_ptr(), y_TD.data_ptr(),
        address(sum_TD), address(rstd_T),
    )  # fmt: skip
    return y_TD, sum_TD, rstd_T


def _backward(saved: tuple[Tensor, Tensor, Tensor], grad_y_TD: Tensor, extra_TD: Tensor | None) -> Any:
    """Gradients of the normed rows and of w; `extra_TD`, what flows in past the norm, joins the former."""
    x_TD, w_D, rstd_T = saved
    T, D = x_TD.shape
    grad_y_TD = grad_y_TD.contiguous()
    extra_TD = None if extra_TD is None else extra_TD.contiguous()
    grad_x_TD = torch.empty((T, D), dtype=x_TD.dtype)
    grad_w_D = torch.empty_like(w_D)
    lib.rmsnorm_backward(
        float_code("rmsnorm", "x_TD", x_TD, 2), T, D, x_TD.data_ptr(), x_TD.stride(0), w_D.data_ptr(),
        rstd_T.data_ptr(), grad_y_TD.data_ptr(), address(extra_TD),
        grad_x_TD.data_ptr(), grad_w_D.data_ptr(),
    )  # fmt: skip
    return grad_x_TD, grad_w_D


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
        y_TD, _, rstd_T = _forward(x_TD, None, w_D, eps, keep_rstd=True)
        ctx.save_for_backward(x_TD, w_D, rstd_T)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> Any:
        grad_x_TD, grad_w_D = _backward(ctx.saved_tensors, grad_y_TD, None)
        return grad_x_TD, grad_w_D, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> Any:
        y_TD, sum_TD, rstd_T = _forward(x_TD, residual_TD, w_D, eps, keep_rstd=True)
        ctx.save_for_backward(sum_TD, w_D, rstd_T)
        return y_TD, sum_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor, grad_sum_TD: Tensor) -> Any:
        grad_TD, grad_w_D = _backward(ctx.saved_tensors, grad_y_TD, grad_sum_TD)
        return grad_TD, grad_TD, grad_w_D, None


def _rmsnorm_native(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    if needs_grad(x_TD, w_D):
        y_TD: Tensor = _RmsNorm.apply(x_TD, w_D, eps)
        return y_TD
    return _forward(x_TD, None, w_D, eps, keep_rstd=False)[0]


def _add_rmsnorm_native(x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if needs_grad(x_TD, residual_TD, w_D):
        both: tuple[Tensor, Tensor] = _AddRmsNorm.apply(x_TD, residual_TD, w_D, eps)
        return both
    y_TD, sum_TD, _ = _forward(x_TD, residual_TD, w_D, eps, keep_rstd=False)
    assert sum_TD is not None
    return y_TD, sum_TD


RMSNORM = Op(
    "rmsnorm",
    rmsnorm_ref,
    (
        Impl("native", _rmsnorm_native, native_why_not),
        Impl("triton", "rzero.kernels.rmsnorm_triton:rmsnorm_triton", triton_why_not),
    ),
)
ADD_RMSNORM = Op(
    "add_rmsnorm",
    add_rmsnorm_ref,
    (
        Impl("native", _add_rmsnorm_native, native_why_not),
        Impl("triton", "rzero.kernels.rmsnorm_triton:add_rmsnorm_triton", triton_why_not),
    ),
)
