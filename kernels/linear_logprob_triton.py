# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""linear_logprob on a GPU: logits live one tile at a time, in registers, and never reach memory in forward.

Forward. One program takes a tile of rows and 2,048 tokens of the vocabulary, tile by tile: largest logit,
mass, moment (sum of y e^y) and the target's logit, rescaled as the largest grows. A second kernel joins the
parts of a row, in their order. Tiles and order depend on the type, D and V alone, so a row has the same bits
in a batch of any size. They agree with `sample` within rounding, not bit for bit: the order is another one.

Backward. For one stretch of the vocabulary after the other: recompute its logits, form
(onehot - softmax) * grad / temperature in h's type, at most `chunk_bytes` of it; h's gradient adds to a
float32 [T, D], each tile of it owned by one program; w's is written once. No atomics: the same bits every
time; the rows of h's gradient, which add up in the order of the vocabulary, do not depend on the batch. The
logits are recomputed once: to keep them in registers, each of the two products would need them again, per
slice of D.

Extra memory: forward T * V / 128 bytes, backward chunk_bytes and the float32 gradient of h.
A target outside 0..V-1 gives NaN: to refuse it would mean to wait for the GPU; with TRITON_DEBUG=1 it raises.
A temperature below 1e-38 is out of range.

Credit: Wijmans et al., Cut Your Losses, 2411.09009; the chunks: Liger-Kernel.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.linear_logprob import CHUNK_BYTES
from rzero.kernels.linear_triton import launch, matmul, matrix, product
from rzero.kernels.native import needs_grad

PART = 2048
"""Tokens per program: 75 programs for one tile of rows and V = 151,936. Unmeasured."""


class _Rows(NamedTuple):
    """What backward knows of each row; `grad` is that of its log-prob."""

    target: Tensor
    top: Tensor
    mass: Tensor
    grad: Tensor


@triton.jit
def _logits(h, w, t, v, size, tile: tl.constexpr):
    """Logits of rows t and tokens v, rounded to h's type as when sampling; -inf past the vocabulary."""
    acc = product(tl.full((tile.M, tile.N), 0.0, tl.float32), h, w, t, v, size, tile.K)
    return tl.where((v < size[1])[None, :], acc.to(h.data.dtype.element_ty).to(tl.float32), float("-inf"))


@triton.jit
def _anchor(top):
    """What to subtract from logits: -inf minus -inf would be NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _shift(old, new, inverse):
    """How far y falls as the largest logit rises. e^-10,000 is 0, and 0 times it is not NaN as for -inf."""
    return tl.maximum((old - _anchor(new)) * inverse, -10_000.0)


@triton.jit
def _forward_part(h, w, target_ptr, part_ptr, size, inverse, PART: tl.constexpr, tile: tl.constexpr):
    """part_ptr [parts, 4, T]: largest logit, mass, moment, the target's logit of a part; size = T, V, D."""
    t = tl.program_id(0) * tile.M + tl.arange(0, tile.M)
    target = tl.load(target_ptr + t, mask=t < size[0], other=-1).to(tl.int32)
    top = tl.full((tile.M,), float("-inf"), tl.float32)
    mass = tl.full((tile.M,), 0.0, tl.float32)
    moment = tl.full((tile.M,), 0.0, tl.float32)
    hit = tl.full((tile.M,), 0.0, tl.float32)
    begin = tl.program_id(1) * PART
    for first in range(begin, tl.minimum(begin + PART, size[1]), tile.N):
        v = first + tl.arange(0, tile.N)
        x = _logits(h, w, t, v, size, tile)
        new_top = tl.maximum(top, tl.max(x, 1))
        shift = _shift(top, new_top, inverse)
        y = (x - _anchor(new_top)[:, None]) * inverse
        e = tl.exp(y)
        moment = tl.exp(shift) * (moment + shift * mass) + tl.sum(tl.where(e > 0, e * y, 0.0), 1)
        mass = tl.exp(shift) * mass + tl.sum(e, 1)
        hit += tl.sum(tl.where(target[:, None] == v[None, :], x, 0.0), 1)
        top = new_top
    out_ptrs = part_ptr + tl.program_id(1).to(tl.int64) * 4 * size[0] + t
    tl.store(out_ptrs, top, mask=t < size[0])
    tl.store(out_ptrs + size[0], mass, mask=t < size[0])
    tl.store(out_ptrs + 2 * size[0], moment, mask=t < size[0])
    tl.store(out_ptrs + 3 * size[0], hit, mask=t < size[0])


