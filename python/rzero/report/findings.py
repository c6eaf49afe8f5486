# SPDX-License-Identifier: Apache-2.0
"""What the report says in words and headline numbers: pure functions of the rows of evaluations.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Estimate(NamedTuple):
    """An accuracy and half the width of its 95% interval; both are shares."""

    value: float
    half: float


class Style(NamedTuple):
    """How sampled answers split: the share that works the result out, and how often each kind is right."""

    worked: float
    worked_right: float
    guess_right: float

    @property
    def accuracy(self) -> float:
        return self.worked * self.worked_right + (1 - self.worked) * self.guess_right


class Gain(NamedTuple):
    """Where a change of accuracy comes from; the three parts add up to it."""

    switching: float
    steps: float
    guesses: float

    @property
    def total(self) -> float:
        return self.switching + self.steps + self.guesses


def estimate(row: Row, metric: str) -> Estimate:
    """One set's "greedy" or "mean_at_k" with its interval."""
    low, high = row["greedy_interval" if metric == "greedy" else "interval"]
    return Estimate(row[metric], (high - low) / 2)


def average(rows: Sequence[Row], metric: str) -> Estimate | None:
    """The plain mean over sets, whose errors are independent; None where no set has the metric."""
    parts = [estimate(row, metric) for row in rows if row.get(metric) is not None]
    if not parts:
        return None
    half = math.sqrt(sum(part.half**2 for part in parts)) / len(parts)
    return Estimate(sum(part.value for part in parts) / len(parts), half)


def style_of(samples: Sequence[Row]) -> Style | None:
    """The style of sampled answers {"shows_work", "correct"}; None where the task cannot tell."""
    if not samples or any(sample.get("shows_work") is None for sample in samples):
        return None
    worked = [bool(sample["correct"]) for sample in samples if sample["shows_work"]]
    guessed = [bool(sample["correct"]) for sample in samples if not sample["shows_work"]]
    return Style(len(worked) / len(samples), _mean(worked), _mean(guessed))


def mean_style(styles: Sequence[Style]) -> Style:
    """The style of several sets of equal weight together."""
    worked = _mean([style.worked for style in styles])
    guessed = 1 - worked
    right = _mean([style.worked * style.worked_right for style in styles])
    lucky = _mean([(1 - style.worked) * style.guess_right for style in styles])
    return Style(worked, right / worked if worked else 0.0, lucky / guessed if guessed else 0.0)


def explain(before: Style, after: Style) -> Gain:
    """Split after.accuracy - before.accuracy into the change of style and the change within each style.

    Each part is taken at the mean of the other quantities before and after: their order does not matter.
    """
    edge = (before.worked_right + after.worked_right - before.guess_right - after.guess_right) / 2
    worked = (before.worked + after.worked) / 2
    return Gain(
        switching=(after.worked - before.worked) * edge,
        steps=(after.worked_right - before.worked_right) * worked,
        guesses=(after.guess_right - before.guess_right) * (1 - worked),
    )


def learning_sentence(before: Style, after: Style) -> str:
    """What kind of learning it was, in words that the numbers allow."""
    gain = explain(before, after)
    share = f"{_percent(before.worked)} of the base's sampled answers show their steps, "
    share += f"{_percent(after.worked)} in the end"
    right = f"answers with steps are right {_percent(before.worked_right)} of the time at first and "
    right += f"{_percent(after.worked_right)} in the end"
    parts = {
        "showing the steps instead of guessing": gain.switching,
        "steps that are right more often": gain.steps,
        "better guesses": gain.guesses,
    }
    split = ", ".join(
        f"{100 * value:+.1f} from {name}" for name, value in parts.items() if abs(value) >= 0.0005
    )
    text = f"{share}; {right}. The change of {100 * gain.total:+.1f} points is {split}."
    if gain.total > 0 and gain.switching > gain.total / 2:
        return text + " Most of it is a habit brought forward that the base had already, not a new skill."
    if gain.total > 0 and gain.switching > gain.total / 4:
        return (
            text + " A good part of it is a habit brought forward that the base had already, not a new skill."
        )
    return text


def given_words(examples: int) -> str:
    """What the run had from people, as the beginning of a sentence."""
    if not examples:
        return "It was given no questions and no answers"
    what = (
        "1 example question with its answer"
        if examples == 1
        else f"{examples} example questions with their answers"
    )
    return f"It was given {what}, which its Challenger was shown"


def comparison_sentence(final: Estimate, control: Estimate) -> str:
    """R-Zero against the untrained Challenger, with what the intervals allow to say."""
    lead, half = final.value - control.value, math.hypot(final.half, control.half)
    numbers = f"{100 * lead:+.1f} ± {100 * half:.1f} points against an untrained Challenger"
    if abs(lead) <= half:
        return f"{numbers}: too close for one run to tell them apart"
    # The interval is over problems; how far another seed would fall from this one it does not know.
    return f"{numbers}: with this seed more than the choice of problems explains"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
