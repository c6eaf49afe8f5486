# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/kernels.py times: the ops at sizes well past the caches, and how others do the same.

Left out are rope_write, which is rope and kv_write in one, and copy_pages and group_advantage, which run
once a step on little.

The bytes of a case are those that any implementation must move: each input read once, each result written
once. Values are random; shapes are those of Qwen2.5-0.5B (D 896, F 4864, H 14, G 2, E 64, V 151,936).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle

import torch
from kernel_peers import (
    ADAMW_HOW,
    adamw_peers,
    decode_peers,
    norm_peers,
    policy_peers,
    rope_peers,
    sample_sorted,
    swiglu_peers,
)
from timing import Case, peak_bytes
from torch import Tensor
from torch.nn import functional

from rzero.kernels import Kernels, LoraPart, PolicyLossConfig, Segments

D, F, H, G, E, V = 896, 4864, 14, 2, 64, 151_936
BANDWIDTH = ">= 70 % of the copy"


@dataclass(frozen=True)
class Setup:
    """What every case is made for; `small` shrinks the sizes so that the script itself can be tested."""

    kernels: Kernels
    device: torch.device
    small: bool

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype)

    def whole(self, values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def linear(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """The product of an MLP's first half: with the rows of a batch that decodes, and of one that trains."""
    K, N = s.size(D, 24), s.size(2 * F, 40)
    w_NK = s.randn(N, K, dtype=dtype)
    for rows in (64, 1024):
        T = s.size(rows, 5)
        x_TK = s.randn(T, K, dtype=dtype)
        given = (x_TK, w_NK)
        functions = {
            "rzero": partial(s.kernels.linear, *given),
            "torch": partial(functional.linear, *given),
        }
        yield Case("linear", f"{T} x {K} x {N}", name_of(dtype), "GFLOP/s", 2 * T * K * N, functions)


def lora(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """One adapter of rank 16 on all rows; y is read and written, x read."""
    T, K, N, rank, scale = s.size(4096, 5), s.size(D, 24), s.size(2 * F, 40), 16, 1e-4
    y_TN, x_TK = s.randn(T, N, dtype=dtype), s.randn(T, K, dtype=dtype)
    a, b = s.randn(rank, K, dtype=dtype), s.randn(N, rank, dtype=dtype)

    def plain() -> Tensor:
        return y_TN.add_(functional.linear(functional.linear(x_TK, a), b), alpha=scale)

    ours = partial(s.kernels.lora, y_TN, x_TK, [LoraPart(a, b, scale, 0, 0, T)])
    moved = (2 * y_TN.numel() + x_TK.numel()) * y_TN.element_size()
    functions = {"rzero": ours, "torch": plain}
    yield Case("lora", f"T={T} K={K} N={N} rank {rank}", name_of(dtype), "GB/s", moved, functions)


def rmsnorm(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    T, w_D = s.size(32768, 32), s.randn(D, dtype=dtype)
    x_TD, residual_TD = s.randn(T, D, dtype=dtype), s.randn(T, D, dtype=dtype)
    moved = T * D * x_TD.element_size()
    for op, given, times in (("rmsnorm", (x_TD,), 2), ("add_rmsnorm", (x_TD, residual_TD), 4)):
        ours = partial(s.kernels.rmsnorm if times == 2 else s.kernels.add_rmsnorm, *given, w_D, 1e-6)
        functions = {"rzero": ours, **norm_peers(given, w_D, s.device)}
        yield Case(op, f"T={T} D={D}", name_of(dtype), "GB/s", times * moved, functions, (BANDWIDTH,))


def rope(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    T = s.size(32768, 32)
    qkv_TX, pos_T = s.randn(T, (H + 2 * G) * E, dtype=dtype), torch.arange(T, device=s.device)
    angle = pos_T[:, None] / 1e6 ** (torch.arange(0, E, 2, device=s.device) / E)
    cos_RE, sin_RE = angle.cos(), angle.sin()
    ours = partial(s.kernels.rope, qkv_TX, pos_T, cos_RE, sin_RE, H, G, None, None, eps=1e-6)
    moved = 2 * T * (H + G) * E * qkv_TX.element_size() + 8 * T * (1 + E // 2)  # tables and positions, too
    functions = {"rzero": ours, **rope_peers(qkv_TX, pos_T, cos_RE, sin_RE, (H, G), s.device)}
    yield Case("rope", f"T={T} H={H} G={G} E={E}", name_of(dtype), "GB/s", moved, functions, (BANDWIDTH,))


def swiglu(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    T = s.size(4096, 16)
    x = s.randn(T, 2 * F, dtype=dtype)
    functions = {"rzero": partial(s.kernels.swiglu, x), **swiglu_peers(x, s.device)}
    moved = 3 * T * F * x.element_size()
    yield Case("swiglu", f"T={T} F={F}", name_of(dtype), "GB/s", moved, functions, (BANDWIDTH,))


def adamw(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """A 16-bit parameter has a float32 master. Read: gradient. Read and written: the rest."""
    N = s.size(16 << 20, 4096)
    param, grad = s.randn(N, dtype=dtype), s.randn(N, dtype=dtype)
    first, second = torch.zeros(N, device=s.device), torch.zeros(N, device=s.device)
    master = None if dtype == torch.float32 else param.float()
    ours = partial(s.kernels.adamw, param, grad, first, second, master, ADAMW_HOW)
    item = param.element_size()
    # With a master the parameter is only written.
    moved = N * (item + 16 + (2 * item if master is None else 8 + item))
    functions = {"rzero": ours, **adamw_peers(s.randn(N, dtype=dtype), grad)}
    yield Case("adamw", f"N={N}", name_of(dtype), "GB/s", moved, functions, (BANDWIDTH,))


def policy_loss(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """Forward and backward; the log-probs are float32 whatever the model's type."""
    if dtype != torch.float32:
        return
    T, cfg = s.size(8 << 20, 256), PolicyLossConfig()
    logp_T = -s.randn(T).abs()
    old_T, ref_T = (logp_T + 0.05 * x for x in s.randn(2, T))
    given = (logp_T.requires_grad_(), old_T, ref_T, s.randn(T), torch.full((T,), 1 / T, device=s.device))
    functions = policy_peers(given, cfg, s.kernels.policy_loss, s.device)
    # Five inputs and the gradient.
    yield Case("policy_loss", f"T={T} with gradient", "float32", "GB/s", 24 * T, functions, (BANDWIDTH,))


def paged_attention(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """One token each of 64 sequences of 512; every call has the pages of the next layer, as in a model."""
    B, N, S = s.size(64, 3), s.size(512, 20), 16
    for model, heads, kv_heads in (("Qwen2.5-0.5B", 14, 2), ("SmolLM2-135M", 9, 3)):
        M = -(-N // S)
        order = torch.randperm(B * M, generator=torch.Generator().manual_seed(0))
        table_BM = s.whole(order.view(B, M))
        item = torch.empty((), dtype=dtype).element_size()
        moved = 2 * B * N * kv_heads * E * item + 2 * B * heads * E * item
        layers = s.size(-(-(256 << 20) // moved), 2)
        pages = [tuple(s.randn(B * M, S, kv_heads, E, dtype=dtype) for _ in "kv") for _ in range(layers)]
        q_BHE = s.randn(B, heads, E, dtype=dtype)
        starts, lengths = s.whole(range(B + 1)), s.whole([N] * B)
        rest = (table_BM, starts, lengths, E**-0.5)

        def ours(q_BHE: Tensor, turn: Iterator[tuple[Tensor, ...]], rest: tuple[object, ...]) -> Tensor:
            return s.kernels.paged_attention(q_BHE, *next(turn), *rest)

        mine = partial(ours, q_BHE, cycle(pages), rest)
        functions = {"rzero": mine, **decode_peers(q_BHE, pages, table_BM, N)}
        targets = (">= 60 % of the copy", ">= 3 x torch's SDPA")
        yield Case("paged_attention", f"{model}: 64 x 512", name_of(dtype), "GB/s", moved, functions, targets)


def attention(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """Packed sequences, forward and backward, causal: 7 products of which each does half its square."""
    B, N = s.size(4, 2), s.size(512, 20)
    q, k, v = (s.randn(B * N, n, E, dtype=dtype).requires_grad_() for n in (H, G, G))
    places = (range(0, B * N, N), [N] * B, [0] * B, [0] * B)
    segments = Segments(*(torch.tensor(x, dtype=torch.int32) for x in places))
    grad = s.randn(B * N, H, E, dtype=dtype)

    def ours() -> object:
        return torch.autograd.grad(s.kernels.attention(q, k, v, segments, E**-0.5), (q, k, v), grad)

    def sdpa() -> object:
        split = (x.view(B, N, -1, E).transpose(1, 2) for x in (q, k, v))
        o = functional.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(o.transpose(1, 2), (q, k, v), grad.view(B, N, H, E))

    work = 7 * B * N * N * H * E  # multiplications and additions
    functions = {"rzero": ours, "torch SDPA": sdpa}
    yield Case("attention", f"{B} x {N}, with gradients", name_of(dtype), "GFLOP/s", work, functions)


def kv_write(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    T, S = s.size(1 << 18, 64), 16
    k, v = (s.randn(T, G, E, dtype=dtype) for _ in "kv")
    k_pages, v_pages = (torch.zeros(T // S, S, G, E, dtype=dtype, device=s.device) for _ in "kv")
    slot_T = torch.randperm(T // S, generator=torch.Generator().manual_seed(0))[:, None] * S + torch.arange(S)
    slot_T = slot_T.flatten().to(s.device)

    def indexed() -> None:
        for x, pages in ((k, k_pages), (v, v_pages)):
            pages.view(T, G, E)[slot_T] = x

    ours = partial(s.kernels.kv_write, k, v, slot_T, k_pages, v_pages)
    moved = 4 * k.numel() * k.element_size() + 8 * T
    functions = {"rzero": ours, "torch": indexed}
    yield Case("kv_write", f"T={T} G={G} E={E}", name_of(dtype), "GB/s", moved, functions)


def sample(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """Logits of a spread as language models have it, read once by the measure that counts bytes."""
    B, vocabulary = s.size(64, 4), s.size(V, 999)
    logits_BV = (s.randn(B, vocabulary) * 3).to(dtype)
    ones_B = torch.ones(B, device=s.device)
    key_B, position_B = torch.arange(B, device=s.device), torch.zeros(B, dtype=torch.int64, device=s.device)
    moved = logits_BV.numel() * logits_BV.element_size()
    for temperature, top_k, top_p in ((1.0, 0, 0.95), (1.0, 0, 1.0), (0.7, 50, 0.9)):
        settings = (ones_B * temperature, s.whole([top_k] * B), ones_B * top_p, ones_B * 0)
        functions = {
            "rzero": partial(s.kernels.sample, logits_BV, *settings, key_B, position_B),
            "torch, sorting": partial(sample_sorted, logits_BV, temperature, top_k, top_p),
        }
        size = f"B={B} V={vocabulary} temperature {temperature}, top-k {top_k}, top-p {top_p}"
        targets = (">= 10 x torch, sorting",) if top_p == 0.95 else ()
        yield Case("sample", size, name_of(dtype), "GB/s", moved, functions, targets)


def linear_logprob(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """Forward and backward; three products with [T, V] on one side are the work that nobody can save.

    A CPU without bfloat16 multiplies it so slowly in torch that the 16-bit case has fewer tokens.
    """
    T, vocabulary, width = s.size(4096 if dtype == torch.float32 else 512, 64), s.size(V, 999), s.size(D, 32)
    h_TD = s.randn(T, width, dtype=dtype).requires_grad_()
    w_VD = (s.randn(vocabulary, width) * width**-0.5 * 3).to(dtype).requires_grad_()
    target_T = torch.arange(T, device=s.device) * 37 % vocabulary
    grad_T = s.randn(T)

    def ours() -> object:
        logp_T, entropy_T = s.kernels.linear_logprob(h_TD, w_VD, target_T)
        return entropy_T, torch.autograd.grad(logp_T, (h_TD, w_VD), grad_T)

    def plain() -> object:
        logp_TV = functional.linear(h_TD, w_VD).float().log_softmax(-1)
        with torch.no_grad():
            entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
        logp_T = logp_TV.gather(-1, target_T[:, None])[:, 0]
        return entropy_T, torch.autograd.grad(logp_T, (h_TD, w_VD), grad_T)

    extra: dict[str, object] = {}

    def watched(name: str, function: Callable[[], object]) -> None:
        peak = peak_bytes(function, s.device)
        results = (h_TD.numel() + w_VD.numel()) * h_TD.element_size()
        extra[f"extra MiB {name}"] = None if peak is None else (peak - results) >> 20

    both = {"rzero": ours, "torch, plain": plain}
    functions = {name: partial(watched, name, function) for name, function in both.items()}
    size = f"T={T} D={width} V={vocabulary}, with gradients"
    targets = ("time <= 1.1 x torch, plain", "extra memory <= 1/8")
    work = 6 * T * vocabulary * width
    yield Case("linear_logprob", size, name_of(dtype), "GFLOP/s", work, functions, targets, lambda: extra)


def bleu(s: Setup, dtype: torch.dtype) -> Iterator[Case]:
    """Questions of 60 words; nltk does a part of the pairs, all of which are compared."""
    if dtype != torch.float32 or s.device.type != "cpu" or find_spec("nltk") is None:
        return
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    N = s.size(512, 12)
    generator = torch.Generator().manual_seed(0)
    # Word frequencies as in language: the n-th word 1/n times as often as the first.
    often = 1 / torch.arange(1, 1001)
    questions = torch.multinomial(often, N * 60, replacement=True, generator=generator).view(N, 60).tolist()
    method1, rows = SmoothingFunction().method1, 2

    def nltk() -> list[float]:
        return [
            sentence_bleu([reference], hypothesis, smoothing_function=method1)
            for hypothesis in questions[:rows]
            for reference in questions
        ]

    def difference() -> dict[str, object]:
        ours = torch.as_tensor(s.kernels.bleu(questions)[:rows]).flatten()
        return {"largest difference": float((ours - torch.tensor(nltk(), dtype=torch.float64)).abs().max())}

    functions = {"rzero": partial(s.kernels.bleu, questions), "nltk": nltk}
    targets = (">= 300 x nltk", "largest difference <= 1e-12")
    size = f"{N} questions of 60 words"
    yield Case("bleu", size, "-", "pairs/s", N * N, functions, targets, difference, {"nltk": N / rows})


CASES: tuple[Callable[[Setup, torch.dtype], Iterator[Case]], ...] = (
    linear,
    lora,
    rmsnorm,
    rope,
    swiglu,
    adamw,
    policy_loss,
    kv_write,
    paged_attention,
    attention,
    sample,
    linear_logprob,
    bleu,
)
