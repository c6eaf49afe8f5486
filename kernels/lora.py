# SPDX-License-Identifier: Apache-2.0
"""lora: low-rank adapters added to a projection, several of them in one batch (Hu et al., 2106.09685).

y_TN [T, N] a float type, last stride 1, changed in place and returned; x_TK [T, K] like y; parts: which
adapter adds to which rows and columns of y. For each part, in order, with a [rank, K] and b [columns, rank]
of y's type and contiguous, and y[rows] its rows start..stop and the columns from `column` on:
    u = scale * x[rows] a^T        y[rows] += u b^T
Rows that no part names stay as they are. Float32 inside, one rounding at the store. A row does not depend on
the others, nor on how rows are shared out among parts. T = 0, empty parts and no parts are legal. Gradients
go to y, x and every a and b. Raises ValueError for tensors, rows or columns that do not go together.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import float_code, is_dense, lib, native_why_not, needs_grad, reject


class LoraPart(NamedTuple):
    """One adapter on rows start..stop (of the packed tokens) and columns from `column` on."""

    a: Tensor
    """[rank, K]"""
    b: Tensor
    """[columns, rank]"""
    scale: float
    column: int
    start: int
    stop: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns of y."""
        return slice(self.start, self.stop), slice(self.column, self.column + self.b.shape[0])


Forward = Callable[[Tensor, Tensor, Sequence[LoraPart]], list[Tensor]]
"""Changes y and returns u of each part, float32 and contiguous."""


def lora_ref(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> Tensor:
    for part in parts:
        u = part.scale * (up(x_TK[part.start : part.stop]) @ up(part.a).t())
        y_TN[part.place] = (up(y_TN[part.place]) + u @ up(part.b).t()).to(y_TN.dtype)
    return y_TN


def check_parts(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> None:
    """Raises ValueError unless x and every part go with y."""
    (T, N), dtype, device = y_TN.shape, y_TN.dtype, y_TN.device
    K = x_TK.shape[1] if x_TK.ndim == 2 else -1
    is_like_y = x_TK.shape == (T, K) and x_TK.dtype is dtype and x_TK.device == device
    if not is_like_y or not is_dense(x_TK):
        reject("lora", "x_TK", x_TK, f"a {dtype} tensor of shape [{T}, K] on {device}, last stride 1")
    for i, (a, b, _, column, start, stop) in enumerate(parts):
        rank, columns = a.shape[0] if a.ndim else -1, b.shape[0] if b.ndim else -1
        for name, tensor, shape in (("a", a, (rank, K)), ("b", b, (columns, rank))):
            is_right = tensor.shape == shape and tensor.dtype is dtype and tensor.device == device
            if not is_right or not tensor.is_contiguous():
                wanted = f"[rank, {K}]" if name == "a" else f"[columns, {rank}]"
                what = f"a contiguous {dtype} tensor of shape {wanted} on {device}"
                reject("lora", f"parts[{i}].{name}", tensor, what)
        if not 0 <= start <= stop <= T or not 0 <= column <= N - columns:
            raise ValueError(
                f"lora: parts[{i}] adds to the rows {start}..{stop} and the columns {column}.."
                f"{column + columns} of y_TN, which is {list(y_TN.shape)}"
            )


def backward(
    grad_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart], products: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of x and of every a and b, by torch on any device; products: u of each part, float32.

    With g the gradient of y[rows]: that of u is scale * g b, of b g^T u, of a its transpose times x.
    """
    grad_x_TK = torch.zeros(x_TK.shape, dtype=torch.float32, device=x_TK.device)
    grads = []
    for part, u in zip(parts, products, strict=True):
        g, x = up(grad_TN[part.place]), up(x_TK[part.start : part.stop])
        grad_u = part.scale * (g @ up(part.b))
        grad_x_TK[part.start : part.stop] += grad_u @ up(part.a)
        grads += [(grad_u.t() @ x).to(part.a.dtype), (g.t() @ u).to(part.b.dtype)]
    return grad_x_TK.to(x_TK.dtype), grads


def _forward(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> list[Tensor]:
    code = float_code("lora", "y_TN", y_TN, 2)
    float_code("lora", "x_TK", x_TK, 2)
    check_parts(y_TN, x_TK, parts)
    products = [torch.empty((part.stop - part.start, part.a.shape[0])) for part in parts]
    views = [
        (p.a.data_ptr(), p.b.data_ptr(), u.data_ptr(), p.start, len(u), p.column, p.b.shape[0], u.shape[1])
        for p, u in zip(parts, products, strict=True)
    ]
    places = ((z.data_ptr(), z.stride(0)) for z in (x_TK, y_TN))
    lib.lora(code, x_TK.shape[1], *places, views, [part.scale for part in parts])
    return products


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Forward, y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart], *matrices: Tensor
    ) -> Tensor:
        products = forward(y_TN, x_TK, parts)
        ctx.mark_dirty(y_TN)
        ctx.save_for_backward(x_TK, *matrices, *products)
        ctx.parts = parts
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> Any:
        x_TK, *saved = ctx.saved_tensors
        grad_x_TK, grads = backward(grad_TN, x_TK, ctx.parts, saved[2 * len(ctx.parts) :])
        return None, grad_TN, grad_x_TK, None, *grads


def call(forward: Forward, y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> Tensor:
    """The op by an implementation of its forward pass, recorded for autograd where somebody needs it."""
    matrices = [matrix for part in parts for matrix in part[:2]]
    if parts and needs_grad(y_TN, x_TK, *matrices):
        out: Tensor = _Lora.apply(forward, y_TN, x_TK, tuple(parts), *matrices)
        return out
    forward(y_TN, x_TK, parts)
    return y_TN


LORA = Op(
    "lora",
    lora_ref,
    (
        Impl("native", partial(call, _forward), native_why_not),
        Impl("triton", "rzero.kernels.lora_triton:lora_triton", triton_why_not),
    ),
)
