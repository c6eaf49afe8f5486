# SPDX-License-Identifier: Apache-2.0
"""What a timing depends on besides the code: it stands in the JSON line of every benchmark."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch


def conditions(device: str = "cpu") -> dict[str, object]:
    """Machine, threads, versions, commit, and the load before (other work on the machine spoils a timing)."""
    from rzero.kernels.native import lib

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "instruction_set": lib.instruction_set() if lib is not None else "no native kernels",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "load_average_1min": round(os.getloadavg()[0], 2),
        "utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
