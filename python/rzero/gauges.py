# SPDX-License-Identifier: Apache-2.0
"""Gauges of the known ways in which self-play fails, and what a run does when one passes its threshold.

A gauge is a number read from a unit's metrics, perhaps against those before it. What it reads and what it
orders are written into the unit's row, so a resumed run finds the same orders in its journal and ends where
the first one did.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rzero.rollout import Unit
from rzero.settings import GaugeSettings, Settings, Threshold

Row = Mapping[str, Any]
ACTIONS = ("rollback", "stop", "warn")


class Gauge(NamedTuple):
    """What a gauge reads and which side of its threshold is bad."""

    name: str
    words: str
    """what it is of, for people"""
    metrics: tuple[str, ...]
    """names in metrics.jsonl; a row holds at most one of them"""
    is_bad_above: bool
    against: Literal["nothing", "first", "best", "best of each"] = "nothing"
    """the value itself, its ratio to the run's first, or how far it lies below the run's best; of values by
    name, the one that lies deepest below its best"""
    hint: str = ""
    """what to make of the end it orders"""


GAUGES = (
    Gauge(
        "unboxed_share",
        "answers without a box",
        ("challenger/unboxed_share", "pool/unboxed_share", "solver/unboxed_share"),
        True,
    ),
    Gauge("keep_share", "questions kept", ("pool/keep_share",), False),
    Gauge("agreement_low", "agreement", ("challenger/agreement_mean", "pool/agreement_mean"), False),
    Gauge("agreement_high", "agreement", ("challenger/agreement_mean", "pool/agreement_mean"), True),
    Gauge("distinct_share", "distinct questions of a step", ("challenger/distinct_share",), False),
    Gauge(
        "similarity_to_earlier",
        "likeness to earlier questions",
        ("challenger/similarity_to_earlier", "pool/similarity_to_earlier"),
        True,
    ),
    Gauge(
        "challenger_agrees",
        "Challenger's answer is the majority's",
        ("challenger/answer_agrees_share", "pool/answer_agrees_share"),
        False,
    ),
    Gauge("length_grows", "answer length to the first", ("solver/length_mean",), True, "first"),
    Gauge("length_shrinks", "answer length to the first", ("solver/length_mean",), False, "first"),
    Gauge("entropy", "entropy per token", ("challenger/entropy", "solver/entropy"), False),
    Gauge("kl_to_base", "KL to the base per token", ("challenger/kl_to_base", "solver/kl_to_base"), True),
    Gauge(
        "mismatch",
        "a token's log-prob in training less that in sampling",
        ("challenger/mismatch_max", "solver/mismatch_max"),
        True,
        hint="; exact kernels leave no difference, so that one of them or the memory is wrong; "
        "engine.numerics: fast goes on all the same",
    ),
    Gauge("accuracy_drop", "held-out accuracy below the best", ("evaluation/accuracy",), True, "best"),
    # A set that gains hides in the mean what another loses.
    Gauge(
        "set_accuracy_drop",
        "accuracy on one held-out set below its best",
        ("evaluation/set_accuracy",),
        True,
        "best of each",
    ),
)


class Alarm(NamedTuple):
    """A gauge beyond its threshold."""

    gauge: str
    value: float
    limit: float
    action: str
    """warn, stop or rollback"""

    def sentence(self, where: str) -> str:
        """What happened, for the user."""
        gauge = next(gauge for gauge in GAUGES if gauge.name == self.gauge)
        side = "above" if gauge.is_bad_above else "below"
        text = f"{gauge.words} at {self.value:.3g}, {side} gauges.{self.gauge}.{self.action} = {self.limit:g}"
        head = {
            "warn": f"warning in {where}",
            "stop": f"stopped in {where}",
            "rollback": f"rolled back in {where}",
        }
        return f"{head[self.action]}: {text}{gauge.hint if self.action != 'warn' else ''}"


class Stopped(Exception):
    """Why a run ends before its last iteration, as a sentence for the user."""

    def __init__(self, reason: str, keep_best: bool = False) -> None:
        super().__init__(reason)
        self.keep_best = keep_best


def read(row: Row, before: Sequence[Row]) -> dict[str, float]:
    """Gauge -> value of one unit's metrics, given the rows of the run before it."""
    values = {}
    for gauge in GAUGES:
        found = [row[name] for name in gauge.metrics if row.get(name) is not None]
        if not found:
            continue
        [value] = found
        past = [old[name] for old in before for name in gauge.metrics if old.get(name) is not None]
        match gauge.against:
            case "first":
                value = value / past[0] if past and past[0] else 1.0
            case "best":
                value = _below(value, past)
            case "best of each":
                value = max(_below(value[key], [old[key] for old in past if key in old]) for key in value)
        values[gauge.name] = float(value)
    return values


def _below(value: float, past: Sequence[float]) -> float:
    """How far a value lies below the best so far, its own included."""
    return max(past, default=value) - value


def thresholds(config: Settings, phase: str, is_exact: bool) -> GaugeSettings:
    """The thresholds of a phase: an exact engine's run stops at any mismatch, unless the settings say where.

    What was drawn from a truncated distribution is compared as such (see `grpo.old_logprobs`) and always
    differs, but at temperature 1.
    """
    sampling = config.challenger.sampling if phase == "challenger" else config.solver.sampling
    is_comparable = sampling.temperature == 1 or (sampling.top_p == 1 and sampling.top_k == 0)
    mismatch = config.gauges.mismatch
    if not is_exact or not is_comparable or mismatch.stop is not None:
        return config.gauges
    return config.gauges.model_copy(update={"mismatch": mismatch.model_copy(update={"stop": 0.0})})


def alarms(values: Mapping[str, float], settings: GaugeSettings) -> list[Alarm]:
    """The gauges beyond a threshold, each with the gravest one it passed."""
    found = []
    for gauge in GAUGES:
        threshold: Threshold = settings.__dict__[gauge.name]
        limits: dict[str, float | None] = threshold.model_dump()
        for action in ACTIONS:
            value, limit = values.get(gauge.name), limits[action]
            if value is None or limit is None:
                continue
            if value > limit if gauge.is_bad_above else value < limit:
                found.append(Alarm(gauge.name, value, limit, action))
                break
    return found


def row_alarms(row: Row) -> list[Alarm]:
    """The alarms that a row of metrics.jsonl records."""
    return [Alarm(**alarm) for alarm in row.get("alarms", ())]


def is_news(alarm: Alarm, iteration: int, before: Sequence[Row]) -> bool:
    """Whether this was not said in this iteration yet."""
    said = (old for row in before if row["iteration"] == iteration for old in row_alarms(row))
    return not any((old.gauge, old.action) == (alarm.gauge, alarm.action) for old in said)


def stop_order(row: Row) -> Stopped | None:
    """The end that a row of metrics.jsonl orders, or None."""
    orders = sorted(
        (alarm for alarm in row_alarms(row) if alarm.action != "warn"),
        key=lambda alarm: ACTIONS.index(alarm.action),
    )
    if not orders:
        return None
    where = Unit(row["iteration"], row["phase"], row["step"]).words
    return Stopped(orders[0].sentence(where), keep_best=orders[0].action == "rollback")


def best_iteration(rows: Sequence[Row]) -> int:
    """The iteration with the best held-out accuracy, the earliest of equals; 0 is the base."""
    measured = [row for row in rows if row.get("evaluation/accuracy") is not None]
    best = max(measured, key=lambda row: float(row["evaluation/accuracy"]), default=None)
    return 0 if best is None else int(best["iteration"])
