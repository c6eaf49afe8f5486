# SPDX-License-Identifier: Apache-2.0
"""GRPO updates of the very tensors that the sampler reads.

One step: pack the answers (packing.py), score them under the reference and under the role, add up gradients
over the micro-batches, clip, update (optimizer.py). Nothing is synchronised afterwards because there is one
set of tensors. There is no pass for old log-probs either: the sampler's are those of the same weights, and
how far they are off is a metric.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from rzero.engine import grpo, optimizer
from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.model import PackedStep, Step, forward
from rzero.engine.optimizer import AdamW, OptimizerName, State
from rzero.engine.optimizer_8bit import AdamW8bit
from rzero.engine.packing import Pack, Scored, pack
from rzero.engine.weights import ModelWeights, Weights, substitute
from rzero.kernels import Kernels
from rzero.kernels.policy_loss import k3_ref

StepMetrics = dict[str, float]


# Means over answer tokens, in the order of `Gradients.sums`.
MEANS = ("kl", "entropy", "ratio_mean", "clip_fraction", "mismatch_mean")


@dataclass(frozen=True, slots=True)
class Gradients:
    """What backward left, on the device: gradients by name, before clipping, and what was measured."""

    grads: dict[str, Tensor]
    loss: Tensor
    sums: Tensor
    """[5] sums over answer tokens of what MEANS names."""
    mismatch_max: Tensor
    tokens: int
    """Answer tokens that the loss saw."""
    tokens_computed: int


class Trainer:
    """Trains roles of one set of weights; keeps one optimizer state per role."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kernels: Kernels,
        cos_RE: Tensor,
        sin_RE: Tensor,
        optimizer: OptimizerName = "adamw",
    ) -> None:
        """cos_RE, sin_RE: the tables of `rope_tables`; their rows bound the length of prompt and answer."""
        self._kind = {"adamw": AdamW, "adamw_8bit": AdamW8bit}[optimizer]
        self._config, self._weights, self._kernels = config, weights, kernels
        self._cos_RE, self._sin_RE = cos_RE, sin_RE
        self._optimizers: dict[str, AdamW] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Where the time of all steps went: reference, forward, backward, optimizer. On a GPU this is the
        time to launch the work, not to do it."""

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += perf_counter() - start

    def train_step(
        self, role: str, groups: Sequence[TrainGroup], cfg: TrainConfig, reference: str | None = None
    ) -> StepMetrics:
        """One optimizer update of `role` on all groups together.

        Several updates per rollout are several calls, each with some of its groups. `reference` is the role
        that the KL term compares with; it is needed unless cfg.kl_coef is 0.
        Returns loss; means over answer tokens: kl (k3, to the reference), entropy, ratio_mean, clip_fraction,
        mismatch_mean, and mismatch_max (|log-prob before this update - the sampler's|: what an exact engine
        keeps at 0 in the first update on a rollout); grad_norm before clipping; learning_rate;
        tokens_trained (of answers), tokens_computed (rows of the passes), groups, degenerate_groups; updates
        so far; skipped: 1 where a number was not finite or no answer had anything to teach, and nothing was
        changed. Without a reference the gradient of a degenerate group is exactly 0, so its answers are not
        computed: they count in the loss's mean, and not in the means above nor in tokens_trained.
        Raises InputError for groups that cannot be trained on and for unknown roles.
        """
        result = self.gradients(role, groups, cfg, reference)
        state = self._optimizer(role)
        tokens = 0 if result is None else result.tokens
        metrics: StepMetrics = {"grad_norm": 0.0, "tokens_trained": tokens, "groups": len(groups)}
        metrics["degenerate_groups"] = sum(map(grpo.is_degenerate, groups))
        metrics["learning_rate"] = optimizer.learning_rate(cfg, state.step + 1)
        metrics["tokens_computed"] = 0 if result is None else result.tokens_computed
        metrics |= dict.fromkeys(("loss", "mismatch_max", *MEANS), 0.0)
        apply = False
        if result is not None:
            norm = optimizer.global_norm(list(result.grads.values())).to(result.loss.dtype)
            # The only transfer of the step from the device: what decides whether to update comes with all
            # metrics.
            values = torch.stack([result.loss, norm, result.mismatch_max, *result.sums]).tolist()
            metrics["loss"], metrics["grad_norm"], metrics["mismatch_max"] = values[:3]
            metrics |= {name: total / tokens for name, total in zip(MEANS, values[3:], strict=True)}
            apply = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
            if apply:
                scale = optimizer.clip_scale(metrics["grad_norm"], cfg.grad_clip)
                with self._timed("optimizer"):
                    self._weights.own(role)
                    state.update(dict(self._weights.trainable_tensors(role)), result.grads, cfg, scale)
        metrics["updates"] = state.step
        metrics["skipped"] = float(not apply)
        return metrics

    def gradients(
        self, role: str, groups: Sequence[TrainGroup], cfg: TrainConfig, reference: str | None = None
    ) -> Gradients | None:
        """Gradients of the step's loss by tensor name, before clipping; None where no answer teaches.

        Changes nothing. Gradients are float32 (float64 for float64 weights) and added up in the order of the
        answers.
        """
        if reference is None and cfg.kl_coef > 0:
            raise InputError(
                f"kl_coef is {cfg.kl_coef} but no reference role is given; name one, or set kl_coef to 0"
            )
        weights = self._weights.role(role)
        ref_weights = None if reference is None else self._weights.role(reference)
        batch = self._prepare(groups, cfg, weights, ref_weights)
        trained = dict(self._weights.trainable_tensors(role))
        # Leaves share the storage of the role's tensors, which other roles may share too, but not their
        # autograd flags.
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in trained.items()}
        policy = substitute(weights, {id(tensor): leaves[name] for name, tensor in trained.items()})
        total: Gradients | None = None
        for packed in pack(batch.answers, cfg.micro_batch_tokens, self._cos_RE.device):
            part = self._micro_batch(policy, leaves, ref_weights, packed, batch, cfg)
            total = part if total is None else _add(total, part)
        return total

    def _prepare(
        self,
        groups: Sequence[TrainGroup],
        cfg: TrainConfig,
        weights: ModelWeights,
        reference: ModelWeights | None,
    ) -> "_Batch":
        device = self._cos_RE.device
        grpo.check_groups(groups, self._config.vocab_size, len(self._cos_RE))
        dtype = optimizer.moments_dtype(weights.embed.dtype)
        # All answers count in the loss's mean, so weights and advantages are those of all groups.
        lengths = [len(sample.token_ids) for group in groups for sample in group.samples]
        lengths_B = torch.tensor(lengths, dtype=torch.int64)
        advantage_B = grpo.advantages(groups, cfg.advantage, self._kernels, dtype)
        weight_A = grpo.token_weights(lengths, cfg.loss_mean, dtype)
        teaches = [reference is not None or not grpo.is_degenerate(group) for group in groups]
        taught = [group for group, does in zip(groups, teaches, strict=True) if does]
        taught_B = torch.tensor(
            [does for group, does in zip(groups, teaches, strict=True) for _ in group.samples],
            dtype=torch.bool,
        )
        taught_A = taught_B.repeat_interleave(lengths_B)
        samples = [sample for group in taught for sample in group.samples]
        return _Batch(
            [Scored(group.prompt_ids, sample.token_ids) for group in taught for sample in group.samples],
            grpo.old_logprobs(samples, cfg.temperature, dtype).to(device),
            advantage_B.repeat_interleave(lengths_B)[taught_A].to(device),
            weight_A[taught_A].to(device),
            reference is weights,
        )

    def _micro_batch(
        self,
        policy: ModelWeights,
        leaves: dict[str, Tensor],
        reference: ModelWeights | None,
        packed: Pack,
        batch: "_Batch",
        cfg: TrainConfig,
    ) -> Gradients:
        here = slice(packed.begin, packed.end)
        with self._timed("forward"):
            logp_A, entropy_A = self._score(policy, packed, cfg.temperature, cfg.recompute_layers)
        now_A, old_A = logp_A.detach(), batch.old_logp_A[here]
        ref_A: Tensor | None = None
        if reference is not None:
            # A role that was not updated yet is its own reference: the same tensors would give the same bits.
            with self._timed("reference"):
                ref_A = (
                    now_A if batch.is_own_reference else self._score_only(reference, packed, cfg.temperature)
                )
        out = self._kernels.policy_loss(
            logp_A, old_A, ref_A, batch.advantage_A[here], batch.weight_A[here], cfg.policy_loss
        )
        wide = optimizer.moments_dtype(now_A.dtype)
        with self._timed("backward"):
            new = torch.autograd.grad(out.loss, list(leaves.values()))
            grads = {name: grad.to(wide) for name, grad in zip(leaves, new, strict=True)}
        apart_A = (now_A - old_A).abs()
        kl = torch.zeros_like(apart_A[0]) if ref_A is None else k3_ref(now_A - ref_A).sum()
        count = packed.end - packed.begin
        sums = [kl, entropy_A.sum(), out.ratio_mean * count, out.clip_fraction * count, apart_A.sum()]
        return Gradients(grads, out.loss.detach(), torch.stack(sums), apart_A.max(), count, len(packed.ids_T))

    def _score(
        self, weights: ModelWeights, packed: Pack, temperature: float, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        step = Step(packed.ids_T, packed.pos_T, PackedStep(packed.segments))
        h_TD = forward(self._config, weights, step, self._kernels, self._cos_RE, self._sin_RE, recompute)
        h_AD = h_TD.index_select(0, packed.row_A)
        return self._kernels.linear_logprob(h_AD, weights.head, packed.target_A, temperature)

    @torch.no_grad()
    def _score_only(self, weights: ModelWeights, packed: Pack, temperature: float) -> Tensor:
        return self._score(weights, packed, temperature, False)[0]

    def logprobs(
        self,
        role: str,
        answers: Sequence[tuple[Sequence[int], Sequence[int]]],
        temperature: float = 1.0,
        budget_tokens: int = 8192,
    ) -> list[list[float]]:
        """Log-prob of every token of each answer after its prompt, given as (prompt, answer) token ids.

        Neighbours with the same prompt share its computation. The numbers are those that training would see.
        """
        scored = [Scored(prompt, answer) for prompt, answer in answers]
        vocab_size, max_positions = self._config.vocab_size, len(self._cos_RE)
        for i, (prompt_ids, answer_ids) in enumerate(scored):
            grpo.check_prompt(prompt_ids, f"answers[{i}][0]", vocab_size)
            grpo.check_answer(prompt_ids, answer_ids, f"answers[{i}]", vocab_size, max_positions)
        weights = self._weights.role(role)
        flat: list[float] = []
        for packed in pack(scored, budget_tokens, self._cos_RE.device):
            flat += self._score_only(weights, packed, temperature).tolist()
        values = iter(flat)
        return [[next(values) for _ in answer.answer_ids] for answer in scored]

    def _optimizer(self, role: str) -> AdamW:
        trained = dict(self._weights.trainable_tensors(role))
        known = self._optimizers.get(role)
        # Moments of tensors that are no longer trained would count as steps of those that are.
        if known is None or not known.is_of(trained):
            known = self._optimizers[role] = self._kind(self._kernels)
        return known

    def reset(self, role: str) -> None:
        """Forgets the optimizer state of a role: moments, masters and step count."""
        self._optimizers.pop(role, None)

    def state(self, role: str) -> State:
        """The optimizer state of a role: live tensors, to be stored before the next update, and the step."""
        return self._optimizer(role).state()

    def load_state(self, role: str, state: Mapping[str, Tensor | int]) -> None:
        """Restores a `state`, once the role's weights are in place; raises InputError where it misfits."""
        if state.get("step") or len(state) > 1:
            self._weights.own(role)
        fresh = self._kind(self._kernels)
        fresh.load(state, dict(self._weights.trainable_tensors(role)))
        self._optimizers[role] = fresh


class _Batch(NamedTuple):
    """The answers of a step and what their tokens (A) enter the loss with."""

    answers: list[Scored]
    old_logp_A: Tensor
    advantage_A: Tensor
    weight_A: Tensor
    is_own_reference: bool


def _add(total: Gradients, part: Gradients) -> Gradients:
    """The sum of two micro-batches; the gradients are added up in place."""
    for name, grad in total.grads.items():
        grad.add_(part.grads[name])
    return Gradients(
        total.grads,
        total.loss + part.loss,
        total.sums + part.sums,
        torch.maximum(total.mismatch_max, part.mismatch_max),
        total.tokens + part.tokens,
        total.tokens_computed + part.tokens_computed,
    )
