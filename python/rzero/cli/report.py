# SPDX-License-Identifier: Apache-2.0
"""`rzero report`: build report.html of a run folder again."""

from pathlib import Path

import click


@click.command(short_help="Build report.html of a run folder again.")
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write the page. [default: RUN/report.html]"
)
def report(run_folder: Path, output: Path | None) -> None:
    """Build report.html from the journals of RUN, which may still be running."""
    from rzero.report import build

    click.echo(build(run_folder, output))
