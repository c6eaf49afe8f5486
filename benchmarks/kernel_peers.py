# SPDX-License-Identifier: Apache-2.0
"""The same ops as others do them: torch eager; on a GPU also torch.compile, Liger and flash-attn.

The GPU's are taken where they are installed. None of them has been run: no GPU was at hand.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from rzero.kernels import AdamwStep, PolicyLossConfig, PolicyLossOut
from rzero.kernels.policy_loss import policy_loss_ref

Peers = dict[str, Callable[[], object]]
ADAMW_HOW = AdamwStep(lr=1e-4, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.01, step=1)


def with_compiled(
    torch_eager: Callable[..., object], arguments: tuple[object, ...], device: torch.device
) -> Peers:
    """torch eager, and on a GPU the same compiled."""
    peers: Peers = {"torch": lambda: torch_eager(*arguments)}
    if device.type == "cuda":
        compiled = torch.compile(torch_eager)
        peers["torch.compile"] = lambda: compiled(*arguments)
    return peers


def has_liger(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def norm_peers(given: tuple[Tensor, ...], w_D: Tensor, device: torch.device) -> Peers:
    def norm(*x_TD: Tensor) -> object:
        sum_TD = x_TD[0] if len(x_TD) == 1 else x_TD[0] + x_TD[1]
        return functional.rms_norm(sum_TD, w_D.shape, w_D, 1e-6), sum_TD

    peers = with_compiled(norm, given, device)
    if has_liger(device) and len(given) == 1:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        peers["Liger"] = lambda: LigerRMSNormFunction.apply(given[0], w_D, 1e-6)
    return peers


def rope_peers(
    qkv_TX: Tensor,
    pos_T: Tensor,
    cos_RE: Tensor,
    sin_RE: Tensor,
    heads: tuple[int, int],
    device: torch.device,
) -> Peers:
    H, G = heads
    E = 2 * cos_RE.shape[1]

    def rotated(qkv_TX: Tensor) -> object:
        x = qkv_TX.view(len(qkv_TX), H + 2 * G, E)
        q, k, v = x.split((H, G, G), dim=1)
        cos, sin = (torch.cat((t, t), -1)[pos_T, None].to(x.dtype) for t in (cos_RE, sin_RE))

        def half(t: Tensor) -> Tensor:
            a, b = t.chunk(2, dim=-1)
            return torch.cat((-b, a), dim=-1)

        return q * cos + half(q) * sin, k * cos + half(k) * sin, v

    return with_compiled(rotated, (qkv_TX,), device)


def swiglu_peers(gate_up_T2F: Tensor, device: torch.device) -> Peers:
    def activated(x: Tensor) -> Tensor:
        gate, linear = x.chunk(2, dim=-1)
        return functional.silu(gate) * linear

    peers = with_compiled(activated, (gate_up_T2F,), device)
    if has_liger(device):
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        gate, linear = (x.contiguous() for x in gate_up_T2F.chunk(2, dim=-1))
        peers["Liger"] = lambda: LigerSiLUMulFunction.apply(gate, linear)
    return peers


def adamw_peers(param: Tensor, grad: Tensor) -> Peers:
    """torch's fused optimizer; its moments have the parameter's type and it keeps no master."""
    param.grad = grad
    how = ADAMW_HOW
    betas = (how.beta1, how.beta2)
    optimizer = torch.optim.AdamW([param], how.lr, betas, how.eps, how.weight_decay, fused=True)
    return {"torch, fused": optimizer.step}


def policy_peers(
    given: tuple[Tensor, ...],
    cfg: PolicyLossConfig,
    ours: Callable[..., PolicyLossOut],
    device: torch.device,
) -> Peers:
    def with_gradient(function: Callable[..., PolicyLossOut]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*given, cfg).loss, given[0])

    peers = {"rzero": with_gradient(ours), "torch": with_gradient(policy_loss_ref)}
    if device.type == "cuda":
        peers["torch.compile"] = with_gradient(torch.compile(policy_loss_ref))
    return peers


def decode_peers(q_BHE: Tensor, pages: Iterable[tuple[Tensor, ...]], table_BM: Tensor, length: int) -> Peers:
    """SDPA on keys that were gathered before (not timed), and with the gathering; flash-attn on gathered
    keys, as its version 2 takes no pages of fewer than 256 tokens.
    """
    pages = list(pages)

    def rows(x_PSGE: Tensor) -> Tensor:
        return x_PSGE[table_BM.long()].flatten(1, 2)[:, :length]

    def gather(x_PSGE: Tensor) -> Tensor:
        return rows(x_PSGE).transpose(1, 2)

    def attend(k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q_BHE[:, :, None], k, v, enable_gqa=True)

    gathered, turn = cycle([tuple(gather(x).contiguous() for x in both) for both in pages]), cycle(pages)
    peers: Peers = {
        "torch SDPA": lambda: attend(*next(gathered)),
        "torch SDPA with gathering": lambda: attend(*(gather(x) for x in next(turn))),
    }
    if q_BHE.is_cuda and find_spec("flash_attn"):
        from flash_attn import flash_attn_with_kvcache

        lengths = torch.full((len(table_BM),), length, dtype=torch.int32, device=q_BHE.device)
        caches = cycle([tuple(rows(x).contiguous() for x in both) for both in pages])
        peers["flash-attn"] = lambda: flash_attn_with_kvcache(
            q_BHE[:, None], *next(caches), cache_seqlens=lengths
        )
    return peers


def sample_sorted(logits_BV: Tensor, temperature: float, top_k: int, top_p: float) -> object:
    """The usual code: sort, cumulate, mask, draw, and both log-probs."""
    full_BV = logits_BV.float().log_softmax(-1)
    x_BV = logits_BV.float() / temperature
    if top_k:
        x_BV = x_BV.masked_fill(x_BV < x_BV.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
    if top_p < 1:
        sorted_BV, order_BV = x_BV.sort(dim=-1, descending=True)
        p_BV = sorted_BV.softmax(-1)
        drop_BV = p_BV.cumsum(-1) - p_BV >= top_p
        x_BV = x_BV.masked_fill(drop_BV.scatter(-1, order_BV, drop_BV), -torch.inf)
    logp_BV = x_BV.log_softmax(-1)
    token_B1 = torch.multinomial(logp_BV.exp(), 1)
    return token_B1, logp_BV.gather(-1, token_B1), full_BV.gather(-1, token_B1)
