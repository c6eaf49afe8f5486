# SPDX-License-Identifier: Apache-2.0
"""`sample` on a GPU, in CUDA C++: csrc/sample.cu.

Same random numbers, supports and order of summation as the native CPU version, so the same tokens and
log-probs; log(mass) is the one function that is not ours. One block per row: a row depends on nothing but
itself. The kernel judges settings and rows; what it found is read once, at the end, which waits for the
device. While a CUDA graph is captured nobody can wait: a bad row or setting then gives token -1 and NaN.
"""

from typing import Final

import torch
from torch import Tensor

from rzero.kernels.cuda import check_device, lib, on_device, stream
from rzero.kernels.gpu import check_float
from rzero.kernels.native import DTYPE_CODE, reject
from rzero.kernels.sample import Drawn, bad_row, check_settings

THREADS: Final = (
    1024  # a block has the row to itself, and its passes over the row wait for memory; unmeasured
)
MOST_TOKENS: Final = 2**20


def sample_cuda(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    key_B: Tensor,
    position_B: Tensor,
) -> Drawn:
    op, device = "sample", logits_BV.device
    check_float(op, "logits_BV", logits_BV, 2)
    check_device(lib, op, "logits_BV", logits_BV)
    B, V = logits_BV.shape
    if B and not 1 <= V <= MOST_TOKENS:
        reject(op, "logits_BV", logits_BV, f"[B, V] with V in 1..{MOST_TOKENS}")
    settings = (temperature_B, top_k_B, top_p_B, min_p_B, key_B, position_B)
    names = ("temperature_B", "top_k_B", "top_p_B", "min_p_B", "key_B", "position_B")
    float32, int64 = torch.float32, torch.int64
    dtypes = (float32, torch.int32, float32, float32, int64, int64)
    for name, tensor, dtype in zip(names, settings, dtypes, strict=True):
        if tensor.shape != (B,) or tensor.dtype is not dtype or tensor.device != device:
            reject(op, name, tensor, f"{dtype} [{B}] on {device}")
    token_B, logp_B, full_logp_B, status_B = (
        torch.empty(B, dtype=dtype, device=device) for dtype in (int64, float32, float32, torch.int32)
    )
    held = [tensor.contiguous() for tensor in settings]
    with on_device(logits_BV):
        lib.sample(
            DTYPE_CODE[logits_BV.dtype], THREADS, (B, V), (logits_BV.data_ptr(), logits_BV.stride(0)),
            [tensor.data_ptr() for tensor in held],
            [tensor.data_ptr() for tensor in (token_B, logp_B, full_logp_B, status_B)], stream(logits_BV),
        )  # fmt: skip
        is_captured = logits_BV.is_cuda and torch.cuda.is_current_stream_capturing()
    if B and not is_captured and bool(status_B.any()):
        check_settings(logits_BV, *settings)  # names the setting, where it is one
        raise bad_row(int(status_B.nonzero()[0]))
    return token_B, logp_B, full_logp_B
