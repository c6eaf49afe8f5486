# SPDX-License-Identifier: Apache-2.0
"""linear_logprob: log softmax(h w^T / temperature)[target] and the entropy of that softmax, per token.

h_TD [T, D] a float type; w_VD [V, D] of h's type; target_T [T] int64 in 0..V-1; temperature a float
above 0 -> logp_T [T] float32, entropy_T [T] float32 (nats). T = 0 is legal. Gradients of logp go to h and w;
the entropy is a gauge and carries none. Raises ValueError for wrong shapes, types, targets, temperature.

Numerics: logits = linear(h, w), rounded to h's type as when sampling; then float32. With m the largest logit
of a row, y = (logit - m) / temperature and logp = y[target] - log(sum of e^y): no temperature overflows it.
The reduction over the vocabulary is the one that `sample` uses, so both give the same bits for the same
logits and temperature. Row i of a batch has the bits of row i alone. A row of NaN gives NaN.

Memory: the native form never holds [T, V]. Forward goes over chunks of rows, because the sum over the
vocabulary must not depend on the chunk; backward computes the logits again, over chunks of the vocabulary, so
that w is read once and its gradient written once (idea: Wijmans et al., Cut Your Losses, 2411.09009). Where w
needs no gradient (adapters are trained), forward makes each row's gradient while it has the logits: up to its
factor from the loss it is (w[target] - sum over v of p[v] w[v]) / temperature, [T, D] in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.linear import linear_native, linear_ref, multiply
from rzero.kernels.native import check, float_code, lib, native_why_not, needs_grad

# Rows enough for a fast product: with V = 151,936 it holds 220 rows of float32.
CHUNK_BYTES = 128 << 20
_ROWS = 16
_COLUMNS = 64
# Of d logits, times the head at once: the product packs its left operand, and this many columns stay near.
_PACKED = 16384


def log_softmax_ref(x_TV: Tensor, temperature_T1: Tensor) -> Tensor:
    """Log softmax of x / temperature, in the form that cannot overflow."""
    top_T1 = x_TV.detach().amax(-1, keepdim=True)
    return ((x_TV - top_T1) / temperature_T1).log_softmax(-1)


def linear_logprob_ref(
    h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    if not h_TD.shape[0]:
        none_T = up(h_TD).sum(-1)
        return none_T, none_T.detach().clone()
    x_TV = up(linear_ref(h_TD, w_VD))
    logp_TV = log_softmax_ref(x_TV, x_TV.new_full((1, 1), temperature))
    held_TV = logp_TV.detach()
    # p log p is 0 where p is 0, also for a logit of -inf.
    entropy_T = -(held_TV.exp() * held_TV.clamp(min=torch.finfo(held_TV.dtype).min)).sum(-1)
    return logp_TV.gather(-1, target_T[:, None])[:, 0], entropy_T


class _How(NamedTuple):
    temperature: float
    chunk_bytes: int


class _Scored(NamedTuple):
    """What a forward pass leaves: the results, and each row's largest logit and mass for backward."""

    logp_T: Tensor
    entropy_T: Tensor
    top_T: Tensor
    mass_T: Tensor


def _check(h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float) -> int:
    code = float_code("linear_logprob", "h_TD", h_TD, 2)
    T, D = h_TD.shape
    V = w_VD.shape[0]
    check("linear_logprob", "w_VD", w_VD, h_TD.dtype, (V, D))
    check("linear_logprob", "target_T", target_T, torch.int64, (T,))
    if not 0 < temperature < float("inf"):
        raise ValueError(f"linear_logprob: temperature is {temperature}; it must be finite and above 0")
    if T and (int(target_T.min()) < 0 or int(target_T.max()) >= V):
        held = f"{int(target_T.min())} to {int(target_T.max())}"
        raise ValueError(f"linear_logprob: target_T holds {held}; allowed are 0..{V - 1}")
    return code


