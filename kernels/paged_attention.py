# SPDX-License-Identifier: Apache-2.0
"""paged_attention: causal grouped-query attention of new tokens over keys and values that live in pages.

q_THE [T, H, E] float32 or bfloat16, last stride 1; k_pages_PSGE, v_pages_PSGE [P, S, G, E] of the same type;
page_table_BM [B, M] int32: the pages of a sequence in order, slots past its length are never read;
q_start_B1 [B+1] int32: sequence b owns the rows q_start[b]..q_start[b+1]; kv_len_B [B] int32: its length with
them. Row i of a sequence has position kv_len - rows + i and sees the positions 0..that: decoding (one row)
and chunked prefill (many) are one call. Returns o_THE. No gradient. Numerics as in `attention`. T = 0 is
legal.
"""

import torch
from torch import Tensor

from rzero.kernels.attention import attend_ref
from rzero.kernels.dispatch import Op


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


PAGED_ATTENTION = Op("paged_attention", paged_attention_ref)
