# SPDX-License-Identifier: Apache-2.0
"""kv_write stores new keys and values into their page slots; copy_pages copies whole pages (copy on write).

k_TGE, v_TGE [T, G, E]; slot_T [T] int64: page * S + place in the page, each at most once; k_pages_PSGE,
v_pages_PSGE [P, S, G, E] of the same type, changed in place. src, dst [N] int64 page numbers; no page is both
read and written. Moves bits only: 4 T G E elements, and copy_pages 4 N S G E. T = 0 and N = 0 are legal. A
number outside the pages raises ValueError.
"""

import torch
from torch import Tensor

from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.gpu import cuda_why_not, triton_why_not
from rzero.kernels.native import check, float_code, lib, native_why_not, view


def kv_write_ref(
    k_TGE: Tensor, v_TGE: Tensor, slot_T: Tensor, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor
) -> None:
    P, S = k_pages_PSGE.shape[:2]
    _check_range("kv_write", "slot_T", slot_T, P * S)
    page_T, place_T = slot_T // S, slot_T % S
    k_pages_PSGE[page_T, place_T] = k_TGE
    v_pages_PSGE[page_T, place_T] = v_TGE


def copy_pages_ref(k_pages_PSGE: Tensor, v_pages_PSGE: Tensor, src: Tensor, dst: Tensor) -> None:
    for name, pages in (("src", src), ("dst", dst)):
        _check_range("copy_pages", name, pages, k_pages_PSGE.shape[0])
    k_pages_PSGE[dst] = k_pages_PSGE[src]
    v_pages_PSGE[dst] = v_pages_PSGE[src]


def _check_range(op: str, name: str, index: Tensor, size: int) -> None:
    if index.numel() and not bool(torch.all((index >= 0) & (index < size))):
        raise ValueError(
            f"{op}: {name} must lie in 0..{size - 1}, got {int(index.min())}..{int(index.max())}"
        )


def kv_write_native(
    k_TGE: Tensor, v_TGE: Tensor, slot_T: Tensor, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor
) -> None:
    op, dtype = "kv_write", k_pages_PSGE.dtype
    float_code(op, "k_pages_PSGE", k_pages_PSGE, 4)
    P, S, G, E = k_pages_PSGE.shape
    check(op, "v_pages_PSGE", v_pages_PSGE, dtype, (P, S, G, E))
    T = k_TGE.shape[0] if k_TGE.ndim else 0
    check(op, "k_TGE", k_TGE, dtype, (T, G, E))
    check(op, "v_TGE", v_TGE, dtype, (T, G, E))
    check(op, "slot_T", slot_T, torch.int64, (T,))
    sizes = (T, P, S, G, E, dtype.itemsize)
    lib.kv_write(sizes, view(k_TGE), view(v_TGE), slot_T.data_ptr(), view(k_pages_PSGE), view(v_pages_PSGE))


def _copy_pages_native(k_pages_PSGE: Tensor, v_pages_PSGE: Tensor, src: Tensor, dst: Tensor) -> None:
    op, dtype = "copy_pages", k_pages_PSGE.dtype
    float_code(op, "k_pages_PSGE", k_pages_PSGE, 4)
    P, S, G, E = k_pages_PSGE.shape
    check(op, "v_pages_PSGE", v_pages_PSGE, dtype, (P, S, G, E))
    N = src.shape[0] if src.ndim else 0
    check(op, "src", src, torch.int64, (N,))
    check(op, "dst", dst, torch.int64, (N,))
    sizes = (N, P, S, G, E, dtype.itemsize)
    lib.copy_pages(sizes, view(k_pages_PSGE), view(v_pages_PSGE), src.data_ptr(), dst.data_ptr())


KV_WRITE = Op(
    "kv_write",
    kv_write_ref,
    (
        Impl("native", kv_write_native, native_why_not),
        Impl("triton", "rzero.kernels.kv_write_triton:kv_write_triton", triton_why_not),
        Impl("cuda", "rzero.kernels.kv_write_cuda:kv_write_cuda", cuda_why_not),
    ),
)
COPY_PAGES = Op(
    "copy_pages",
    copy_pages_ref,
    (
        Impl("native", _copy_pages_native, native_why_not),
        Impl("cuda", "rzero.kernels.kv_write_cuda:copy_pages_cuda", cuda_why_not),
    ),
)
