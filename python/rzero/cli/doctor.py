# SPDX-License-Identifier: Apache-2.0
"""`rzero doctor`: what this machine has and what rzero will do with it."""

import click


@click.command(short_help="Show devices, kernels with reasons, and a memory plan.")
@click.option("--model", metavar="NAME", help="Also plan the memory of a run on this model.")
@click.option("--preset", metavar="NAME", help="The run that is planned. [default: the recommended settings]")
@click.option("--device", default="cpu", show_default=True, help="The device that is planned for.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
def doctor(model: str | None, preset: str | None, device: str, dtype: str) -> None:
    """Show versions, devices, the number type and each op's kernel with the reasons, and a memory plan."""
    from rzero.doctor import examine

    for section in examine(model=model, preset=preset, device=device, dtype=dtype):
        click.secho(section.title, bold=True)
        width = max((len(name) for name, _ in section.rows), default=0)
        for name, text in section.rows:
            click.echo(f"  {name:<{width}}  {text}".rstrip())
        click.echo()
