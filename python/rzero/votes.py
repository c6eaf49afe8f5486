# SPDX-License-Identifier: Apache-2.0
"""The vote: the one definition that rewards, labels and evaluation share.

The m answers to a question are sorted into classes in order of appearance: an answer joins the first class
whose first member the judge calls the same, else it founds a class. The largest class wins; among equals the
one seen first. An answer without a box never votes but counts in m.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

SameMany = Callable[[Sequence[tuple[str, str]]], Sequence[bool | None]]


class Vote(NamedTuple):
    """The vote on one question."""

    answers: tuple[str | None, ...]
    """what each of the m samples answered; None without a box"""
    classes: tuple[tuple[str, int], ...]
    """(first member, number of votes) in order of appearance"""
    failures: int
    """comparisons on which the judge gave up; they counted as different"""

    @property
    def majority(self) -> str | None:
        """The winning answer; None when nobody voted."""
        return max(self.classes, key=lambda item: item[1])[0] if self.classes else None

    @property
    def agreement(self) -> int:
        """Votes for the winning answer, 0..m."""
        return max((votes for _, votes in self.classes), default=0)

    @property
    def share(self) -> float:
        """agreement / m, the p of the uncertainty reward."""
        return self.agreement / len(self.answers) if self.answers else 0.0


def count_votes(questions: Sequence[Sequence[str | None]], same_many: SameMany) -> list[Vote]:
    """One vote per question; comparisons of all questions go to the judge together, round by round.

    In a round every question whose answers are not all sorted founds one class with the first of them and
    asks the judge about the others, so the outcome is that of comparing one after the other.
    """
    unsorted = [list(dict.fromkeys(a for a in answers if a is not None)) for answers in questions]
    classes: list[dict[str, list[str]]] = [{} for _ in questions]
    failures = [0] * len(questions)
    while any(unsorted):
        open_questions = [i for i, texts in enumerate(unsorted) if texts]
        pairs = [(unsorted[i][0], text) for i in open_questions for text in unsorted[i][1:]]
        verdicts = iter(same_many(pairs) if pairs else ())
        for i in open_questions:
            first, *others = unsorted[i]
            judged = [(text, next(verdicts)) for text in others]
            classes[i][first] = [first, *(text for text, verdict in judged if verdict)]
            unsorted[i] = [text for text, verdict in judged if not verdict]
            failures[i] += sum(verdict is None for _, verdict in judged)
    return [
        Vote(
            tuple(answers),
            tuple((first, sum(a in members for a in answers)) for first, members in found.items()),
            lost,
        )
        for answers, found, lost in zip(questions, classes, failures, strict=True)
    ]


def or_both_say_no(same_many: SameMany) -> SameMany:
    """The judge after a rule of the authors' code: two answers that both hold "no " are the same."""

    def judged(pairs: Sequence[tuple[str, str]]) -> Sequence[bool | None]:
        denied = ["no " in a.lower() and "no " in b.lower() for a, b in pairs]
        asked = [pair for pair, is_no in zip(pairs, denied, strict=True) if not is_no]
        verdicts = iter(same_many(asked) if asked else ())
        return [is_no or next(verdicts) for is_no in denied]

    return judged


def agreement_counts(votes: Sequence[Vote], m: int) -> list[int]:
    """How many questions had 0, 1, ... m votes for the winning answer."""
    counts = [0] * (m + 1)
    for vote in votes:
        counts[vote.agreement] += 1
    return counts
