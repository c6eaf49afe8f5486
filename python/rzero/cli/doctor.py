# SPDX-License-Identifier: Apache-2.0
"""`rzero doctor`: what this machine has and what rzero will do with it."""

from collections.abc import Sequence
from pathlib import Path

import click

from rzero.engine.errors import InputError


@click.command(short_help="Show devices, kernels with reasons, and a memory plan.")
@click.option("--model", metavar="NAME", help="Also plan the memory of a run on this model.")
@click.option("--preset", metavar="NAME", help="The run that is planned. [default: the recommended settings]")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings of the run, over the preset."
)
@click.option("--device", default="cpu", show_default=True, help="The device that is planned for.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option(
    "--device-memory",
    metavar="SIZE",
    help="Plan for a device that is not here, with so much memory (80GB); what cannot fit is refused.",
)
@click.option(
    "--devices", type=click.IntRange(1), default=1, show_default=True, help="Plan for so many of them."
)
def doctor(
    model: str | None,
    preset: str | None,
    config_file: Path | None,
    device: str,
    dtype: str,
    device_memory: str | None,
    devices: int,
) -> None:
    """Show versions, devices, the number type and each op's kernel with the reasons, and a memory plan.

    With --device-memory only the plan is shown, and the exit status is 2 where it does not fit. MODEL may be
    a folder with no more than config.json.
    """
    from rzero.doctor import examine

    if device_memory is not None:
        plan_elsewhere(model, preset, config_file, dtype, device_memory, devices)
        return
    if devices != 1:
        raise InputError(f"--devices {devices} needs --device-memory: a run here takes one device")
    sections = examine(model=model, preset=preset, device=device, dtype=dtype, config_file=config_file)
    for section in sections:
        echo(section.title, section.rows)


def plan_elsewhere(
    model: str | None,
    preset: str | None,
    config_file: Path | None,
    dtype: str,
    device_memory: str,
    devices: int,
) -> None:
    """Print the plan for a device that is not here; raises InputError where it does not fit."""
    from rzero.config import load_config
    from rzero.doctor import memory_bytes
    from rzero.engine.memory import gib
    from rzero.memory_plan import planned_dtype, run_plan

    available = memory_bytes(device_memory)
    if model is None and config_file is None:
        raise InputError("--device-memory needs a run to plan: give --model, or --config with a model in it")
    settings = load_config(preset, config_file, options={} if model is None else {"model": model})
    number_type = planned_dtype(settings, dtype, None)
    plan = run_plan(settings, number_type, devices)
    where = f"{device_memory}" if devices == 1 else f"each of {devices} devices of {device_memory}"
    rows = [*plan.rows(), ("free", gib(max(0, available - plan.peak_bytes)))]
    name = str(number_type).removeprefix("torch.")
    echo(f"memory of a run on {settings.model}, roles {settings.roles}, {name}, on {where}", rows)
    plan.require(available)


def echo(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A title and aligned rows."""
    click.secho(title, bold=True)
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"  {name:<{width}}  {text}".rstrip())
    click.echo()
