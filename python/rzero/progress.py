# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: phase, step, time left, rewards, accuracy so far, fresh questions.

On a terminal one display is redrawn in place; elsewhere (a pipe, a log) each finished step is one line.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rzero.gauges import row_alarms
from rzero.journals import read_journal
from rzero.observer import Observer
from rzero.plan import Plan
from rzero.settings import Settings
from rzero.terminal import on_one_line

BARS = "▁▂▃▄▅▆▇█"
CURVE_CELLS = 32
EXAMPLES = 4
# Metrics drawn as curves while the run goes on: name, label, style. All are shares, drawn from 0 to 1.
CURVES = (
    ("challenger/reward_mean", "Challenger's reward", "dark_orange"),
    ("pool/agreement_mean", "agreement of the votes", "dark_orange"),
    ("solver/reward_mean", "Solver's reward", "dark_cyan"),
)
RUN_NAMES = (("main", "R-Zero"), ("ablation", "untrained Challenger"))


def run_name(run: str) -> str:
    """What a run is called in front of people."""
    return dict(RUN_NAMES).get(run, run)


def sparkline(values: Sequence[float], cells: int = CURVE_CELLS) -> str:
    """The last values as a row of bars, from 0 or the least value up to 1 or the largest."""
    shown = values[-cells:]
    if not shown:
        return ""
    low, high = min(0.0, *shown), max(1.0, *shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3:05 min", "2:10 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Progress(Observer):
    """Shows a run on `console`; use it as a context manager around the run."""

    def __init__(self, config: Settings, folder: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self._config, self._folder = config, folder
        self._plan = Plan.of(config)
        self._run, self._units, self._done = "main", 0, 0
        self._iteration, self._phase, self._steps, self._step = 0, "", 0, 0
        self._within = (0, 0, "")
        self._curves: dict[str, list[float]] = {name: [] for name, _, _ in CURVES}
        self._gauges: dict[str, tuple[float, bool]] = {}
        self._examples: list[Mapping[str, Any]] = []
        self._accuracy: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        self._messages: list[str] = []
        self._live: Live | None = None
        self._earlier_s = 0.0
        self._started_s = self._unit_started_s = time.monotonic()

    def __enter__(self) -> "Progress":
        self._started_s = self._unit_started_s = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            # The display is gone from the screen now; what it had to say is not.
            for text in self._messages:
                self._line(text)

    # what the run tells

    def on_run(self, name: str, units: int, finished: Sequence[Mapping[str, Any]]) -> None:
        self._run, self._units, self._done = name, units, len(finished)
        self._plan.start(name)
        self._unit_started_s = time.monotonic()
        if name != "main":
            self._curves = {curve: [] for curve, _, _ in CURVES}
        for row in finished:
            self._plan.finish(row["seconds"])
            self._earlier_s += row["seconds"]
            self._note(row)
        if finished:
            journal = (self._folder if name == "main" else self._folder / name) / "evaluations.jsonl"
            for row in read_journal(journal):
                self._accuracy.setdefault((name, int(row["iteration"])), []).append(row)
        again = f", {len(finished)} of {units} steps done before" if finished else ""
        self._line(f"{run_name(name)}: {self._folder}{again}")

    def on_phase(self, iteration: int, phase: str, steps: int) -> None:
        self._iteration, self._phase, self._steps, self._step = iteration, phase, steps, 0
        self._within = (0, 0, "")

    def on_progress(self, done: int, total: int, what: str) -> None:
        self._within = (done, total, what)

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        now_s = time.monotonic()
        self._plan.finish(now_s - self._unit_started_s)
        self._unit_started_s = now_s
        self._done += 1
        self._step += 1
        self._within = (0, 0, "")
        self._note(metrics)
        self._line(self._step_line(metrics))

    def on_questions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._examples = list(rows[:EXAMPLES])
        for row in self._examples[:2]:
            question = on_one_line(str(row["question"]))
            self._line(f"  asked: {question}   votes: {_votes(row)}   {_verdict(row)}")

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        self._accuracy[self._run, int(rows[0]["iteration"])] = list(rows)
        self._line("  " + "   ".join(f"{row['set']} {_accuracy(row)}" for row in rows))

    def on_message(self, text: str) -> None:
        self._messages.append(text)
        self._line(text)

    def _note(self, metrics: Mapping[str, Any]) -> None:
        for name, _, _ in CURVES:
            if name in metrics:
                self._curves[name].append(float(metrics[name]))
        alarmed = {alarm.gauge for alarm in row_alarms(metrics)}
        for name, value in metrics.get("gauges", {}).items():
            self._gauges[name] = (float(value), name in alarmed)

    def _spent_s(self) -> float:
        """Seconds of work, those before an interruption too."""
        return self._earlier_s + time.monotonic() - self._started_s

    # drawing

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _step_line(self, metrics: Mapping[str, Any]) -> str:
        words = {name: name.split("/")[1].removesuffix("_mean") for name, _, _ in CURVES}
        shown = [f"{word} {metrics[name]:.2f}" for name, word in words.items() if name in metrics]
        if "pool/kept" in metrics:
            shown.append(f"kept {metrics['pool/kept']} of {metrics['pool/questions']}")
        left = f"{duration(self._plan.left_s())} left"
        return f"[{self._done}/{self._units}] {self._where()}: {', '.join([*shown, left])}"

    def _where(self) -> str:
        if self._phase == "evaluation" and self._iteration == 0:
            return "evaluation of the base"
        step = f", step {min(self._step + (self._live is not None), self._steps)} of {self._steps}" * (
            self._steps > 1
        )
        return f"iteration {self._iteration} of {self._config.iterations}, {self._phase.capitalize()}{step}"

    def __rich__(self) -> RenderableType:
        """The whole display, as of now."""
        config = self._config
        model, task = (_plain(Path(name).name) for name in (config.model, config.task))
        title = f"[bold]rzero[/]  {model} · {task} · seed {config.seed}"
        parts: list[RenderableType] = [self._head(), Text()]
        if any(self._curves.values()):
            parts += [self._curve_table(), Text()]
        if self._gauges:
            parts += [self._gauge_line(), Text()]
        if self._examples:
            parts += [self._example_table(), Text()]
        if self._accuracy:
            parts.append(accuracy_table(self._accuracy))
        parts += [Text(message, style="yellow") for message in self._messages[-2:]]
        width = min(self.console.width, 100)
        return Panel(
            Group(*parts), title=title, title_align="left", width=width, padding=(1, 2), border_style="dim"
        )

    def _head(self) -> RenderableType:
        left_s = self._plan.left_s() - (time.monotonic() - self._unit_started_s)
        times = Table.grid(padding=(0, 2))
        share = self._plan.share_done()
        bar = ProgressBar(total=1.0, completed=share, width=30, complete_style="dark_cyan")
        times.add_row(
            bar,
            f"{share:.0%}",
            f"{duration(self._spent_s())} so far",
            f"about {duration(max(left_s, 0))} left",
        )
        done, total, what = self._within
        where = Text(f"{run_name(self._run)}  ", style="bold")
        where.append(self._where() if self._phase else "starting", style="default")
        if total:
            where.append(f", {what} {done} of {total}", style="dim")
        return Group(times, where)

    def _curve_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, label, style in CURVES:
            if values := self._curves[name]:
                table.add_row(label, Text(sparkline(values), style=style), f"{values[-1]:.2f}")
        return table

    def _gauge_line(self) -> Text:
        """What each gauge reads; in colour where it is beyond a threshold."""
        line = Text().append("gauges", style="dim")
        for name, (value, is_alarmed) in self._gauges.items():
            line.append("   ").append(f"{name} {value:.3g}", style="bold yellow" if is_alarmed else "default")
        return line

    def _example_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(Text("fresh questions", style="dim"), Text("votes", style="dim"), "")
        for row in self._examples:
            style = "default" if row["kept"] else "dim"
            question = Text(_short(str(row["question"]), 44), style=style, no_wrap=True)
            table.add_row(
                question, Text(_votes(row), style=style, no_wrap=True), Text(_verdict(row), style=style)
            )
        return table

    def print_summary(self, report: Path) -> None:
        """The table of the finished run and where its report lies."""
        if self._accuracy:
            self.console.print(accuracy_table(self._accuracy))
        self.console.print(f"finished in {duration(self._spent_s())}", highlight=False)
        self.console.print(f"report: {report}", highlight=False, soft_wrap=True, markup=False)


def accuracy_table(accuracy: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> RenderableType:
    """Base, each iteration and the ablation, one row each: greedy and mean@k per held-out set in per cent."""
    sets = list(dict.fromkeys(str(row["set"]) for rows in accuracy.values() for row in rows))
    samples = max((int(row["k"]) for rows in accuracy.values() for row in rows), default=0)
    sampled = f" / mean@{samples}" if samples else ""
    title = Text(f"accuracy in %: greedy{sampled} ± half of the 95% interval", style="dim")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in sets:
        table.add_column(name, justify="right")
    for (run, iteration), rows in sorted(
        accuracy.items(), key=lambda item: (item[0][0] != "main", item[0][1])
    ):
        if run != "main" and iteration == 0:
            continue  # the ablation starts from the same base
        label = "base" if iteration == 0 else f"iteration {iteration}"
        if run != "main":
            label = f"untrained Challenger, {iteration}"
        by_set = {str(row["set"]): row for row in rows}
        cells = [_accuracy(by_set[name]) if name in by_set else "" for name in sets]
        table.add_row(
            label,
            *cells,
            style="bold" if run == "main" and iteration else "default" if run == "main" else "dim",
        )
    return Group(title, table)


def _accuracy(row: Mapping[str, Any]) -> str:
    """The interval is that of the last number."""
    greedy, is_sampled = f"{100 * row['greedy']:.1f}", row.get("mean_at_k") is not None
    low, high = row["interval" if is_sampled else "greedy_interval"]
    half = f"± {50 * (high - low):.1f}"
    return f"{greedy} / {100 * row['mean_at_k']:.1f} {half}" if is_sampled else f"{greedy} {half}"


def _votes(row: Mapping[str, Any]) -> str:
    votes = sorted(row["votes"], key=lambda vote: -int(vote["count"]))[:3]
    return "  ".join(f"{_short(str(vote['answer']), 12)} ({vote['count']})" for vote in votes) or "none"


def _verdict(row: Mapping[str, Any]) -> str:
    return "kept" if row["kept"] else f"dropped: {row['reason']}"


def _short(text: str, limit: int) -> str:
    text = on_one_line(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
