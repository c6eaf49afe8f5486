# SPDX-License-Identifier: Apache-2.0
"""Gauges: what each reads, on which side it is bad, and what a run does when one passes its threshold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import Crash, CrashAfter, Keep, outcome, small

from rzero import loop
from rzero.config import load_config
from rzero.engine import Engine
from rzero.gauges import (
    GAUGES,
    Alarm,
    alarms,
    best_iteration,
    is_news,
    read,
    stop_order,
    thresholds,
)
from rzero.journals import read_journal
from rzero.kernels.native import native_why_not
from rzero.rollout import COUNTS, merged
from rzero.settings import GaugeSettings, Threshold


def row(phase: str, iteration: int = 1, step: int = 1, **metrics: Any) -> dict[str, Any]:
    values = {f"{phase}/{name}": value for name, value in metrics.items()}
    return {"iteration": iteration, "phase": phase, "step": step, **values}


# Gauge -> rows before, the row it reads, its value, a threshold that the value passes and one that it keeps.
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], float, float, float]] = {
    "unboxed_share": ([], row("pool", unboxed_share=0.6), 0.6, 0.5, 0.6),
    "keep_share": ([], row("pool", keep_share=0.1), 0.1, 0.2, 0.1),
    "agreement_low": ([], row("challenger", agreement_mean=0.2), 0.2, 0.3, 0.2),
    "agreement_high": ([], row("pool", agreement_mean=0.9), 0.9, 0.8, 0.9),
    "distinct_share": ([], row("challenger", distinct_share=0.3), 0.3, 0.4, 0.3),
    "similarity_to_earlier": ([], row("challenger", similarity_to_earlier=0.9), 0.9, 0.8, 0.9),
    "challenger_agrees": ([], row("pool", answer_agrees_share=0.1), 0.1, 0.2, 0.1),
    "length_grows": ([row("solver", length_mean=10.0)], row("solver", length_mean=30.0), 3.0, 2.0, 3.0),
    "length_shrinks": ([row("solver", length_mean=10.0)], row("solver", length_mean=2.0), 0.2, 0.3, 0.2),
    "entropy": ([], row("solver", entropy=0.01), 0.01, 0.02, 0.01),
    "kl_to_base": ([], row("challenger", kl_to_base=3.0), 3.0, 2.0, 3.0),
    "mismatch": ([], row("solver", mismatch_max=0.01), 0.01, 0.0, 0.01),
    "accuracy_drop": (
        [row("evaluation", 0, accuracy=0.5), row("evaluation", 1, accuracy=0.75)],
        row("evaluation", 2, accuracy=0.25),
        0.5,
        0.25,
        0.5,
    ),
    "set_accuracy_drop": (
        [
            row("evaluation", 0, set_accuracy={"short": 0.5, "long": 0.5}),
            row("evaluation", 1, set_accuracy={"short": 0.75, "long": 0.25}),
        ],
        # In the mean nothing is lost.
        row("evaluation", 2, set_accuracy={"short": 0.875, "long": 0.125}),
        0.375,
        0.25,
        0.375,
    ),
}


def test_every_gauge_has_a_setting_and_a_case() -> None:
    assert {gauge.name for gauge in GAUGES} == set(GaugeSettings.model_fields) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_gauge_reads_its_metric_and_knows_its_bad_side(name: str) -> None:
    before, now, value, passed, kept = CASES[name]
    values = read(now, before)
    assert values[name] == pytest.approx(value)
    quiet = GaugeSettings(**{other: Threshold() for other in CASES})
    assert alarms(values, quiet) == []
    for limit, count in ((passed, 1), (values[name], 0), (kept, 0)):
        found = alarms(values, quiet.model_copy(update={name: Threshold(stop=limit)}))
        assert len(found) == count
    [alarm] = alarms(values, quiet.model_copy(update={name: Threshold(warn=passed)}))
    text = alarm.sentence("iteration 1, pool step 1")
    assert text.startswith("warning in iteration 1, pool step 1: ") and f"gauges.{name}.warn" in text


def test_the_gravest_threshold_counts() -> None:
    settings = GaugeSettings(keep_share=Threshold(warn=0.5, stop=0.3, rollback=0.1))
    for value, action in ((0.4, "warn"), (0.2, "stop"), (0.05, "rollback")):
        [alarm] = alarms({"keep_share": value}, settings)
        assert alarm.action == action


def test_what_is_missing_is_not_read() -> None:
    assert read(row("pool", similarity_to_earlier=None), []) == {}
    assert read(row("solver", length_mean=7.0), [])["length_grows"] == 1.0
    assert read(row("evaluation", accuracy=0.5), [])["accuracy_drop"] == 0.0


def test_a_warning_is_said_once_in_an_iteration() -> None:
    alarm = Alarm("keep_share", 0.1, 0.2, "warn")
    before = [row("pool", 1) | {"alarms": [alarm._asdict()]}]
    assert not is_news(alarm, 1, before)
    assert is_news(alarm, 2, before) and is_news(alarm._replace(action="stop"), 1, before)


def test_of_two_orders_the_graver_is_carried_out() -> None:
    found = [Alarm("keep_share", 0.1, 0.2, "stop"), Alarm("unboxed_share", 0.9, 0.8, "rollback")]
    order = stop_order(row("pool", 2) | {"alarms": [alarm._asdict() for alarm in found]})
    assert order is not None and order.keep_best and "unboxed_share.rollback" in str(order)
    assert stop_order(row("pool", 2) | {"alarms": [found[0]._replace(action="warn")._asdict()]}) is None


def test_the_best_iteration_is_the_earliest_of_equals() -> None:
    rows = [row("evaluation", i, accuracy=value) for i, value in enumerate((0.2, 0.6, 0.6, 0.1))]
    assert best_iteration([*rows, row("solver", 4, reward_mean=1.0)]) == 1
    assert best_iteration([]) == 0


def test_a_run_writes_and_says_what_every_gauge_reads(tmp_path: Path) -> None:
    """Thresholds that nothing can keep: each gauge warns once in every iteration in which it reads."""
    hopeless = [f"gauges.{gauge.name}.warn={-1 if gauge.is_bad_above else 1e9:g}" for gauge in GAUGES]
    observer = Keep()
    loop.run(small("iterations=2", "solver.kl_reference=phase", *hopeless), tmp_path / "run", observer)
    for gauge in GAUGES:
        said = [text for text in observer.messages if f"gauges.{gauge.name}.warn" in text]
        # Iteration 0 measures accuracy; iteration 1 has no earlier questions.
        expected = {"accuracy_drop": 3, "set_accuracy_drop": 3, "similarity_to_earlier": 1}.get(gauge.name, 2)
        assert len(said) == expected, gauge.name
    rows = list(read_journal(tmp_path / "run" / "metrics.jsonl"))
    assert set().union(*(found["gauges"] for found in rows)) == {gauge.name for gauge in GAUGES}
    assert all(len(found["alarms"]) == len(found["gauges"]) for found in rows)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["iteration"], result["models"]["solver"]) == (2, "models/iteration-2/solver")


def test_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    observer = Keep()
    loop.run(small("gauges.unboxed_share.stop=-1"), tmp_path / "run", observer)
    assert [step["phase"] for step in observer.steps] == ["evaluation", "challenger"]
    [message] = observer.messages
    assert message.startswith("stopped in iteration 1, challenger step 1: answers without a box")
    again = Keep()
    loop.resume(tmp_path / "run", observer=again)
    assert again.messages == [message] and not again.steps
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == {
        "iteration": 0,
        "reason": message,
        "models": {"solver": "tiny"},
    }


@pytest.mark.skipif(native_why_not(torch.device("cpu")) is not None, reason="only native kernels are exact")
def test_an_exact_run_stops_at_any_mismatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Engine.train_step

    def off(self: Engine, *args: Any, **options: Any) -> dict[str, float]:
        return honest(self, *args, **options) | {"mismatch_max": 1e-7}

    monkeypatch.setattr(Engine, "train_step", off)
    observer = Keep()
    loop.run(small("engine.numerics=fast"), tmp_path / "fast", observer)
    assert not observer.messages and observer.steps[-1]["phase"] == "evaluation"
    assert [row["gauges"]["mismatch"] for row in observer.steps if row["phase"] == "solver"] == [1e-7, 1e-7]
    loop.run(small(), tmp_path / "exact", observer)
    [message] = observer.messages
    assert message.startswith("stopped in iteration 1, challenger step 1: a token's log-prob in training")
    assert "engine.numerics: fast" in message


def test_an_update_that_saw_no_answer_is_no_measurement() -> None:
    """A step whose groups all agree has no entropy; an entropy of 0 would be an alarm."""
    nothing = dict.fromkeys((*COUNTS, "entropy", "mismatch_max", "mismatch_mean"), 0.0) | {"groups": 2.0}
    taught = nothing | {"tokens_trained": 5.0, "entropy": 0.4, "mismatch_max": 0.25, "mismatch_mean": 0.125}
    assert merged([nothing, taught]) == taught | {"groups": 4.0, "updates": 2.0}
    assert "entropy" not in merged([nothing]) and merged([nothing])["groups"] == 2
    assert "entropy" not in read(row("solver", **merged([nothing])), [])
    assert read(row("solver", **merged([taught])), [])["entropy"] == 0.4


def test_an_update_that_is_not_finite_is_left_out_and_its_mismatch_is_an_alarm() -> None:
    taught = dict.fromkeys((*COUNTS, "entropy", "grad_norm", "mismatch_max", "mismatch_mean"), 1.0) | {
        "skipped": 0.0
    }
    broken = taught | {"skipped": 1.0, "entropy": math.nan, "grad_norm": math.inf}
    assert merged([taught, broken])["entropy"] == 1.0 and merged([taught, broken])["skipped"] == 1.0
    assert "entropy" not in merged([broken])
    lost = merged([broken | {"mismatch_max": math.nan}])
    json.dumps(lost, allow_nan=False)
    values = read(row("solver", **lost), [])
    assert [alarm.action for alarm in alarms(values, thresholds(small(), "solver", is_exact=True))] == [
        "stop"
    ]


def test_a_run_survives_an_update_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Engine.train_step

    def broken(self: Engine, *args: Any, **options: Any) -> dict[str, float]:
        return honest(self, *args, **options) | {"loss": math.nan, "grad_norm": math.inf, "skipped": 1.0}

    monkeypatch.setattr(Engine, "train_step", broken)
    observer = Keep()
    loop.run(small(), tmp_path / "run", observer)
    assert observer.steps[-1]["phase"] == "evaluation"
    assert [step["solver/skipped"] for step in observer.steps if step["phase"] == "solver"] == [1.0, 1.0]


def test_a_mismatch_counts_only_where_it_can_be_0() -> None:
    cut = small("solver.sampling.top_p=0.9", "solver.sampling.temperature=0.7")
    assert thresholds(cut, "challenger", is_exact=True).mismatch.stop == 0.0
    assert thresholds(cut, "solver", is_exact=True).mismatch.stop is None
    assert thresholds(small("solver.sampling.top_p=0.9"), "solver", is_exact=True).mismatch.stop == 0.0
    assert thresholds(cut, "challenger", is_exact=False).mismatch.stop is None
    assert thresholds(small("gauges.mismatch.stop=0.1"), "solver", is_exact=True).mismatch.stop == 0.1


def test_a_rollback_gives_the_best_iteration_and_survives_a_crash(tmp_path: Path) -> None:
    """Likeness to earlier questions is first read in iteration 2, whose first step is the eighth."""
    settings = small("iterations=2", "gauges.similarity_to_earlier.rollback=-1")
    loop.run(settings, tmp_path / "alone")
    with pytest.raises(Crash):
        loop.run(settings, tmp_path / "run", CrashAfter(8))
    assert not (tmp_path / "run" / "result.json").exists()
    observer = Keep()
    loop.resume(tmp_path / "run", observer=observer)
    assert not observer.steps and "rolled back in iteration 2, challenger step 1" in observer.messages[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
    rows = list(read_journal(tmp_path / "run" / "metrics.jsonl"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["iteration"] == best_iteration(rows) and result["reason"] == observer.messages[0]
    model = result["models"]["solver"]
    assert model == "tiny" if result["iteration"] == 0 else (tmp_path / "run" / model).is_dir()


def test_defaults_only_warn() -> None:
    for name in GaugeSettings.model_fields:
        threshold = load_config().gauges.__dict__[name]
        assert threshold.warn is not None and threshold.stop is threshold.rollback is None
