# SPDX-License-Identifier: Apache-2.0
"""attention: causal grouped-query attention over packed sequences that may share a prefix, with gradients.

q_THE [T, H, E], k_TGE, v_TGE [T, G, E] float32 or bfloat16, last stride 1, H a multiple of G; scale
multiplies the scores. `segments` say which rows see which: see `Segments`. Returns o_THE. Float32 inside, one
rounding at the store. The sum over keys runs in position order and does not depend on what else is packed:
with the native backend a row has the bits that `paged_attention` computes for the same values. T = 0 is
legal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rzero.kernels.dispatch import Op, up


class Segments(NamedTuple):
    """Which packed rows belong together: int32 CPU tensors [B].

    The rows start..start+length of segment b see every row of its prefix (prefix_start..+prefix_length, rows
    of the same packed tensors) and, causally, their own. Each packed row belongs to exactly one segment. A
    group's prompt is one segment without a prefix; each answer is a segment whose prefix is that prompt.
    """

    start_B: Tensor
    length_B: Tensor
    prefix_start_B: Tensor
    prefix_length_B: Tensor


def attend_ref(q_THE: Tensor, k_NGE: Tensor, v_NGE: Tensor, scale: float) -> Tensor:
    """One sequence: the T query rows are the last T of the N positions; each sees the positions up to its own."""
    (T, H, _), (N, G, _) = q_THE.shape, k_NGE.shape
    k_NHE, v_NHE = (up(x).repeat_interleave(H // G, dim=1) for x in (k_NGE, v_NGE))
    score_HTN = torch.einsum("the,nhe->htn", up(q_THE), k_NHE) * scale
    hidden_TN = torch.arange(N)[None, :] > torch.arange(N - T, N)[:, None]
    p_HTN = score_HTN.masked_fill(hidden_TN.to(q_THE.device), float("-inf")).softmax(-1)
    return torch.einsum("htn,nhe->the", p_HTN, v_NHE).to(q_THE.dtype)


def attention_ref(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float) -> Tensor:
    o_THE = torch.zeros_like(q_THE)
    for start, length, prefix_start, prefix_length in zip(*(x.tolist() for x in segments), strict=True):
        own, prefix = slice(start, start + length), slice(prefix_start, prefix_start + prefix_length)
        k, v = (torch.cat((x[prefix], x[own])) for x in (k_TGE, v_TGE))
        o_THE[own] = attend_ref(q_THE[own], k, v, scale)
    return o_THE


ATTENTION = Op("attention", attention_ref)
