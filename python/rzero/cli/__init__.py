# SPDX-License-Identifier: Apache-2.0
"""The command `rzero`: run, eval, generate, report, doctor.

`rzero --help` must answer at once, so no module here imports torch, transformers or pydantic at its
top: each command imports what it needs when it is called.
"""

import sys

import click

from rzero import __version__
from rzero.cli.doctor import doctor
from rzero.cli.evaluate import evaluate
from rzero.cli.generate import generate
from rzero.cli.report import report
from rzero.cli.run import run
from rzero.engine.errors import InputError

USER_MISTAKE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rzero")
def app() -> None:
    """Let a language model improve itself: it asks itself questions and learns from the answers it agrees on.

    `rzero run` without options takes the small model in the package through three iterations.
    """


for command in (run, evaluate, generate, report, doctor):
    app.add_command(command)


def main() -> None:
    """The entry point; a mistake of the user is one sentence on stderr and exit status 2."""
    try:
        app(prog_name="rzero")
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(USER_MISTAKE)
