# SPDX-License-Identifier: Apache-2.0
"""Calls of the Triton kernels as a model makes them: shapes, strides and types decide what is compiled.

One function per op yields the name of a case and the call. Tensors are made inside the call and hold nothing:
no kernel runs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]
Cases = Iterator[tuple[str, Call]]

BF16 = torch.bfloat16
TOKENS = 4096


class Model(NamedTuple):
    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    has_head_norms: bool


MODELS = (
    Model("Qwen2.5-0.5B", 896, 4864, 14, 2, 64, 151936, False),
    Model("Qwen3-4B", 2560, 9728, 32, 8, 128, 151936, True),
)


def empty(*shape: int, dtype: torch.dtype = BF16, needs_grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=needs_grad)


def with_gradient(function: Callable[..., Tensor | tuple[Tensor, ...]], *leaves: Tensor) -> None:
    """Calls the function and its backward for the gradients of all leaves."""
    inputs = [leaf.requires_grad_() for leaf in leaves]
    out = function(*inputs)
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    torch.autograd.grad(outs, inputs, [torch.empty_like(y) for y in outs])


def rmsnorm() -> Cases:
    from rzero.kernels.rmsnorm_triton import add_rmsnorm_triton, rmsnorm_triton

    def call(D: int, dtype: torch.dtype) -> None:
        x, residual, w = empty(TOKENS, D, dtype=dtype), empty(TOKENS, D, dtype=dtype), empty(D, dtype=dtype)
        with_gradient(lambda x, w: rmsnorm_triton(x, w, 1e-6), x, w)
        with_gradient(lambda x, r, w: add_rmsnorm_triton(x, r, w, 1e-6), x, residual, w)

    for model in MODELS:
        yield f"rmsnorm {model.name}", partial(call, model.hidden, BF16)
    yield "rmsnorm float32", partial(call, MODELS[0].hidden, torch.float32)


def linear() -> Cases:
    from rzero.kernels.linear_triton import linear_triton

    def call(K: int, N: int, dtype: torch.dtype) -> None:
        with_gradient(
            linear_triton, empty(TOKENS, K, dtype=dtype), empty(N, K, dtype=dtype), empty(N, dtype=dtype)
        )

    for model in MODELS:
        outputs = (model.heads + 2 * model.kv_heads) * model.head_size
        yield f"linear {model.name}", partial(call, model.hidden, outputs, BF16)
    yield "linear float16", partial(call, MODELS[0].hidden, 1152, torch.float16)
    yield "linear float32", partial(call, MODELS[0].hidden, 1152, torch.float32)


def linear_logprob() -> Cases:
    from rzero.kernels.linear_logprob_triton import linear_logprob_triton

    def call(D: int, V: int, dtype: torch.dtype) -> None:
        h, w = (empty(rows, D, dtype=dtype, needs_grad=True) for rows in (TOKENS, V))
        logp, _ = linear_logprob_triton(h, w, empty(TOKENS, dtype=torch.int64), 0.7)
        torch.autograd.grad(logp, (h, w), torch.empty_like(logp))

    for model in MODELS:
        yield f"linear_logprob {model.name}", partial(call, model.hidden, model.vocab, BF16)
    # The chunks of the vocabulary are the same program over and over: one is enough.
    yield "linear_logprob float32", partial(call, MODELS[0].hidden, 4096, torch.float32)


def policy_loss() -> Cases:
    from rzero.kernels.policy_loss import ESTIMATORS, MODES, PolicyLossConfig
    from rzero.kernels.policy_loss_triton import group_advantage_triton, policy_loss_triton

    def call(estimator: str, has_ref: bool) -> None:
        logp, old, ref, advantage, weight = (empty(TOKENS, dtype=torch.float32) for _ in range(5))
        cfg = PolicyLossConfig(kl_estimator=estimator)  # type: ignore[arg-type]
        out = policy_loss_triton(logp.requires_grad_(), old, ref if has_ref else None, advantage, weight, cfg)
        torch.autograd.grad(out.loss, logp)

    for estimator in ESTIMATORS:
        yield f"policy_loss {estimator}", partial(call, estimator, True)
    yield "policy_loss without reference", partial(call, "k3", False)
    rewards, groups = empty(TOKENS, dtype=torch.float32), empty(TOKENS, dtype=torch.int64)
    for mode in MODES:
        yield f"group_advantage {mode}", partial(group_advantage_triton, rewards, groups, mode)


def adamw() -> Cases:
    from rzero.kernels.adamw import AdamwStep
    from rzero.kernels.adamw_triton import adamw_triton

    def call(dtype: torch.dtype, has_master: bool) -> None:
        exp_avg, exp_avg_sq, master = (empty(4096, 896, dtype=torch.float32) for _ in range(3))
        param, grad = empty(4096, 896, dtype=dtype), empty(4096, 896, dtype=dtype)
        how = AdamwStep(1e-6, 0.9, 0.999, 1e-8, 0.01, 1)
        adamw_triton(param, grad, exp_avg, exp_avg_sq, master if has_master else None, how)

    yield "adamw float32", partial(call, torch.float32, False)
    yield "adamw bfloat16 with master", partial(call, BF16, True)
    yield "adamw bfloat16", partial(call, BF16, False)


def attention() -> Cases:
    from rzero.kernels.attention import Segments
    from rzero.kernels.attention_triton import attention_triton

    prompt = TOKENS // 8
    starts = torch.arange(0, TOKENS, prompt, dtype=torch.int32)
    lengths = torch.full_like(starts, prompt)
    group = Segments(starts, lengths, torch.zeros_like(starts), lengths.where(starts > 0, 0))

    def call(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
        H, G, E = heads
        q, k = (empty(TOKENS, n, E, dtype=dtype) for n in (H, G))
        v = empty(TOKENS, (H + 2 * G) * E, dtype=dtype)[:, (H + G) * E :].view(TOKENS, G, E)
        with_gradient(lambda *qkv: attention_triton(*qkv, group, E**-0.5), q, k, v)

    for model in MODELS:
        yield f"attention {model.name}", partial(call, (model.heads, model.kv_heads, model.head_size), BF16)
    yield "attention heads of 96", partial(call, (8, 8, 96), BF16)
    yield "attention float32", partial(call, (14, 2, 64), torch.float32)


def paged_attention() -> Cases:
    from rzero.kernels.paged_attention_triton import paged_attention_exact, paged_attention_triton

    def call(
        heads: tuple[int, int, int], dtype: torch.dtype, B: int, rows: int, is_exact: bool = False
    ) -> None:
        H, G, E = heads
        k_pages, v_pages = (empty(1024, 16, G, E, dtype=dtype) for _ in "kv")
        table, starts, lengths = (torch.empty(n, dtype=torch.int32) for n in ((B, 128), B + 1, B))
        q = empty(B * rows, H, E, dtype=dtype)
        args = (q, k_pages, v_pages, table, starts, lengths, E**-0.5)
        if is_exact:
            paged_attention_exact(*args)
        else:
            paged_attention_triton(*args)

    for model in MODELS:
        heads = (model.heads, model.kv_heads, model.head_size)
        yield f"paged_attention {model.name}, decoding", partial(call, heads, BF16, 32, 1)
        yield f"paged_attention {model.name}, prompts", partial(call, heads, BF16, 32, 128)
        yield f"paged_attention {model.name}, exact", partial(call, heads, BF16, 32, 1, True)
    yield "paged_attention heads of 96", partial(call, (8, 8, 96), BF16, 256, 1)
    yield "paged_attention float32", partial(call, (14, 2, 64), torch.float32, 512, 1)
    yield "paged_attention heads of 96, exact", partial(call, (8, 8, 96), BF16, 32, 1, True)
    yield "paged_attention float32, exact", partial(call, (14, 2, 64), torch.float32, 32, 1, True)


def swiglu() -> Cases:
    from rzero.kernels.swiglu_triton import swiglu_triton

    def call(F: int) -> None:
        with_gradient(swiglu_triton, empty(TOKENS, 2 * F))

    for model in MODELS:
        yield f"swiglu {model.name}", partial(call, model.inner)


def rope() -> Cases:
    from rzero.kernels.rope_triton import rope_triton, rope_write_triton

    def arguments(m: Model) -> tuple[Any, ...]:
        qkv_TX = empty(TOKENS, (m.heads + 2 * m.kv_heads) * m.head_size)
        table = empty(TOKENS, m.head_size // 2, dtype=torch.float32)
        norms = [empty(m.head_size) if m.has_head_norms else None for _ in range(2)]
        return qkv_TX, empty(TOKENS, dtype=torch.int64), table, table, m.heads, m.kv_heads, *norms

    def train(m: Model) -> None:
        qkv_TX, *rest = arguments(m)
        with_gradient(lambda x: rope_triton(x, *rest, eps=1e-6), qkv_TX)

    def sample(m: Model) -> None:
        pages = {name: empty(64, 16, m.kv_heads, m.head_size) for name in ("k_pages_PSGE", "v_pages_PSGE")}
        slot_T = empty(TOKENS, dtype=torch.int64)
        rope_write_triton(*arguments(m), slot_T=slot_T, **pages, eps=1e-6)
        rope_triton(*arguments(m), eps=1e-6)

    for model in MODELS:
        yield f"rope {model.name}, training", partial(train, model)
        yield f"rope {model.name}, sampling", partial(sample, model)


def kv_write() -> Cases:
    from rzero.kernels.kv_write_triton import kv_write_triton

    def call(G: int, E: int) -> None:
        new = [empty(TOKENS, G, E) for _ in range(2)]
        kv_write_triton(*new, empty(TOKENS, dtype=torch.int64), *(empty(64, 16, G, E) for _ in range(2)))

    for model in MODELS:
        yield f"kv_write {model.name}", partial(call, model.kv_heads, model.head_size)


def lora() -> Cases:
    from rzero.kernels.lora import LoraPart
    from rzero.kernels.lora_triton import lora_triton

    def call(D: int, rank: int) -> None:
        a, b = empty(rank, D), empty(D, rank)
        parts = [LoraPart(a, b, 2.0, 0, 0, TOKENS // 2), LoraPart(a, b, 2.0, 0, TOKENS // 2, TOKENS)]
        lora_triton(empty(TOKENS, D), empty(TOKENS, D), parts)

    for model in MODELS:
        yield f"lora {model.name}", partial(call, model.hidden, 16)


OPS = (
    rmsnorm,
    swiglu,
    rope,
    kv_write,
    linear,
    lora,
    linear_logprob,
    policy_loss,
    adamw,
    attention,
    paged_attention,
)


def all_cases() -> dict[str, Call]:
    cases = [case for op in OPS for case in op()]
    assert len({name for name, _ in cases}) == len(cases), "a name is used twice"
    return dict(cases)
