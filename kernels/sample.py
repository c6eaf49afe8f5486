# SPDX-License-Identifier: Apache-2.0
"""sample: draws one token per row from softmax(logits / temperature) after min-p, top-k and top-p.

logits_BV [B, V] a float type, last stride 1; temperature_B, top_p_B, min_p_B [B] float32; top_k_B [B]
int32; key_B, position_B [B] int64 -> token_B int64, logp_B float32 (log-prob under the distribution drawn
from), full_logp_B float32 (under softmax(logits), temperature 1). B = 0 is legal.

Rules, in float32, with m the largest logit of the row and y = (logit - m) / temperature:
- min-p keeps y >= log(min_p); top-k keeps the logits at or above the k-th largest; top-p keeps those at or
  above the largest bound whose tokens hold at least top_p of the mass that the former two left. Every token
  equal to a bound stays: what may be drawn never depends on an order among equals.
  Off: min_p 0, top_k 0, top_p 1.
- temperature 0 is argmax, the lowest index among equals, with logp 0.
- the draw is the first token, in vocabulary order, whose cumulated mass exceeds u times the whole mass. u
  comes from Philox4x32-10 (Salmon et al., SC'11) with key_B as its 64-bit key and position_B as the low half
  of its counter: u = (2 m + 1) / 2^53 with m the top 52 of its first 64 bits: exact, and 0 < u < 1.
- without truncation logp has the bits of linear_logprob at that temperature; full_logp those at 1.
A row depends on nothing but itself. Elements moved: B V, if a row is read once and then stays in a cache.
Raises ValueError for a row that holds NaN or +inf or only -inf, and for
settings out of range.
"""

import torch
from torch import Tensor

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import cuda_why_not
from rzero.kernels.linear_logprob import log_softmax_ref
from rzero.kernels.native import float_code, lib, native_why_not

Drawn = tuple[Tensor, Tensor, Tensor]
_MASK32 = 0xFFFFFFFF


def philox_ref(key_B: Tensor, counter_B4: Tensor) -> Tensor:
    """Philox4x32-10: key_B int64 (64 bits), counter_B4 int64 (four 32-bit words) -> [B, 4] int64 words."""
    c0, c1, c2, c3 = (counter_B4 & _MASK32).unbind(-1)
    k0, k1 = key_B & _MASK32, (key_B >> 32) & _MASK32
    for _ in range(10):
        # int64 products wrap around as the unsigned ones do; the mask undoes the shift's copies of the sign.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (b >> 32) & _MASK32 ^ c1 ^ k0,
            b & _MASK32,
            (a >> 32) & _MASK32 ^ c3 ^ k1,
            a & _MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniform_ref(key_B: Tensor, position_B: Tensor) -> Tensor:
    """One float64 in (0, 1) per row from the 64-bit key and counter."""
    zero_B = torch.zeros_like(position_B)
    words_B4 = philox_ref(key_B, torch.stack((position_B, position_B >> 32, zero_B, zero_B), dim=-1))
    bits_B = (words_B4[:, 0] << 20) | (words_B4[:, 1] >> 12)
    return (2 * bits_B + 1).double() * 2.0**-53


def support_ref(x_BV: Tensor, y_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor) -> Tensor:
    """Which tokens may be drawn, [B, V] bool, by the rules above, from logits x and their y."""
    V = x_BV.shape[1]
    keep_BV = y_BV >= min_p_B.double().log().to(y_BV.dtype)[:, None]
    sorted_BV, order_BV = x_BV.sort(dim=-1, descending=True)
    k_B = torch.where(top_k_B > 0, top_k_B, V).clamp(max=V).long()
    keep_BV &= x_BV >= sorted_BV.gather(-1, k_B[:, None] - 1)
    mass_BV = torch.where(keep_BV, y_BV.exp(), 0).double()
    total_BV = mass_BV.gather(-1, order_BV).cumsum(-1)
    # The first place where the mass reaches top_p of the whole; the bound is the logit there.
    place_B = (total_BV < top_p_B.double()[:, None] * total_BV[:, -1:]).sum(-1).clamp(max=V - 1)
    bound_B1 = sorted_BV.gather(-1, place_B[:, None])
    return keep_BV & ((x_BV >= bound_B1) | (top_p_B >= 1)[:, None])


def bad_row(row: int) -> ValueError:
    return ValueError(
        f"sample: row {row} of logits_BV has NaN, +inf or only -inf; nothing can be drawn from it"
    )