@triton.jit
def _forward_join(part_ptr, target_ptr, out, T, V, parts, inverse, BLOCK: tl.constexpr):
    """out: logp, entropy, largest logit and mass, each [T]."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = t < T
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    hit = tl.zeros((BLOCK,), tl.float32)
    in_ptrs = part_ptr + t
    for _ in range(parts):
        part_top = tl.load(in_ptrs, mask=is_row, other=0.0)
        part_mass = tl.load(in_ptrs + T, mask=is_row, other=0.0)
        part_moment = tl.load(in_ptrs + 2 * T, mask=is_row, other=0.0)
        hit += tl.load(in_ptrs + 3 * T, mask=is_row, other=0.0)
        new_top = tl.maximum(top, part_top)
        shift, part_shift = _shift(top, new_top, inverse), _shift(part_top, new_top, inverse)
        fade, weight = tl.exp(shift), tl.exp(part_shift)
        moment = fade * (moment + shift * mass) + weight * (part_moment + part_shift * part_mass)
        mass = fade * mass + weight * part_mass
        top = new_top
        in_ptrs += 4 * T
    target = tl.load(target_ptr + t, mask=is_row, other=0)
    is_token = (target >= 0) & (target < V)
    tl.device_assert(is_token, "linear_logprob: target_T must be tokens of the vocabulary")
    logp = (hit - _anchor(top)) * inverse - tl.log(mass)
    tl.store(out[0] + t, tl.where(is_token, logp, float("nan")), mask=is_row)
    tl.store(out[1] + t, tl.log(mass) - moment / mass, mask=is_row)
    tl.store(out[2] + t, top, mask=is_row)
    tl.store(out[3] + t, mass, mask=is_row)


@triton.jit
def _slope(h, w, rows, d_ptr, size, begin, inverse, tile: tl.constexpr):
    """d_ptr [T, V]: the gradient of the logits of V tokens, the first of which is token `begin`."""
    t = tl.program_id(0) * tile.M + tl.arange(0, tile.M)
    v = tl.program_id(1) * tile.N + tl.arange(0, tile.N)
    is_row = t < size[0]
    x = _logits(h, w, t, v, size, tile)
    target = tl.load(rows.target + t, mask=is_row, other=0).to(tl.int32) - begin
    top = tl.load(rows.top + t, mask=is_row, other=0.0)
    mass = tl.load(rows.mass + t, mask=is_row, other=1.0)
    slope = tl.load(rows.grad + t, mask=is_row, other=0.0) * inverse
    p = tl.exp((x - _anchor(top)[:, None]) * inverse) * (1.0 / mass)[:, None]
    d = slope[:, None] * (tl.where(target[:, None] == v[None, :], 1.0, 0.0) - p)
    # A token that the loss ignores, whatever its logits are.
    d = tl.where((slope == 0)[:, None], 0.0, d)
    d_ptrs = d_ptr + t.to(tl.int64)[:, None] * size[1] + v[None, :]
    tl.store(d_ptrs, d.to(d_ptr.dtype.element_ty), mask=is_row[:, None] & (v < size[1])[None, :])


class _How(NamedTuple):
    temperature: float
    chunk_bytes: int


class _Scored(NamedTuple):
    """What a forward pass leaves: the results, and each row's largest logit and mass for backward."""

    logp_T: Tensor
    entropy_T: Tensor
    top_T: Tensor
    mass_T: Tensor


def _check(h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float) -> None:
    check_float("linear_logprob", "h_TD", h_TD, 2)
    T, D = h_TD.shape
    check_like("linear_logprob", "w_VD", w_VD, h_TD.dtype, (len(w_VD), D), h_TD.device)
    check_like("linear_logprob", "target_T", target_T, torch.int64, (T,), h_TD.device)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"linear_logprob: temperature is {temperature}; it must be finite and above 0")


