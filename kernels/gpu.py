# SPDX-License-Identifier: Apache-2.0
"""The door to the GPU kernels: can they run on this device, and are these tensors what they take.

Triton kernels live in `<op>_triton.py` beside the op's file, CUDA sources in `csrc/<op>.cu`. Their launchers
take tensors of any one device, so that the same code runs under Triton's interpreter on a CPU.
"""

from importlib.util import find_spec

import torch

from rzero.kernels.native import is_dense, reject

OLDEST_TRITON = (3, 3)
# What the CUDA sources are compiled for, and the first to multiply bfloat16.
OLDEST_CAPABILITY = (8, 0)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def triton_why_not(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return f"runs on a GPU, not on {device.type}"
    if not find_spec("triton"):
        return "triton is not installed"
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
        least = ".".join(map(str, OLDEST_TRITON))
        return f"Triton is {triton.__version__}; kernels that take tuples need {least}"
    if reason := _too_old(device):
        return reason
    if device.index not in (None, torch.cuda.current_device()):
        return f"Triton launches on the current device, cuda:{torch.cuda.current_device()}"
    return None


def cuda_why_not(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return f"runs on a GPU, not on {device.type}"
    # Not at the top: on a CPU nobody loads the CUDA runtime.
    from rzero.kernels.cuda import why_not

    return why_not() or _too_old(device)


def _too_old(device: torch.device) -> str | None:
    """Why a GPU of this generation runs nothing of ours, or None."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    found, least = torch.cuda.get_device_capability(device), OLDEST_CAPABILITY
    if found >= least:
        return None
    return f"compute capability {found[0]}.{found[1]} is below {least[0]}.{least[1]}"


def check_float(op: str, name: str, tensor: torch.Tensor, ndim: int) -> None:
    """Refuses a tensor that is not of a float type with `ndim` axes, the last one dense."""
    if tensor.dtype not in FLOATS or tensor.ndim != ndim or (tensor.numel() and not is_dense(tensor)):
        kinds = "float32, bfloat16 or float16"
        reject(op, name, tensor, f"a {ndim}-dimensional {kinds} tensor with a last stride of 1")


def check_like(
    op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Refuses a tensor that is not of this type and shape, on this device, with a dense last axis."""
    dense = tensor.numel() == 0 or is_dense(tensor)
    if tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device or not dense:
        reject(op, name, tensor, f"a {dtype} tensor of shape {list(shape)} on {device}, last stride 1")
