# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""rope and rope_write in Triton; the contracts are in rope.py and rope_write.py.

One program per token and block of heads. Its tile holds the first half of each head's elements, and a second
one the other half, so that a pair meets in one thread. Query, key and value heads are rows of the same tile
and part at the store: keys and values go either to tensors or straight to their page slots. A position
outside of the tables gives NaN, a slot outside of the pages is not written; with TRITON_DEBUG=1 both raise.
Bytes moved: qkv is read once and written once, without the values where rope returns them as a view.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import needs_grad, reject
from rzero.kernels.rope import Qkv

TILE = 1024
"""Elements of a half-head tile: four warps of eight elements a thread. Unmeasured."""
ROWS = 16
"""Tokens whose part of the norm weights' gradients one program sums."""


@triton.jit
def _angles(pos_ptr, cos_ptr, sin_ptr, row, R, HALF, BLOCK_C: tl.constexpr):
    """cos and sin of the row's position, [1, C]."""
    pos = tl.load(pos_ptr + row)
    is_known = (pos >= 0) & (pos < R)
    tl.device_assert(is_known, "rope: pos_T must lie inside the tables")
    col = tl.arange(0, BLOCK_C)
    mask = (col < HALF) & is_known
    cos = tl.load(cos_ptr + pos * HALF + col, mask=mask, other=float("nan"))
    sin = tl.load(sin_ptr + pos * HALF + col, mask=mask, other=float("nan"))
    return cos[None, :], sin[None, :]


@triton.jit
def _norm_weights(q_norm_ptr, k_norm_ptr, is_q, HALF, BLOCK_C: tl.constexpr):
    """The norm weights of each head's two halves, [heads, C]."""
    col = tl.arange(0, BLOCK_C)
    mask = col < HALF
    q_a = tl.load(q_norm_ptr + col, mask=mask, other=0.0).to(tl.float32)[None, :]
    q_b = tl.load(q_norm_ptr + HALF + col, mask=mask, other=0.0).to(tl.float32)[None, :]
    k_a = tl.load(k_norm_ptr + col, mask=mask, other=0.0).to(tl.float32)[None, :]
    k_b = tl.load(k_norm_ptr + HALF + col, mask=mask, other=0.0).to(tl.float32)[None, :]
    return tl.where(is_q, q_a, k_a), tl.where(is_q, q_b, k_b)


@triton.jit
def _rope_forward(
    qkv_ptr, pos_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, slot_ptr, q_ptr, k_ptr, v_ptr, qkv_stride,
    k_strides, v_strides, slots, S, R, H, G, HALF, eps, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Keys and values go to slot[row] of pages of S, or to the row itself where there are no slots."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    col = tl.arange(0, BLOCK_C)[None, :]
    is_q, is_k, is_v = head < H, (head >= H) & (head < H + G), (head >= H + G) & (head < H + 2 * G)
    is_col = col < HALF
    mask = (is_q | is_k | is_v) & is_col
    at = qkv_ptr + row * qkv_stride + head * (2 * HALF) + col
    raw_a, raw_b = tl.load(at, mask=mask, other=0.0), tl.load(at + HALF, mask=mask, other=0.0)
    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)
    if q_norm_ptr is not None:
        rstd = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / (2 * HALF) + eps)[:, None]
        w_a, w_b = _norm_weights(q_norm_ptr, k_norm_ptr, is_q, HALF, BLOCK_C)
        a, b = a * rstd * w_a, b * rstd * w_b
    cos, sin = _angles(pos_ptr, cos_ptr, sin_ptr, row, R, HALF, BLOCK_C)
    turned_a, turned_b = (a * cos - b * sin).to(raw_a.dtype), (b * cos + a * sin).to(raw_a.dtype)
    q_at = q_ptr + (row * H + head) * (2 * HALF) + col
    tl.store(q_at, turned_a, mask=is_q & is_col)
    tl.store(q_at + HALF, turned_b, mask=is_q & is_col)
    slot = row
    if slot_ptr is not None:
        slot = tl.load(slot_ptr + row)
        tl.device_assert((slot >= 0) & (slot < slots), "rope_write: slot_T must lie inside the pages")
    page, place, is_there = slot // S, slot % S, is_col & (slot >= 0) & (slot < slots)
    k_at = k_ptr + page * k_strides[0] + place * k_strides[1] + (head - H) * k_strides[2] + col
    tl.store(k_at, turned_a, mask=is_k & is_there)
    tl.store(k_at + HALF, turned_b, mask=is_k & is_there)
    if v_ptr is not None:
        v_at = v_ptr + page * v_strides[0] + place * v_strides[1] + (head - H - G) * v_strides[2] + col
        tl.store(v_at, raw_a, mask=is_v & is_there)
        tl.store(v_at + HALF, raw_b, mask=is_v & is_there)


