# SPDX-License-Identifier: Apache-2.0
"""The question pool of an iteration: candidates, votes, and the band of questions worth learning from.

Held-out problems, repeated questions and unusable texts never reach a vote. The label is the majority's
answer; the Challenger's own answer is only written down, unless `only_confirmed` asks that it be the
majority's, and the truth, where a task knows it, only measures the labels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rzero.challenger import VOTES
from rzero.diversity import clusters, similarity
from rzero.rollout import (
    Run,
    Unit,
    agreeing_share,
    answers_agree,
    ask_solver,
    draw_questions,
    likeness_to_earlier,
    mean,
    named,
    sample_metrics,
    tokens,
    usable,
)
from rzero.settings import PoolSettings
from rzero.tasks.base import Invalid, Question
from rzero.votes import Vote, agreement_counts

# How many new and earlier questions likeness and clusters are measured on.
NEW_QUESTIONS, EARLIER_QUESTIONS = 128, 256


class Voted(NamedTuple):
    """A question, the vote on it, and the texts of the answers."""

    question: Question
    vote: Vote
    texts: Sequence[str]


def build(run: Run, unit: Unit, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """Draw, vote and filter; writes questions.jsonl and returns the metrics.

    `earlier`: the questions of the pools before.
    """
    settings = run.config.pool
    reused = voted_before(run, unit.iteration) if settings.reuse_votes else []
    saved = run.config.challenger.questions_per_step if reused else 0
    new = max(settings.candidates - saved, 0)
    drawn = draw_questions(run, unit, new, settings.sampling, run.config.anchors_every)
    parsed = [usable(run, sample.text) for part in drawn for sample in part.samples]
    invalid = Counter(question.reason for question in parsed if isinstance(question, Invalid))
    known = {run.task.canonical(voted.question.text) for voted in reused}
    questions: dict[str, Question] = {}
    for question in parsed:
        if isinstance(question, Question) and run.task.canonical(question.text) not in known:
            questions.setdefault(run.task.canonical(question.text), question)
    duplicates = len(parsed) - invalid.total() - len(questions)
    fresh = list(questions.values())
    votes, answers = ask_solver(run, unit, [question.text for question in fresh], settings.votes)
    texts = [[sample.text for sample in given.samples] for given in answers]
    asked = [*reused, *map(Voted, fresh, votes, texts)]
    confirmed = answers_agree(run, [voted.question for voted in asked], [voted.vote for voted in asked])
    rows = [
        question_row(run, unit, index, voted, bool(agrees))
        for index, (voted, agrees) in enumerate(zip(asked, confirmed, strict=True))
    ]
    run.folder.append("questions.jsonl", rows)
    run.observer.on_questions(rows)
    metrics: dict[str, Any] = {
        "candidates": len(parsed),
        "reused": len(reused),
        "invalid": invalid.total() - invalid["held out"],
        "held_out": invalid["held out"],
        "duplicates": duplicates,
        "answer_agrees_share": agreeing_share(confirmed),
    }
    metrics |= pool_metrics(run, asked, rows, earlier)
    metrics |= sample_metrics(answers) | run.task.counters()
    return {"tokens_sampled": tokens([*drawn, *answers])} | named("pool", metrics)


def question_row(run: Run, unit: Unit, index: int, voted: Voted, is_confirmed: bool) -> dict[str, Any]:
    """A row of questions.jsonl. is_confirmed: the Challenger's own answer is the majority's."""
    question, vote, texts = voted
    reason = why_not(question.text, vote, run.config.pool, is_confirmed)
    row: dict[str, Any] = {"iteration": unit.iteration, "index": index, "question": question.text}
    row["challenger_answer"] = question.answer
    row["answers"] = [{"text": t, "answer": a} for t, a in zip(texts, vote.answers, strict=True)]
    row["votes"] = [{"answer": answer, "count": count} for answer, count in vote.classes]
    row |= {"agreement": vote.share, "label": vote.majority, "kept": reason is None, "reason": reason}
    return row | {"truth": run.task.truth(question.text)}


def pool_metrics(
    run: Run, asked: Sequence[Voted], rows: Sequence[dict[str, Any]], earlier: Sequence[str]
) -> dict[str, Any]:
    """What the questions of a pool are like; shares of them unless the name says otherwise."""
    votes = [voted.vote for voted in asked]
    new = [voted.question.text for voted in asked[:NEW_QUESTIONS]]
    likeness = likeness_to_earlier(run, new, earlier[-EARLIER_QUESTIONS:])
    distance = 1.0 - similarity([run.task.tokens(text) for text in new], run.engine.kernels.bleu)
    before = {run.task.canonical(text) for text in earlier}
    again = [run.task.canonical(voted.question.text) in before for voted in asked]
    kept = [row for row in rows if row["kept"]]
    return {
        "questions": len(asked),
        "kept": len(kept),
        "keep_share": len(kept) / max(len(asked), 1),
        "agreement_mean": mean([vote.share for vote in votes]),
        "agreement_counts": agreement_counts(votes, run.config.pool.votes),
        "unboxed_share": mean([answer is None for vote in votes for answer in vote.answers]),
        "cluster_share": len(set(clusters(distance, run.config.challenger.repetition_distance)))
        / max(len(new), 1),
        "similarity_to_earlier": mean(likeness) if likeness else None,
        "asked_before_share": mean(again),
        "label_accuracy": label_accuracy(run, kept),
    }


def why_not(question: str, vote: Vote, settings: PoolSettings, is_confirmed: bool = False) -> str | None:
    """Why a question is not kept, in a few words; None where it is."""
    if vote.failures:
        return "judge gave up"
    if vote.majority is None:
        return "no answer"
    if any(text in question for text in settings.skip_in_question):
        return "skipped for its question"
    if any(text in vote.majority for text in settings.skip_in_label):
        return "skipped for its label"
    value: float = vote.agreement
    low: float = settings.keep_low
    high: float = settings.keep_high
    if settings.keep_shares is not None:
        value = vote.agreement / sum(answer is not None for answer in vote.answers)
        low, high = settings.keep_shares
    if value < low:
        return "too hard"
    if value > high:
        return "too easy"
    return "not confirmed" if settings.only_confirmed and not is_confirmed else None


def voted_before(run: Run, iteration: int) -> list[Voted]:
    """The different questions of the Challenger's last step in this iteration, from the journal."""
    return [
        Voted(
            Question(row["question"], row["challenger_answer"]),
            Vote(
                tuple(row["answers"]),
                tuple((answer, count) for answer, count in row["classes"]),
                row["failures"],
            ),
            row["texts"],
        )
        for row in run.folder.read(VOTES)
        if row["iteration"] == iteration
    ]


def earlier(run: Run, iteration: int) -> list[str]:
    """The questions of the pools before this iteration's, in order, from the journal."""
    if iteration == 1:
        return []
    return [row["question"] for row in run.folder.read("questions.jsonl") if row["iteration"] < iteration]


def kept(run: Run, iteration: int) -> list[tuple[str, str]]:
    """(question, label) of the iteration's pool, in order, from the journal."""
    rows = (row for row in run.folder.read("questions.jsonl") if row["iteration"] == iteration)
    return [(row["question"], row["label"]) for row in rows if row["kept"]]


def label_accuracy(run: Run, rows: Sequence[dict[str, Any]]) -> float | None:
    """Share of right labels among rows whose truth is known; None where none is."""
    pairs = [(row["label"], row["truth"]) for row in rows if row["truth"] is not None]
    return mean([bool(verdict) for verdict in run.task.same_many(pairs)]) if pairs else None
