# SPDX-License-Identifier: Apache-2.0
"""What `rzero doctor` shows: versions, devices, number type, the kernel of every op, and a memory plan."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from rzero import __version__
from rzero.config import load_config, model_path
from rzero.engine import checkpoint
from rzero.engine.config import ModelConfig
from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError
from rzero.engine.lora import LoraConfig
from rzero.engine.memory import MemoryPlan, MemoryRequest, Part, RolePlan, gib, plan_memory
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
# Parts of a plan that each of several devices holds a share of.
SHARDED = ("weights: ", "optimizer: ", "gradients")


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
    ]
    if model is not None or config_file is not None:
        config = load_config(preset, config_file, options={} if model is None else {"model": model})
        sections.append(Section(f"memory of a run on {config.model}", memory(config, dtype, target)))
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
    plan = run_plan(config, planned_dtype(config, dtype, device))
    return [*((part.name, gib(part.bytes)) for part in plan.parts), ("total", gib(plan.total_bytes))]


def planned_dtype(config: Settings, dtype: str, device: torch.device | None) -> torch.dtype:
    """The number type of a planned run: as asked for, else the settings', else what the device is good at.

    device: None for one that is not here, which is taken to multiply bfloat16.
    """
    name = config.engine.dtype if dtype == "auto" else dtype
    if device is None:
        return torch.bfloat16 if name == "auto" else choose_dtype(name, torch.device("cpu"))[0]
    return choose_dtype(name, device)[0]


def run_plan(config: Settings, dtype: torch.dtype, devices: int = 1) -> MemoryPlan:
    """The memory plan of a run on `config.model`, a folder of which only config.json is read.

    devices: where more than one, what FSDP2 would shard (each role's own weights, optimizer and gradients) is
    counted by the part that one device holds; one full set of weights stays on each for sampling.
    """
    model = checkpoint.load_config(checkpoint.resolve_model(model_path(config.model)))
    held: Literal["lora", "full"] = "lora" if config.roles == "lora" else "full"
    names = ("solver",) if config.roles == "single" else ("challenger", "solver")
    plan = plan_memory(
        model,
        MemoryRequest(
            dtype=dtype,
            roles=[RolePlan(name, held) for name in names],
            lora=LoraConfig(rank=config.lora.rank, alpha=config.lora.alpha) if held == "lora" else None,
            pages=planned_pages(config, model, dtype),
            page_size=config.engine.page_size,
            max_seqs=config.engine.max_seqs,
            micro_batch_tokens=max(config.challenger.micro_batch_tokens, config.solver.micro_batch_tokens),
        ),
    )
    return MemoryPlan(tuple(_on_one_device(part, devices) for part in plan.parts))


def planned_pages(config: Settings, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages of the pool: as set, else what the cache's memory holds, else every sequence at its longest."""
    how = config.engine
    if how.num_pages is not None:
        return how.num_pages
    if how.kv_cache_gib is not None:
        return int(how.kv_cache_gib * 2**30) // (how.page_size * model.kv_bytes_per_token(dtype.itemsize))
    length = how.max_model_len or config.max_question_tokens + config.solver.sampling.max_tokens
    return how.max_seqs * -(-min(length, model.max_positions) // how.page_size)


def _on_one_device(part: Part, devices: int) -> Part:
    if devices == 1 or part.name == "weights: base" or not part.name.startswith(SHARDED):
        return part
    return Part(f"{part.name}, 1/{devices}", -(-part.bytes // devices))


def memory_bytes(text: str) -> int:
    """The bytes that "80GB" (10^9) or "80GiB" (2^30) means; raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", text.strip())
    if match is None:
        raise InputError(f"--device-memory {text!r} is not of the form 80GB or 80GiB")
    units = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
    return int(float(match[1]) * units[match[2]])