def _forward(h_TD: Tensor, w_VD: Tensor, target_T: Tensor, how: _How) -> _Scored:
    _check(h_TD, w_VD, target_T, how.temperature)
    (T, D), V = h_TD.shape, len(w_VD)
    out = _Scored(*torch.empty((4, T), dtype=torch.float32, device=h_TD.device).unbind())
    if not T:
        return out
    how_launched, inverse = launch(h_TD.dtype), 1 / how.temperature
    tile, parts = how_launched.tile, triton.cdiv(V, PART)
    part_P4T = torch.empty((parts, 4, T), dtype=torch.float32, device=h_TD.device)
    # The rows come first: programs that run together share a stretch of w.
    _forward_part[(triton.cdiv(T, tile.M), parts)](
        matrix(h_TD), matrix(w_VD), target_T, part_P4T, (T, V, D), inverse, PART=PART, tile=tile,
        num_warps=how_launched.num_warps, num_stages=how_launched.num_stages,
    )  # fmt: skip
    _forward_join[(triton.cdiv(T, 32),)](
        part_P4T, target_T, out, T, V, parts, inverse, BLOCK=32, num_warps=1
    )  # fmt: skip
    return out


def _backward(
    h_TD: Tensor, w_VD: Tensor, rows: _Rows, how: _How, needs: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of h and w, each where needed."""
    (T, D), V, (tile, num_warps, num_stages) = h_TD.shape, len(w_VD), launch(h_TD.dtype)
    grad_h_TD = h_TD.new_zeros(h_TD.shape, dtype=torch.float32) if needs[0] else None
    grad_w_VD = w_VD.new_empty(w_VD.shape) if needs[1] else None
    columns = max(1, how.chunk_bytes // (max(T, 1) * h_TD.element_size() * tile.N)) * tile.N
    buffer = h_TD.new_empty(T * min(columns, V))
    for begin in range(0, V, columns):
        w_CD = w_VD[begin : begin + columns]
        C = len(w_CD)
        d_TC = buffer[: T * C].view(T, C)
        if T:
            _slope[(triton.cdiv(T, tile.M), triton.cdiv(C, tile.N))](
                matrix(h_TD), matrix(w_CD), rows, d_TC, (T, C, D), begin, 1 / how.temperature, tile=tile,
                num_warps=num_warps, num_stages=num_stages,
            )  # fmt: skip
        if grad_h_TD is not None:
            matmul(d_TC, w_CD.t(), grad_h_TD, add=True)
        if grad_w_VD is not None:
            matmul(d_TC.t(), h_TD.t(), grad_w_VD[begin : begin + columns])
    return None if grad_h_TD is None else grad_h_TD.to(h_TD.dtype), grad_w_VD


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, w_VD: Tensor, target_T: Tensor, how: _How) -> Any:
        scored = _forward(h_TD, w_VD, target_T, how)
        ctx.save_for_backward(h_TD, w_VD, target_T, scored.top_T, scored.mass_T)
        ctx.how = how
        ctx.mark_non_differentiable(scored.entropy_T)
        return scored.logp_T, scored.entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> Any:
        h_TD, w_VD, target_T, top_T, mass_T = ctx.saved_tensors
        rows = _Rows(target_T, top_T, mass_T, grad_T.contiguous())
        grads = _backward(h_TD, w_VD, rows, ctx.how, ctx.needs_input_grad)
        return *grads, None, None


def linear_logprob_triton(
    h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float = 1.0, *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """`chunk_bytes` bounds what backward holds of the logits' gradient; it changes no log-prob."""
    # float32, as sampling settings are: the same temperature gives the same bits from both.
    how = _How(float(np.float32(temperature)), chunk_bytes)
    if needs_grad(h_TD, w_VD):
        both: tuple[Tensor, Tensor] = _LinearLogprob.apply(h_TD, w_VD, target_T, how)
        return both
    return _forward(h_TD, w_VD, target_T, how)[:2]
