# SPDX-License-Identifier: Apache-2.0
"""What the arguments of every op must be: types, devices, strides, sizes, and numbers that point somewhere.

The native functions check what they are given as they go. The references and, for speed, the GPU kernels do
not look at numbers: for the former these checks always run, for every op with `resolve(..., debug=True)`. On
a GPU they wait for the device. Each raises ValueError with the name and the shape of the tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rzero.kernels.adamw import AdamwStep, check_update
from rzero.kernels.attention import Segments
from rzero.kernels.bleu import flatten
from rzero.kernels.lora import LoraPart, check_parts
from rzero.kernels.native import is_dense, reject
from rzero.kernels.policy_loss import PolicyLossConfig
from rzero.kernels.sample import check_settings

# float64 for the references, which are their own oracles.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Call(NamedTuple):
    """An op's name and the tensor whose type and device the others share."""

    op: str
    first: Tensor

    def like(self, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        """Refuses a tensor of another type, shape or device, or without a dense last axis."""
        dtype, device = dtype or self.first.dtype, self.first.device
        if not isinstance(x, Tensor):
            raise ValueError(f"{self.op}: {name} must be a tensor, it is {type(x).__name__}")
        if x.shape != shape or x.dtype is not dtype or x.device != device or not is_dense(x):
            reject(self.op, name, x, f"a {dtype} tensor of shape {list(shape)} on {device}, last stride 1")

    def within(self, name: str, x: Tensor, size: int) -> None:
        """Refuses numbers outside 0..size-1."""
        if x.numel() and not bool(((x >= 0) & (x < size)).all()):
            held = f"{int(x.min())} to {int(x.max())}"
            raise ValueError(
                f"{self.op}: {name} of shape {list(x.shape)} holds {held}, allowed are 0..{size - 1}"
            )

    def refuse(self, name: str, x: Tensor, problem: str) -> None:
        raise ValueError(f"{self.op}: {name} of shape {list(x.shape)} {problem}")


def _call(op: str, name: str, x: Tensor, ndim: int) -> _Call:
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, it is {type(x).__name__}")
    if x.dtype not in FLOATS or x.ndim != ndim or not is_dense(x):
        reject(op, name, x, f"a {ndim}-dimensional float tensor with a last stride of 1")
    return _Call(op, x)


def linear(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> None:
    call = _call("linear", "x_TK", x_TK, 2)
    N = w_NK.shape[0] if w_NK.ndim else -1
    call.like("w_NK", w_NK, (N, x_TK.shape[1]))
    if bias_N is not None:
        call.like("bias_N", bias_N, (N,))


def lora(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> None:
    _call("lora", "y_TN", y_TN, 2)
    check_parts(y_TN, x_TK, parts)


def rmsnorm(x_TD: Tensor, w_D: Tensor, eps: float) -> None:
    _call("rmsnorm", "x_TD", x_TD, 2).like("w_D", w_D, (x_TD.shape[1],))


def add_rmsnorm(x_TD: Tensor, residual_TD: Tensor, w_D: Tensor, eps: float) -> None:
    call = _call("add_rmsnorm", "x_TD", x_TD, 2)
    call.like("residual_TD", residual_TD, tuple(x_TD.shape))
    call.like("w_D", w_D, (x_TD.shape[1],))


def rope(
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
) -> None:
    call = _call("rope", "qkv_TX", qkv_TX, 2)
    _rope(call, pos_T, (cos_RE, sin_RE), (heads, kv_heads), (q_norm_E, k_norm_E))


def _rope(
    call: _Call,
    pos_T: Tensor,
    tables: tuple[Tensor, Tensor],
    counts: tuple[int, int],
    norms: tuple[Tensor | None, Tensor | None],
) -> int:
    """The size of a head."""
    (T, X), cos_RE, (heads, kv_heads) = call.first.shape, tables[0], counts
    if cos_RE.ndim != 2 or (heads + 2 * kv_heads) * 2 * cos_RE.shape[1] != X:
        reject(call.op, "cos_RE", cos_RE, f"[positions, E/2] with ({heads} + 2 * {kv_heads}) * E = {X}")
    positions, half = cos_RE.shape
    for name, table in zip(("cos_RE", "sin_RE"), tables, strict=True):
        call.like(name, table, (positions, half), torch.float32)
    call.like("pos_T", pos_T, (T,), torch.int64)
    call.within("pos_T", pos_T, positions)
    if [norm is None for norm in norms] not in ([True, True], [False, False]):
        raise ValueError(f"{call.op}: q_norm_E and k_norm_E must both be given or both be None")
    for name, norm in zip(("q_norm_E", "k_norm_E"), norms, strict=True):
        if norm is not None:
            call.like(name, norm, (2 * half,))
    return 2 * half


def rope_write(
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
) -> None:
    call = _call("rope_write", "qkv_TX", qkv_TX, 2)
    E = _rope(call, pos_T, (cos_RE, sin_RE), (heads, kv_heads), (q_norm_E, k_norm_E))
    _pages(call, k_pages_PSGE, v_pages_PSGE, (kv_heads, E))
    _slots(call, slot_T, len(qkv_TX), k_pages_PSGE)


def swiglu(gate_up_T2F: Tensor) -> None:
    call = _call("swiglu", "gate_up_T2F", gate_up_T2F, 2)
    if gate_up_T2F.shape[1] % 2:
        call.refuse("gate_up_T2F", gate_up_T2F, "must be [T, 2F]")


def _pages(call: _Call, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor, heads: tuple[int, int]) -> None:
    shape = (*k_pages_PSGE.shape[:2], *heads)
    call.like("k_pages_PSGE", k_pages_PSGE, shape if k_pages_PSGE.ndim == 4 else (-1, -1, *heads))
    call.like("v_pages_PSGE", v_pages_PSGE, shape)


def _slots(call: _Call, slot_T: Tensor, T: int, pages: Tensor) -> None:
    call.like("slot_T", slot_T, (T,), torch.int64)
    call.within("slot_T", slot_T, pages.shape[0] * pages.shape[1])
    if len(slot_T.unique()) != T:
        call.refuse("slot_T", slot_T, "names a slot twice")


def kv_write(
    k_TGE: Tensor, v_TGE: Tensor, slot_T: Tensor, k_pages_PSGE: Tensor, v_pages_PSGE: Tensor
) -> None:
    call = _call("kv_write", "k_TGE", k_TGE, 3)
    T, G, E = k_TGE.shape
    call.like("v_TGE", v_TGE, (T, G, E))
    _pages(call, k_pages_PSGE, v_pages_PSGE, (G, E))
    _slots(call, slot_T, T, k_pages_PSGE)


def copy_pages(k_pages_PSGE: Tensor, v_pages_PSGE: Tensor, src: Tensor, dst: Tensor) -> None:
    call = _call("copy_pages", "k_pages_PSGE", k_pages_PSGE, 4)
    call.like("v_pages_PSGE", v_pages_PSGE, tuple(k_pages_PSGE.shape))
    N = src.shape[0] if src.ndim else -1
    for name, pages in (("src", src), ("dst", dst)):
        call.like(name, pages, (N,), torch.int64)
        call.within(name, pages, len(k_pages_PSGE))
    if len(dst.unique()) != N:
        call.refuse("dst", dst, "names a page twice")
    if bool(torch.isin(src, dst).any()):
        call.refuse("dst", dst, "names a page that is read, too")


def paged_attention(
    q_THE: Tensor,
    k_pages_PSGE: Tensor,
    v_pages_PSGE: Tensor,
    page_table_BM: Tensor,
    q_start_B1: Tensor,
    kv_len_B: Tensor,
    scale: float,
) -> None:
    call = _call("paged_attention", "q_THE", q_THE, 3)
    T, H, E = q_THE.shape
    _pages(call, k_pages_PSGE, v_pages_PSGE, (_key_heads(call, "k_pages_PSGE", k_pages_PSGE, 4, H), E))
    B, M = page_table_BM.shape if page_table_BM.ndim == 2 else (-1, -1)
    call.like("page_table_BM", page_table_BM, (B, M), torch.int32)
    call.like("q_start_B1", q_start_B1, (B + 1,), torch.int32)
    call.like("kv_len_B", kv_len_B, (B,), torch.int32)
    starts, lengths, S = q_start_B1.tolist(), kv_len_B.tolist(), k_pages_PSGE.shape[1]
    if starts[0] != 0 or starts[-1] != T or starts != sorted(starts):
        call.refuse("q_start_B1", q_start_B1, f"must rise from 0 to the {T} rows of q_THE, it is {starts}")
    for b, length in enumerate(lengths):
        rows = starts[b + 1] - starts[b]
        if not rows <= length <= M * S:
            call.refuse("kv_len_B", kv_len_B, f"has {length} for sequence {b}, allowed are {rows}..{M * S}")
        if rows:
            call.within(f"page_table_BM[{b}]", page_table_BM[b, : -(-length // S)], len(k_pages_PSGE))


def _key_heads(call: _Call, name: str, k: Tensor, ndim: int, H: int) -> int:
    G = k.shape[-2] if k.ndim == ndim else 0
    if G == 0 or H % G:
        reject(call.op, name, k, f"{ndim}-dimensional, its heads a divisor of the {H} query heads")
    return G


def attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments, scale: float) -> None:
    call = _call("attention", "q_THE", q_THE, 3)
    T, H, E = q_THE.shape
    G = _key_heads(call, "k_TGE", k_TGE, 3, H)
    call.like("k_TGE", k_TGE, (T, G, E))
    call.like("v_TGE", v_TGE, (T, G, E))
    B = segments.start_B.shape[0] if segments.start_B.ndim else -1
    for name, column in zip(Segments._fields, segments, strict=True):
        _Call("attention", torch.empty(0)).like(name, column, (B,), torch.int32)
    next_row = 0
    for b, (start, length, prefix, prefix_length) in sorted(
        enumerate(zip(*(column.tolist() for column in segments), strict=True)), key=lambda row: row[1][:2]
    ):
        if start != next_row or length < 0:
            call.refuse("start_B", segments.start_B, f"has {start} for segment {b}, free from {next_row} on")
        if prefix_length < 0 or (prefix_length and not 0 <= prefix <= T - prefix_length):
            problem = f"gives segment {b} the rows {prefix}..{prefix + prefix_length} of {T}"
            call.refuse("prefix_start_B", segments.prefix_start_B, problem)
        next_row += length
    if next_row != T:
        call.refuse("length_B", segments.length_B, f"covers {next_row} rows of {T}")


def linear_logprob(h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float = 1.0, **_: Any) -> None:
    call = _call("linear_logprob", "h_TD", h_TD, 2)
    T, D = h_TD.shape
    V = w_VD.shape[0] if w_VD.ndim else -1
    call.like("w_VD", w_VD, (V, D))
    call.like("target_T", target_T, (T,), torch.int64)
    call.within("target_T", target_T, V)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"linear_logprob: temperature is {temperature}; it must be finite and above 0")


def sample(logits_BV: Tensor, *settings: Tensor) -> None:
    call = _call("sample", "logits_BV", logits_BV, 2)
    check_settings(logits_BV, *settings)
    if len(logits_BV) and not bool((top_B := logits_BV.amax(-1)).isfinite().all()):
        row = int((~top_B.isfinite()).nonzero()[0])
        call.refuse("logits_BV", logits_BV, f"has NaN, +inf or only -inf in row {row}")


def policy_loss(
    logp_T: Tensor,
    old_logp_T: Tensor,
    ref_logp_T: Tensor | None,
    advantage_T: Tensor,
    weight_T: Tensor,
    cfg: PolicyLossConfig,
) -> None:
    call = _call("policy_loss", "logp_T", logp_T, 1)
    if logp_T.dtype not in (torch.float32, torch.float64):
        call.refuse("logp_T", logp_T, f"must be float32, it is {logp_T.dtype}")
    given = (("old_logp_T", old_logp_T), ("ref_logp_T", ref_logp_T), ("advantage_T", advantage_T))
    for name, tensor in (*given, ("weight_T", weight_T)):
        if tensor is not None:
            call.like(name, tensor, tuple(logp_T.shape))


def group_advantage(reward_B: Tensor, group_B: Tensor, *settings: Any, **named: Any) -> None:
    call = _call("group_advantage", "reward_B", reward_B, 1)
    call.like("group_B", group_B, tuple(reward_B.shape), torch.int64)
    if not bool(reward_B.isfinite().all()):
        row = int((~reward_B.isfinite()).nonzero()[0])
        call.refuse(f"reward_B[{row}]", reward_B, f"is {reward_B[row].item()}; rewards must be finite")


def adamw(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, how: AdamwStep
) -> None:
    if param.dtype not in FLOATS:
        reject("adamw", "param", param, "a float tensor")
    check_update(param, grad, exp_avg, exp_avg_sq, master, how)


def bleu(token_ids: Sequence[Sequence[int]]) -> None:
    flatten(token_ids)


CHECKS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            linear, lora, rmsnorm, add_rmsnorm, rope, rope_write, swiglu, kv_write, copy_pages,
            paged_attention, attention, linear_logprob, sample, policy_loss, group_advantage, adamw, bleu,
        )
    }
)  # fmt: skip


def checked(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, preceded by the op's check."""
    check = CHECKS[op]

    def run(*args: Any, **named: Any) -> Any:
        check(*args, **named)
        return function(*args, **named)

    return run
