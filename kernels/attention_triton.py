# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""attention on a GPU, forward and backward. `paged_attention_triton` uses the same sweep over the keys.

A program computes a tile of rows (tokens times the R query heads of one key head) and walks over the keys in
tiles of N positions, counted from 0, with an online softmax in base 2 (FlashAttention-2, 2307.08691). The
order of a row's sums therefore depends on its position alone; a tile of keys that is hidden from a row leaves
its state as it is. The state is float32, and so is every sum.
The weights, and their gradients, are rounded to q's type before they meet values, keys or queries, as tensor
cores want it.

Backward: sum(p * dp) is summed over the keys, in a first walk, and not taken as do . o (see
csrc/attention_backward.cpp). The gradients of a tile of keys are summed by one program over the rows that see
it, segment after segment in their order: no atomics, the same bits every time.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.attention import Segments
from rzero.kernels.attention_plan import Row, key_tiles, parsed, row_tiles
from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import needs_grad, reject

OP = "attention"


class Heads(NamedTuple):
    """[rows, heads, E] as a kernel takes it; strides in elements."""

    data: Tensor
    row: int
    head: int


class Keys(NamedTuple):
    """Keys or values: the strides of rows and 0, or those of pages and of the slots in a page."""

    data: Tensor
    outer: int
    inner: int
    head: int


class Tile(NamedTuple):
    """What a kernel is compiled for: M rows by N keys at a time, heads of E elements padded to BLOCK_E, R
    query heads per key head, pages of S tokens (0: packed), STRETCH positions between merges (of pages;
    0: none).
    """

    M: int
    N: int
    E: int
    BLOCK_E: int
    R: int
    S: int
    STRETCH: int = 512


def tile(M: int, N: int, E: int, R: int, S: int = 0) -> Tile:
    """M grows to hold one token's heads; 16 is the least that tl.dot takes."""
    return Tile(max(M, triton.next_power_of_2(R)), N, E, max(16, triton.next_power_of_2(E)), R, S)


# Keys per tile of the forward kernels, here and of pages, so that both sum in the same order.
KEYS = 64


class Tiles(NamedTuple):
    """M and N of the three kernels, and their warps."""

    forward: tuple[int, int]
    query_grad: tuple[int, int]
    key_grad: tuple[int, int]
    warps: int


def tiles_of(q_THE: Tensor) -> Tiles:
    """Unmeasured: the largest found with which nothing spills on sm_80, sm_90 and sm_100. Float32 at full
    precision has no tensor cores, and its operands stay in registers."""
    if q_THE.dtype == torch.float32:
        return Tiles((32, KEYS), (32, 64), (16, 16), 8)
    if q_THE.shape[2] > 64:
        # Masked lanes of a head size such as 96 take registers too.
        is_masked = q_THE.shape[2] & (q_THE.shape[2] - 1)
        return Tiles((64, KEYS), (64, 32), (32, 32 if is_masked else 64), 8)
    return Tiles((64, KEYS), (64, 64), (32, 64), 4)


@triton.jit
def load_heads(x, row_M, head_M, is_row_M, tile: tl.constexpr):
    e = tl.arange(0, tile.BLOCK_E)
    ptrs = x.data + (row_M.to(tl.int64) * x.row + head_M.to(tl.int64) * x.head)[:, None] + e[None, :]
    return tl.load(ptrs, mask=is_row_M[:, None] & (e < tile.E)[None, :], other=0.0)


@triton.jit
def store_heads(x, row_M, head_M, is_row_M, value_ME, tile: tl.constexpr):
    e = tl.arange(0, tile.BLOCK_E)
    ptrs = x.data + (row_M.to(tl.int64) * x.row + head_M.to(tl.int64) * x.head)[:, None] + e[None, :]
    tl.store(ptrs, value_ME.to(x.data.dtype.element_ty), mask=is_row_M[:, None] & (e < tile.E)[None, :])


