# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""policy_loss and group_advantage on a GPU; arithmetic in float64, as in the native form: it costs nothing
beside a model, and k3 of two near policies keeps its digits.

policy_loss: one pass over the tokens makes the loss, its gradient and the metrics. Each program leaves its
sums, one more program adds those in a fixed order: no atomics, the same bits every time, and no wait for the
GPU. Bytes moved: 24 per token with a reference.

group_advantage: each program takes 32 answers and reads all B, twice for `std`: no sort of the ids, no wait
for the GPU, and B^2 comparisons, which is little for the few thousand answers of a step. A reward that is
not finite cannot be refused without a wait: its whole group gets NaN.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rzero.kernels.gpu import check_like
from rzero.kernels.native import needs_grad, reject
from rzero.kernels.policy_loss import (
    ESTIMATORS,
    MAX_K3,
    MAX_LOG_RATIO,
    MODES,
    PolicyLossConfig,
    PolicyLossOut,
    WithGradient,
)

BLOCK = 512


class _Given(NamedTuple):
    """The tensors, each [T]."""

    logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor | None
    advantage: Tensor
    weight: Tensor


class _Numbers(NamedTuple):
    clip_low: float
    clip_high: float
    clip_dual: float
    kl_coef: float


GROUP_ROWS = 32
_ROWS = tl.constexpr(GROUP_ROWS)
_RATIO_END = tl.constexpr(MAX_LOG_RATIO)
_K3_END = tl.constexpr(MAX_K3)
_K1, _K2 = (tl.constexpr(ESTIMATORS.index(name)) for name in ("k1", "k2"))
_STD, _LOO = (tl.constexpr(MODES.index(name)) for name in ("std", "loo"))


