# SPDX-License-Identifier: Apache-2.0
"""What both phases share: a run's parts, drawing samples, the vote, and one GRPO step on what was drawn."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from rzero.anchors import numbers, shown
from rzero.diversity import nearest_earlier
from rzero.engine.engine import Engine
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.outputs import RequestOutput, Sample
from rzero.engine.sampling import SamplingParams
from rzero.engine.tokenizer import Tokenizer
from rzero.kernels.policy_loss import MAX_LOG_RATIO
from rzero.observer import Observer
from rzero.run_folder import RunFolder
from rzero.seeds import derive
from rzero.settings import Sampling, Settings, Training
from rzero.tasks.base import Invalid, Problem, Question, Task
from rzero.votes import Vote, count_votes, or_both_say_no

# Samples on which the KL to the base is measured where the loss does not hold it.
KL_SAMPLES = 16

# A question with this BLEU to an example for the Challenger is a copy of it. Of 151 questions of a 0.5B
# model, copies had 0.78 and more, other questions on the same pattern 0.57 and less.
COPIED = 0.7
# One with the example's numbers is the example told anew: of 609 questions 10, with BLEU 0.25 to 0.68.
RETOLD = 0.2

# What is added up over the updates of a step; all else is a mean.
COUNTS = ("skipped", "tokens_trained", "tokens_computed", "groups", "degenerate_groups")


class Unit(NamedTuple):
    """One piece of work after which a run can be resumed."""

    iteration: int
    phase: str
    """challenger, pool, solver or evaluation"""
    step: int
    """from 1"""

    @property
    def words(self) -> str:
        """Where a run is, for people."""
        return f"iteration {self.iteration}, {self.phase} step {self.step}"


@dataclass(frozen=True)
class Run:
    """The parts of one run. `challenger` and `solver` are roles of the engine, perhaps the same one."""

    engine: Engine
    task: Task
    config: Settings
    folder: RunFolder
    observer: Observer
    challenger: str
    solver: str
    anchors: tuple[Problem, ...] = ()
    """examples by people, some of which the Challenger's prompt shows"""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a run cannot do without."""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer

    def seed(self, unit: Unit, what: str, index: int = 0) -> int:
        """The random key of one use in one unit."""
        return derive(self.config.seed, unit.iteration, unit.phase, unit.step, what, index)


class Draw(NamedTuple):
    """n samples for one prompt."""

    prompt_ids: list[int]
    samples: list[Sample]


class Request(NamedTuple):
    """What to draw: prompts, a seed and a number of samples for each, how, and what they are called."""

    prompts: Sequence[list[int]]
    seeds: Sequence[int]
    n: Sequence[int]
    sampling: Sampling
    stop: tuple[str, ...]
    what: str
    is_greedy: bool = False
    """always the most likely token, whatever `sampling` says"""


def draw(run: Run, role: str, request: Request) -> list[Draw]:
    """Samples of `role`, a function of weights, prompts and seeds alone."""
    how = request.sampling
    params = [
        SamplingParams(
            n=n,
            temperature=0.0 if request.is_greedy else how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            max_tokens=how.max_tokens,
            stop=request.stop,
            seed=seed,
        )
        for seed, n in zip(request.seeds, request.n, strict=True)
    ]
    done = 0

    def count(output: RequestOutput) -> None:
        nonlocal done
        done += len(output.samples)
        run.observer.on_progress(done, sum(request.n), request.what)

    outputs = run.engine.generate(list(request.prompts), params, role=role, on_output=count)
    return [Draw(list(output.prompt_token_ids), output.samples) for output in outputs]


def draw_questions(run: Run, unit: Unit, n: int, sampling: Sampling, each: int) -> list[Draw]:
    """n samples of the Challenger, one draw for each prompt.

    Without examples there is one prompt. With them every `each` samples have a prompt that shows others:
    the questions lean on what they were shown.
    """
    if n == 0:
        return []
    each = each if run.anchors else n
    counts = [min(each, n - begin) for begin in range(0, n, each)]
    prompts = [challenger_prompt(run, unit, index) for index in range(len(counts))]
    seeds = [run.seed(unit, "questions", index) for index in range(len(counts))]
    return draw(
        run,
        run.challenger,
        Request(prompts, seeds, counts, sampling, run.task.challenger_stop(run.tokenizer), "questions"),
    )


