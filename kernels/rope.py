# SPDX-License-Identifier: Apache-2.0
"""rope: splits the fused projection into heads and rotates queries and keys by position (Su et al.,
2104.09864).

qkv_TX [T, (H+2G)*E] float32 or bfloat16: the query heads, then the key heads, then the value heads; last
stride 1. pos_T [T] int64; cos_RE and sin_RE [R, E/2] float32, one row per position; element i is paired with
i + E/2, as in Hugging Face's models. q_norm_E and k_norm_E [E] are the weights of an RMSNorm per head before
the rotation (Qwen3), or both None. Returns q_THE, k_TGE, v_TGE; v may be a view of qkv. Float32 inside, one
rounding at the store. Rows do not depend on each other. T = 0 is legal. Gradients go to qkv and the norm
weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rzero.kernels.dispatch import Op, up
from rzero.kernels.rmsnorm import rmsnorm_ref


class Qkv(NamedTuple):
    q_THE: Tensor
    k_TGE: Tensor
    v_TGE: Tensor


def _rotate(x_THE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
    a, b = x_THE.chunk(2, dim=-1)
    return torch.cat((a * cos_T1E - b * sin_T1E, b * cos_T1E + a * sin_T1E), dim=-1)


def rope_ref(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    *,
    eps: float,
) -> Qkv:
    T, E = qkv_TX.shape[0], 2 * cos_RE.shape[1]
    x = up(qkv_TX).reshape(T, heads + 2 * kv_heads, E)
    q, k, v = x.split((heads, kv_heads, kv_heads), dim=1)
    if q_norm_E is not None and k_norm_E is not None:
        q, k = rmsnorm_ref(q, up(q_norm_E), eps), rmsnorm_ref(k, up(k_norm_E), eps)
    cos, sin = cos_RE[pos_T, None].to(x.dtype), sin_RE[pos_T, None].to(x.dtype)
    dtype = qkv_TX.dtype
    return Qkv(_rotate(q, cos, sin).to(dtype), _rotate(k, cos, sin).to(dtype), v.to(dtype))


ROPE = Op("rope", rope_ref)