@triton.jit
def _held(x, low, high):
    """x within low and high; a NaN stays, which minimum and maximum would drop."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _k3(d):
    """The estimator and its slope."""
    held = _held(d, -_RATIO_END, _RATIO_END)
    value = tl.exp(-held) + held - 1
    slope = tl.where((d == held) & (value <= _K3_END), 1 - tl.exp(-held), 0.0)
    return tl.where(value > _K3_END, _K3_END, value), slope


@triton.jit
def _kl(d, ESTIMATOR: tl.constexpr):
    if ESTIMATOR == _K1:
        value, slope = d, tl.full(d.shape, 1.0, tl.float64)
    elif ESTIMATOR == _K2:
        value, slope = d * d / 2, d
    else:
        value, slope = _k3(d)
    return value, slope


@triton.jit
def _policy_loss(given, grad_ptr, part_ptr, T, programs, how, ESTIMATOR: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of BLOCK tokens and, in part_ptr [7, programs] float64, their sums."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(given.weight + t, mask=t < T, other=0.0).to(tl.float64)
    # Tokens of weight 0 are not even read: NaN times 0 would be NaN.
    counts = weight != 0
    logp = tl.load(given.logp + t, mask=counts, other=0.0).to(tl.float64)
    log_ratio = logp - tl.load(given.old_logp + t, mask=counts, other=0.0)
    advantage = tl.load(given.advantage + t, mask=counts, other=0.0).to(tl.float64)
    held = _held(log_ratio, -_RATIO_END, _RATIO_END)
    ratio = tl.exp(held)
    low = tl.where(advantage >= 0, 0.0, 1 - how.clip_low)
    high = tl.where(advantage >= 0, 1 + how.clip_high, how.clip_dual)
    is_clipped = (ratio < low) | (ratio > high)
    value = -advantage * _held(ratio, low, high)
    slope = tl.where(is_clipped | (log_ratio != held), 0.0, -advantage * ratio)
    part_ptr += tl.program_id(0)
    if given.ref_logp is not None:
        kl, kl_slope = _kl(logp - tl.load(given.ref_logp + t, mask=counts, other=0.0), ESTIMATOR)
        value += how.kl_coef * kl
        slope += how.kl_coef * kl_slope
        tl.store(part_ptr + 4 * programs, tl.sum(kl, 0))
    step_kl, _ = _k3(log_ratio)
    tl.store(grad_ptr + t, (weight * slope).to(tl.float32), mask=t < T)
    tl.store(part_ptr, tl.sum(weight * value, 0))
    tl.store(part_ptr + programs, tl.sum(tl.where(counts, ratio, 0.0), 0))
    tl.store(part_ptr + 2 * programs, tl.sum((counts & is_clipped).to(tl.float64), 0))
    tl.store(part_ptr + 3 * programs, tl.sum(step_kl, 0))
    tl.store(part_ptr + 5 * programs, tl.sum(counts.to(tl.float64), 0))
    tl.store(part_ptr + 6 * programs, tl.max(tl.where(counts, ratio, 0.0), 0))


@triton.jit
def _total(part_ptr, programs, BLOCK: tl.constexpr):
    """The sum of one kind of part, in an order that depends on their number alone."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs, BLOCK):
        total += tl.load(part_ptr + first + i, mask=first + i < programs, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _policy_loss_join(
    part_ptr, loss_ptr, mean_ptr, tokens_ptr, programs, HAS_REF: tl.constexpr, BLOCK: tl.constexpr
):
    """mean_ptr [5]: ratio, clipped, step KL, KL, and the largest ratio."""
    tokens = _total(part_ptr + 5 * programs, programs, BLOCK)
    share = 1 / tl.maximum(tokens, 1.0)
    ratio = _total(part_ptr + programs, programs, BLOCK)
    i = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs, BLOCK):
        part = tl.load(part_ptr + 6 * programs + first + i, mask=first + i < programs, other=0.0)
        largest = tl.maximum(largest, part)
    # tl.max passes over a NaN, the sum does not.
    ratio_max = tl.where(ratio == ratio, tl.max(largest, 0), ratio)
    tl.store(loss_ptr, _total(part_ptr, programs, BLOCK).to(tl.float32))
    tl.store(mean_ptr, (ratio * share).to(tl.float32))
    tl.store(mean_ptr + 1, (_total(part_ptr + 2 * programs, programs, BLOCK) * share).to(tl.float32))
    tl.store(mean_ptr + 2, (_total(part_ptr + 3 * programs, programs, BLOCK) * share).to(tl.float32))
    if HAS_REF:
        tl.store(mean_ptr + 3, (_total(part_ptr + 4 * programs, programs, BLOCK) * share).to(tl.float32))
    tl.store(mean_ptr + 4, ratio_max.to(tl.float32))
    tl.store(tokens_ptr, tokens.to(tl.int64))


