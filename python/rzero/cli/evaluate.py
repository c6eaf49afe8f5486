# SPDX-License-Identifier: Apache-2.0
"""`rzero eval`: accuracy of a model on held-out sets, by the code that measures a run."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from rzero.engine.errors import InputError


@click.command("eval", short_help="Measure a model on held-out sets.")
@click.argument("model")
@click.option(
    "--task", metavar="NAME", help="math, arithmetic, or module:factory. [default: math; arithmetic for tiny]"
)
@click.option(
    "--set", "--suite", "sets", multiple=True, metavar="NAME", help="A held-out set of the task; repeatable."
)
@click.option("--data", metavar="DIR", help="Folder of <name>.jsonl sets, for tasks that read them.")
@click.option("--limit", type=int, help="Take the first so many problems of each set. [default: all]")
@click.option(
    "--samples",
    type=int,
    default=8,
    show_default=True,
    help="Answers per problem for mean@k; 0: greedy only.",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the sampled answers.")
@click.option("--max-tokens", type=int, help="Longest answer. [default: 4096, or what the model allows]")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Also write rows and every answer to this JSON file."
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... [default: cpu]")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), help="[default: auto]")
@click.option("--threads", type=int, help="CPU threads. [default: all cores]")
def evaluate(model: str, sets: tuple[str, ...], output: Path | None, **given: Any) -> None:
    """Measure MODEL (a folder, a hub name, or tiny) on held-out sets: greedy, mean@k, majority@k."""
    from rzero.config import load_config
    from rzero.run_folder import explained, write_atomic

    names = {
        "limit": "evaluation.problems",
        "samples": "evaluation.samples",
        "temperature": "evaluation.temperature",
    }
    names |= {"max_tokens": "evaluation.max_tokens", "device": "engine.device", "dtype": "engine.dtype"}
    names |= {"threads": "engine.threads"}
    options = {names.get(name, name): value for name, value in given.items() if value is not None}
    options |= {"model": model, "evaluation.sets": list(sets) or None}
    settings = load_config(options={"task": "arithmetic" if model == "tiny" else "math"} | options)
    rows, answers = measured(settings)
    if not rows:
        raise InputError(
            f"task {settings.task} has no held-out sets of its own; give a folder of them with --data"
        )
    if output is not None:
        with explained(output):
            write_atomic(
                output, json.dumps({"model": model, "rows": rows, "answers": answers}, indent=1) + "\n"
            )
    for line in table(rows):
        click.echo(line)


def measured(settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of evaluations.jsonl and evaluation_answers.jsonl for the model as it is."""
    from rzero.evaluate import measure
    from rzero.loop import engine_of
    from rzero.observer import Observer
    from rzero.rollout import Run, Unit
    from rzero.run_folder import RunFolder
    from rzero.tasks import create

    with closing(create(settings.task, settings.data)) as task, engine_of(settings) as engine:
        # A folder that is neither created nor opened touches no disk; measuring needs none.
        run = Run(engine, task, settings, RunFolder(Path(), settings), Observer(), "base", "base")
        found = measure(run, Unit(0, "evaluation", 1))
    return found.rows, found.answers


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of text, one per set, in per cent with 95% intervals."""
    k = max((row["k"] for row in rows), default=0)
    columns = [("greedy", "greedy_interval")]
    if k:
        columns += [("mean_at_k", "interval"), ("majority_at_k", "majority_interval")]
    titles = ["greedy", f"mean@{k}", f"majority@{k}"][: len(columns)]
    width = max([len(row["set"]) for row in rows] + [3])
    lines = [f"{'set':<{width}}  problems" + "".join(f"  {title:>20}" for title in titles)]
    for row in rows:
        cells = [
            f"{100 * row[value]:5.1f} [{100 * row[interval][0]:4.1f}, {100 * row[interval][1]:4.1f}]"
            for value, interval in columns
        ]
        lines.append(
            f"{row['set']:<{width}}  {row['problems']:>8}" + "".join(f"  {cell:>20}" for cell in cells)
        )
    return lines
