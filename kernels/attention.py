# SPDX-License-Identifier: Apache-2.0
"""attention: causal grouped-query attention over packed sequences that may share a prefix, with gradients.

q_THE [T, H, E], k_TGE, v_TGE [T, G, E] a float type, last stride 1, H a multiple of G; scale
multiplies the scores. `segments` say which rows see which: see `Segments`. Returns o_THE. T = 0 is legal.

Numerics: float32 inside, one rounding at the store; Triton also rounds the weights to q's type before they
meet the values. The sum over keys runs in position order and does not depend on what else is packed. With
the native backend a row has the bits that `paged_attention` computes for the same values; with Triton the two
take the same steps up to position 512 (later ones `paged_attention` merges in stretches), on other tiles.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import check, float_code, lib, native_why_not, needs_grad, reject, view


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
    """One sequence: the T query rows are the last T of the N positions; each sees those up to its own."""
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


def _sizes(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> tuple[int, int, int, int, int]:
    """The native code of the type, T, H, G, E; raises ValueError unless the three tensors go together."""
    code = float_code("attention", "q_THE", q_THE, 3)
    T, H, E = q_THE.shape
    G = k_TGE.shape[1] if k_TGE.ndim == 3 else 0
    if G == 0 or H % G:
        reject("attention", "k_TGE", k_TGE, f"[{T}, G, {E}] with G a divisor of the {H} query heads")
    check("attention", "k_TGE", k_TGE, q_THE.dtype, (T, G, E))
    check("attention", "v_TGE", v_TGE, q_THE.dtype, (T, G, E))
    return code, T, H, G, E


def _segments(segments: Segments) -> tuple[int, ...]:
    shape = (segments.start_B.shape[0],) if segments.start_B.ndim == 1 else (-1,)
    for name, tensor in zip(Segments._fields, segments, strict=True):
        check("attention", name, tensor, torch.int32, shape)
    return (*(tensor.data_ptr() for tensor in segments), shape[0])


def _forward(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float, softmax_TH2: Tensor | None
) -> Tensor:
    sizes = _sizes(q_THE, k_TGE, v_TGE)
    o_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype)
    saved = 0 if softmax_TH2 is None else softmax_TH2.data_ptr()
    lib.attention_forward(
        sizes, scale, view(q_THE), view(k_TGE), view(v_TGE), _segments(segments), view(o_THE), saved
    )
    return o_THE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float
    ) -> Tensor:
        softmax_TH2 = torch.empty(
            (*q_THE.shape[:2], 2)
        )  # each row's largest score and 1 / sum of exponentials
        o_THE = _forward(q_THE, k_TGE, v_TGE, segments, scale, softmax_TH2)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, softmax_TH2)
        ctx.segments, ctx.scale = segments, scale
        return o_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o_THE: Tensor) -> Any:
        q_THE, k_TGE, v_TGE, softmax_TH2 = ctx.saved_tensors
        grad_o_THE = grad_o_THE.contiguous()
        grads = tuple(torch.empty(x.shape, dtype=x.dtype) for x in (q_THE, k_TGE, v_TGE))
        delta_TH = torch.empty(q_THE.shape[:2])
        lib.attention_backward(
            _sizes(q_THE, k_TGE, v_TGE),
            ctx.scale,
            *(view(x) for x in (q_THE, k_TGE, v_TGE)),
            _segments(ctx.segments),
            softmax_TH2.data_ptr(),
            tuple(x.data_ptr() for x in (grad_o_THE, *grads, delta_TH)),
        )
        return *grads, None, None


def _attention_native(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float
) -> Tensor:
    if needs_grad(q_THE, k_TGE, v_TGE):
        o_THE: Tensor = _Attention.apply(q_THE, k_TGE, v_TGE, segments, scale)
        return o_THE
    return _forward(q_THE, k_TGE, v_TGE, segments, scale, None)


ATTENTION = Op(
    "attention",
    attention_ref,
    (
        Impl("native", _attention_native, native_why_not),
        Impl("triton", "rzero.kernels.attention_triton:attention_triton", triton_why_not),
    ),
)