@triton.jit
def sweep(q_ME, limit_M, k, v, keys, span, scale, tile: tl.constexpr):
    """The state of rows that see the positions of `span` below their limit: largest score times log2(e), sum
    of exponentials, weighted sum of values. `keys`: the sequence's row of the page table and the number of
    pages (one that is not there makes NaN); packed, the prefix's first row and length and the first own row.
    """
    e = tl.arange(0, tile.BLOCK_E)
    top_M = tl.full((tile.M,), float("-inf"), tl.float32)
    sum_M = tl.full((tile.M,), 0, tl.float32)
    out_ME = tl.full((tile.M, tile.BLOCK_E), 0, tl.float32)
    for first in range(span[0], span[1], tile.N):
        n = first + tl.arange(0, tile.N)
        is_key = n < span[1]
        if tile.S:
            page_N = tl.load(keys[0] + n // tile.S, mask=is_key, other=0)
            is_page_N = (page_N >= 0) & (page_N < keys[1])
            tl.device_assert(is_page_N | (n >= span[1]), "page_table_BM names no page")
            is_key = is_key & is_page_N
            k_N = page_N.to(tl.int64) * k.outer + (n % tile.S).to(tl.int64) * k.inner
            v_N = page_N.to(tl.int64) * v.outer + (n % tile.S).to(tl.int64) * v.inner
        else:
            row_N = tl.where(n < keys[1], keys[0] + n, keys[2] + n - keys[1]).to(tl.int64)
            k_N, v_N = row_N * k.outer, row_N * v.outer
        is_inside = is_key[:, None] & (e < tile.E)[None, :]
        k_NE = tl.load(k.data + k_N[:, None] + e[None, :], mask=is_inside, other=0.0)
        v_NE = tl.load(v.data + v_N[:, None] + e[None, :], mask=is_inside, other=0.0)
        score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee") * (scale * 1.4426950408889634)
        if tile.S:
            score_MN = tl.where((is_page_N | (n >= span[1]))[None, :], score_MN, float("nan"))
        score_MN = tl.where(n[None, :] < limit_M[:, None], score_MN, float("-inf"))
        new_M = tl.maximum(top_M, tl.max(score_MN, 1))
        # A row that has seen nothing yet has no largest score, and -inf - -inf is NaN.
        base_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        p_MN = tl.exp2(score_MN - base_M[:, None])
        fade_M = tl.exp2(top_M - base_M)
        sum_M = tl.fma(sum_M, fade_M, tl.sum(p_MN, 1))
        out_ME = tl.dot(p_MN.to(v_NE.dtype), v_NE, out_ME * fade_M[:, None], input_precision="ieee")
        top_M = new_M
    return top_M, sum_M, out_ME


@triton.jit
def _rows(tiles, tile: tl.constexpr):
    """This program's rows: row, head and limit of each, whether it is one, and where their keys lie."""
    info = tiles + tl.program_id(0) * 6
    row, rows, position = tl.load(info), tl.load(info + 1), tl.load(info + 2)
    m = tl.arange(0, tile.M)
    token_M, head_M = m // tile.R, tl.program_id(1) * tile.R + m % tile.R
    limit_M = position + tl.minimum(token_M, rows - 1) + 1
    keys = (tl.load(info + 3), tl.load(info + 4), tl.load(info + 5))
    return row + token_M, head_M, limit_M, token_M < rows, position + rows, keys


@triton.jit
def _forward(q, k, v, o, softmax, tiles, scale, tile: tl.constexpr):
    row_M, head_M, limit_M, is_row_M, end, keys = _rows(tiles, tile)
    g = tl.program_id(1).to(tl.int64)
    k = Keys(k.data + g * k.head, k.outer, k.inner, k.head)
    v = Keys(v.data + g * v.head, v.outer, v.inner, v.head)
    q_ME = load_heads(q, row_M, head_M, is_row_M, tile)
    top_M, sum_M, out_ME = sweep(q_ME, limit_M, k, v, keys, (0, end), scale, tile)
    store_heads(o, row_M, head_M, is_row_M, out_ME / sum_M[:, None], tile)
    if softmax is not None:
        saved = softmax + 2 * (row_M.to(tl.int64) * (tl.num_programs(1) * tile.R) + head_M)
        tl.store(saved, top_M, mask=is_row_M)
        tl.store(saved + 1, 1.0 / sum_M, mask=is_row_M)


@triton.jit
def _weights(q_ME, k_NE, is_seen_MN, top_M, inverse_M, scale):
    score_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee") * (scale * 1.4426950408889634)
    score_MN = tl.where(is_seen_MN, score_MN, float("-inf"))
    return tl.exp2(score_MN - top_M[:, None]) * inverse_M[:, None]


@triton.jit
def _query_grad(q, k, v, grad, saved, tiles, scale, tile: tl.constexpr):
    """grad: of o, and of q, which is stored; saved: softmax, and delta = sum(p * dp), which is stored."""
    row_M, head_M, limit_M, is_row_M, end, keys = _rows(tiles, tile)
    g = tl.program_id(1).to(tl.int64)
    head_N = tl.full((tile.N,), 0, tl.int64) + g
    q_ME = load_heads(q, row_M, head_M, is_row_M, tile)
    do_ME = load_heads(grad[0], row_M, head_M, is_row_M, tile)
    at_M = row_M.to(tl.int64) * (tl.num_programs(1) * tile.R) + head_M
    top_M = tl.load(saved[0] + 2 * at_M, mask=is_row_M, other=0.0)
    inverse_M = tl.load(saved[0] + 2 * at_M + 1, mask=is_row_M, other=0.0)
    delta_M = tl.full((tile.M,), 0, tl.float32)
    for first in range(0, end, tile.N):
        n = first + tl.arange(0, tile.N)
        row_N = tl.where(n < keys[1], keys[0] + n, keys[2] + n - keys[1])
        k_NE = load_heads(k, row_N, head_N, n < end, tile)
        v_NE = load_heads(v, row_N, head_N, n < end, tile)
        p_MN = _weights(q_ME, k_NE, n[None, :] < limit_M[:, None], top_M, inverse_M, scale)
        delta_M += tl.sum(p_MN * tl.dot(do_ME, tl.trans(v_NE), input_precision="ieee"), 1)
    tl.store(saved[1] + at_M, delta_M, mask=is_row_M)
    dq_ME = tl.full((tile.M, tile.BLOCK_E), 0, tl.float32)
    for first in range(0, end, tile.N):
        n = first + tl.arange(0, tile.N)
        row_N = tl.where(n < keys[1], keys[0] + n, keys[2] + n - keys[1])
        k_NE = load_heads(k, row_N, head_N, n < end, tile)
        v_NE = load_heads(v, row_N, head_N, n < end, tile)
        p_MN = _weights(q_ME, k_NE, n[None, :] < limit_M[:, None], top_M, inverse_M, scale)
        ds_MN = p_MN * (tl.dot(do_ME, tl.trans(v_NE), input_precision="ieee") - delta_M[:, None])
        dq_ME = tl.dot(ds_MN.to(k_NE.dtype), k_NE, dq_ME, input_precision="ieee")
    store_heads(grad[1], row_M, head_M, is_row_M, dq_ME * scale, tile)


@triton.jit
def _key_grad(q, k, v, grad, saved, plan, scale, tile: tl.constexpr):
    """grad: of o, and of k and v, which are stored; saved: softmax, delta; plan: tiles of keys, readers."""
    info = plan[0] + tl.program_id(0) * 4
    first_row, keys = tl.load(info), tl.load(info + 1)
    n = tl.arange(0, tile.N)
    row_N, head_N = first_row + n, tl.full((tile.N,), 0, tl.int32) + tl.program_id(1)
    k_NE = load_heads(k, row_N, head_N, n < keys, tile)
    v_NE = load_heads(v, row_N, head_N, n < keys, tile)
    dk_NE = tl.full((tile.N, tile.BLOCK_E), 0, tl.float32)
    dv_NE = tl.full((tile.N, tile.BLOCK_E), 0, tl.float32)
    m = tl.arange(0, tile.M)
    head_M = tl.program_id(1) * tile.R + m % tile.R
    for i in range(tl.load(info + 2), tl.load(info + 3)):
        reader = plan[1] + i * 5
        end, shift = tl.load(reader + 1), tl.load(reader + 4)
        is_seen_N = (row_N >= tl.load(reader + 2)) & (row_N < tl.load(reader + 3))
        for row in range(tl.load(reader), end, tile.M // tile.R):
            row_M = row + m // tile.R
            is_row_M = (row_M < end) & (m < tile.M // tile.R * tile.R)
            q_ME = load_heads(q, row_M, head_M, is_row_M, tile)
            do_ME = load_heads(grad[0], row_M, head_M, is_row_M, tile)
            at_M = row_M.to(tl.int64) * (tl.num_programs(1) * tile.R) + head_M
            top_M = tl.load(saved[0] + 2 * at_M, mask=is_row_M, other=0.0)
            inverse_M = tl.load(saved[0] + 2 * at_M + 1, mask=is_row_M, other=0.0)
            delta_M = tl.load(saved[1] + at_M, mask=is_row_M, other=0.0)
            is_seen_MN = is_seen_N[None, :] & (row_N[None, :] <= (row_M + shift)[:, None])
            p_MN = _weights(q_ME, k_NE, is_seen_MN, top_M, inverse_M, scale)
            dv_NE = tl.dot(tl.trans(p_MN.to(do_ME.dtype)), do_ME, dv_NE, input_precision="ieee")
            ds_MN = p_MN * (tl.dot(do_ME, tl.trans(v_NE), input_precision="ieee") - delta_M[:, None])
            dk_NE = tl.dot(tl.trans(ds_MN.to(q_ME.dtype)), q_ME, dk_NE, input_precision="ieee")
    store_heads(grad[1], row_N, head_N, n < keys, dk_NE * scale, tile)
    store_heads(grad[2], row_N, head_N, n < keys, dv_NE, tile)


# ---- launchers


def _check(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> None:
    check_float(OP, "q_THE", q_THE, 3)
    T, H, E = q_THE.shape
    G = k_TGE.shape[1] if k_TGE.ndim == 3 else 0
    if G == 0 or H < G or H % G:
        reject(OP, "k_TGE", k_TGE, f"[{T}, G, {E}] with G a divisor of the {H} query heads")
    for name, x in (("k_TGE", k_TGE), ("v_TGE", v_TGE)):
        check_like(OP, name, x, q_THE.dtype, (T, G, E), q_THE.device)


def heads(x: Tensor) -> Heads:
    return Heads(x, x.stride(0), x.stride(1))


def _keys(x: Tensor) -> Keys:
    return Keys(x, x.stride(0), 0, x.stride(1))


def _run(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rows: tuple[Row, ...], scale: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """o, and where asked for each row's largest score times log2(e) and 1 / sum of exponentials."""
    G, R = k_TGE.shape[1], q_THE.shape[1] // k_TGE.shape[1]
    o_THE = q_THE.new_empty(q_THE.shape)
    softmax_TH2 = q_THE.new_empty((*q_THE.shape[:2], 2), dtype=torch.float32) if keep else None
    if len(q_THE):
        sizes = tiles_of(q_THE)
        how = tile(*sizes.forward, q_THE.shape[2], R)
        tiles = row_tiles(rows, how.M // R, q_THE.device)
        _forward[(len(tiles), G)](
            heads(q_THE), _keys(k_TGE), _keys(v_TGE), heads(o_THE), softmax_TH2, tiles, scale, how,
            num_warps=sizes.warps, num_stages=2,
        )  # fmt: skip
    return o_THE, softmax_TH2


def _grads(
    saved: tuple[Tensor, ...], rows: tuple[Row, ...], scale: float, grad_o_THE: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q_THE, k_TGE, v_TGE, softmax_TH2 = saved
    (T, H, E), G = q_THE.shape, k_TGE.shape[1]
    grad_q_THE, grad_k_TGE, grad_v_TGE = (x.new_empty(x.shape) for x in (q_THE, k_TGE, v_TGE))
    if T == 0:
        return grad_q_THE, grad_k_TGE, grad_v_TGE
    delta_TH = q_THE.new_empty((T, H), dtype=torch.float32)
    sizes = tiles_of(q_THE)
    how = tile(*sizes.query_grad, E, H // G)
    grad_o, inputs = heads(grad_o_THE.contiguous()), (heads(q_THE), heads(k_TGE), heads(v_TGE))
    tiles = row_tiles(rows, how.M // how.R, q_THE.device)
    _query_grad[(len(tiles), G)](
        *inputs, (grad_o, heads(grad_q_THE)), (softmax_TH2, delta_TH), tiles, scale, how,
        num_warps=sizes.warps, num_stages=2,
    )  # fmt: skip
    how = tile(*sizes.key_grad, E, H // G)
    plan = key_tiles(rows, how.N, q_THE.device)
    _key_grad[(len(plan[0]), G)](
        *inputs, (grad_o, heads(grad_k_TGE), heads(grad_v_TGE)), (softmax_TH2, delta_TH), plan, scale, how,
        num_warps=sizes.warps, num_stages=2,
    )  # fmt: skip
    return grad_q_THE, grad_k_TGE, grad_v_TGE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rows: tuple[Row, ...], scale: float
    ) -> Tensor:
        o_THE, softmax_TH2 = _run(q_THE, k_TGE, v_TGE, rows, scale, keep=True)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, softmax_TH2)
        ctx.rows, ctx.scale = rows, scale
        return o_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o_THE: Tensor) -> Any:
        return *_grads(ctx.saved_tensors, ctx.rows, ctx.scale, grad_o_THE), None, None


def attention_triton(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float) -> Tensor:
    _check(q_THE, k_TGE, v_TGE)
    rows = parsed(segments, len(q_THE))
    if needs_grad(q_THE, k_TGE, v_TGE):
        o_THE: Tensor = _Attention.apply(q_THE, k_TGE, v_TGE, rows, scale)
        return o_THE
    return _run(q_THE, k_TGE, v_TGE, rows, scale, keep=False)[0]
