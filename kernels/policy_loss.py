# SPDX-License-Identifier: Apache-2.0
"""policy_loss: the clipped surrogate of GRPO with a KL term; group_advantage: what an answer is worth.

policy_loss: logp_T, old_logp_T, ref_logp_T or None, advantage_T, weight_T, all [T] float32 -> PolicyLossOut.
Only logp_T gets a gradient. T = 0 is legal.
    ratio     = exp(clamp(logp - old_logp, -20, 20))
    surrogate = -A * ratio; the ratio is held at or below 1 + clip_high where A >= 0, and within 1 - clip_low
                to clip_dual where A < 0 (PPO 1707.06347; asymmetric: DAPO 2503.14476; dual: 1912.09729)
    d         = logp - ref_logp
    kl        = k1: d    k2: d^2 / 2    k3: exp(-d) + d - 1, d clamped to -20..20, the result to at most 10
                (Schulman, "Approximating KL divergence"; clamps as in EasyR1's core_algos.py)
    loss      = sum over T of weight * (surrogate + kl_coef * kl)
The weights carry the denominator of the whole step (token or sequence mean), so micro-batches just add up. A
token of weight 0 is ignored, whatever its other values. A clamped term has no gradient; on the bound itself
it has one. As a loss, k1 has gradient 0 in expectation and k2 the true one; k1 is for measuring.
Metrics are means over the tokens with a weight: scalars on the device, 0 where there are none.
Bytes: 24 a token, gradient included (five inputs read, the gradient written), 20 without a reference.

group_advantage: reward_B [B] float, group_B [B] int64 ids -> advantage_B like reward_B. The modes:
    std     (r - mean) / (std + eps), unbiased by default: (0, 0, 0, 1) gives its last 1.50 (GRPO 2402.03300)
    center  r - mean (Dr. GRPO 2503.20783)
    loo     r - mean of the others in the group (RLOO 2402.14740)
A group of one answer or of equal rewards has advantage exactly 0. Raises ValueError for a reward that is not
finite; the GPU form, which would have to wait for the device to see one, gives its group NaN instead.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import check, lib, native_why_not, needs_grad

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0
ESTIMATORS = ("k1", "k2", "k3")
MODES = ("std", "center", "loo")


@dataclass(frozen=True, slots=True)
class PolicyLossConfig:
    """Settings of the loss; refuses values out of range with ValueError."""

    clip_low: float = 0.2
    clip_high: float = 0.3
    clip_dual: float | None = 3.0
    """Largest ratio counted for a negative advantage; None = off."""
    kl_coef: float = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or not self.clip_high >= 0:
            raise ValueError(
                f"clip_low {self.clip_low}, clip_high {self.clip_high}: need 0 <= low <= 1 and high >= 0"
            )
        if self.clip_dual is not None and not self.clip_dual > 1:
            raise ValueError(f"clip_dual is {self.clip_dual}; it must be above 1, or None for off")
        if self.kl_estimator not in ESTIMATORS:
            raise ValueError(
                f"kl_estimator is {self.kl_estimator!r}; it must be one of {', '.join(ESTIMATORS)}"
            )


class PolicyLossOut(NamedTuple):
    """The loss, which carries the gradient, and what was measured on the way (no gradient)."""

    loss: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    clip_fraction: Tensor
    """Share of tokens whose ratio is outside the bound that counts for the sign of their advantage."""
    step_kl_mean: Tensor
    """k3 of the policy against the old policy, which sampled."""
    kl_mean: Tensor | None
    """The chosen estimator of the policy against the reference; None without a reference."""
    tokens: Tensor
    """How many tokens have a weight: the count behind the means."""


def k3_ref(d_T: Tensor) -> Tensor:
    d_T = d_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.exp(-d_T) + d_T - 1).clamp(max=MAX_K3)


def kl_ref(d_T: Tensor, estimator: str) -> Tensor:
    if estimator == "k3":
        return k3_ref(d_T)
    return d_T if estimator == "k1" else d_T.square() / 2


def policy_loss_ref(
    logp_T: Tensor,
    old_logp_T: Tensor,
    ref_logp_T: Tensor | None,
    advantage_T: Tensor,
    weight_T: Tensor,
    cfg: PolicyLossConfig,
) -> PolicyLossOut:
    has_weight_T = weight_T != 0
    # Ignored tokens leave before the arithmetic: NaN times a weight of 0 would still be NaN.
    logp_T, old_logp_T, advantage_T = (
        torch.where(has_weight_T, x, 0) for x in (logp_T, old_logp_T, advantage_T)
    )
    log_ratio_T = logp_T - old_logp_T
    ratio_T = log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    dual = torch.inf if cfg.clip_dual is None else cfg.clip_dual
    is_good_T = advantage_T >= 0
    # where() of two Python numbers is float32, which would round the bounds of a float64 oracle.
    low_T = torch.where(is_good_T, 0.0, torch.full_like(logp_T, 1 - cfg.clip_low))
    high_T = torch.where(is_good_T, torch.full_like(logp_T, 1 + cfg.clip_high), dual)
    term_T = -advantage_T * ratio_T.clamp(low_T, high_T)
    kl_T = None
    if ref_logp_T is not None:
        kl_T = kl_ref(logp_T - torch.where(has_weight_T, ref_logp_T, 0), cfg.kl_estimator)
        term_T = term_T + cfg.kl_coef * kl_T
    tokens = has_weight_T.sum()

    def mean(x_T: Tensor) -> Tensor:
        return torch.where(has_weight_T, x_T.detach(), 0).sum() / tokens.clamp(min=1)

    is_clipped_T = (ratio_T < low_T) | (ratio_T > high_T)
    return PolicyLossOut(
        loss=(weight_T * term_T).sum(),
        ratio_mean=mean(ratio_T),
        ratio_max=torch.where(has_weight_T, ratio_T.detach(), 0).amax() if len(logp_T) else mean(ratio_T),
        clip_fraction=mean(is_clipped_T.to(logp_T.dtype)),
        step_kl_mean=mean(k3_ref(log_ratio_T)),
        kl_mean=None if kl_T is None else mean(kl_T),
        tokens=tokens,
    )


def group_advantage_ref(
    reward_B: Tensor, group_B: Tensor, mode: str = "std", eps: float = 1e-6, unbiased: bool = True
) -> Tensor:
    if reward_B.ndim != 1 or not reward_B.is_floating_point():
        raise ValueError(
            f"group_advantage: reward_B must be float [B], it is {reward_B.dtype} {list(reward_B.shape)}"
        )
    if group_B.shape != reward_B.shape or group_B.dtype != torch.int64 or group_B.device != reward_B.device:
        have = f"{group_B.dtype} {list(group_B.shape)} on {group_B.device}"
        wanted = f"int64 {list(reward_B.shape)} on {reward_B.device}"
        raise ValueError(f"group_advantage: group_B must be {wanted}, it is {have}")
    if mode not in MODES:
        raise ValueError(f"group_advantage: mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if not reward_B.isfinite().all():
        row = int((~reward_B.isfinite()).nonzero()[0])
        raise ValueError(
            f"group_advantage: reward_B[{row}] is {reward_B[row].item()}; rewards must be finite"
        )
    ids, place_B = group_B.unique(return_inverse=True)
    r_B = reward_B.double()
    zero = r_B.new_zeros(len(ids))
    count = zero.index_add(0, place_B, torch.ones_like(r_B))
    mean_B = (zero.index_add(0, place_B, r_B) / count)[place_B]
    away_B = r_B - mean_B
    largest = zero.scatter_reduce(0, place_B, r_B, "amax", include_self=False)
    smallest = zero.scatter_reduce(0, place_B, r_B, "amin", include_self=False)
    if mode == "std":
        free = (count - 1 if unbiased else count).clamp(min=1)
        std = (zero.index_add(0, place_B, away_B.square()) / free).sqrt()
        away_B = away_B / (std[place_B] + eps)
    elif mode == "loo":
        # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
        away_B = away_B * (count / (count - 1).clamp(min=1))[place_B]
    # Equal rewards differ from their rounded mean by less than nothing, which eps would blow up.
    return away_B.masked_fill((largest == smallest)[place_B], 0).to(reward_B.dtype)


class WithGradient(torch.autograd.Function):
    """A loss whose gradient was computed along with it."""

    @staticmethod
    def forward(ctx: Any, logp_T: Tensor, loss: Tensor, grad_T: Tensor) -> Tensor:
        ctx.save_for_backward(grad_T)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        (grad_T,) = ctx.saved_tensors
        # loss.backward() sends a 1: a product would be one more pass over memory. A GPU is not waited for.
        is_one = grad_loss.is_cpu and bool(grad_loss == 1)
        return grad_T if is_one else grad_T * grad_loss, None, None


def _policy_loss_native(
    logp_T: Tensor,
    old_logp_T: Tensor,
    ref_logp_T: Tensor | None,
    advantage_T: Tensor,
    weight_T: Tensor,
    cfg: PolicyLossConfig,
) -> PolicyLossOut:
    T = logp_T.numel()
    given = (logp_T, old_logp_T, ref_logp_T, advantage_T, weight_T)
    names = ("logp_T", "old_logp_T", "ref_logp_T", "advantage_T", "weight_T")
    for name, tensor in zip(names, given, strict=True):
        if tensor is not None:
            check("policy_loss", name, tensor, torch.float32, (T,))
    grad_T = torch.empty(T)
    dual = torch.inf if cfg.clip_dual is None else cfg.clip_dual
    loss, *sums, ratio_max, tokens = lib.policy_loss(
        T, *(0 if tensor is None else tensor.data_ptr() for tensor in given),
        (cfg.clip_low, cfg.clip_high, dual, cfg.kl_coef), 1 + ESTIMATORS.index(cfg.kl_estimator),
        grad_T.data_ptr(),
    )  # fmt: skip
    ratio, clipped, step_kl, kl = (torch.tensor(x / max(tokens, 1)) for x in sums)
    loss = torch.tensor(loss)
    if needs_grad(logp_T):
        loss = WithGradient.apply(logp_T, loss, grad_T)
    return PolicyLossOut(
        loss=loss,
        ratio_mean=ratio,
        ratio_max=torch.tensor(ratio_max),
        clip_fraction=clipped,
        step_kl_mean=step_kl,
        kl_mean=None if ref_logp_T is None else kl,
        tokens=torch.tensor(int(tokens)),
    )


POLICY_LOSS = Op(
    "policy_loss",
    policy_loss_ref,
    (
        Impl("native", _policy_loss_native, native_why_not),
        Impl("triton", "rzero.kernels.policy_loss_triton:policy_loss_triton", triton_why_not),
    ),
)
GROUP_ADVANTAGE = Op(
    "group_advantage",
    group_advantage_ref,
    (
        Impl(
            "triton",
            "rzero.kernels.policy_loss_triton:group_advantage_triton",
            triton_why_not,
            only_asked="for rewards on the GPU, ours are on the host",
        ),
    ),
)
