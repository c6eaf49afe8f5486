# SPDX-License-Identifier: Apache-2.0
"""`kv_write` and `copy_pages` on a GPU, in CUDA C++: csrc/kv_write.cu. 16 bytes per access where aligned.

Nobody waits for the device here, so a slot or page number outside the pages is not reported (resolve with
debug=True looks first): it moves nothing and touches no memory outside.
"""

import torch
from torch import Tensor

from rzero.kernels.cuda import check_device, lib, on_device, stream
from rzero.kernels.gpu import check_float, check_like
from rzero.kernels.native import view


def kv_write_cuda(
    k_TGE: Tensor, v_TGE: Tensor, slot_T: Tensor, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor
) -> None:
    op, device, dtype = "kv_write", k_pages_PSGE.device, k_pages_PSGE.dtype
    P, S, G, E = _check_pages(op, k_pages_PSGE, v_pages_PSGE)
    T = k_TGE.shape[0] if k_TGE.ndim else 0
    check_like(op, "k_TGE", k_TGE, dtype, (T, G, E), device)
    check_like(op, "v_TGE", v_TGE, dtype, (T, G, E), device)
    check_like(op, "slot_T", slot_T, torch.int64, (T,), device)
    with on_device(slot_T):
        lib.kv_write(
            (T, P, S, G, E, dtype.itemsize), view(k_TGE)[:3], view(v_TGE)[:3], slot_T.data_ptr(),
            view(k_pages_PSGE)[:4], view(v_pages_PSGE)[:4], stream(slot_T),
        )  # fmt: skip


def copy_pages_cuda(k_pages_PSGE: Tensor, v_pages_PSGE: Tensor, src: Tensor, dst: Tensor) -> None:
    op, device, dtype = "copy_pages", k_pages_PSGE.device, k_pages_PSGE.dtype
    P, S, G, E = _check_pages(op, k_pages_PSGE, v_pages_PSGE)
    N = src.shape[0] if src.ndim else 0
    check_like(op, "src", src, torch.int64, (N,), device)
    check_like(op, "dst", dst, torch.int64, (N,), device)
    with on_device(src):
        lib.copy_pages(
            (N, P, S, G, E, dtype.itemsize), view(k_pages_PSGE)[:4], view(v_pages_PSGE)[:4],
            src.data_ptr(), dst.data_ptr(), stream(src),
        )  # fmt: skip


def _check_pages(op: str, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor) -> tuple[int, int, int, int]:
    check_float(op, "k_pages_PSGE", k_pages_PSGE, 4)
    check_device(lib, op, "k_pages_PSGE", k_pages_PSGE)
    P, S, G, E = k_pages_PSGE.shape
    check_like(op, "v_pages_PSGE", v_pages_PSGE, k_pages_PSGE.dtype, (P, S, G, E), k_pages_PSGE.device)
    return P, S, G, E
