# SPDX-License-Identifier: Apache-2.0
"""Accuracy on held-out problems: greedy, mean@k and majority@k, each with a 95% interval.

greedy and majority@k are shares of problems: Wilson's interval. mean@k averages k answers of each problem,
which depend on each other, so problems are what is drawn again: the percentile bootstrap with 2,000
repetitions (`intervals.bootstrap`). No answer is a wrong answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rzero.config import nearest
from rzero.engine.errors import InputError
from rzero.intervals import bootstrap, wilson
from rzero.rollout import Draw, Request, Run, Unit, draw, mean, sample_metrics, tokens
from rzero.seeds import shuffled
from rzero.settings import Sampling
from rzero.tasks.base import Problem, Task
from rzero.votes import count_votes


class Measured(NamedTuple):
    """An evaluation: one row per set, one row per problem, and the tokens it took."""

    rows: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    tokens_sampled: int


def measure(run: Run, unit: Unit) -> Measured:
    """Measure the Solver as it is now. The random keys are the same in every iteration."""
    rows, answers, sampled = [], [], 0
    settings = run.config.evaluation
    for name, problems in chosen_sets(run.task, settings.sets).items():
        part = measure_set(run, unit, name, shuffled(problems, settings.shuffle)[: settings.problems])
        rows += part.rows
        answers += part.answers
        sampled += part.tokens_sampled
    return Measured(rows, answers, sampled)


def chosen_sets(task: Task, names: Sequence[str] | None) -> dict[str, Sequence[Problem]]:
    """The held-out sets of these names, or all; raises InputError for a name the task does not have."""
    sets = task.held_out()
    for name in names or ():
        if name not in sets:
            raise InputError(
                f"evaluation.sets: task {task.name} has no set {name!r}; {nearest(name, [*sets])}"
            )
    return {name: sets[name] for name in (sets if names is None else names)}


def measure_set(run: Run, unit: Unit, name: str, problems: Sequence[Problem]) -> Measured:
    """Measure one set."""
    settings = run.config.evaluation
    k = settings.samples
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    one = answer(run, name, problems, sampling, 1, is_greedy=True)
    many = answer(run, name, problems, sampling, k) if k else [Draw([], []) for _ in problems]
    greedy = graded(run.task, problems, one)
    sampled = graded(run.task, problems, many)
    answers = [
        {
            "iteration": unit.iteration,
            "role": "solver",
            "set": name,
            "index": index,
            "question": problem.question,
            "truth": problem.answer,
            "greedy": first[0],
            "samples": others,
        }
        for index, (problem, first, others) in enumerate(zip(problems, greedy, sampled, strict=True))
    ]
    row: dict[str, Any] = {
        "iteration": unit.iteration,
        "role": "solver",
        "set": name,
        "problems": len(problems),
    }
    row |= accuracy(greedy, sampled, run.config.seed)
    if k:
        row |= majority(run.task, problems, sampled)
    drawn = many if k else one
    row |= sample_metrics(drawn)
    works = [given["shows_work"] for part in (sampled if k else greedy) for given in part]
    row["worked_share"] = mean(works) if works and None not in works else None
    return Measured([row], answers, tokens(one) + tokens(many))


def answer(
    run: Run, name: str, problems: Sequence[Problem], sampling: Sampling, n: int, is_greedy: bool = False
) -> list[Draw]:
    """n answers of the Solver to every problem.

    Raises InputError for a problem that leaves no room for an answer.
    """
    prompts = [run.task.solver_prompt(run.tokenizer, problem.question) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) >= run.engine.max_model_len:
            raise InputError(
                f"held-out set {name}: the problem {problem.question[:60]!r} has a prompt of {len(prompt)} "
                f"tokens, and engine.max_model_len = {run.engine.max_model_len} must hold it and an answer"
            )
    request = Request(
        prompts=prompts,
        seeds=[run.seed(Unit(0, "evaluation", 1), name, index) for index in range(len(problems))],
        n=[n] * len(problems),
        sampling=sampling,
        stop=run.task.solver_stop(run.tokenizer),
        what="answers",
        is_greedy=is_greedy,
    )
    return draw(run, run.solver, request)


def graded(task: Task, problems: Sequence[Problem], draws: Sequence[Draw]) -> list[list[dict[str, Any]]]:
    """Each sample's text, answer, whether it is right, and whether it shows its work."""
    answers = [[task.extract_answer(sample.text) for sample in drawn.samples] for drawn in draws]
    pairs = [
        (given, problem.answer)
        for problem, part in zip(problems, answers, strict=True)
        for given in part
        if given is not None
    ]
    verdicts = iter(task.same_many(pairs))
    return [
        [
            {
                "text": sample.text,
                "answer": given,
                "correct": given is not None and bool(next(verdicts)),
                "shows_work": task.shows_work(sample.text),
            }
            for sample, given in zip(drawn.samples, part, strict=True)
        ]
        for drawn, part in zip(draws, answers, strict=True)
    ]


def accuracy(
    greedy: Sequence[Sequence[Mapping[str, Any]]], sampled: Sequence[Sequence[Mapping[str, Any]]], seed: int
) -> dict[str, Any]:
    """greedy and mean@k with their intervals; mean_at_k is None where nothing was sampled."""
    right = [bool(part[0]["correct"]) for part in greedy]
    found: dict[str, Any] = {"greedy": mean(right), "greedy_interval": wilson(sum(right), len(right))}
    found["k"] = max((len(part) for part in sampled), default=0)
    shares = [mean([given["correct"] for given in part]) for part in sampled] if found["k"] else []
    found["mean_at_k"] = mean(shares) if shares else None
    found["interval"] = bootstrap(shares, seed) if shares else None
    return found


def majority(
    task: Task, problems: Sequence[Problem], sampled: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """majority@k with its interval: the share of problems whose vote names the right answer."""
    votes = count_votes([[given["answer"] for given in part] for part in sampled], task.same_many)
    winners = [vote.majority for vote in votes]
    pairs = [(w, problem.answer) for w, problem in zip(winners, problems, strict=True) if w is not None]
    right = sum(bool(verdict) for verdict in task.same_many(pairs))
    return {
        "majority_at_k": right / max(len(problems), 1),
        "majority_interval": wilson(right, len(problems)),
        "agreement_mean": mean([vote.share for vote in votes]),
    }