def policy_loss_triton(
    logp_T: Tensor,
    old_logp_T: Tensor,
    ref_logp_T: Tensor | None,
    advantage_T: Tensor,
    weight_T: Tensor,
    cfg: PolicyLossConfig,
) -> PolicyLossOut:
    T, device = logp_T.numel(), logp_T.device
    given = _Given(logp_T, old_logp_T, ref_logp_T, advantage_T, weight_T)
    for name, tensor in zip(given._fields, given, strict=True):
        if tensor is not None:
            check_like("policy_loss", f"{name}_T", tensor, torch.float32, (T,), device)
    programs = triton.cdiv(T, BLOCK)
    grad_T = torch.empty(T, dtype=torch.float32, device=device)
    part_7P = torch.empty((7, programs), dtype=torch.float64, device=device)
    loss = torch.empty((), dtype=torch.float32, device=device)
    mean_5 = torch.empty(5, dtype=torch.float32, device=device)
    tokens = torch.empty((), dtype=torch.int64, device=device)
    if T:
        dual = float("inf") if cfg.clip_dual is None else cfg.clip_dual
        _policy_loss[(programs,)](
            given, grad_T, part_7P, T, programs, _Numbers(cfg.clip_low, cfg.clip_high, dual, cfg.kl_coef),
            ESTIMATOR=ESTIMATORS.index(cfg.kl_estimator), BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    has_ref = ref_logp_T is not None
    _policy_loss_join[(1,)](
        part_7P, loss, mean_5, tokens, programs, HAS_REF=has_ref, BLOCK=BLOCK, num_warps=4
    )  # fmt: skip
    ratio, clipped, step_kl, kl, ratio_max = mean_5.unbind()
    return PolicyLossOut(
        loss=WithGradient.apply(logp_T, loss, grad_T) if needs_grad(logp_T) else loss,
        ratio_mean=ratio,
        ratio_max=ratio_max,
        clip_fraction=clipped,
        step_kl_mean=step_kl,
        kl_mean=kl if has_ref else None,
        tokens=tokens,
    )


@triton.jit
def _group_advantage(
    reward_ptr, group_ptr, out_ptr, B, eps, MODE: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr
):
    b = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    group = tl.load(group_ptr + b, mask=b < B, other=0)
    reward = tl.load(reward_ptr + b, mask=b < B, other=0.0).to(tl.float64)
    count = tl.zeros((_ROWS,), tl.float64)
    total = tl.zeros((_ROWS,), tl.float64)
    unlike = tl.zeros((_ROWS,), tl.float64)
    for first in range(0, B, BLOCK):
        other = first + tl.arange(0, BLOCK)
        others = tl.load(group_ptr + other, mask=other < B, other=0)
        x = tl.load(reward_ptr + other, mask=other < B, other=0.0).to(tl.float64)[None, :]
        is_same = (group[:, None] == others[None, :]) & (other < B)[None, :]
        count += tl.sum(is_same.to(tl.float64), 1)
        total += tl.sum(tl.where(is_same, x, 0.0), 1)
        unlike += tl.sum((is_same & (x != reward[:, None])).to(tl.float64), 1)
    mean = total / tl.maximum(count, 1.0)
    # 0 times the mean is NaN where a reward of the group is not finite, else 0.
    away = reward - mean + 0 * mean
    if MODE == _STD:
        squares = tl.zeros((_ROWS,), tl.float64)
        for first in range(0, B, BLOCK):
            other = first + tl.arange(0, BLOCK)
            others = tl.load(group_ptr + other, mask=other < B, other=0)
            x = tl.load(reward_ptr + other, mask=other < B, other=0.0).to(tl.float64)[None, :]
            is_same = (group[:, None] == others[None, :]) & (other < B)[None, :]
            gap = x - mean[:, None]
            squares += tl.sum(tl.where(is_same, gap * gap, 0.0), 1)
        free = tl.maximum(count - 1 if UNBIASED else count, 1.0)
        away = away / (tl.sqrt(squares / free) + eps)
    elif MODE == _LOO:
        # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
        away *= count / tl.maximum(count - 1, 1.0)
    # Equal rewards differ from their rounded mean by less than nothing, which eps would blow up.
    away = tl.where((unlike == 0) & (away == away), 0.0, away)
    tl.store(out_ptr + b, away.to(out_ptr.dtype.element_ty), mask=b < B)


def group_advantage_triton(
    reward_B: Tensor, group_B: Tensor, mode: str = "std", eps: float = 1e-6, unbiased: bool = True
) -> Tensor:
    if reward_B.ndim != 1 or not reward_B.is_floating_point():
        reject("group_advantage", "reward_B", reward_B, "a float tensor of shape [B]")
    reward_B, group_B = reward_B.contiguous(), group_B.contiguous()
    check_like("group_advantage", "group_B", group_B, torch.int64, tuple(reward_B.shape), reward_B.device)
    if mode not in MODES:
        raise ValueError(f"group_advantage: mode is {mode!r}; it must be one of {', '.join(MODES)}")
    B = len(reward_B)
    out_B = reward_B.new_empty(B)
    if B:
        _group_advantage[(triton.cdiv(B, GROUP_ROWS),)](
            reward_B, group_B, out_B, B, eps, MODE=MODES.index(mode), UNBIASED=unbiased,
            BLOCK=64, num_warps=4,
        )  # fmt: skip
    return out_B
