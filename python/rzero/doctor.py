# SPDX-License-Identifier: Apache-2.0
"""What `rzero doctor` shows: versions, devices, number type, the kernel of every op, and a memory plan."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from rzero import __version__
from rzero.config import load_config
from rzero.engine.device import torch_device
from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError
from rzero.engine.kv_cache import free_bytes
from rzero.engine.memory import gib
from rzero.engine.numerics import described, is_exact, why_not_exact
from rzero.kernels import resolve
from rzero.memory_plan import planned_dtype, require_memory, run_plan
from rzero.settings import Settings

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "math-verify",
)


class Section(NamedTuple):
    """A title and rows of (name, text)."""

    title: str
    rows: Sequence[tuple[str, str]]


def examine(
    *, model: str | None, preset: str | None, device: str, dtype: str, config_file: Path | None = None
) -> list[Section]:
    """All sections; raises InputError for an unknown device, model or preset."""
    target = torch_device(device)
    sections = [
        Section("versions", versions()),
        Section("devices", devices()),
        Section("number type", [dtype_row(dtype, target)]),
        Section(f"kernels on {target}", kernels(target)),
        Section("numerics", [numerics_row(target)]),
    ]
    if not (model or config_file or preset is None):
        raise InputError("--preset needs a run to plan: give --model, or --config with a model in it")
    if model is not None or config_file is not None:
        config = load_config(preset, config_file, options={} if model is None else {"model": model})
        sections.append(Section(f"memory of a run on {config.model}", memory(config, dtype, target)))
    return sections


def versions() -> list[tuple[str, str]]:
    """rzero, Python, the system and the packages that computing depends on."""
    rows = [("rzero", __version__), ("python", platform.python_version()), ("system", platform.platform())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def devices() -> list[tuple[str, str]]:
    """The CPU with its cores and memory, and every CUDA device."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = f"{cpu_name()}, {torch.get_num_threads()} threads, {gib(memory_bytes)}"
    rows = [("cpu", cpu), ("instructions", torch.backends.cpu.get_cpu_capability())]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{card.name}, sm_{card.major}{card.minor}, {gib(card.total_memory)}"))
    if not torch.cuda.device_count():
        rows.append(("cuda", "none that torch sees"))
    return rows


def cpu_name() -> str:
    """The model name that Linux gives, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def dtype_row(dtype: str, device: torch.device) -> tuple[str, str]:
    """The number type that a run would use, and why."""
    chosen, reason = choose_dtype(dtype, device)
    return str(chosen).removeprefix("torch."), reason


def kernels(device: torch.device) -> list[tuple[str, str]]:
    """Each op with its backend and the reasons against the others."""
    rows = []
    for choice in resolve(device).report:
        reasons = f"  ({'; '.join(choice.reasons)})" if choice.reasons else ""
        rows.append((choice.op, f"{choice.backend}{reasons}"))
    return rows


def numerics_row(device: torch.device) -> tuple[str, str]:
    """Whether the log-probs of sampling would be those of training, to the bit, and why not."""
    reason = why_not_exact(resolve(device), device)
    exact = is_exact("auto", reason)
    name, _, why = described(exact, reason, device).partition(": ")
    return name, why


def memory(config: Settings, dtype: str, device: torch.device) -> list[tuple[str, str]]:
    """What a run on `config.model` needs at its largest, part by part, and whether it would begin now."""
    chosen = planned_dtype(config, dtype, device)
    how = {"dtype": str(chosen).removeprefix("torch."), "device": str(device), "check_memory": True}
    here = config.model_copy(update={"engine": config.engine.model_copy(update=how)})
    rows = [*run_plan(config, chosen).rows(), ("free now", gib(free_bytes(device)))]
    try:
        require_memory(here)
    except InputError as error:
        return [*rows, ("a run is refused", str(error))]
    return [*rows, ("a run begins", "the page pool takes no more than is left")]


def memory_bytes(text: str) -> int:
    """The bytes that "80GB" (10^9) or "80GiB" (2^30) means; raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", text.strip())
    if match is None:
        raise InputError(f"--device-memory {text!r} is not of the form 80GB or 80GiB")
    units = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
    return int(float(match[1]) * units[match[2]])
