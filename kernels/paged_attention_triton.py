# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""paged_attention on a GPU: decoding and chunks of prompts in one kernel.

A program computes 16 rows (more where a key head has more query heads): the query heads of one key head, of
as many tokens of one sequence as fit. Which sequence, it finds by itself: tile i of sequence b is program
q_start[b] // tokens + b + i, an idea of vLLM (vllm/attention/ops/triton_unified_attention.py). So the launch
reads no tensor on the host.

The walk over the keys is that of `attention_triton`, in stretches of 512 positions whose states are merged in
order. Where there are few rows, every stretch gets a program of its own, and a second kernel merges them in
the same order, with the same arithmetic. The tiles are the same for one token and for many: a row's order of
summation depends on its position and on nothing else.

`paged_attention_exact` runs the same kernel on the tiles of `attention_triton`, without stretches: a row then
takes the steps that it takes in training, at any position. It needs the tiles, too: on sm_90 and sm_100 the
compiler multiplies 64 rows by another instruction than 16. Decoding pays for it with tiles that are mostly
empty, and with one program for a long sequence.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rzero.kernels.attention_triton import (
    KEYS,
    Heads,
    Keys,
    Tile,
    heads,
    load_heads,
    store_heads,
    sweep,
    tile,
    tiles_of,
)
from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import reject

OP = "paged_attention"
# Programs that keep a large GPU busy; with fewer, long sequences are split. Unmeasured.
FEW_PROGRAMS = 512


class Batch(NamedTuple):
    """Page table, first rows and lengths of the sequences."""

    table: Tensor
    q_start: Tensor
    kv_len: Tensor


class Parts(NamedTuple):
    """States of rows over stretches of positions, float32: sums of values [stretches, T, H, E]; largest score
    and sum of exponentials [stretches, T, H, 2]."""

    out: Tensor
    softmax: Tensor


@triton.jit
def _merge(state, part):
    """The state over the positions of both, those of `part` being later. What is fused is spelled out: a
    compiler may make two things of a * b + c * d, and two kernels merge."""
    new_M = tl.maximum(state[0], part[0])
    base_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    fade_M, weight_M = tl.exp2(state[0] - base_M), tl.exp2(part[0] - base_M)
    sum_M = tl.fma(state[1], fade_M, part[1] * weight_M)
    return new_M, sum_M, tl.fma(state[2], fade_M[:, None], part[2] * weight_M[:, None])


@triton.jit
def _whole(q_ME, limit_M, k, v, keys, end, scale, tile: tl.constexpr):
    """The state over all positions below `end`."""
    top_M = tl.full((tile.M,), float("-inf"), tl.float32)
    sum_M = tl.full((tile.M,), 0, tl.float32)
    out_ME = tl.full((tile.M, tile.BLOCK_E), 0, tl.float32)
    for first in range(0, end, tile.STRETCH):
        span = (first, tl.minimum(first + tile.STRETCH, end))
        part = sweep(q_ME, limit_M, k, v, keys, span, scale, tile)
        top_M, sum_M, out_ME = _merge((top_M, sum_M, out_ME), part)
    return top_M, sum_M, out_ME


