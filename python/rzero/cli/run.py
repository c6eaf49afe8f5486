# SPDX-License-Identifier: Apache-2.0
"""`rzero run`: one whole R-Zero run, new or resumed."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rzero.settings import Settings

# What a shell reports for a process that a signal ended: 128 + the signal's number.
INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run just as Ctrl-C does."""


@click.command(short_help="Let a model improve itself; writes a run folder with a report.")
@click.option(
    "--model", metavar="NAME", help="Hugging Face folder or hub name; tiny is the model in the package."
)
@click.option(
    "--task",
    metavar="NAME",
    help="What the questions are about: arithmetic, math, or a task of your own, my_task.py:MyTask.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Settings to start from. [default: tiny, unless --model, --task or --config is given]",
)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings, over the preset."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any one setting, for example solver.learning_rate=1e-6; repeatable.",
)
@click.option("--seed", type=int, help="Every random choice of the run follows from it.")
@click.option("--iterations", type=int, help="How many rounds of Challenger, pool, Solver and evaluation.")
@click.option("--output", metavar="DIR", help="Run folder. [default: runs/<date-time>-<preset or task>]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with an interrupted run from its last finished step.",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ...")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Number type; auto is what the device multiplies fast.",
)
@click.option("--threads", type=int, help="CPU threads. [default: all cores]")
@click.option(
    "--data", metavar="DIR", help="Folder of held-out sets (<name>.jsonl) for tasks that read them."
)
@click.option(
    "--ablation/--no-ablation", default=None, help="Run an untrained Challenger beside it, for comparison."
)
@click.option(
    "--anchors", metavar="FILE", help="A few questions by people (JSON lines) that the Challenger is shown."
)
@click.option(
    "--print-config", is_flag=True, help="Print the resolved settings, each with its meaning, and stop."
)
@click.option(
    "--diff", metavar="PRESET", help="With --print-config: only what differs from this preset or YAML file."
)
def run(
    preset: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    resume: Path | None,
    *,
    print_config: bool,
    diff: str | None,
    **given: Any,
) -> None:
    """Let a model improve itself: rounds of questions, votes and training, with a report at the end.

    Without options: three iterations on the model in the package. Stop it at any point; --resume goes on.
    """
    settings = resolve(preset, config_file, overrides, resume, given)
    if print_config or diff is not None:
        click.echo(printed(settings, diff), nl=False)
        return
    folder = resume or Path(settings.output or default_output(preset or Path(settings.task).name))
    with sigterm_as_interrupt():
        try:
            start(settings, folder, resumed=resume is not None)
        except KeyboardInterrupt as stop:
            # A run begins with its config.yaml; before that nothing was computed.
            begun = (folder / "config.yaml").exists()
            how = f"resume with: rzero run --resume {folder}" if begun else "nothing was begun"
            click.echo(f"\ninterrupted; {how}", err=True)
            sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)


def resolve(
    preset: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    resume: Path | None,
    given: dict[str, Any],
) -> "Settings":
    """The settings of the run: preset < file < options < --set; on resume those of the folder come first."""
    from rzero.config import load_config
    from rzero.run_folder import read_config

    engine_options = ("device", "dtype", "threads")
    options = {
        f"engine.{name}" if name in engine_options else name: value
        for name, value in given.items()
        if value is not None
    }
    if resume is not None:
        if preset is not None or "output" in options:
            from rzero.engine.errors import InputError

            name = "--output" if preset is None else "--preset"
            raise InputError(f"{name} cannot be given with --resume {resume}, which has its own")
        # Says so when this is no run folder. Settings that are not the run's are refused later, by name.
        read_config(resume)
        config_file = config_file or resume / "config.yaml"
    elif preset is None and config_file is None and not {"model", "task"} & set(options):
        preset = "tiny"
    return load_config(preset, config_file, overrides, options)


def printed(settings: "Settings", diff: str | None) -> str:
    """The settings as YAML with their texts, or field by field what differs from a preset or file."""
    from rzero.config import differences, load_config, preset_names, to_yaml

    if diff is None:
        return to_yaml(settings, texts=True)
    is_file = diff not in preset_names() and Path(diff).is_file()
    other = load_config(file=diff) if is_file else load_config(diff)
    changed = differences(settings, other)
    if not changed:
        return f"nothing differs from {diff}\n"
    width = max(map(len, changed))
    lines = [f"{'setting':{width}}  here -> {diff}"]
    lines += [
        f"{name:{width}}  {as_yaml(here)} -> {as_yaml(there)}" for name, (here, there) in changed.items()
    ]
    return "\n".join(lines) + "\n"


def as_yaml(value: Any) -> str:
    """One value as YAML on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.split("\n")[0]


def default_output(name: str) -> str:
    """A new folder below runs/ in the current directory."""
    return f"runs/{datetime.now():%Y-%m-%d-%H%M%S}-{name.replace(':', '-').replace('/', '-')}"


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM raises Terminated, so that one way out serves both ways to stop."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start(settings: "Settings", folder: Path, *, resumed: bool) -> None:
    """Run the loop with a live display, then build the report and print the table."""
    from rzero import loop
    from rzero.cli.host_memory import keep_freed_memory
    from rzero.progress import Progress
    from rzero.report import build

    keep_freed_memory()
    with Progress(settings, folder) as progress:
        if resumed:
            loop.resume(folder, settings, progress)
        else:
            loop.run(settings, folder, progress)
    progress.print_summary(build(folder))
