# SPDX-License-Identifier: Apache-2.0
"""Inputs of every op for gpu_smoke.py: sizes of real models where they matter, odd lengths, rows apart in
memory with NaN between them, unused pages full of NaN and unused page numbers absurd."""

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rzero.kernels import AdamwStep, Segments
from rzero.kernels.lora import LoraPart
from rzero.kernels.policy_loss import PolicyLossConfig

UNUSED = 2**30


class Case(NamedTuple):
    """One call of an op: `call(function, *inputs)` gives the tensors to compare.

    Float inputs are also tried in float64, for the truth; the others stay as they are.
    """

    name: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    has_gradient: bool = False
    is_exact: bool = False
    """Bits are moved: nothing may differ."""
    slack: float = 1.25
    """how many times torch's error it may have in Frobenius norm; `gpu_smoke.PEAK` times that at the peak"""


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def apart(x: Tensor) -> Tensor:
    """A view equal to x whose rows lie apart with NaN between them; the last stride stays 1."""
    wide = torch.full((2 * x.shape[0], *x.shape[1:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype)
    view = wide[::2, ..., : x.shape[-1]]
    view.copy_(x)
    return view


def placed(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on the device with the strides of x and NaN between its rows; a float may change its type."""
    kind = dtype if dtype is not None and x.is_floating_point() else x.dtype
    if x.is_contiguous():
        return x.to(device, kind, copy=True)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return torch.full((reach,), torch.nan, dtype=kind, device=device).as_strided(x.shape, x.stride()).copy_(x)


def linear(dtype: torch.dtype) -> Iterator[Case]:
    for T, N, K in ((1, 1152, 896), (37, 300, 130), (128, 4864, 896)):
        inputs = (
            randn(T, K, dtype=dtype),
            randn(N, K, dtype=dtype, seed=1) / 16,
            randn(N, dtype=dtype, seed=2),
        )
        yield Case(f"{T}x{K} {N}", lambda f, x, w, b: f(x, w, b), inputs, has_gradient=True)


def rmsnorm(dtype: torch.dtype) -> Iterator[Case]:
    for T, D in ((1, 896), (37, 1000), (128, 2560)):
        inputs = (apart(randn(T, D, dtype=dtype)), randn(D, dtype=dtype, seed=1))
        yield Case(f"{T}x{D}", lambda f, x, w: f(x, w, 1e-6), inputs, has_gradient=True)


def add_rmsnorm(dtype: torch.dtype) -> Iterator[Case]:
    for T, D in ((1, 896), (37, 1000)):
        x, residual = (apart(randn(T, D, dtype=dtype, seed=seed)) for seed in (0, 2))
        inputs = (x, residual, randn(D, dtype=dtype, seed=1))
        yield Case(f"{T}x{D}", lambda f, x, r, w: f(x, r, w, 1e-6), inputs, has_gradient=True)


def _rope_inputs(dtype: torch.dtype, T: int, H: int, G: int, E: int) -> tuple[Tensor, ...]:
    angle = torch.outer(torch.arange(200.0), 10000 ** (-torch.arange(0, E, 2) / E))
    qkv = apart(randn(T, (H + 2 * G) * E, dtype=dtype))
    norms = (randn(E, dtype=dtype, seed=1), randn(E, dtype=dtype, seed=2))
    return qkv, torch.arange(T) * 7 % 200, angle.cos(), angle.sin(), *norms


def rope(dtype: torch.dtype) -> Iterator[Case]:
    for H, G, E in ((14, 2, 64), (32, 8, 128)):
        qkv, place, cos, sin, q_norm, k_norm = _rope_inputs(dtype, 33, H, G, E)

        def call(f: Any, qkv: Tensor, q: Tensor, k: Tensor, *rest: Tensor, heads: Any = (H, G)) -> Any:
            place, cos, sin = rest
            return f(qkv, place, cos.detach().float(), sin.detach().float(), *heads, q, k, eps=1e-6)

        yield Case(f"{H}/{G} heads of {E}", call, (qkv, q_norm, k_norm, place, cos, sin), has_gradient=True)


def rope_write(dtype: torch.dtype) -> Iterator[Case]:
    H, G, E, P, S = 14, 2, 64, 4, 16
    qkv, place, cos, sin, q_norm, k_norm = _rope_inputs(dtype, 33, H, G, E)
    slot_T = torch.randperm(P * S, generator=torch.Generator().manual_seed(0))[:33]
    pages = randn(2, P, S, G, E, dtype=dtype, seed=3)

    def call(f: Any, qkv: Tensor, q: Tensor, k: Tensor, pages: Tensor, *rest: Tensor) -> Any:
        place, cos, sin, slot_T = rest
        k_pages, v_pages = pages.clone()
        at = (qkv, place, cos.float(), sin.float(), H, G, q, k)
        q_THE = f(*at, slot_T=slot_T, k_pages_PSGE=k_pages, v_pages_PSGE=v_pages, eps=1e-6)
        return q_THE, k_pages, v_pages

    yield Case("14/2 heads of 64", call, (qkv, q_norm, k_norm, pages, place, cos, sin, slot_T))


def swiglu(dtype: torch.dtype) -> Iterator[Case]:
    for T, F in ((1, 4864), (37, 1000)):
        yield Case(f"{T}x{F}", lambda f, x: f(x), (apart(randn(T, 2 * F, dtype=dtype)),), has_gradient=True)


def kv_write(dtype: torch.dtype) -> Iterator[Case]:
    P, S, G = 9, 16, 2
    for E in (64, 6):
        k_pages, v_pages = (apart(randn(P, S, G, E, dtype=dtype, seed=seed)) for seed in (1, 2))
        k, v = (randn(33, G, E, dtype=dtype, seed=seed) for seed in (3, 4))
        slot_T = torch.randperm(P * S, generator=torch.Generator().manual_seed(0))[:33]

        def call(f: Any, k: Tensor, v: Tensor, slot_T: Tensor, *pages: Tensor) -> Any:
            k_pages, v_pages = (placed(x, x.device) for x in pages)
            f(k, v, slot_T, k_pages, v_pages)
            return k_pages, v_pages

        yield Case(f"heads of {E}", call, (k, v, slot_T, k_pages, v_pages), is_exact=True)


def copy_pages(dtype: torch.dtype) -> Iterator[Case]:
    for E in (64, 6):
        pages = [apart(randn(9, 16, 2, E, dtype=dtype, seed=seed)) for seed in (1, 2)]

        def call(f: Any, src: Tensor, dst: Tensor, *pages: Tensor) -> Any:
            k_pages, v_pages = (placed(x, x.device) for x in pages)
            f(k_pages, v_pages, src, dst)
            return k_pages, v_pages

        yield Case(
            f"heads of {E}", call, (torch.tensor([1, 1, 3]), torch.tensor([0, 4, 8]), *pages), is_exact=True
        )


def paged_attention(dtype: torch.dtype) -> Iterator[Case]:
    lengths, decode, mixed = [1, 100, 70, 130, 16], [1] * 5, [1, 1, 70, 33, 0]
    for H, G, E, S, rows in ((14, 2, 64, 16, decode), (32, 8, 128, 16, mixed), (4, 4, 32, 5, mixed)):
        used = [-(-n // S) for n in lengths]
        P, M = sum(used) + 3, max(used) + 2
        order = torch.randperm(P, generator=torch.Generator().manual_seed(S)).tolist()
        table_BM = torch.full((len(lengths), M), UNUSED, dtype=torch.int32)
        pages = [apart(torch.full((P, S, G, E), torch.nan, dtype=dtype)) for _ in "kv"]
        for b, n in enumerate(lengths):
            for m in range(used[b]):
                table_BM[b, m] = page = order.pop()
                here = min(S, n - m * S)
                for i, x in enumerate(pages):
                    x[page, :here] = randn(here, G, E, dtype=dtype, seed=97 * b + 2 * m + i)
        starts, kv_len = (torch.tensor(x, dtype=torch.int32) for x in ([0, *rows], lengths))
        inputs = (
            apart(randn(sum(rows), H, E, dtype=dtype)),
            *pages,
            table_BM,
            starts.cumsum(0).int(),
            kv_len,
        )
        name = f"{H}/{G} heads of {E}, pages of {S}, {sum(rows)} rows"
        # Weights are rounded before they meet the values: one rounding more than torch has.
        yield Case(name, lambda f, *x, scale=E**-0.5: f(*x, scale), inputs, slack=1.6)


def attention(dtype: torch.dtype) -> Iterator[Case]:
    segments = Segments(
        *(torch.tensor(x, dtype=torch.int32) for x in ([0, 50, 67], [50, 17, 70], [0] * 3, [0, 50, 50]))
    )
    for H, G, E in ((14, 2, 64), (32, 8, 128)):
        inputs = tuple(randn(137, heads, E, dtype=dtype, seed=i) for i, heads in enumerate((H, G, G)))
        call = lambda f, q, k, v, scale=E**-0.5: f(q, k, v, segments, scale)  # noqa: E731
        # Weights and their gradients are rounded before the next product, which torch does not do.
        slack = 1.5 if dtype == torch.float32 else 2.0
        yield Case(f"{H}/{G} heads of {E}", call, inputs, has_gradient=True, slack=slack)


def linear_logprob(dtype: torch.dtype) -> Iterator[Case]:
    yield from _linear_logprob(dtype, ((5, 64, 1000), (37, 896, 5003)))


def linear_logprob_large(dtype: torch.dtype) -> Iterator[Case]:
    yield from _linear_logprob(dtype, ((300, 896, 151_936),))


def _linear_logprob(dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    for T, D, V in sizes:
        target_T = torch.randint(V, (T,), generator=torch.Generator().manual_seed(0))
        inputs = (randn(T, D, dtype=dtype), randn(V, D, dtype=dtype, seed=1) / 8, target_T)
        # The entropy carries no gradient.
        yield Case(f"{T}x{D} {V}", lambda f, h, w, t: f(h, w, t, 0.8), inputs, has_gradient=True)


def lora(dtype: torch.dtype) -> Iterator[Case]:
    T, K, N = 37, 96, 160
    factors = [randn(*s, dtype=dtype, seed=i) / 8 for i, s in enumerate(((8, K), (N, 8), (4, K), (64, 4)))]

    def call(f: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Any:
        return f(y.clone(), x, [LoraPart(a, b, 2.0, 0, 0, 20), LoraPart(c, d, 0.5, 32, 20, 31)])

    yield Case(
        "two adapters", call, (randn(T, N, dtype=dtype), randn(T, K, dtype=dtype, seed=9), *factors), True
    )


def policy_loss(dtype: torch.dtype) -> Iterator[Case]:
    if dtype is not torch.float32:
        return
    logp, old, ref, advantage = randn(4, 1003, dtype=dtype)
    weight = (torch.arange(1003) % 3 > 0).float() / 600

    def call(f: Any, logp: Tensor, *rest: Tensor) -> Any:
        out = f(logp, *(x.detach() for x in rest), PolicyLossConfig())
        return tuple(x for x in out if x is not None and x.is_floating_point())

    inputs = (logp * 0.3, old * 0.3, ref * 0.3, advantage, weight)
    yield Case("1003 tokens", call, inputs, has_gradient=True)


def group_advantage(dtype: torch.dtype) -> Iterator[Case]:
    if dtype is torch.float32:
        group_B = torch.arange(97) % 12
        for mode in ("std", "center", "loo"):
            call = lambda f, r, g, mode=mode: f(r, g, mode)  # noqa: E731
            yield Case(mode, call, (randn(97, dtype=dtype), group_B))


def adamw(dtype: torch.dtype) -> Iterator[Case]:
    how = AdamwStep(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.01, step=3, grad_scale=0.5)
    master, first, second = (randn(5003, dtype=torch.float32, seed=seed) for seed in range(3))

    def call(f: Any, *given: Tensor) -> Any:
        param, grad, first, second, master = (x.clone() for x in given)
        f(param, grad, first, second, master, how)
        return param, first, second, master

    inputs = (master.to(dtype), randn(5003, dtype=dtype, seed=4), first, second.square(), master)
    yield Case("5003 elements", call, inputs)


CASES = (
    linear, rmsnorm, add_rmsnorm, rope, rope_write, swiglu, kv_write, copy_pages, paged_attention, attention,
    linear_logprob, lora, policy_loss, group_advantage, adamw,
)  # fmt: skip
# By op, for a GPU only: what would take a CPU minutes.
LARGE = MappingProxyType({"linear_logprob": linear_logprob_large})