@triton.jit
def _rows(batch, B, T, M, tile: tl.constexpr):
    """This program's sequence, first row, rows (not positive: nothing to do), position of the first, last
    position + 1, and 1.0, or NaN where the sequence is longer than the page table is wide."""
    does_run = (tl.load(batch.q_start) == 0) & (tl.load(batch.q_start + B) == T)
    tl.device_assert(does_run, "q_start_B1 does not run from 0 to the rows of q_THE")
    program, b = tl.program_id(0), -1
    for first in range(0, B, 128):
        each = first + tl.arange(0, 128)
        start = tl.load(batch.q_start + each, mask=each < B, other=0)
        is_before = (each < B) & (start // (tile.M // tile.R) + each <= program)
        b += tl.sum(is_before.to(tl.int32), 0)
    b = tl.maximum(b, 0)
    start, end = tl.load(batch.q_start + b), tl.load(batch.q_start + b + 1)
    row = start + (program - start // (tile.M // tile.R) - b) * (tile.M // tile.R)
    length = tl.load(batch.kv_len + b)
    position, unit = length - end + row, tl.where(length <= M * tile.S, 1.0, float("nan"))
    tl.device_assert((row >= end) | (position >= 0), "a sequence has more rows than kv_len_B")
    tl.device_assert((row >= end) | (length <= M * tile.S), "kv_len_B goes beyond the page table")
    rows = tl.where(row < 0, 0, tl.minimum(tl.minimum(end, T) - row, tile.M // tile.R))
    return b, row, rows, position, tl.minimum(position + rows, M * tile.S), unit


# Sizes change from step to step, and must not make the compiler start again.
@triton.jit(do_not_specialize=["table_stride", "B", "T", "P", "M"])
def _attend(q, k, v, o, parts, batch, scale, table_stride, B, T, P, M, tile: tl.constexpr):
    b, row, rows, position, end, unit = _rows(batch, B, T, M, tile)
    if rows > 0:
        m = tl.arange(0, tile.M)
        token_M, head_M = m // tile.R, tl.program_id(1) * tile.R + m % tile.R
        limit_M = position + tl.minimum(token_M, rows - 1) + 1
        g = tl.program_id(1).to(tl.int64)
        k = Keys(k.data + g * k.head, k.outer, k.inner, k.head)
        v = Keys(v.data + g * v.head, v.outer, v.inner, v.head)
        keys = (batch.table + b.to(tl.int64) * table_stride, P)
        q_ME = load_heads(q, row + token_M, head_M, token_M < rows, tile)
        if parts is None:
            if tile.STRETCH:
                _, sum_M, out_ME = _whole(q_ME, limit_M, k, v, keys, end, scale, tile)
            else:
                _, sum_M, out_ME = sweep(q_ME, limit_M, k, v, keys, (0, end), scale, tile)
            store_heads(o, row + token_M, head_M, token_M < rows, out_ME / (sum_M * unit)[:, None], tile)
        else:
            first = tl.program_id(2) * tile.STRETCH
            if first < end:
                span = (first, tl.minimum(first + tile.STRETCH, end))
                top_M, sum_M, out_ME = sweep(q_ME, limit_M, k, v, keys, span, scale, tile)
                H = tl.num_programs(1) * tile.R
                at_M = (tl.program_id(2).to(tl.int64) * T + row + token_M) * H + head_M
                ptrs = parts.softmax + 2 * at_M
                tl.store(ptrs, top_M, mask=token_M < rows)
                tl.store(ptrs + 1, sum_M, mask=token_M < rows)
                x = Heads(parts.out, tile.E, 0)
                store_heads(x, at_M, head_M, token_M < rows, out_ME, tile)


@triton.jit(do_not_specialize=["B", "T", "M"])
def _merge_parts(o, parts, batch, B, T, M, tile: tl.constexpr):
    _, row, rows, _, end, unit = _rows(batch, B, T, M, tile)
    if rows > 0:
        m = tl.arange(0, tile.M)
        token_M, head_M = m // tile.R, tl.program_id(1) * tile.R + m % tile.R
        is_row_M, H = token_M < rows, tl.num_programs(1) * tile.R
        top_M = tl.full((tile.M,), float("-inf"), tl.float32)
        sum_M = tl.full((tile.M,), 0, tl.float32)
        out_ME = tl.full((tile.M, tile.BLOCK_E), 0, tl.float32)
        at_M = (row + token_M).to(tl.int64) * H + head_M
        for _ in range(0, end, tile.STRETCH):
            ptrs = parts.softmax + 2 * at_M
            part_top_M = tl.load(ptrs, mask=is_row_M, other=0.0)
            part_sum_M = tl.load(ptrs + 1, mask=is_row_M, other=1.0)
            part_ME = load_heads(Heads(parts.out, tile.E, 0), at_M, head_M, is_row_M, tile)
            top_M, sum_M, out_ME = _merge((top_M, sum_M, out_ME), (part_top_M, part_sum_M, part_ME))
            at_M += T.to(tl.int64) * H
        store_heads(o, row + token_M, head_M, is_row_M, out_ME / (sum_M * unit)[:, None], tile)


def _check(q_THE: Tensor, pages: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor, Tensor]) -> None:
    check_float(OP, "q_THE", q_THE, 3)
    _, H, E = q_THE.shape
    for name, x in zip(("k_pages_PSGE", "v_pages_PSGE"), pages, strict=True):
        G = x.shape[2] if x.ndim == 4 else 0
        if G == 0 or H < G or H % G:
            reject(OP, name, x, f"[P, S, G, {E}] with G a divisor of the {H} query heads")
        check_like(OP, name, x, q_THE.dtype, (*pages[0].shape[:3], E), q_THE.device)
    page_table_BM, q_start_B1, kv_len_B = batch
    if page_table_BM.ndim != 2:
        reject(OP, "page_table_BM", page_table_BM, "[B, M]")
    B, M = page_table_BM.shape
    check_like(OP, "page_table_BM", page_table_BM, torch.int32, (B, M), q_THE.device)
    check_like(OP, "q_start_B1", q_start_B1, torch.int32, (B + 1,), q_THE.device)
    check_like(OP, "kv_len_B", kv_len_B, torch.int32, (B,), q_THE.device)


class _Launch(NamedTuple):
    """What the kernel is compiled for."""

    tile: Tile
    num_warps: int
    num_stages: int


def _split(q_THE: Tensor, R: int, S: int) -> _Launch:
    """Small tiles, and stretches that several programs can share."""
    E = q_THE.shape[2]
    return _Launch(tile(16, KEYS, E, R, S), 4, 3 if E <= 64 else 2)


def _as_in_training(q_THE: Tensor, R: int, S: int) -> _Launch:
    """The tiles of `attention_triton`, and no stretches. Prefetching float32 keys would spill on sm_80."""
    sizes, stages = tiles_of(q_THE), 1 if q_THE.dtype == torch.float32 else 2
    return _Launch(tile(*sizes.forward, q_THE.shape[2], R, S)._replace(STRETCH=0), sizes.warps, stages)


def paged_attention_triton(
    q_THE: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    page_table_BM: Tensor,
    q_start_B1: Tensor,
    kv_len_B: Tensor,
    scale: float,
    *,
    launch: Callable[[Tensor, int, int], _Launch] = _split,
) -> Tensor:
    _check(q_THE, (k_pages_PSGE, v_pages_PSGE), (page_table_BM, q_start_B1, kv_len_B))
    o_THE = q_THE.new_empty(q_THE.shape)
    (T, H, E), (P, S, G, _), (B, M) = q_THE.shape, k_pages_PSGE.shape, page_table_BM.shape
    if T == 0:
        return o_THE
    how, num_warps, num_stages = launch(q_THE, H // G, S)
    programs = T // (how.M // how.R) + B
    batch = Batch(page_table_BM, q_start_B1, kv_len_B)
    keys, values = (Keys(x, *x.stride()[:3]) for x in (k_pages_PSGE, v_pages_PSGE))
    # The table's width bounds the lengths; reading them would wait for the device.
    stretches, parts = triton.cdiv(M * S, how.STRETCH) if how.STRETCH else 1, None
    if stretches > 1 and programs * G < FEW_PROGRAMS:
        out, softmax = (q_THE.new_empty((stretches, T, H, n), dtype=torch.float32) for n in (E, 2))
        parts = Parts(out, softmax)
    _attend[(programs, G, stretches if parts else 1)](
        heads(q_THE), keys, values, heads(o_THE), parts, batch, scale, page_table_BM.stride(0), B, T, P, M,
        how, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    if parts:
        _merge_parts[(programs, G)](heads(o_THE), parts, batch, B, T, M, how, num_warps=4)
    return o_THE


paged_attention_exact = partial(paged_attention_triton, launch=_as_in_training)
