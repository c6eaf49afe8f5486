# SPDX-License-Identifier: Apache-2.0
"""What `rzero doctor` shows: versions, devices, number type, the kernel of every op, and a memory plan."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from rzero import __version__
from rzero.config import load_config, model_path
from rzero.engine import checkpoint
from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError
from rzero.engine.lora import LoraConfig
from rzero.engine.memory import MemoryRequest, RolePlan, gib, plan_memory
from rzero.kernels import resolve
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


def examine(*, model: str | None, preset: str | None, device: str, dtype: str) -> list[Section]:
    """All sections; raises InputError for an unknown device, model or preset."""
    target = torch_device(device)
    sections = [
        Section("versions", versions()),
        Section("devices", devices()),
        Section("number type", [dtype_row(dtype, target)]),
        Section(f"kernels on {target}", kernels(target)),
    ]
    if model is not None:
        config = load_config(preset, options={"model": model})
        sections.append(Section(f"memory of a run on {model}", memory(config, dtype, target)))
    return sections


def torch_device(name: str) -> torch.device:
    """The device of that name; raises InputError where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


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


def memory(config: Settings, dtype: str, device: torch.device) -> list[tuple[str, str]]:
    """What a run on `config.model` needs at its largest, part by part."""
    model = checkpoint.load_config(checkpoint.resolve_model(model_path(config.model)))
    held: Literal["lora", "full"] = "lora" if config.roles == "lora" else "full"
    names = ("solver",) if config.roles == "single" else ("challenger", "solver")
    length = config.engine.max_model_len or config.max_question_tokens + config.solver.sampling.max_tokens
    pages_each = -(-min(length, model.max_positions) // config.engine.page_size)
    plan = plan_memory(
        model,
        MemoryRequest(
            dtype=choose_dtype(dtype, device)[0],
            roles=[RolePlan(name, held) for name in names],
            lora=LoraConfig(rank=config.lora.rank, alpha=config.lora.alpha) if held == "lora" else None,
            pages=config.engine.num_pages or config.engine.max_seqs * pages_each,
            page_size=config.engine.page_size,
            max_seqs=config.engine.max_seqs,
            micro_batch_tokens=max(config.challenger.micro_batch_tokens, config.solver.micro_batch_tokens),
        ),
    )
    return [*((part.name, gib(part.bytes)) for part in plan.parts), ("total", gib(plan.total_bytes))]
