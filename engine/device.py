# SPDX-License-Identifier: Apache-2.0
"""The device of a name, or one sentence about why there is none."""

import torch

from rzero.engine.errors import InputError


def torch_device(name: str) -> torch.device:
    """The device of that name; raises InputError where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return device
