# SPDX-License-Identifier: Apache-2.0
"""The question pool of an iteration: candidates, votes, and the band of questions worth learning from.

Held-out problems, repeated questions and unusable texts never reach a vote. The label is the majority's
answer; the Challenger's own answer is only written down, and the truth, where a task knows it, only measures
the labels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rzero.rollout import Run, Unit, ask_solver, draw_questions, mean, named, sample_metrics, tokens, usable
from rzero.settings import PoolSettings
from rzero.tasks.base import Invalid, Question
from rzero.votes import Vote, agreement_counts

# How many new and earlier questions the likeness across iterations is measured on.
NEW_QUESTIONS, EARLIER_QUESTIONS = 128, 256


def build(run: Run, unit: Unit) -> dict[str, Any]:
    """Draw, vote and filter; writes questions.jsonl and returns the metrics."""
    settings = run.config.pool
    drawn = draw_questions(run, unit, settings.candidates, settings.sampling)
    parsed = [usable(run, sample.text) for sample in drawn.samples]
    invalid = Counter(question.reason for question in parsed if isinstance(question, Invalid))
    questions: dict[str, Question] = {}
    for question in parsed:
        if isinstance(question, Question):
            questions.setdefault(run.task.canonical(question.text), question)
    duplicates = len(parsed) - invalid.total() - len(questions)
    asked = list(questions.values())
    votes, answers = ask_solver(run, unit, [question.text for question in asked], settings.votes)

    rows = []
    for index, (question, vote, given) in enumerate(zip(asked, votes, answers, strict=True)):
        reason = why_not(vote, settings)
        row = {"iteration": unit.iteration, "index": index, "question": question.text}
        row |= {"challenger_answer": question.answer}
        texts = [sample.text for sample in given.samples]
        row["answers"] = [{"text": t, "answer": a} for t, a in zip(texts, vote.answers, strict=True)]
        row["votes"] = [{"answer": answer, "count": count} for answer, count in vote.classes]
        row |= {"agreement": vote.share, "label": vote.majority, "kept": reason is None, "reason": reason}
        rows.append(row | {"truth": run.task.truth(question.text)})
    earlier = [str(row["question"]) for row in run.folder.read("questions.jsonl")]
    likeness = similarity_to_earlier(run, [question.text for question in asked], earlier)
    run.folder.append("questions.jsonl", rows)
    run.observer.on_questions(rows)

    kept = [row for row in rows if row["kept"]]
    metrics = {
        "candidates": settings.candidates,
        "invalid": invalid.total() - invalid["held out"],
        "held_out": invalid["held out"],
        "duplicates": duplicates,
        "questions": len(rows),
        "kept": len(kept),
        "keep_share": len(kept) / max(len(rows), 1),
        "agreement_mean": mean([vote.share for vote in votes]),
        "agreement_counts": agreement_counts(votes, settings.votes),
        "unboxed_share": mean([answer is None for vote in votes for answer in vote.answers]),
        "similarity_to_earlier": likeness,
        "label_accuracy": label_accuracy(run, kept),
    }
    metrics |= sample_metrics(answers) | run.task.counters()
    return {"tokens_sampled": tokens([drawn, *answers])} | named("pool", metrics)


def why_not(vote: Vote, settings: PoolSettings) -> str | None:
    """Why a question is not kept, in a few words; None where it is."""
    if vote.failures:
        return "judge gave up"
    if vote.majority is None:
        return "no answer"
    if vote.agreement < settings.keep_low:
        return "too hard"
    return "too easy" if vote.agreement > settings.keep_high else None


def kept(run: Run, iteration: int) -> list[tuple[str, str]]:
    """(question, label) of the iteration's pool, in order, from the journal."""
    rows = (row for row in run.folder.read("questions.jsonl") if row["iteration"] == iteration)
    return [(row["question"], row["label"]) for row in rows if row["kept"]]


def label_accuracy(run: Run, rows: Sequence[dict[str, Any]]) -> float | None:
    """Share of right labels among rows whose truth is known; None where none is."""
    pairs = [(row["label"], row["truth"]) for row in rows if row["truth"] is not None]
    return mean([bool(verdict) for verdict in run.task.same_many(pairs)]) if pairs else None


def similarity_to_earlier(run: Run, new: Sequence[str], earlier: Sequence[str]) -> float | None:
    """Mean over new questions of the BLEU with the nearest earlier one; None in the first iteration."""
    new, earlier = new[:NEW_QUESTIONS], earlier[-EARLIER_QUESTIONS:]
    if not new or not earlier:
        return None
    ids: dict[str, int] = {}
    texts = [
        [ids.setdefault(token, len(ids)) for token in run.task.tokens(text)] for text in [*new, *earlier]
    ]
    scores = run.engine.kernels.bleu(texts)[: len(new), len(new) :]
    return float(scores.max(axis=1).mean())
