# SPDX-License-Identifier: Apache-2.0
"""The door to `rzero._cuda`: is it built, can it run here, and on which stream its kernels start.

The functions take addresses, sizes and strides as plain integers; `<op>_cuda.py` checks every tensor first.
The module imports without a driver or a device; `why_not` then gives the reason in the runtime's words.
"""

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch

try:
    lib: Any = import_module("rzero._cuda")  # most machines have none, type checkers too
except ImportError as error:
    lib = None
    MISSING: str | None = f"rzero._cuda is not built ({error})"
else:
    MISSING = None


def why_not() -> str | None:
    """Why no CUDA kernel can run in this process, or None."""
    return MISSING or lib.why_not() or None


def check_device(lib: Any, op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor whose memory the kernels cannot reach: an address in it would be a stray pointer."""
    if tensor.device.type != lib.device_type:
        raise ValueError(f"{op}: {name} must be on a {lib.device_type} device, it is on {tensor.device}")


def stream(tensor: torch.Tensor) -> int:
    """The current stream of the tensor's device as the kernels take it; 0 for one that has none."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one: a kernel starts on the current device only."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
