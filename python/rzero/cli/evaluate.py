# SPDX-License-Identifier: Apache-2.0
"""`rzero eval`: accuracy of a model on public benchmarks or on a task's held-out sets."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rzero.engine.errors import InputError

if TYPE_CHECKING:
    from rzero.examination import Asked, Protocol

# Sampled answers per problem of a task's own held-out sets.
TASK_SAMPLES = 8
# Seconds between lines of progress where there is no terminal.
LINE_EVERY_S = 60.0


@click.command("eval", short_help="Measure a model on benchmarks or held-out sets.")
@click.argument("model")
@click.option(
    "--suite", "--set", "suites", multiple=True, metavar="NAME",
    help="math, general, or one set such as gsm8k (gsm8k@REVISION pins the hub's data); repeatable.",
)  # fmt: skip
@click.option("--data", metavar="DIR", help="Take the sets from DIR/<name>.jsonl, not from the hub.")
@click.option(
    "--task", metavar="NAME",
    help="Measure a task's held-out sets instead: arithmetic, math, module:factory. [arithmetic for tiny]",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="The first so many problems of each set. [all]")
@click.option(
    "--shuffle", type=click.IntRange(0), metavar="SEED",
    help="Put each set into a random order before --limit; files may be sorted by kind.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(0),
    help="k of mean@k; 0: greedy only. [32 on AMC23, AIME24, AIME25; 8 on tasks but math; else 0]",
)  # fmt: skip
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the sampled answers.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Of the sampled answers.")
@click.option("--max-tokens", type=click.IntRange(1), default=4096, show_default=True, help="Longest answer.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--against", metavar="RESULT_OR_MODEL",
    help="Paired tests against a result folder, or against a model that is measured in the same way.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False),
    help="Result folder; the same command with the same folder goes on. [evals/<date-time>-<model>]",
)  # fmt: skip
@click.option("--max-seqs", type=click.IntRange(1), help="Most answers that run at once. [256]")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... [cpu]")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), help="[auto]")
@click.option("--threads", type=int, help="CPU threads. [all cores]")
def evaluate(
    model: str, suites: tuple[str, ...], output: Path | None, against: str | None, **given: Any
) -> None:
    """Measure MODEL (a folder, a hub name, or tiny) on sets of problems: greedy and mean@k with intervals.

    Every raw answer is kept in the result folder. An answer without a box is wrong; nothing is guessed.
    """
    from rzero.cli.host_memory import keep_freed_memory
    from rzero.examination import Protocol, closing_forms, is_result

    keep_freed_memory()
    folder = output or default_output(model)
    names = ("samples", "temperature", "top_p", "max_tokens", "seed")
    protocol = Protocol(**{name: given[name] for name in names})
    asked = sets_to_ask(model, suites, given)
    engine = {f"engine.{name}": given[name] for name in ("device", "dtype", "threads", "max_seqs")}
    with closing_forms(asked):
        result = examined(folder, model, asked, protocol, engine)
        for line in table(result["rows"], result["average"]):
            click.echo(line)
        if against is not None:
            other = Path(against)
            if not is_result(other):
                other = folder / "against"
                examined(other, against, asked, protocol, engine)
            echo_comparison(folder, model, asked, protocol, other)
    click.echo(f"\nanswers and verdicts: {folder}")


def sets_to_ask(model: str, suites: Sequence[str], given: Mapping[str, Any]) -> list["Asked"]:
    """The sets with their forms: of the task where one is named (or implied by tiny), else benchmarks."""
    from rzero.examination import Asked
    from rzero.forms import TaskForm, create_form
    from rzero.problem_sets import load_sets

    task = given["task"] or ("arithmetic" if model == "tiny" and given["data"] is None else None)
    if task is not None and task != "math":
        from rzero.tasks import create

        form = TaskForm(create(task, given["data"]))
        sets = task_sets(form.task, suites)
        return [Asked(problems.first(given["limit"], given["shuffle"]), form) for problems in sets]
    if not suites and given["data"] is None:
        raise InputError("name what to measure: --suite math, general or a set, or --data DIR with own sets")
    loaded = load_sets(suites, given["data"])
    sets = [problems.first(given["limit"], given["shuffle"]) for problems in loaded]
    forms = {name: create_form(name) for name in dict.fromkeys(problems.form for problems in sets)}
    return [Asked(problems, forms[problems.form]) for problems in sets]


def task_sets(task: Any, names: Sequence[str]) -> list[Any]:
    """A task's held-out sets as problem sets."""
    from rzero.evaluate import chosen_sets
    from rzero.problem_sets import Item, ProblemSet

    found = chosen_sets(task, names or None)
    if not found:
        raise InputError(f"task {task.name} has no held-out sets of its own; give a folder with --data")
    return [
        ProblemSet(
            name, task.name, tuple(Item(*problem) for problem in problems), {"task": task.name}, TASK_SAMPLES
        )
        for name, problems in found.items()
    ]


