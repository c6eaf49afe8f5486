# SPDX-License-Identifier: Apache-2.0
"""Group-relative policy optimisation: what one update is given, and what each answer token enters with.

Choices, as they differ between public implementations:
- advantage: (r - mean) / (std + 1e-6) over the answers to one question, unbiased std ("std"); mean only
  ("center", Dr. GRPO); mean of the others ("loo", RLOO). A group whose rewards are all equal, or of one
  answer, has advantage 0.
- old log-probs are the sampler's. At training temperature 1 they are those of the full softmax, so they
  compare like with like even when the sampler truncated; otherwise those of the distribution that was sampled
  from.
- denominator: all answer tokens of the whole update ("token"), or first the tokens of each answer and then
  the answers ("sequence", the paper's). It never depends on how the update is cut into micro-batches.
- KL is a term of the loss, per token, against a reference role (GRPO, arXiv:2402.03300, equation 4), not of
  the reward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.outputs import Sample
from rzero.kernels import Kernels, PolicyLossConfig


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The answers to one prompt and what they are worth: rewards, or advantages computed by the caller."""

    prompt_ids: Sequence[int]
    samples: Sequence[Sample]
    rewards: Sequence[float] | None = None
    advantages: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one update; refuses values out of range with InputError."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0
    """Updates over which the learning rate grows linearly to its value."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on: it stays, or falls to 0 after update `total_steps` on a line or half a cosine."""
    total_steps: int = 0
    """Updates until the rate is 0, warm-up included; of no meaning for a constant rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "all"
    """What decays: every tensor, as where torch.optim.AdamW gets model.parameters(), or matrices only."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    clip_low: float = 0.2
    clip_high: float = 0.3
    clip_dual: float | None = 3.0
    """Bound of the surrogate for negative advantages (dual clip); None = off."""
    kl_coef: float = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    advantage: Literal["std", "center", "loo"] = "std"
    loss_mean: Literal["token", "sequence"] = "sequence"
    micro_batch_tokens: int = 8192
    """Most tokens of one forward and backward pass; the update does not depend on it beyond rounding."""
    recompute_layers: bool = False
    """Compute each layer's activations again in the backward pass: less memory for a third more time."""
    temperature: float = 1.0
    """The temperature the answers were sampled with."""

    def __post_init__(self) -> None:
        positive = ("learning_rate", "eps", "micro_batch_tokens", "temperature")
        not_negative = ("warmup_steps", "weight_decay", "grad_clip", "clip_low", "clip_high", "kl_coef")
        for name, value in vars(self).items():
            if name in positive and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be a finite number above 0")
            if name in not_negative and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be a finite number, 0 or above")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas}; both must be at least 0 and below 1")
        if self.clip_low > 1:
            raise InputError(
                f"clip_low is {self.clip_low}; it must be at most 1, since a ratio is never negative"
            )
        if self.clip_dual is not None and not 1 < self.clip_dual < math.inf:
            raise InputError(f"clip_dual is {self.clip_dual}; it must be above 1, or None for off")
        if self.schedule != "constant" and self.total_steps <= self.warmup_steps:
            raise InputError(
                f"total_steps is {self.total_steps}; a {self.schedule} schedule needs more than "
                f"warmup_steps = {self.warmup_steps}"
            )
        for name, value, allowed in (
            ("schedule", self.schedule, ("constant", "linear", "cosine")),
            ("decay", self.decay, ("all", "matrices")),
            ("kl_estimator", self.kl_estimator, ("k1", "k2", "k3")),
            ("advantage", self.advantage, ("std", "center", "loo")),
            ("loss_mean", self.loss_mean, ("token", "sequence")),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")

    @property
    def policy_loss(self) -> PolicyLossConfig:
        return PolicyLossConfig(
            self.clip_low, self.clip_high, self.clip_dual, self.kl_coef, self.kl_estimator
        )


def check_groups(groups: Sequence[TrainGroup], vocab_size: int, max_positions: int) -> None:
    """Raises InputError for the first group that cannot be trained on, naming its place."""
    if not groups:
        raise InputError("groups is empty; a training step needs at least one group")
    for g, group in enumerate(groups):
        check_prompt(group.prompt_ids, f"groups[{g}].prompt_ids", vocab_size)
        _check_worth(group, g)
        for j, sample in enumerate(group.samples):
            place = f"groups[{g}].samples[{j}]"
            check_answer(group.prompt_ids, sample.token_ids, place, vocab_size, max_positions)
            for name, logps in (("logprobs", sample.logprobs), ("full_logprobs", sample.full_logprobs)):
                if len(logps) != len(sample.token_ids):
                    have = f"{len(logps)} values for {len(sample.token_ids)} tokens"
                    raise InputError(f"{place}.{name} has {have}; sample with logprobs=True")


def check_prompt(ids: Sequence[int], place: str, vocab_size: int) -> None:
    """Raises InputError for an empty prompt or an unknown token in it."""
    if not len(ids):
        raise InputError(f"{place} is empty; the first answer token needs a token before it")
    _check_ids(ids, place, vocab_size)


def check_answer(
    prompt_ids: Sequence[int], ids: Sequence[int], place: str, vocab_size: int, max_positions: int
) -> None:
    """Raises InputError for an unknown token in an answer, and for an answer beyond the last position."""
    _check_ids(ids, place, vocab_size)
    total = len(prompt_ids) + len(ids)
    if total > max_positions:
        raise InputError(
            f"{place}: prompt and answer have {total} tokens; the model has {max_positions} positions"
        )


def _check_ids(ids: Sequence[int], place: str, vocab_size: int) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InputError(f"{place} holds a token outside 0..{vocab_size - 1}: {min(ids)} to {max(ids)}")


def _check_worth(group: TrainGroup, g: int) -> None:
    if (group.rewards is None) == (group.advantages is None):
        raise InputError(f"groups[{g}] needs either rewards or advantages, and not both")
    name = "advantages" if group.rewards is None else "rewards"
    values = _worth(group)
    if len(values) != len(group.samples):
        raise InputError(f"groups[{g}].{name} has {len(values)} values for {len(group.samples)} samples")
    for j, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(f"groups[{g}].{name}[{j}] is {value}; it must be a finite number")


def _worth(group: TrainGroup) -> Sequence[float]:
    values = group.rewards if group.rewards is not None else group.advantages
    assert values is not None
    return values


def is_degenerate(group: TrainGroup) -> bool:
    """Says whether the group teaches nothing: one answer, all rewards equal, or all advantages 0."""
    if group.rewards is None:
        return not any(_worth(group))
    return len(set(group.rewards)) <= 1


def advantages(groups: Sequence[TrainGroup], mode: str, kernels: Kernels, dtype: torch.dtype) -> Tensor:
    """Advantage of every sample of every group, in order: [samples] in `dtype`, on the host."""
    rewards = [0.0 if group.rewards is None else r for group in groups for r in _worth(group)]
    ids = torch.tensor([g for g, group in enumerate(groups) for _ in group.samples], dtype=torch.int64)
    given = torch.tensor([group.rewards is None for group in groups for _ in group.samples], dtype=torch.bool)
    own = torch.tensor([v for group in groups for v in _worth(group)], dtype=dtype)
    relative = kernels.group_advantage(torch.tensor(rewards, dtype=dtype), ids, mode)
    return torch.where(given, own, relative)


def token_weights(lengths: Sequence[int], mean: str, dtype: torch.dtype) -> Tensor:
    """Weight of each answer token in the loss, [sum of lengths]; the weights of all tokens add up to 1.

    "token": one over all tokens. "sequence": one over the tokens of its answer, over the answers. An empty
    answer has no tokens and is not counted, or a group of short answers would weigh less for it.
    """
    lengths_B = torch.tensor([n for n in lengths if n], dtype=torch.int64)
    if mean == "token":
        return torch.full((int(lengths_B.sum()),), 1.0 / max(1, int(lengths_B.sum())), dtype=dtype)
    per_answer_B = 1.0 / (lengths_B.to(torch.float64) * max(1, len(lengths_B)))
    return per_answer_B.repeat_interleave(lengths_B).to(dtype)


def old_logprobs(samples: Sequence[Sample], temperature: float, dtype: torch.dtype) -> Tensor:
    """The sampler's log-prob of every answer token, of the distribution that the trainer scores."""
    flat = [x for s in samples for x in (s.full_logprobs if temperature == 1.0 else s.logprobs)]
    return torch.tensor(flat, dtype=torch.float64).to(dtype)
