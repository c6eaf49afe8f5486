# SPDX-License-Identifier: Apache-2.0
"""rope: splits the fused projection into heads and rotates queries and keys by position (Su et al.,
2104.09864).

qkv_TX [T, (H+2G)*E] a float type: the query heads, then the key heads, then the value heads; last
stride 1. pos_T [T] int64; cos_RE and sin_RE [R, E/2] float32, one row per position; element i is paired with
i + E/2, as in Hugging Face's models. q_norm_E and k_norm_E [E] are the weights of an RMSNorm per head before
the rotation (Qwen3), or both None. Returns q_THE, k_TGE, v_TGE; v may be a view of qkv. Float32 inside, one
rounding at the store. Rows do not depend on each other. T = 0 is legal. Gradients go to qkv and the norm
weights. Elements moved: 2 T (H + G) E where v is a view, and 8 + 4 E bytes of position and tables a row.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import address, check, float_code, lib, native_why_not, needs_grad, reject
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


class _Inputs(NamedTuple):
    """The checked arguments as the native functions take them."""

    sizes: tuple[int, ...]
    eps: float
    addresses: tuple[int, ...]


def _inputs(tensors: tuple[Tensor | None, ...], heads: int, kv_heads: int, eps: float) -> _Inputs:
    qkv_TX, pos_T, cos_RE, sin_RE, q_norm_E, k_norm_E = tensors
    assert qkv_TX is not None and pos_T is not None and cos_RE is not None and sin_RE is not None
    code = float_code("rope", "qkv_TX", qkv_TX, 2)
    if cos_RE.ndim != 2 or not cos_RE.is_contiguous():
        reject("rope", "cos_RE", cos_RE, "a contiguous [positions, E/2] table")
    (T, X), (R, half) = qkv_TX.shape, cos_RE.shape
    if (heads + 2 * kv_heads) * 2 * half != X:
        reject("rope", "qkv_TX", qkv_TX, f"[T, ({heads} + 2 * {kv_heads}) * {2 * half}]")
    check("rope", "pos_T", pos_T, torch.int64, (T,))
    check("rope", "cos_RE", cos_RE, torch.float32, (R, half))
    check("rope", "sin_RE", sin_RE, torch.float32, (R, half))
    if not sin_RE.is_contiguous():
        reject("rope", "sin_RE", sin_RE, "a contiguous [positions, E/2] table")
    if (q_norm_E is None) != (k_norm_E is None):
        raise ValueError("rope: q_norm_E and k_norm_E must both be given or both be None")
    for name, w_E in (("q_norm_E", q_norm_E), ("k_norm_E", k_norm_E)):
        if w_E is not None:
            check("rope", name, w_E, qkv_TX.dtype, (2 * half,))
    places = (address(x) for x in (pos_T, cos_RE, sin_RE, q_norm_E, k_norm_E))
    return _Inputs(
        (code, T, heads, kv_heads, 2 * half, R), eps, (qkv_TX.data_ptr(), qkv_TX.stride(0), *places)
    )


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: int, kv_heads: int, eps: float, *tensors: Tensor | None) -> Any:
        inputs = _inputs(tensors, heads, kv_heads, eps)
        T, E, dtype = inputs.sizes[1], inputs.sizes[4], tensors[0].dtype if tensors[0] is not None else None
        out = tuple(torch.empty((T, n, E), dtype=dtype) for n in (heads, kv_heads, kv_heads))
        lib.rope_forward(*inputs, tuple(x.data_ptr() for x in out))
        ctx.save_for_backward(*tensors)
        ctx.heads, ctx.kv_heads, ctx.eps = heads, kv_heads, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        qkv_TX, _, _, _, q_norm_E, k_norm_E = tensors = ctx.saved_tensors
        incoming = tuple(grad.contiguous() for grad in grads)
        grad_qkv_TX = torch.empty(qkv_TX.shape, dtype=qkv_TX.dtype)
        grad_norms = tuple(None if w_E is None else torch.empty_like(w_E) for w_E in (q_norm_E, k_norm_E))
        places = tuple(address(x) for x in (*incoming, grad_qkv_TX, *grad_norms))
        lib.rope_backward(*_inputs(tensors, ctx.heads, ctx.kv_heads, ctx.eps), places)
        return None, None, None, grad_qkv_TX, None, None, None, *grad_norms


def rope_native(
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
    tensors = (qkv_TX, pos_T, cos_RE, sin_RE, q_norm_E, k_norm_E)
    if needs_grad(qkv_TX, q_norm_E, k_norm_E):
        return Qkv(*_Rope.apply(heads, kv_heads, eps, *tensors))
    inputs = _inputs(tensors, heads, kv_heads, eps)
    T, E = inputs.sizes[1], inputs.sizes[4]
    q_THE = torch.empty((T, heads, E), dtype=qkv_TX.dtype)
    k_TGE = torch.empty((T, kv_heads, E), dtype=qkv_TX.dtype)
    lib.rope_forward(*inputs, (q_THE.data_ptr(), k_TGE.data_ptr(), 0))
    values = qkv_TX.storage_offset() + (heads + kv_heads) * E
    return Qkv(q_THE, k_TGE, qkv_TX.as_strided((T, kv_heads, E), (qkv_TX.stride(0), E, 1), values))


ROPE = Op(
    "rope",
    rope_ref,
    (
        Impl("native", rope_native, native_why_not),
        Impl("triton", "rzero.kernels.rope_triton:rope_triton", triton_why_not),
    ),
)
