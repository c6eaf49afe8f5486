# SPDX-License-Identifier: Apache-2.0
"""`paged_attention` on a GPU, in CUDA C++: csrc/paged_attention.cu.

A block per row of q and up to four query heads of one key head: made for decoding. A chunk of a prompt is
right, too, but each of its rows reads the keys again. The order of the sum over positions depends on the
position alone, so a row has the same bits alone, in a batch, in a chunk and with any page size. Heads of at
most 512 bytes. Nobody waits for the device here: a page or length that cannot be gives NaN, not an exception
(resolve with debug=True looks first).
"""

from typing import Final

import torch
from torch import Tensor

from rzero.kernels.cuda import check_device, lib, on_device, stream
from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import DTYPE_CODE, reject, view

MOST_HEAD_BYTES: Final = 512  # 32 lanes of one 16-byte access


def paged_attention_cuda(
    q_THE: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    page_table_BM: Tensor,
    q_start_B1: Tensor,
    kv_len_B: Tensor,
    scale: float,
) -> Tensor:
    op, device, dtype = "paged_attention", q_THE.device, q_THE.dtype
    check_float(op, "q_THE", q_THE, 3)
    check_device(lib, op, "q_THE", q_THE)
    T, H, E = q_THE.shape
    if E * dtype.itemsize > MOST_HEAD_BYTES:
        reject(op, "q_THE", q_THE, f"[T, H, E] with heads of at most {MOST_HEAD_BYTES} bytes")
    if k_pages_PSGE.ndim != 4 or k_pages_PSGE.shape[2] == 0 or H % k_pages_PSGE.shape[2]:
        reject(op, "k_pages_PSGE", k_pages_PSGE, f"[P, S, G, {E}] with G a divisor of the {H} query heads")
    P, S, G, _ = k_pages_PSGE.shape
    check_like(op, "k_pages_PSGE", k_pages_PSGE, dtype, (P, S, G, E), device)
    check_like(op, "v_pages_PSGE", v_pages_PSGE, dtype, (P, S, G, E), device)
    if page_table_BM.ndim != 2:
        reject(op, "page_table_BM", page_table_BM, "[B, M]")
    B, M = page_table_BM.shape
    check_like(op, "page_table_BM", page_table_BM, torch.int32, (B, M), device)
    check_like(op, "q_start_B1", q_start_B1, torch.int32, (B + 1,), device)
    check_like(op, "kv_len_B", kv_len_B, torch.int32, (B,), device)
    o_THE = torch.empty((T, H, E), dtype=dtype, device=device)
    with on_device(q_THE):
        lib.paged_attention(
            DTYPE_CODE[dtype], (T, H, G, E, P, S, B, M), scale, view(q_THE)[:3], view(o_THE)[:3],
            view(k_pages_PSGE)[:4], view(v_pages_PSGE)[:4], view(page_table_BM)[:2], q_start_B1.data_ptr(),
            kv_len_B.data_ptr(), stream(q_THE),
        )  # fmt: skip
    return o_THE