def check_settings(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    key_B: Tensor,
    position_B: Tensor,
) -> None:
    """Raises ValueError for a setting of the wrong shape, type or range."""
    B = logits_BV.shape[0] if logits_BV.ndim == 2 else -1
    if B < 0 or (B and not logits_BV.shape[1]):
        raise ValueError(f"sample: logits_BV must be [B, V] with V >= 1, it is {list(logits_BV.shape)}")
    for name, tensor, dtype in (
        ("temperature_B", temperature_B, torch.float32), ("top_k_B", top_k_B, torch.int32),
        ("top_p_B", top_p_B, torch.float32), ("min_p_B", min_p_B, torch.float32),
        ("key_B", key_B, torch.int64), ("position_B", position_B, torch.int64),
    ):  # fmt: skip
        if tensor.shape != (B,) or tensor.dtype is not dtype or tensor.device != logits_BV.device:
            have = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"sample: {name} must be {dtype} [{B}] on {logits_BV.device}, it is {have}")
    for name, tensor, is_legal_B, allowed in (
        (
            "temperature_B",
            temperature_B,
            (temperature_B >= 0) & temperature_B.isfinite(),
            "finite and 0 or above",
        ),
        ("top_k_B", top_k_B, top_k_B >= 0, "0 (off) or above"),
        ("top_p_B", top_p_B, (top_p_B > 0) & (top_p_B <= 1), "above 0 and at most 1 (off)"),
        ("min_p_B", min_p_B, (min_p_B >= 0) & (min_p_B <= 1), "between 0 (off) and 1"),
    ):
        if not is_legal_B.all():
            row = int((~is_legal_B).nonzero()[0])
            raise ValueError(f"sample: {name}[{row}] is {tensor[row].item()}; it must be {allowed}")


def sample_ref(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    key_B: Tensor,
    position_B: Tensor,
) -> Drawn:
    check_settings(logits_BV, temperature_B, top_k_B, top_p_B, min_p_B, key_B, position_B)
    if not logits_BV.shape[0]:
        return key_B.clone(), temperature_B.clone(), temperature_B.clone()
    x_BV = up(logits_BV)
    top_B1 = x_BV.amax(-1, keepdim=True)  # NaN where the row has one
    if not top_B1.isfinite().all():
        raise bad_row(int((~top_B1.isfinite()).nonzero()[0, 0]))
    is_greedy_B = temperature_B == 0
    temperature_B1 = torch.where(is_greedy_B, 1, temperature_B)[:, None]
    y_BV = (x_BV - top_B1) / temperature_B1
    keep_BV = support_ref(x_BV, y_BV, top_k_B, top_p_B, min_p_B)
    mass_BV = torch.where(keep_BV, y_BV.exp(), 0).double()
    total_BV = mass_BV.cumsum(-1)
    target_B1 = uniform_ref(key_B, position_B)[:, None] * total_BV[:, -1:]
    # u * total may round up to total; the last token with mass is then the one.
    last_B = logits_BV.shape[1] - 1 - (mass_BV > 0).flip(-1).int().argmax(-1)
    token_B = torch.minimum((total_BV <= target_B1).sum(-1), last_B)
    # The first of the largest by comparison: torch's argmax promises no order among equals.
    token_B = torch.where(is_greedy_B, (x_BV == top_B1).int().argmax(-1), token_B)
    kept_BV = x_BV.masked_fill(~keep_BV, -torch.inf)
    logp_B = log_softmax_ref(kept_BV, temperature_B1).gather(-1, token_B[:, None])[:, 0]
    full_BV = log_softmax_ref(x_BV, torch.ones_like(temperature_B1))
    return token_B, logp_B.masked_fill(is_greedy_B, 0), full_BV.gather(-1, token_B[:, None])[:, 0]


def _sample_native(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    key_B: Tensor,
    position_B: Tensor,
) -> Drawn:
    code = float_code("sample", "logits_BV", logits_BV, 2)
    check_settings(logits_BV, temperature_B, top_k_B, top_p_B, min_p_B, key_B, position_B)
    B, V = logits_BV.shape
    token_B = torch.empty(B, dtype=torch.int64)
    logp_B, full_logp_B = torch.empty(B), torch.empty(B)
    settings = (temperature_B, top_k_B, top_p_B, min_p_B, key_B, position_B)
    held = [tensor.contiguous() for tensor in settings]
    lib.sample(
        code, B, V, logits_BV.data_ptr(), logits_BV.stride(0), *(tensor.data_ptr() for tensor in held),
        token_B.data_ptr(), logp_B.data_ptr(), full_logp_B.data_ptr(),
    )  # fmt: skip
    if B and int(token_B.min()) < 0:
        raise bad_row(int((token_B < 0).nonzero()[0]))
    return token_B, logp_B, full_logp_B


SAMPLE = Op(
    "sample",
    sample_ref,
    (
        Impl("native", _sample_native, native_why_not),
        Impl("cuda", "rzero.kernels.sample_cuda:sample_cuda", cuda_why_not),
    ),
)
