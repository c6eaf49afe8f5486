# SPDX-License-Identifier: Apache-2.0
"""What every op is tried on: odd lengths, empty inputs, and one case small enough for finite differences.

A case gives the float tensors by which an op is judged, in any number type, and binds an implementation to
everything else. An op without cases fails test_ops.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from attention_inputs import Cache, Rows, count, segments, tensors
from harness import DTYPES, randn
from torch import Tensor

from rzero.kernels import AdamwStep, LoraPart, PolicyLossConfig

Function = Callable[..., Any]
F32 = (torch.float32,)


class Case(NamedTuple):
    name: str
    inputs: Callable[[torch.dtype], list[Tensor]]
    bind: Callable[[Function], Function] = lambda f: f
    """An implementation -> a function of the inputs that gives one or several tensors."""
    differentiable: int | None = None
    """How many of the inputs, from the first on, have a gradient; None: all."""
    dtypes: tuple[torch.dtype, ...] = DTYPES
    slack: float = 1.25
    is_small: bool = False


def sizes(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[torch.dtype], list[Tensor]]:
    return lambda dtype: [randn(*shape, dtype=dtype, seed=i) * scale for i, shape in enumerate(shapes)]


def linear() -> list[Case]:
    shapes = ((1, 128, 256), (37, 100, 25), (5, 6, 7), (0, 8, 5), (40, 33, 64))
    plain = [Case(f"{T}x{K}x{N}", sizes((T, K), (N, K)), is_small=T == 5) for T, K, N in shapes]
    return [*plain, Case("bias", sizes((7, 50), (21, 50), (21,)))]


LORA_PARTS = ((8, 70, 0, 0, 19), (8, 33, 70, 0, 19), (3, 70, 0, 21, 40), (16, 5, 90, 40, 41))
"""rank, columns, first column, start, stop: two adapters, one of them twice; rows without any."""


def lora() -> list[Case]:
    def case(name: str, shape: tuple[int, int, int], places: tuple[tuple[int, ...], ...]) -> Case:
        (T, N, K), scales = shape, (2.0, 0.5, -1.25)
        matrices = [size for rank, columns, *_ in places for size in ((rank, K), (columns, rank))]

        def bind(f: Function) -> Function:
            def run(y: Tensor, x: Tensor, *ab: Tensor) -> Tensor:
                pairs = zip(places, ab[::2], ab[1::2], strict=True)
                parts = [LoraPart(a, b, scales[i % 3], *place[2:]) for i, (place, a, b) in enumerate(pairs)]
                return f(y.clone(), x, parts)  # type: ignore[no-any-return]

            return run

        def inputs(dtype: torch.dtype) -> list[Tensor]:
            y, *others = sizes((T, N), (T, K), *matrices)(dtype)
            return [y, *(x * K**-0.25 for x in others)]

        return Case(name, inputs, bind, is_small=T == 3)

    small = case("small", (3, 4, 5), ((2, 3, 1, 0, 2), (1, 4, 0, 1, 3)))
    return [small, case("odd", (41, 103, 37), LORA_PARTS), case("wide", (64, 200, 896), LORA_PARTS)]


NORMED = ((1, 128), (37, 100), (5, 6), (0, 8), (130, 896), (3, 33))


def rmsnorm() -> list[Case]:
    def bind(f: Function) -> Function:
        return lambda x, w: f(x, w, 1e-5)

    return [Case(f"{T}x{D}", sizes((T, D), (D,)), bind, is_small=D == 6) for T, D in NORMED]


def add_rmsnorm() -> list[Case]:
    def bind(f: Function) -> Function:
        return lambda x, residual, w: f(x, residual, w, 1e-5)

    return [Case(f"{T}x{D}", sizes((T, D), (T, D), (D,)), bind, is_small=D == 6) for T, D in NORMED]


POSITIONS = 90
ROTATED = ((37, 4, 2, 32), (3, 2, 1, 4), (5, 3, 1, 6), (0, 2, 1, 8), (20, 14, 2, 64), (3, 2, 2, 10))
"""T, H, G, E"""


def tables(E: int) -> tuple[Tensor, Tensor]:
    angle_RE = torch.arange(POSITIONS)[:, None] * 10000.0 ** (-torch.arange(0, E, 2) / E)
    return angle_RE.cos(), angle_RE.sin()


def positions(T: int) -> Tensor:
    return torch.randint(POSITIONS, (T,), generator=torch.Generator().manual_seed(T))


def rope() -> list[Case]:
    def case(T: int, H: int, G: int, E: int, has_norms: bool) -> Case:
        def bind(f: Function) -> Function:
            return lambda x, *norms: f(x, positions(T), *tables(E), H, G, *(norms or (None, None)), eps=1e-6)

        shapes = [(T, (H + 2 * G) * E), *([(E,), (E,)] if has_norms else [])]
        name = f"{T}x{H}x{G}x{E}{' with norms' if has_norms else ''}"
        return Case(name, sizes(*shapes), bind, is_small=E == 4)

    return [case(*shape, has_norms) for shape in ROTATED for has_norms in (False, True)]


def rope_write() -> list[Case]:
    T, H, G, E, P, S = 5, 4, 2, 6, 4, 3

    def bind(f: Function) -> Function:
        def run(x: Tensor, q_norm: Tensor, k_norm: Tensor) -> tuple[Tensor, ...]:
            pages = torch.zeros(2, P, S, G, E, dtype=x.dtype)
            named = {
                "slot_T": torch.tensor([11, 2, 3, 7, 0]),
                "k_pages_PSGE": pages[0],
                "v_pages_PSGE": pages[1],
            }
            q_THE = f(x, positions(T), *tables(E), H, G, q_norm, k_norm, **named, eps=1e-6)
            return q_THE, pages[0], pages[1]

        return run

    return [Case("pages", sizes((T, (H + 2 * G) * E), (E,), (E,)), bind, differentiable=0)]


def swiglu() -> list[Case]:
    shapes = ((1, 384), (37, 33), (3, 5), (0, 8), (40, 500))
    return [Case(f"{T}x{F}", sizes((T, 2 * F), scale=4.0), is_small=F == 5) for T, F in shapes]


def kv_write() -> list[Case]:
    def bind(f: Function) -> Function:
        def run(*given: Tensor) -> list[Tensor]:
            k, v, k_pages, v_pages = (x.clone() for x in given)
            f(k, v, torch.arange(26, 26 - len(k), -1), k_pages, v_pages)
            return [k_pages, v_pages]

        return run

    return [
        Case(f"{T} tokens", sizes((T, 2, 6), (T, 2, 6), (7, 4, 2, 6), (7, 4, 2, 6)), bind, 0)
        for T in (0, 1, 9)
    ]


def copy_pages() -> list[Case]:
    def bind(f: Function) -> Function:
        def run(*given: Tensor) -> list[Tensor]:
            pages = [x.clone() for x in given]
            f(*pages, torch.tensor([1, 1, 3]), torch.tensor([0, 4, 6]))
            return pages

        return run

    return [Case("three", sizes((7, 4, 2, 6), (7, 4, 2, 6)), bind, 0)]


STEP = ((1, 1), (1, 100), (70, 70), (33, 130), (0, 17), (0, 0), (1, 16), (2, 65))
"""Rows of q and length of each sequence: decoding, a whole prompt, a chunk of one, a sequence that waits."""


def paged_attention() -> list[Case]:
    def case(H: int, G: int, E: int, S: int) -> Case:
        rows, lengths = [r for r, _ in STEP], [n for _, n in STEP]

        def inputs(dtype: torch.dtype) -> list[Tensor]:
            cache = Cache(lengths, S, G, E, dtype)
            return [randn(sum(rows), H, E, dtype=dtype, seed=99), cache.k_pages, cache.v_pages]

        def bind(f: Function) -> Function:
            _, _, *rest = Cache(lengths, S, G, E, torch.float32).args(rows, lengths)
            return lambda q, k_pages, v_pages: f(q, k_pages, v_pages, *rest, E**-0.5)

        return Case(f"{H}x{G}x{E} pages of {S}", inputs, bind, 0)

    shapes = ((4, 2, 32), (14, 2, 64), (3, 1, 6), (2, 2, 128))
    return [case(*heads, S) for heads in shapes for S in (1, 5, 16)]


# Prompts, answers, an answer to a part of a prompt, nothing.
PACKED: tuple[Rows, ...] = (
    (0, 37, 0, 0), (37, 1, 0, 37), (38, 90, 0, 37), (128, 5, 0, 0), (133, 70, 128, 5), (203, 20, 128, 3),
    (223, 130, 0, 0), (353, 33, 223, 130), (386, 0, 0, 5),
)  # fmt: skip
SMALL: tuple[Rows, ...] = ((0, 3, 0, 0), (3, 2, 0, 3), (5, 1, 0, 3), (6, 4, 0, 0))


def attention() -> list[Case]:
    def case(rows: tuple[Rows, ...], heads: tuple[int, int, int]) -> Case:
        def bind(f: Function) -> Function:
            return lambda *qkv: f(*qkv, segments(rows), heads[2] ** -0.5)

        return Case(
            f"{count(rows)} rows {heads}", lambda dtype: tensors(rows, *heads, dtype), bind,
            slack=1.5, is_small=heads == (2, 1, 2),
        )  # fmt: skip

    shapes = ((4, 2, 32), (14, 2, 64), (3, 1, 6), (6, 3, 10), (2, 2, 128))
    packed = [case(rows, heads) for heads in shapes for rows in (PACKED, SMALL, ((0, 2, 0, 0),))]
    return [*packed, case(SMALL, (2, 1, 2))]


def linear_logprob() -> list[Case]:
    def case(T: int, D: int, V: int, temperature: float) -> Case:
        target_T = torch.randint(V, (T,), generator=torch.Generator().manual_seed(T + V))

        def bind(f: Function) -> Function:
            return lambda h, w: f(h, w, target_T, temperature)

        def inputs(dtype: torch.dtype) -> list[Tensor]:
            return [randn(T, D, dtype=dtype), (randn(V, D, seed=1) * 0.3).to(dtype)]

        return Case(f"{T}x{D}x{V} at {temperature}", inputs, bind, is_small=T == 4)

    shapes = ((1, 8, 25), (4, 5, 11), (7, 64, 25), (37, 48, 1000), (130, 32, 5003))
    return [case(*shape, temperature) for shape in shapes for temperature in (1.0, 0.6)]


def sample() -> list[Case]:
    def bind(f: Function) -> Function:
        def run(logits: Tensor) -> tuple[Tensor, ...]:
            B = len(logits)
            generator = torch.Generator().manual_seed(B)
            settings = (torch.tensor([1.0, 0.7, 0.0, 1.3]), torch.tensor([0, 5, 0, 40], dtype=torch.int32))
            more = (torch.tensor([1.0, 1.0, 0.5, 0.9]), torch.tensor([0.0, 0.02, 0.0, 0.0]))
            columns = (column.repeat(B)[:B] for column in (*settings, *more))
            token, logp, full = f(
                logits, *columns, torch.randint(2**62, (B,), generator=generator), torch.arange(B)
            )
            return token.double(), logp, full

        return run

    return [Case(f"{B}x{V}", sizes((B, V), scale=3.0), bind, 0) for B, V in ((0, 7), (9, 1000), (5, 5003))]


def policy_loss() -> list[Case]:
    def inputs(dtype: torch.dtype) -> list[Tensor]:
        old, new, ref, advantage = (randn(60, seed=i) for i in range(4))
        weight = torch.arange(60) % 5 / 60
        return [x.to(dtype) for x in (old + new / 5, old, old + ref / 5, advantage, weight)]

    def case(name: str, cfg: PolicyLossConfig) -> Case:
        return Case(name, inputs, lambda f: lambda *x: f(*x, cfg), 1, F32, is_small=True)

    chosen = {"k1": {}, "k2": {"clip_dual": None}, "k3": {"clip_low": 0.0, "clip_high": 0.0}}
    return [case(kl, PolicyLossConfig(kl_coef=0.3, kl_estimator=kl, **how)) for kl, how in chosen.items()]  # type: ignore[arg-type]


def group_advantage() -> list[Case]:
    group_B = torch.tensor([9, -4, 9, 7, -4, 9, 7, 3, 5, 5])

    def inputs(dtype: torch.dtype) -> list[Tensor]:
        reward_B = randn(10)
        reward_B[8:] = 0.1  # a group of equal rewards
        return [reward_B.to(dtype)]

    def case(mode: str) -> Case:
        return Case(mode, inputs, lambda f: lambda reward: f(reward, group_B, mode), 0, F32)

    return [case(mode) for mode in ("std", "center", "loo")]


def adamw() -> list[Case]:
    def bind(f: Function) -> Function:
        def run(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> list[Tensor]:
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            state = [exp_avg.to(wide) / 10, exp_avg_sq.to(wide).square()]
            param = param.clone()
            f(param, grad, *state, None, AdamwStep(1e-2, 0.9, 0.999, 1e-8, 0.01, 3, 0.7))
            return [param, *state]

        return run

    return [Case(f"{n}", sizes(*[(n,)] * 4), bind, 0) for n in (0, 5, 20_003)]


def bleu() -> list[Case]:
    def inputs(dtype: torch.dtype) -> list[Tensor]:
        return [torch.randint(9, (20, 14), generator=torch.Generator().manual_seed(1)).to(dtype)]

    def bind(f: Function) -> Function:
        return lambda ids: torch.from_numpy(f([row[: i % 15] for i, row in enumerate(ids.long().tolist())]))

    return [Case("random", inputs, bind, 0, F32)]


MAKERS = (
    linear, lora, rmsnorm, add_rmsnorm, rope, rope_write, swiglu, kv_write, copy_pages, paged_attention,
    attention, linear_logprob, sample, policy_loss, group_advantage, adamw, bleu,
)  # fmt: skip


def cases(op: str) -> list[Case]:
    """The cases of an op; none if nobody wrote any."""
    return [case for make in MAKERS if make.__name__ == op for case in make()]