def _forward(
    h_TD: Tensor, w_VD: Tensor, target_T: Tensor, how: _How, slope_TD: Tensor | None = None
) -> _Scored:
    """`slope_TD`, float32 zeros, takes temperature * d logp / d h."""
    code = _check(h_TD, w_VD, target_T, how.temperature)
    T, V = h_TD.shape[0], w_VD.shape[0]
    out = _Scored(torch.empty(T), torch.empty(T), torch.empty(T), torch.empty(T, dtype=torch.float64))
    rows = max(_ROWS, how.chunk_bytes // (V * h_TD.element_size()) // _ROWS * _ROWS)
    for first in range(0, T, rows):
        here = slice(first, first + rows)
        logits_TV = linear_native(h_TD[here], w_VD)
        lib.logprob_forward(
            code, len(logits_TV), V, logits_TV.data_ptr(), target_T[here].data_ptr(), how.temperature,
            *(result[here].data_ptr() for result in out),
        )  # fmt: skip
        if slope_TD is not None:
            grad_T = torch.full((len(logits_TV),), how.temperature)
            lib.logprob_backward(
                code, len(logits_TV), V, 0, logits_TV.data_ptr(), target_T[here].data_ptr(), how.temperature,
                out.top_T[here].data_ptr(), out.mass_T[here].data_ptr(), grad_T.data_ptr(),
            )  # fmt: skip
            for column in range(0, V, _PACKED):
                part = slice(column, column + _PACKED)
                slope_TD[here] += multiply(logits_TV[:, part], w_VD[part])
    return out


def _backward(
    h_TD: Tensor,
    w_VD: Tensor,
    target_T: Tensor,
    how: _How,
    scored: _Scored,
    grad_T: Tensor,
    needs_h: bool,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of h, where needed, and of w."""
    T, V = h_TD.shape[0], w_VD.shape[0]
    code = float_code("linear_logprob", "h_TD", h_TD, 2)
    grad_h_TD = torch.zeros(h_TD.shape) if needs_h else None
    grad_w_VD = torch.empty(w_VD.shape, dtype=w_VD.dtype)
    columns = max(_COLUMNS, how.chunk_bytes // (max(T, 1) * h_TD.element_size()) // _COLUMNS * _COLUMNS)
    buffer = torch.empty(T * min(columns, V), dtype=h_TD.dtype)
    for first in range(0, V, columns):
        w_CD = w_VD[first : first + columns]
        d_TC = buffer[: T * len(w_CD)].view(T, len(w_CD))
        multiply(h_TD, w_CD.t(), out=d_TC)
        lib.logprob_backward(
            code, T, len(w_CD), first, d_TC.data_ptr(), target_T.data_ptr(), how.temperature,
            scored.top_T.data_ptr(), scored.mass_T.data_ptr(), grad_T.data_ptr(),
        )  # fmt: skip
        if grad_h_TD is not None:
            grad_h_TD += multiply(d_TC, w_CD)
        multiply(d_TC.t(), h_TD, out=grad_w_VD[first : first + columns])
    return None if grad_h_TD is None else grad_h_TD.to(h_TD.dtype), grad_w_VD


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, w_VD: Tensor, target_T: Tensor, how: _How) -> Any:
        scored = _forward(h_TD, w_VD, target_T, how)
        ctx.save_for_backward(h_TD, w_VD, target_T, *scored)
        ctx.how = how
        ctx.mark_non_differentiable(scored.entropy_T)
        return scored.logp_T, scored.entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> Any:
        h_TD, w_VD, target_T, *scored = ctx.saved_tensors
        grads = _backward(
            h_TD, w_VD, target_T, ctx.how, _Scored(*scored), grad_T.contiguous(), ctx.needs_input_grad[0]
        )
        return *grads, None, None


class _FrozenHead(torch.autograd.Function):
    """The head needs no gradient: one product less, because no logits are computed again."""

    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, w_VD: Tensor, target_T: Tensor, how: _How) -> Any:
        slope_TD = torch.zeros(h_TD.shape)
        scored = _forward(h_TD, w_VD, target_T, how, slope_TD)
        ctx.save_for_backward(slope_TD)
        ctx.temperature, ctx.dtype = how.temperature, h_TD.dtype
        ctx.mark_non_differentiable(scored.entropy_T)
        return scored.logp_T, scored.entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> Any:
        (slope_TD,) = ctx.saved_tensors
        grad_T1 = grad_T[:, None]
        # A token that the loss ignores has none, whatever its logits are.
        grad_h_TD = torch.where(grad_T1 == 0, 0.0, slope_TD * (grad_T1 / ctx.temperature))
        return grad_h_TD.to(ctx.dtype), None, None, None


def _linear_logprob_native(
    h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float = 1.0, *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """`chunk_bytes` bounds the logits held at a time; it changes no log-prob."""
    how = _How(temperature, chunk_bytes)
    if needs_grad(h_TD, w_VD):
        function = _TrainedHead if w_VD.requires_grad else _FrozenHead
        both: tuple[Tensor, Tensor] = function.apply(h_TD, w_VD, target_T, how)
        return both
    return _forward(h_TD, w_VD, target_T, how)[:2]


LINEAR_LOGPROB = Op(
    "linear_logprob",
    linear_logprob_ref,
    (
        Impl("native", _linear_logprob_native, native_why_not),
        Impl("triton", "rzero.kernels.linear_logprob_triton:linear_logprob_triton", triton_why_not),
    ),
)
