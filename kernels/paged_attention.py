# SPDX-License-Identifier: Apache-2.0
"""paged_attention: causal grouped-query attention of new tokens over keys and values that live in pages.

q_THE [T, H, E] a float type, last stride 1; k_pages_PSGE, v_pages_PSGE [P, S, G, E] of the same type;
page_table_BM [B, M] int32: the pages of a sequence in order, slots past its length are never read;
q_start_B1 [B+1] int32: sequence b owns the rows q_start[b]..q_start[b+1]; kv_len_B [B] int32: its length with
them. Row i of a sequence has position kv_len - rows + i and sees the positions 0..that: decoding (one row)
and chunked prefill (many) are one call. Returns o_THE. No gradient. Numerics as in `attention`. T = 0 is
legal. Elements moved when decoding: 2 G E for each position of each sequence, and 2 B H E.
"""

import torch
from torch import Tensor

from rzero.kernels.attention import attend_ref
from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.gpu import cuda_why_not, triton_why_not
from rzero.kernels.native import check, float_code, lib, native_why_not, reject, view


def paged_attention_ref(
    q_THE: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    page_table_BM: Tensor,
    q_start_B1: Tensor,
    kv_len_B: Tensor,
    scale: float,
) -> Tensor:
    S = k_pages_PSGE.shape[1]
    o_THE = torch.zeros_like(q_THE)
    starts, lengths = q_start_B1.tolist(), kv_len_B.tolist()
    for b, length in enumerate(lengths):
        pages = page_table_BM[b, : -(-length // S)].long()
        k, v = (x[pages].flatten(0, 1)[:length] for x in (k_pages_PSGE, v_pages_PSGE))
        rows = slice(starts[b], starts[b + 1])
        o_THE[rows] = attend_ref(q_THE[rows], k, v, scale)
    return o_THE


def _paged_attention_native(
    q_THE: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    page_table_BM: Tensor,
    q_start_B1: Tensor,
    kv_len_B: Tensor,
    scale: float,
) -> Tensor:
    op = "paged_attention"
    code = float_code(op, "q_THE", q_THE, 3)
    T, H, E = q_THE.shape
    if k_pages_PSGE.ndim != 4 or k_pages_PSGE.shape[2] == 0 or H % k_pages_PSGE.shape[2]:
        reject(op, "k_pages_PSGE", k_pages_PSGE, f"[P, S, G, {E}] with G a divisor of the {H} query heads")
    P, S, G, _ = k_pages_PSGE.shape
    check(op, "k_pages_PSGE", k_pages_PSGE, q_THE.dtype, (P, S, G, E))
    check(op, "v_pages_PSGE", v_pages_PSGE, q_THE.dtype, (P, S, G, E))
    if page_table_BM.ndim != 2:
        reject(op, "page_table_BM", page_table_BM, "[B, M]")
    B, M = page_table_BM.shape
    check(op, "page_table_BM", page_table_BM, torch.int32, (B, M))
    check(op, "q_start_B1", q_start_B1, torch.int32, (B + 1,))
    check(op, "kv_len_B", kv_len_B, torch.int32, (B,))
    o_THE = torch.empty((T, H, E), dtype=q_THE.dtype)
    lib.paged_attention(
        (code, T, H, G, E), (P, S, B, M), scale, view(q_THE), view(k_pages_PSGE), view(v_pages_PSGE),
        (page_table_BM.data_ptr(), page_table_BM.stride(0)), q_start_B1.data_ptr(), kv_len_B.data_ptr(),
        view(o_THE),
    )  # fmt: skip
    return o_THE


PAGED_ATTENTION = Op(
    "paged_attention",
    paged_attention_ref,
    (
        Impl("native", _paged_attention_native, native_why_not),
        Impl("triton", "rzero.kernels.paged_attention_triton:paged_attention_triton", triton_why_not),
        Impl("cuda", "rzero.kernels.paged_attention_cuda:paged_attention_cuda", cuda_why_not),
        Impl(
            "triton_exact",
            "rzero.kernels.paged_attention_triton:paged_attention_exact",
            triton_why_not,
            only_asked="for the steps that attention takes, slower than triton",
        ),
    ),
)
