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
    "--task", metavar="NAME", help="What the questions are about: arithmetic, math, or module:factory."
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
    "--print-config", is_flag=True, help="Print the resolved settings, each with its meaning, and stop."
)
def run(
    preset: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    resume: Path | None,
    print_config: bool,
    **given: Any,
) -> None:
    """Let a model improve itself: rounds of questions, votes and training, with a report at the end.

    Without options: three iterations on the model in the package. Stop it at any point; --resume goes on.
    """
    settings = resolve(preset, config_file, overrides, resume, given)
    if print_config:
        from rzero.config import to_yaml

        click.echo(to_yaml(settings, texts=True), nl=False)
        return
    folder = resume or Path(settings.output or default_output(preset or settings.task))
    with sigterm_as_interrupt():
        try:
            start(settings, folder, resumed=resume is not None)
        except KeyboardInterrupt as stop:
            click.echo(f"\ninterrupted; resume with: rzero run --resume {folder}", err=True)
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
        # Says so when this is no run folder. Settings that are not the run's are refused later, by name.
        read_config(resume)
        config_file = config_file or resume / "config.yaml"
    elif preset is None and config_file is None and not {"model", "task"} & set(options):
        preset = "tiny"
    return load_config(preset, config_file, overrides, options)


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
    from rzero.progress import Progress
    from rzero.report import build

    with Progress(settings, folder) as progress:
        if resumed:
            loop.resume(folder, settings, progress)
        else:
            loop.run(settings, folder, progress)
    progress.print_summary(build(folder))
