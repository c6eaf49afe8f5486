# SPDX-License-Identifier: Apache-2.0
"""The door to `rzero._native`: is it there, and are these tensors what its functions take.

The native functions take addresses, sizes and strides as plain integers; every tensor is checked here first.
"""

from types import MappingProxyType
from typing import Any, Final, NoReturn

# torch comes first: its OpenMP runtime must be the only one of the process (two of them fight for the cores).
import torch

try:
    from rzero import _native
except ImportError as error:
    lib: Any = None
    MISSING: str | None = f"rzero._native is not built ({error})"
else:
    lib = _native
    MISSING = None

DTYPE_CODE: Final = MappingProxyType({torch.float32: 0, torch.bfloat16: 1, torch.float16: 2})


def native_why_not(device: torch.device) -> str | None:
    """Why the native CPU functions cannot run on `device`, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    return MISSING


def reject(op: str, name: str, tensor: torch.Tensor, expected: str) -> NoReturn:
    raise ValueError(
        f"{op}: {name} must be {expected}; it is {tensor.dtype} {list(tensor.shape)}, "
        f"strides {list(tensor.stride())}, on {tensor.device}"
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements of the last axis lie side by side; torch gives a single one any stride."""
    return tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1


def float_code(op: str, name: str, tensor: torch.Tensor, ndim: int) -> int:
    """The native code of a float tensor's type; its last axis must be dense, the others may be strided."""
    code = DTYPE_CODE.get(tensor.dtype)
    if code is None or tensor.ndim != ndim or not is_dense(tensor) or not tensor.is_cpu:
        kinds = "float32, bfloat16 or float16"
        reject(op, name, tensor, f"a {ndim}-dimensional {kinds} CPU tensor with a last stride of 1")
    return code


def check(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuses a tensor that is not a CPU tensor of this type and shape with a dense last axis."""
    if tensor.dtype is not dtype or tensor.shape != shape or not is_dense(tensor) or not tensor.is_cpu:
        reject(op, name, tensor, f"a {dtype} CPU tensor of shape {list(shape)} with a last stride of 1")


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd must record the op; without it the wrapper skips autograd.Function's cost per call."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def view(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor as the native functions take it: its address and its strides."""
    return (tensor.data_ptr(), *tensor.stride())


def address(tensor: torch.Tensor | None) -> int:
    """Where a dense tensor's data lies, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
