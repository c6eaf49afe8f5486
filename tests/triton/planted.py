# SPDX-License-Identifier: Apache-2.0
"""A right kernel to plant bugs in: attention of one query per sequence over keys and values in pages."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def attend(
    q_ptr, k_ptr, v_ptr, o_ptr, table_ptr, length_ptr, q_b, q_h, kv_p, kv_s, kv_g, o_b, o_h, table_b, scale,
    S, E, GROUP, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    b, g = tl.program_id(0), tl.program_id(1)
    heads, cols = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_E)
    is_col = cols[None, :] < E
    is_mine = (heads < GROUP)[:, None] & is_col
    length = tl.load(length_ptr + b)
    q = tl.load(q_ptr + b * q_b + (g * GROUP + heads)[:, None] * q_h + cols[None, :], mask=is_mine, other=0.0)
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    sum_ = tl.zeros([BLOCK_H, BLOCK_E], tl.float32)
    for start in range(0, length, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        is_live = n < length
        page = tl.load(table_ptr + b * table_b + n // S, mask=is_live, other=0).to(tl.int64)
        row = (page * kv_p + (n % S) * kv_s + g * kv_g)[:, None] + cols[None, :]
        k = tl.load(k_ptr + row, mask=is_live[:, None] & is_col, other=0.0)
        v = tl.load(v_ptr + row, mask=is_live[:, None] & is_col, other=0.0)
        score = tl.dot(q, tl.trans(k)) * scale
        score = tl.where(is_live[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        p = tl.exp(score - new_top[:, None])
        keep = tl.exp(top - new_top)
        total = total * keep + tl.sum(p, 1)
        sum_ = sum_ * keep[:, None] + tl.dot(p.to(v.dtype), v)
        top = new_top
    o = (sum_ / total[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_ptr + b * o_b + (g * GROUP + heads)[:, None] * o_h + cols[None, :], o, mask=is_mine)


def launch(q_BHE: Tensor, k_PSGE: Tensor, v_PSGE: Tensor, table_BM: Tensor, length_B: Tensor) -> Tensor:
    B, H, E = q_BHE.shape
    S, G = k_PSGE.shape[1:3]
    # A row more than needed, so that a store past the last head of a sequence hits the next sequence's.
    o_BHE = torch.empty((B + 1, H, E), dtype=q_BHE.dtype)
    attend[(B, G)](
        q_BHE, k_PSGE, v_PSGE, o_BHE, table_BM, length_B, *q_BHE.stride()[:2], *k_PSGE.stride()[:3],
        *o_BHE.stride()[:2], table_BM.stride(0), E**-0.5, S, E, H // G, BLOCK_H=16, BLOCK_N=16, BLOCK_E=32,
    )  # fmt: skip
    return o_BHE[:B]
