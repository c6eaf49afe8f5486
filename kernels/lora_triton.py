# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""lora in Triton, forward; the contract and the backward pass, which is torch's, are in lora.py.

Two launches per part: the few numbers of u per row, then their product with b added to y. Tiles and the order
of summation are fixed, so a row does not depend on how many there are. A batch has few adapters: a launch for
each costs less than the table of addresses that a single launch would have to send to the device.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rzero.kernels.gpu import check_float
from rzero.kernels.lora import LoraPart, call, check_parts

# Small tiles: the accumulators of 16 x 64 numbers leave registers free on every architecture. Unmeasured.
ROWS = 16
BLOCK_K = 64
BLOCK_N = 64


@triton.jit
def _shrink(
    x_ptr, a_ptr, u_ptr, x_stride, rows, K, rank, scale,
    ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """u = scale * x a^T for ROWS rows; RANK is the rank, rounded up to what tl.dot takes."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, RANK)
    total = tl.zeros([ROWS, RANK], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        col = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row * x_stride + col[None, :], mask=(row < rows) & (col[None, :] < K), other=0.0)
        a_mask = (place[None, :] < rank) & (col[:, None] < K)
        a = tl.load(a_ptr + place[None, :] * K + col[:, None], mask=a_mask, other=0.0)
        total = tl.dot(x, a, total, input_precision="ieee")
    tl.store(u_ptr + row * rank + place[None, :], total * scale, mask=(row < rows) & (place[None, :] < rank))


@triton.jit
def _expand(
    u_ptr, b_ptr, y_ptr, y_stride, rows, columns, rank,
    ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y += u b^T for ROWS rows and BLOCK_N columns, in float32: u is not rounded to y's type."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, RANK)
    u = tl.load(u_ptr + row * rank + place[None, :], mask=(row < rows) & (place[None, :] < rank), other=0.0)
    b_mask = (place[:, None] < rank) & (col[None, :] < columns)
    b = tl.load(b_ptr + col[None, :] * rank + place[:, None], mask=b_mask, other=0.0).to(tl.float32)
    y_mask = (row < rows) & (col[None, :] < columns)
    y = tl.load(y_ptr + row * y_stride + col[None, :], mask=y_mask, other=0.0).to(tl.float32)
    y += tl.dot(u, b, input_precision="ieee")
    tl.store(y_ptr + row * y_stride + col[None, :], y.to(y_ptr.dtype.element_ty), mask=y_mask)


def _forward(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> list[Tensor]:
    check_float("lora", "y_TN", y_TN, 2)
    check_parts(y_TN, x_TK, parts)
    products = []
    for part in parts:
        rows, columns, (rank, K) = part.stop - part.start, part.b.shape[0], part.a.shape
        u = torch.empty((rows, rank), dtype=torch.float32, device=y_TN.device)
        products.append(u)
        if not u.numel() or not columns:
            continue
        blocks, tile = triton.cdiv(rows, ROWS), max(16, triton.next_power_of_2(rank))
        _shrink[(blocks,)](
            x_TK[part.start :], part.a, u, x_TK.stride(0), rows, K, rank, part.scale,
            ROWS=ROWS, RANK=tile, BLOCK_K=BLOCK_K,
        )  # fmt: skip
        _expand[(blocks, triton.cdiv(columns, BLOCK_N))](
            u, part.b, y_TN[part.place], y_TN.stride(0), rows, columns, rank,
            ROWS=ROWS, RANK=tile, BLOCK_N=BLOCK_N,
        )  # fmt: skip
    return products


def lora_triton(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> Tensor:
    return call(_forward, y_TN, x_TK, parts)