def challenger_prompt(run: Run, unit: Unit, index: int) -> list[int]:
    """The unit's prompt of that number, with its own choice of the run's examples."""
    if not run.anchors:
        return run.task.challenger_prompt(run.tokenizer)
    examples = shown(run.anchors, run.config.anchors_shown, run.seed(unit, "examples", index))
    return run.task.challenger_prompt(run.tokenizer, examples)


def usable(run: Run, text: str) -> Question | Invalid:
    """The question in a text of the Challenger, if it may be used: one rule for reward and pool."""
    parsed = run.task.parse_question(text)
    if isinstance(parsed, Invalid):
        return parsed
    if run.task.is_held_out(parsed.text):
        return Invalid("held out")
    if any(token in parsed.text for token in run.tokenizer.control_tokens):
        # In a prompt it would be the token itself: the question could end its turn and write the next one.
        return Invalid("control token")
    # One position at least must be left for the answer.
    most = min(run.config.max_question_tokens, run.engine.max_model_len - 1)
    if len(run.task.solver_prompt(run.tokenizer, parsed.text)) > most:
        return Invalid("too many tokens")
    return Invalid("copies an example") if is_copy(run, parsed.text) else parsed


def is_copy(run: Run, question: str) -> bool:
    """Whether a question is one of the run's examples, in nearly its words or with its numbers in others."""
    examples = [anchor.question for anchor in run.anchors]
    given = numbers(question)
    same_numbers = [example for example in examples if numbers(example) == given] if len(given) > 1 else []
    return any(
        likeness >= limit
        for these, limit in ((examples, COPIED), (same_numbers, RETOLD))
        for likeness in likeness_to_earlier(run, [question], these)
    )


def ask_solver(run: Run, unit: Unit, questions: Sequence[str], m: int) -> tuple[list[Vote], list[Draw]]:
    """The vote of m answers on each question, and the answers themselves."""
    prompts = [run.task.solver_prompt(run.tokenizer, question) for question in questions]
    seeds = [run.seed(unit, "votes", index) for index in range(len(questions))]
    stop = run.task.solver_stop(run.tokenizer)
    request = Request(prompts, seeds, [m] * len(prompts), run.config.voting, stop, "votes")
    draws = draw(run, run.solver, request) if questions else []
    answers = [[run.task.extract_answer(sample.text) for sample in drawn.samples] for drawn in draws]
    same = or_both_say_no(run.task.same_many) if run.config.voting.same_no else run.task.same_many
    return count_votes(answers, same), draws


def likeness_to_earlier(run: Run, new: Sequence[str], earlier: Sequence[str]) -> list[float]:
    """For each new question the BLEU with the nearest earlier one; empty where either is."""
    if not new or not earlier:
        return []
    return nearest_earlier(
        [run.task.tokens(text) for text in new],
        [run.task.tokens(text) for text in earlier],
        run.engine.kernels.bleu,
    )


def answers_agree(run: Run, questions: Sequence[Question], votes: Sequence[Vote]) -> list[bool | None]:
    """Whether the Challenger's own answer is the majority's; None where one of them is missing."""
    places, pairs = [], []
    for place, (question, vote) in enumerate(zip(questions, votes, strict=True)):
        if question.answer is not None and vote.majority is not None:
            places.append(place)
            pairs.append((question.answer, vote.majority))
    verdicts = dict(zip(places, map(bool, run.task.same_many(pairs)), strict=True))
    return [verdicts.get(place) for place in range(len(questions))]


def agreeing_share(agrees: Sequence[bool | None]) -> float | None:
    """The share of what `answers_agree` found to agree, where both answers exist; None where nowhere do."""
    known = [each for each in agrees if each is not None]
    return mean(known) if known else None


class Scored(NamedTuple):
    """Samples of one prompt with their rewards; `group` says which samples are compared with each other."""

    drawn: Draw
    rewards: Sequence[float]
    group: Sequence[int]


def train(
    run: Run, role: str, scored: Sequence[Scored], how: Training, temperature: float
) -> dict[str, float]:
    """GRPO on one step's samples: advantages over the whole step, then the optimizer's updates."""
    rewards = torch.tensor([r for part in scored for r in part.rewards], dtype=torch.float32)
    groups = torch.tensor([g for part in scored for g in part.group], dtype=torch.int64)
    if len(rewards) == 0:
        return {"updates": 0.0}
    advantages = iter(run.engine.kernels.group_advantage(rewards, groups, how.advantage).tolist())
    train_groups = [
        TrainGroup(
            part.drawn.prompt_ids, part.drawn.samples, advantages=[next(advantages) for _ in part.rewards]
        )
        for part in scored
    ]
    config = train_config(how, temperature, run.config.iterations)
    reference = "base" if how.kl_reference == "base" else "reference"
    parts = split(train_groups, how.updates_per_step)
    updates = [
        run.engine.train_step(role, part, config, reference if how.kl_coef > 0 else None) for part in parts
    ]
    return merged(updates)


