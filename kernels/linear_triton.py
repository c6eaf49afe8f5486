# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""linear on a GPU: one tile per element type, and one program sums the whole of K for its tile of y.

The order of a sum depends on the type and on K alone, so a row of y has the same bits in a batch of any size;
torch's library picks another kernel, or splits K, as the number of rows changes. That costs speed where rows
are few: y has few tiles then. Sums are float32, the bias joins them, and y is rounded once.

Backward: the same kernel on transposed views for x and w (the rows of x's gradient stand alone, too), torch's
sum for the bias. Bytes moved: w once per tile's rows of x, x once per tile's rows of w, most from the cache.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import needs_grad


class Matrix(NamedTuple):
    """A matrix as a kernel takes it; strides in elements."""

    data: Tensor
    row: int
    column: int


def matrix(x: Tensor) -> Matrix:
    return Matrix(x, x.stride(0), x.stride(1))


class Tile(NamedTuple):
    """M rows by N columns of the output, which one program makes in steps of K."""

    M: int
    N: int
    K: int


class Launch(NamedTuple):
    """What a kernel is compiled for."""

    tile: Tile
    num_warps: int
    num_stages: int


def launch(dtype: torch.dtype) -> Launch:
    """Unmeasured. Large, yet sm_80 does not spill, and the stages of both factors fit its 163 KiB of shared
    memory. float32, which has no tensor cores at full precision, spills there in the tile of the others."""
    return Launch(Tile(64, 64, 32), 8, 2) if dtype == torch.float32 else Launch(Tile(64, 128, 64), 8, 3)


@triton.jit
def product(acc, a, b, m, n, size, BLOCK_K: tl.constexpr):
    """acc + a b^T for the rows m of a [M, K] and n of b [N, K]; size = M, N, K; past the end lie zeros."""
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    a_ptrs = a.data + m.to(tl.int64)[:, None] * a.row + k[None, :] * a.column
    b_ptrs = b.data + n.to(tl.int64)[None, :] * b.row + k[:, None] * b.column
    for first in range(0, size[2], BLOCK_K):
        is_inside = first + k < size[2]
        a_MK = tl.load(a_ptrs, mask=(m < size[0])[:, None] & is_inside[None, :], other=0.0)
        b_KN = tl.load(b_ptrs, mask=is_inside[:, None] & (n < size[1])[None, :], other=0.0)
        acc = tl.dot(a_MK, b_KN, acc, input_precision="ieee")
        a_ptrs += BLOCK_K * a.column
        b_ptrs += BLOCK_K * b.column
    return acc


@triton.jit
def _linear(x, w, bias_ptr, y, size, ADD: tl.constexpr, tile: tl.constexpr):
    m = tl.program_id(0) * tile.M + tl.arange(0, tile.M)
    n = tl.program_id(1) * tile.N + tl.arange(0, tile.N)
    is_inside = (m < size[0])[:, None] & (n < size[1])[None, :]
    y_ptrs = y.data + m.to(tl.int64)[:, None] * y.row + n[None, :]
    acc = tl.full((tile.M, tile.N), 0.0, tl.float32)
    if ADD:
        acc += tl.load(y_ptrs, mask=is_inside, other=0.0)
    acc = product(acc, x, w, m, n, size, tile.K)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < size[1], other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptrs, acc.to(y.data.dtype.element_ty), mask=is_inside)


def matmul(x_MK: Tensor, w_NK: Tensor, y_MN: Tensor, bias_N: Tensor | None = None, add: bool = False) -> None:
    """y = x w^T + bias in place, any strides but y's last of 1; `add` (float32 y) adds to what y holds."""
    M, N = y_MN.shape
    if not M or not N:
        return
    tile, num_warps, num_stages = launch(x_MK.dtype)
    # The rows come first: programs that run together share a tile of w.
    _linear[(triton.cdiv(M, tile.M), triton.cdiv(N, tile.N))](
        matrix(x_MK), matrix(w_NK), bias_N, matrix(y_MN), (M, N, x_MK.shape[1]),
        ADD=add, tile=tile, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip


def _forward(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    check_float("linear", "x_TK", x_TK, 2)
    N, K = len(w_NK), x_TK.shape[1]
    check_like("linear", "w_NK", w_NK, x_TK.dtype, (N, K), x_TK.device)
    if bias_N is not None:
        check_like("linear", "bias_N", bias_N, x_TK.dtype, (N,), x_TK.device)
    y_TN = x_TK.new_empty((len(x_TK), N))
    matmul(x_TK, w_NK, y_TN, bias_N)
    return y_TN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TK, w_NK)
        return _forward(x_TK, w_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> Any:
        x_TK, w_NK = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        grad_x_TK = x_TK.new_empty(x_TK.shape) if needs_x else None
        grad_w_NK = w_NK.new_empty(w_NK.shape) if needs_w else None
        if grad_x_TK is not None:
            matmul(grad_TN, w_NK.t(), grad_x_TK)
        if grad_w_NK is not None:
            matmul(grad_TN.t(), x_TK.t(), grad_w_NK)
        return grad_x_TK, grad_w_NK, grad_TN.sum(0) if needs_bias else None


def linear_triton(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    if needs_grad(x_TK, w_NK, bias_N):
        y_TN: Tensor = _Linear.apply(x_TK, w_NK, bias_N)
        return y_TN
    return _forward(x_TK, w_NK, bias_N)