def examined(
    folder: Path,
    model: str,
    asked: Sequence["Asked"],
    protocol: "Protocol",
    engine_options: Mapping[str, Any],
) -> dict[str, Any]:
    """The result of one model; loads it only where answers are missing."""
    from rzero.config import load_config
    from rzero.examination import Examination
    from rzero.loop import engine_of
    from rzero.run_facts import facts

    with Examination(folder, model, asked, protocol) as examination:
        if not examination.is_complete:
            options = {name: value for name, value in engine_options.items() if value is not None}
            settings = load_config(options={"model": model, "seed": protocol.seed, **options})
            with engine_of(settings, trains=False) as engine, Progress(model) as progress:
                examination.note_facts(facts(engine, settings))
                examination.ask(engine, progress.show)
        return examination.grade()


def echo_comparison(
    folder: Path, model: str, asked: Sequence["Asked"], protocol: "Protocol", other: Path
) -> None:
    """Print the paired tests and add them to the result."""
    from rzero.examination import Examination

    with Examination(folder, model, asked, protocol) as examination:
        rows = examination.compare(other)
    click.echo(f"\nagainst {other}, on the same problems")
    for row in rows:
        low, high = row["interval"]
        click.echo(
            f"{row['set']:<14} {row['kind']:<8} {100 * row['difference']:+6.1f} "
            f"[{100 * low:+5.1f}, {100 * high:+5.1f}]  p = {row['p']:.3g}  ({row['test']}; "
            f"better on {row['only_first']}, worse on {row['only_second']} of {row['problems']})"
        )


def default_output(model: str) -> Path:
    """evals/<date-time>-<last part of the model's name>."""
    name = Path(model).name or "model"
    return Path("evals") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


class Progress:
    """Answers done and tokens a second: a bar on a terminal, else a line a minute."""

    def __init__(self, model: str) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(console=self._console, transient=True)
        self._task = self._bar.add_task(f"asking {Path(model).name}", total=None)
        self._begin_s = self._line_s = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int, tokens: int) -> None:
        """Called after every problem."""
        now_s = time.monotonic()
        speed = tokens / max(now_s - self._begin_s, 1e-9)
        text = f"{done} of {total} answers, {speed:.0f} tokens/s"
        self._bar.update(self._task, completed=done, total=total, description=text)
        if not self._console.is_terminal and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            click.echo(text, err=True)


def table(rows: Sequence[Mapping[str, Any]], average: Mapping[str, Any] | None = None) -> list[str]:
    """Lines of text, one per set, in per cent with 95% intervals; the average over sets where several."""
    width = max([len(row["set"]) for row in rows] + [7])
    lines = [f"{'set':<{width}}  problems  {'greedy':>20}  {'mean@k':>20}   k  no answer  cut off"]
    for row in rows:
        mean = _cell(row["mean_at_k"], row["interval"]) if row["k"] else ""
        lines.append(
            f"{row['set']:<{width}}  {row['problems']:>8}  {_cell(row['greedy'], row['greedy_interval']):>20}"
            f"  {mean:>20}  {row['k'] or '':>2}  {100 * row['unanswered_share']:>8.1f}%"
            f"  {100 * row['cut_share']:>6.1f}%"
        )
    if average is not None and len(rows) > 1:
        lines.append(f"{'average':<{width}}  {'':>8}  {100 * average['greedy']:>20.1f}")
    return lines


def _cell(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:5.1f} [{100 * interval[0]:4.1f}, {100 * interval[1]:4.1f}]"