def kl_to_base(run: Run, draws: Sequence[Draw], how: Training, trained: Mapping[str, float]) -> float | None:
    """KL to the base per token (k3) of the role that drew `draws` and was then `trained` on them.

    Taken from the loss where that holds it, else measured on some of the samples; None where there is nothing
    to measure.
    """
    if how.kl_reference == "base" and how.kl_coef > 0:
        return trained.get("kl")
    picked = [(drawn.prompt_ids, sample) for drawn in draws for sample in drawn.samples if sample.token_ids]
    picked = picked[:: max(1, len(picked) // KL_SAMPLES)][:KL_SAMPLES]
    answers = [(prompt, sample.token_ids) for prompt, sample in picked]
    if not answers:
        return None
    of_base = torch.tensor([x for part in run.engine.logprobs("base", answers) for x in part])
    own = torch.tensor([x for _, sample in picked for x in sample.full_logprobs])
    # As in the loss (kernels/policy_loss.py): e^x must stay finite.
    difference = (of_base - own).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return float((difference.exp() - difference - 1).mean())


def train_config(how: Training, temperature: float, iterations: int) -> TrainConfig:
    """The engine's settings for one update of a phase that comes in so many iterations."""
    return TrainConfig(
        learning_rate=how.learning_rate,
        warmup_steps=how.warmup_steps,
        schedule=how.schedule,
        total_steps=how.total_updates(iterations),
        betas=(how.beta1, how.beta2),
        weight_decay=how.weight_decay,
        grad_clip=how.grad_clip,
        clip_low=how.clip_low,
        clip_high=how.clip_high,
        clip_dual=how.clip_dual,
        kl_coef=how.kl_coef,
        kl_estimator=how.kl_estimator,
        loss_mean=how.loss_mean,
        micro_batch_tokens=how.micro_batch_tokens,
        temperature=temperature,
    )


def split(groups: Sequence[TrainGroup], parts: int) -> list[list[TrainGroup]]:
    """The groups in order in up to `parts` lists of about equal length; one alone is split by its samples."""
    if len(groups) == 1 and parts > 1:
        only = groups[0]
        assert only.advantages is not None
        worth = zip(only.samples, only.advantages, strict=True)
        groups = [TrainGroup(only.prompt_ids, [sample], advantages=[value]) for sample, value in worth]
    parts = min(parts, len(groups))
    cuts = [len(groups) * part // parts for part in range(parts + 1)]
    return [list(groups[begin:end]) for begin, end in pairwise(cuts)]


def merged(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of a step's counts, means of what its updates measured, and the mismatch of the first, on policy.

    An update without an answer to learn from measured nothing: its zeros are no entropy. Nor did one whose
    numbers are not finite, which the trainer skipped; but a mismatch that is no number is the largest.
    """
    result = {name: sum(update[name] for update in updates) for name in COUNTS}
    taught = [update for update in updates if update["tokens_trained"]]
    measured = [update for update in taught if all(map(math.isfinite, update.values()))]
    if measured:
        names = [name for name in updates[0] if name not in COUNTS]
        result |= {name: sum(update[name] for update in measured) / len(measured) for name in names}
    if taught:
        mismatch = {name: taught[0][name] for name in ("mismatch_max", "mismatch_mean")}
        result |= {name: x if math.isfinite(x) else sys.float_info.max for name, x in mismatch.items()}
    return result | {"updates": float(len(updates))}


def sample_metrics(draws: Sequence[Draw]) -> dict[str, float]:
    """Length in tokens and share of samples that were cut off, over all samples."""
    samples = [sample for drawn in draws for sample in drawn.samples]
    return {
        "length_mean": mean([len(sample.token_ids) for sample in samples]),
        "cut_share": mean([sample.finish_reason == "length" for sample in samples]),
    }


def tokens(draws: Sequence[Draw]) -> int:
    """Tokens sampled."""
    return sum(len(sample.token_ids) for drawn in draws for sample in drawn.samples)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def named(role: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under the name of what they are of: "solver/kl"."""
    return {f"{role}/{name}": value for name, value in metrics.items()}
