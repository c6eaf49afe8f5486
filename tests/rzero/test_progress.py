# SPDX-License-Identifier: Apache-2.0
"""The live display and its estimate of the time left."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rzero.config import load_config
from rzero.plan import Plan, phases
from rzero.progress import Progress, accuracy_table, duration, sparkline
from rzero.run_folder import read_journal
from rzero.settings import Settings
from tests.rzero.make_run_folder import make

CONFIG = load_config("tiny", overrides=["iterations=2"])


def replay(console: Console, folder: Path, config: Settings = CONFIG) -> Progress:
    """Tell a display what the made-up run folder tells."""
    questions = list(read_journal(folder / "questions.jsonl"))
    evaluations = list(read_journal(folder / "evaluations.jsonl"))
    progress = Progress(config, folder, console)
    progress.on_run("main", 53, [])
    for row in read_journal(folder / "metrics.jsonl"):
        progress.on_phase(row["iteration"], row["phase"], 1)
        progress.on_progress(3, 9, "answers")
        if row["phase"] == "pool":
            progress.on_questions(questions)
        if row["phase"] == "evaluation":
            progress.on_evaluation([one for one in evaluations if one["iteration"] == row["iteration"]])
        progress.on_step(row)
    return progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run") / "made-up", iterations=2)


def text_of(progress: Progress, console: Console) -> str:
    with console.capture() as capture:
        console.print(progress)
    return capture.get()


def test_without_a_terminal_each_step_is_a_line(folder: Path) -> None:
    out = io.StringIO()
    replay(Console(file=out, width=100), folder)
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("[") for line in lines) == 53
    assert "\x1b" not in out.getvalue()
    assert any("asked:" in line for line in lines)


def test_display_shows_phase_rewards_questions_and_accuracy(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    shown = text_of(replay(console, folder), console)
    for text in ("iteration 2 of 2", "Solver's reward", "fresh questions", "base", "iteration 1", "left"):
        assert text in shown


def test_display_shows_what_the_gauges_read(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    shown = text_of(replay(console, folder), console)
    assert "length_grows 1." in shown
    # Beyond its threshold, so in bold yellow.
    assert "\x1b[1;33mkeep_share" in shown and "\x1b[1;33mlength_grows" not in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_display_fits_its_width(folder: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    assert max(len(line) for line in text_of(replay(console, folder), console).splitlines()) <= width


def test_model_output_is_not_read_as_markup(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = replay(console, folder)
    row: dict[str, Any] = {"question": "[red]1+1[/red] [/bold]", "votes": [], "kept": False, "reason": "[x]"}
    progress.on_questions([row])
    assert "[red]1+1[/red] [/bold]" in text_of(progress, console)


def test_model_output_does_not_command_the_terminal(folder: Path) -> None:
    text = "\x1b]0;owned\x07\x1b[2J1+1\x9b31m\n[53/53] done"
    votes = [{"answer": "\x1b[2J2", "count": 3}]
    row: dict[str, Any] = {"question": text, "votes": votes, "kept": False, "reason": "too easy"}
    out = io.StringIO()
    replay(Console(file=out, width=100), folder).on_questions([row])
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = replay(console, folder)
    progress.on_questions([row])
    for shown in (out.getvalue(), text_of(progress, console)):
        assert "1+1" in shown and not any(char in shown for char in "\x1b\x07\x9b")
    assert out.getvalue().splitlines()[-1].startswith("  asked:")


def test_summary_compares_with_the_ablation(folder: Path) -> None:
    out = io.StringIO()
    progress = replay(Console(file=out, width=120), folder)
    progress.on_run("ablation", 37, [])
    progress.on_evaluation(
        [row for row in read_journal(folder / "ablation" / "evaluations.jsonl") if row["iteration"]]
    )
    progress.print_summary(folder / "report.html")
    tail = out.getvalue()[-1500:]
    assert "untrained Challenger" in tail
    assert "report.html" in tail


def test_plan_has_the_units_of_the_run() -> None:
    assert list(phases(CONFIG, is_ablation=False)).count("challenger") == 2 * CONFIG.challenger.steps
    assert "challenger" not in list(phases(CONFIG, is_ablation=True))
    assert list(phases(CONFIG, is_ablation=False)).count("evaluation") == 3
    assert list(phases(CONFIG, is_ablation=True)).count("evaluation") == 2


def test_time_left_comes_from_what_was_measured() -> None:
    plan = Plan({"a": 10.0, "b": 30.0}, {"main": ("a", "a", "b"), "ablation": ("b",)})
    plan.start("main")
    plan.finish(2.0)
    assert plan.unit_s("b") == pytest.approx(6.0)
    assert plan.left_s() == pytest.approx(2 + 6 + 6)
    plan.finish(2.0)
    plan.finish(1.0)
    assert plan.left_s() == pytest.approx(1.0)
    plan.start("ablation")
    plan.finish(1.0)
    assert plan.left_s() == 0
    assert plan.share_done() == 1


def test_a_resumed_display_knows_what_an_uninterrupted_one_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves and the time that is left and spent come from the journals."""
    # A clock that stands still, or a slow machine rounds to another second.
    monkeypatch.setattr("rzero.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    rows = list(read_journal(folder / "metrics.jsonl"))
    seen, again = (Progress(CONFIG, folder, Console(width=100)) for _ in range(2))
    for progress, before in ((seen, 0), (again, len(rows) - 1)):
        progress.on_run("main", 53, rows[:before])
        for row in rows[before:]:
            progress.on_phase(row["iteration"], row["phase"], 1)
            progress.on_step(row)
    text = text_of(again, again.console)
    told = text_of(seen, seen.console).splitlines()
    curves = [line for line in told if "reward  " in line or "agreement of" in line]
    assert len(curves) == 3 and all(line in text for line in curves)
    spent_s = sum(row["seconds"] for row in rows[:-1])
    assert f"{duration(spent_s)} so far" in text
    plan = Plan.of(CONFIG)
    plan.start("main")
    for row in rows[:-1]:
        plan.finish(row["seconds"])
    plan.finish(0.0)
    assert f"about {duration(plan.left_s())} left" in text


def test_resumed_run_counts_what_was_done_before() -> None:
    plan = Plan({"a": 10.0}, {"main": ("a",) * 10})
    plan.start("main")
    for _ in range(9):
        plan.finish(3.0)
    assert plan.left_s() == pytest.approx(3.0)


def test_sparkline_and_duration() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([]) == ""
    assert len(sparkline([0.1] * 500)) == 32
    assert [duration(s) for s in (4.2, 65, 7260)] == ["4 s", "1:05 min", "2:01 h"]


@pytest.mark.parametrize(
    ("mean_at_k", "interval", "text"),
    [(None, None, "72.5 ± 6.1"), (0.701, [0.66, 0.74], "72.5 / 70.1 ± 4.0")],
)
def test_a_cell_has_the_interval_that_the_title_speaks_of(
    mean_at_k: float | None, interval: list[float] | None, text: str
) -> None:
    """Half a point is not rounded away: 72.5 % of 200 problems."""
    row = {"set": "mawps", "greedy": 0.725, "greedy_interval": [0.6593, 0.7822], "k": 4 if interval else 0}
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(accuracy_table({("main", 0): [row | {"mean_at_k": mean_at_k, "interval": interval}]}))
    assert text in capture.get()
