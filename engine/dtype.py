# SPDX-License-Identifier: Apache-2.0
"""The number type of weights and activations: what the machine multiplies fast, or as asked for."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from rzero.engine.errors import InputError

NAMES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float32": torch.float32,
        "fp32": torch.float32,
        "bfloat16": torch.bfloat16,
        "bf16": torch.bfloat16,
    }
)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number type asked for (auto, float32, bfloat16) and the reason; InputError for another."""
    if name == "auto":
        return default_dtype(device)
    if name not in NAMES:
        raise InputError(f"dtype {name!r} is not known (allowed: auto, {', '.join(NAMES)})")
    return NAMES[name], "asked for"


def default_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """bfloat16 where the device multiplies it in hardware, else float32; and the reason in a few words."""
    if device.type == "cpu":
        flags = _cpu_flags() & {"avx512_bf16", "amx_bf16"}
        if flags:
            return torch.bfloat16, f"the CPU has {', '.join(sorted(flags))}"
        return torch.float32, "the CPU has neither avx512_bf16 nor amx_bf16"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies bfloat16"
        return torch.float32, "the GPU does not multiply bfloat16"
    return torch.float32, f"bfloat16 was not tried on {device.type}"


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    found = re.search(r"^flags\s*:(.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return set(found[1].split()) if found else set()
