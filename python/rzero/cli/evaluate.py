# SPDX-License-Identifier: Apache-2.0
"""`rzero eval`: accuracy of a model on held-out sets."""

import click


@click.command("eval", short_help="Measure a model on held-out sets.")
@click.argument("model")
def evaluate(model: str) -> None:
    """Measure MODEL (a folder, a hub name, or tiny) on held-out sets."""
    raise click.UsageError(f"nothing measures {model} yet")
