# SPDX-License-Identifier: Apache-2.0
"""What run.json records about where a run came from."""

import hashlib
import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rzero.engine.engine import Engine
from rzero.settings import Settings
from rzero.tasks.base import Task

PACKAGES = ("rzero", "torch", "numpy", "transformers", "tokenizers", "safetensors", "math-verify")


def facts(engine: Engine, settings: Settings) -> dict[str, Any]:
    """Versions, seed, machine, kernels with reasons, the model's hash, commit and command."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": commit(),
        "seed": settings.seed,
        "model": settings.model,
        "model_sha256": engine.weights.hash("base"),
        "parameters": engine.config.parameters,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": str(engine.device),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
        },
        "kernels": [[choice.op, choice.backend, list(choice.reasons)] for choice in engine.kernels.report],
    }


def held_out_hashes(task: Task) -> dict[str, str]:
    """The SHA-256 of each held-out set's questions and answers, by its name."""
    return {
        name: hashlib.sha256(json.dumps([list(problem) for problem in problems]).encode()).hexdigest()
        for name, problems in task.held_out().items()
    }


def version(package: str) -> str | None:
    """The installed version of a package; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source tree this runs from; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def processor() -> str:
    """The name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