@triton.jit
def _rope_backward(
    qkv_ptr, pos_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, grad_q_ptr, grad_k_ptr, grad_v_ptr,
    grad_qkv_ptr, partial_ptr, qkv_stride, T, R, H, G, HALF, eps,
    ROWS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Turns the gradients back; with norms, n = x * rstd: dx = rstd * (g*w - n * mean(g*w*n)), dw = g*n."""
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = (part * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    col = tl.arange(0, BLOCK_C)[None, :]
    is_q, is_k, is_v = head < H, (head >= H) & (head < H + G), (head >= H + G) & (head < H + 2 * G)
    is_col = col < HALF
    mask = (is_q | is_k | is_v) & is_col
    dw_a, dw_b = tl.zeros([BLOCK_H, BLOCK_C], tl.float32), tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    for row in range(block * ROWS, tl.minimum(block * ROWS + ROWS, T)):
        q_at, k_at = (row * H + head) * (2 * HALF) + col, (row * G + head - H) * (2 * HALF) + col
        v_at = k_at - G * 2 * HALF
        g_a = tl.load(grad_q_ptr + q_at, mask=is_q & is_col, other=0.0).to(tl.float32)
        g_b = tl.load(grad_q_ptr + q_at + HALF, mask=is_q & is_col, other=0.0).to(tl.float32)
        g_a += tl.load(grad_k_ptr + k_at, mask=is_k & is_col, other=0.0).to(tl.float32)
        g_b += tl.load(grad_k_ptr + k_at + HALF, mask=is_k & is_col, other=0.0).to(tl.float32)
        v_a = tl.load(grad_v_ptr + v_at, mask=is_v & is_col, other=0.0).to(tl.float32)
        v_b = tl.load(grad_v_ptr + v_at + HALF, mask=is_v & is_col, other=0.0).to(tl.float32)
        cos, sin = _angles(pos_ptr, cos_ptr, sin_ptr, row, R, HALF, BLOCK_C)
        g_a, g_b = g_a * cos + g_b * sin, g_b * cos - g_a * sin
        if q_norm_ptr is not None:
            at = qkv_ptr + row * qkv_stride + head * (2 * HALF) + col
            a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
            rstd = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / (2 * HALF) + eps)[:, None]
            a, b = a * rstd, b * rstd
            dw_a += tl.where(is_col, g_a * a, 0.0)
            dw_b += tl.where(is_col, g_b * b, 0.0)
            w_a, w_b = _norm_weights(q_norm_ptr, k_norm_ptr, is_q, HALF, BLOCK_C)
            g_a, g_b = tl.where(is_col, g_a * w_a, 0.0), tl.where(is_col, g_b * w_b, 0.0)
            mean = (tl.sum(g_a * a + g_b * b, axis=1) / (2 * HALF))[:, None]
            g_a, g_b = rstd * (g_a - a * mean), rstd * (g_b - b * mean)
        to = grad_qkv_ptr + row * (H + 2 * G) * (2 * HALF) + head * (2 * HALF) + col
        tl.store(to, tl.where(is_v, v_a, g_a).to(grad_qkv_ptr.dtype.element_ty), mask=mask)
        tl.store(to + HALF, tl.where(is_v, v_b, g_b).to(grad_qkv_ptr.dtype.element_ty), mask=mask)
    if q_norm_ptr is not None:
        to = partial_ptr + (block * tl.num_programs(1) + part) * (4 * HALF) + tl.arange(0, BLOCK_C)
        is_col = tl.arange(0, BLOCK_C) < HALF
        tl.store(to, tl.sum(tl.where(is_q, dw_a, 0.0), axis=0), mask=is_col)
        tl.store(to + HALF, tl.sum(tl.where(is_q, dw_b, 0.0), axis=0), mask=is_col)
        tl.store(to + 2 * HALF, tl.sum(tl.where(is_k, dw_a, 0.0), axis=0), mask=is_col)
        tl.store(to + 3 * HALF, tl.sum(tl.where(is_k, dw_b, 0.0), axis=0), mask=is_col)


class _Inputs(NamedTuple):
    """The checked arguments; the norms are both there or both None."""

    qkv_TX: Tensor
    pos_T: Tensor
    cos_RE: Tensor
    sin_RE: Tensor
    q_norm_E: Tensor | None
    k_norm_E: Tensor | None


class _Sizes(NamedTuple):
    heads: int
    kv_heads: int
    eps: float


class _Pages(NamedTuple):
    """Where keys and values go: slot_T None means to the row of the token."""

    slot_T: Tensor | None
    k_PSGE: Tensor
    v_PSGE: Tensor | None


def _check(op: str, x: _Inputs, sizes: _Sizes) -> None:
    check_float(op, "qkv_TX", x.qkv_TX, 2)
    device, T = x.qkv_TX.device, x.qkv_TX.shape[0]
    if x.cos_RE.ndim != 2:
        reject(op, "cos_RE", x.cos_RE, "a contiguous [positions, E/2] table")
    R, half = x.cos_RE.shape
    for name, table in (("cos_RE", x.cos_RE), ("sin_RE", x.sin_RE)):
        check_like(op, name, table, torch.float32, (R, half), device)
        if not table.is_contiguous():
            reject(op, name, table, "a contiguous [positions, E/2] table")
    if (sizes.heads + 2 * sizes.kv_heads) * 2 * half != x.qkv_TX.shape[1]:
        expected = f"[T, ({sizes.heads} + 2 * {sizes.kv_heads}) * {2 * half}]"
        reject(op, "qkv_TX", x.qkv_TX, expected)
    check_like(op, "pos_T", x.pos_T, torch.int64, (T,), device)
    if (x.q_norm_E is None) != (x.k_norm_E is None):
        raise ValueError(f"{op}: q_norm_E and k_norm_E must both be given or both be None")
    for name, w_E in (("q_norm_E", x.q_norm_E), ("k_norm_E", x.k_norm_E)):
        if w_E is not None:
            check_like(op, name, w_E, x.qkv_TX.dtype, (2 * half,), device)


def _tile(half: int, heads: int) -> dict[str, int]:
    """All heads, or as many as make TILE elements."""
    columns = triton.next_power_of_2(half)
    rows = min(triton.next_power_of_2(heads), max(TILE // columns, 1))
    return {"BLOCK_H": rows, "BLOCK_C": columns, "num_warps": min(max(rows * columns // 256, 1), 4)}


def _forward(x: _Inputs, sizes: _Sizes, pages: _Pages) -> Tensor:
    """q_THE; keys, and values where pages has a place for them, are written there."""
    T, (R, half) = x.qkv_TX.shape[0], x.cos_RE.shape
    q_THE = x.qkv_TX.new_empty((T, sizes.heads, 2 * half))
    P, S = pages.k_PSGE.shape[:2]
    rows = sizes.heads + (1 if pages.v_PSGE is None else 2) * sizes.kv_heads
    tile = _tile(half, rows)
    if T:
        _rope_forward[(T, triton.cdiv(rows, tile["BLOCK_H"]))](
            *x, pages.slot_T, q_THE, pages.k_PSGE, pages.v_PSGE, x.qkv_TX.stride(0),
            pages.k_PSGE.stride()[:3], (0, 0, 0) if pages.v_PSGE is None else pages.v_PSGE.stride()[:3],
            P * S, S, R, sizes.heads, sizes.kv_heads, half, sizes.eps, **tile,
        )  # fmt: skip
    return q_THE


def _rows(x: _Inputs, sizes: _Sizes, has_values: bool) -> Qkv:
    """New tensors for keys and values as pages of one token; without `has_values` v is a view of qkv."""
    T, E = x.qkv_TX.shape[0], 2 * x.cos_RE.shape[1]
    k_TGE = x.qkv_TX.new_empty((T, sizes.kv_heads, E))
    if has_values:
        v_TGE = torch.empty_like(k_TGE)
    else:
        v_TGE = x.qkv_TX[:, (sizes.heads + sizes.kv_heads) * E :].unflatten(1, (sizes.kv_heads, E))
    pages = _Pages(None, k_TGE[:, None], v_TGE[:, None] if has_values else None)
    return Qkv(_forward(x, sizes, pages), k_TGE, v_TGE)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: _Sizes, *tensors: Tensor | None) -> Any:
        x = _Inputs(*tensors)  # type: ignore[arg-type]
        ctx.save_for_backward(*tensors)
        ctx.sizes = sizes
        return tuple(_rows(x, sizes, has_values=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, sizes = _Inputs(*ctx.saved_tensors), ctx.sizes
        T, (R, half) = x.qkv_TX.shape[0], x.cos_RE.shape
        grad_qkv_TX = x.qkv_TX.new_empty(x.qkv_TX.shape)
        rows = sizes.heads + 2 * sizes.kv_heads
        tile = _tile(half, rows)
        grid = (triton.cdiv(T, ROWS), triton.cdiv(rows, tile["BLOCK_H"]))
        partial = x.qkv_TX.new_empty((*grid, 2, 2 * half), dtype=torch.float32)
        if T:
            _rope_backward[grid](
                *x, *(grad.contiguous() for grad in grads), grad_qkv_TX, partial, x.qkv_TX.stride(0), T, R,
                sizes.heads, sizes.kv_heads, half, sizes.eps, ROWS=ROWS, **tile,
            )  # fmt: skip
        if x.q_norm_E is None:
            return None, grad_qkv_TX, None, None, None, None, None
        return None, grad_qkv_TX, None, None, None, *partial.sum((0, 1)).to(x.qkv_TX.dtype)


def rope_triton(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    *,
    eps: float,
) -> Qkv:
    x, sizes = _Inputs(qkv_TX, pos_T, cos_RE, sin_RE, q_norm_E, k_norm_E), _Sizes(heads, kv_heads, eps)
    _check("rope", x, sizes)
    if needs_grad(qkv_TX, q_norm_E, k_norm_E):
        return Qkv(*_Rope.apply(sizes, *x))
    return _rows(x, sizes, has_values=False)


def rope_write_triton(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    *,
    slot_T: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    eps: float,
) -> Tensor:
    op = "rope_write"
    x, sizes = _Inputs(qkv_TX, pos_T, cos_RE, sin_RE, q_norm_E, k_norm_E), _Sizes(heads, kv_heads, eps)
    _check(op, x, sizes)
    if needs_grad(qkv_TX, q_norm_E, k_norm_E):
        raise ValueError("rope_write has no gradient: call rope and kv_write")
    check_float(op, "k_pages_PSGE", k_pages_PSGE, 4)
    shape = (*k_pages_PSGE.shape[:2], kv_heads, 2 * cos_RE.shape[1])
    for name, pages in (("k_pages_PSGE", k_pages_PSGE), ("v_pages_PSGE", v_pages_PSGE)):
        check_like(op, name, pages, qkv_TX.dtype, shape, qkv_TX.device)
    check_like(op, "slot_T", slot_T, torch.int64, (len(qkv_TX),), qkv_TX.device)
    return _forward(x, sizes, _Pages(slot_T, k_pages_PSGE, v_pages_PSGE))
