# SPDX-License-Identifier: Apache-2.0
"""The device of a name, or one sentence about why there is none."""

from contextlib import AbstractContextManager, nullcontext

import torch

from rzero.engine.errors import InputError


def torch_device(name: str) -> torch.device:
    """The device of that name, "cuda" with the number of the current one; InputError where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Within, a GPU is the current device, on which Triton launches whatever its arguments say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
