# SPDX-License-Identifier: Apache-2.0
"""rope_write: `rope` for sampling, whose keys and values go straight to their page slots.

The first eight arguments are those of `rope`; slot_T [T] int64, k_pages_PSGE and v_pages_PSGE are those of
`kv_write`, and the pages are changed in place. Returns q_THE. The bits are those of `rope` and then of
`kv_write`. On a GPU one kernel does both, and the new keys cross the memory once instead of three times. No
gradient. T = 0 is legal.
"""

from torch import Tensor

from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.kv_write import kv_write_native, kv_write_ref
from rzero.kernels.native import native_why_not
from rzero.kernels.rope import rope_native, rope_ref


def rope_write_ref(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    *,
    slot_T: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    eps: float,
) -> Tensor:
    rope = rope_ref(qkv_TX, pos_T, cos_RE, sin_RE, heads, kv_heads, q_norm_E, k_norm_E, eps=eps)
    kv_write_ref(rope.k_TGE, rope.v_TGE, slot_T, k_pages_PSGE, v_pages_PSGE)
    return rope.q_THE


def _rope_write_native(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    *,
    slot_T: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    eps: float,
) -> Tensor:
    rope = rope_native(qkv_TX, pos_T, cos_RE, sin_RE, heads, kv_heads, q_norm_E, k_norm_E, eps=eps)
    kv_write_native(rope.k_TGE, rope.v_TGE, slot_T, k_pages_PSGE, v_pages_PSGE)
    return rope.q_THE


ROPE_WRITE = Op(
    "rope_write",
    rope_write_ref,
    (
        Impl("native", _rope_write_native, native_why_not),
        Impl("triton", "rzero.kernels.rope_triton:rope_write_triton", triton_why_not),
    ),
)
