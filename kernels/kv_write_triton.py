# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""kv_write in Triton; the contract is in kv_write.py. One program per token moves its key and its value.

A slot outside of the pages is left out; it raises only with TRITON_DEBUG=1: the host never reads slot_T.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rzero.kernels.gpu import check_float, check_like


@triton.jit
def _kv_write(
    k_ptr, v_ptr, slot_ptr, k_pages_ptr, v_pages_ptr, k_strides, v_strides, k_pages_strides, v_pages_strides,
    slots, S, G, E, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token)
    is_there = (slot >= 0) & (slot < slots)
    tl.device_assert(is_there, "kv_write: slot_T must lie inside the pages")
    page, place = slot // S, slot % S
    group, col = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_E)[None, :]
    mask = (group < G) & (col < E)
    k = tl.load(k_ptr + token * k_strides[0] + group * k_strides[1] + col, mask=mask, other=0.0)
    v = tl.load(v_ptr + token * v_strides[0] + group * v_strides[1] + col, mask=mask, other=0.0)
    k_at = k_pages_ptr + page * k_pages_strides[0] + place * k_pages_strides[1]
    v_at = v_pages_ptr + page * v_pages_strides[0] + place * v_pages_strides[1]
    tl.store(k_at + group * k_pages_strides[2] + col, k, mask=mask & is_there)
    tl.store(v_at + group * v_pages_strides[2] + col, v, mask=mask & is_there)


def kv_write_triton(
    k_TGE: Tensor, v_TGE: Tensor, slot_T: Tensor, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor
) -> None:
    op, dtype, device = "kv_write", k_pages_PSGE.dtype, k_pages_PSGE.device
    check_float(op, "k_pages_PSGE", k_pages_PSGE, 4)
    P, S, G, E = k_pages_PSGE.shape
    check_like(op, "v_pages_PSGE", v_pages_PSGE, dtype, (P, S, G, E), device)
    T = k_TGE.shape[0] if k_TGE.ndim else 0
    check_like(op, "k_TGE", k_TGE, dtype, (T, G, E), device)
    check_like(op, "v_TGE", v_TGE, dtype, (T, G, E), device)
    check_like(op, "slot_T", slot_T, torch.int64, (T,), device)
    if not T:
        return
    block_g, block_e = triton.next_power_of_2(G), triton.next_power_of_2(E)
    _kv_write[(T,)](
        k_TGE, v_TGE, slot_T, k_pages_PSGE, v_pages_PSGE, k_TGE.stride()[:2], v_TGE.stride()[:2],
        k_pages_PSGE.stride()[:3], v_pages_PSGE.stride()[:3], P * S, S, G, E,
        BLOCK_G=block_g, BLOCK_E=block_e, num_warps=min(max(block_g * block_e // 256, 1), 8),
    )  # fmt: skip
