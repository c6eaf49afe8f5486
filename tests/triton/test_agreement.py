# SPDX-License-Identifier: Apache-2.0
"""Three implementations on the same inputs: the reference, the native and the Triton one agree in pairs.

Each is also judged alone against float64, by the tests of its op; what goes unseen there is a contract that
two of them read differently.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import pytest
import torch
from harness import CPU, apart, needs_native, randn
from torch import Tensor

from rzero.kernels import OPS, AdamwStep, LoraPart, PolicyLossConfig, Segments
from rzero.kernels.dispatch import Op, choose

Outputs = tuple[Tensor, ...]
Case = Callable[[Callable[..., Any], torch.dtype], Outputs]
# A few roundings of two results that were each rounded once.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 5e-3}


def rows(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return apart(randn(*shape, dtype=dtype, seed=seed))


def rmsnorm(f: Any, dtype: torch.dtype) -> Outputs:
    return (f(rows(3, 40, dtype=dtype), randn(40, dtype=dtype, seed=1), 1e-6),)


def add_rmsnorm(f: Any, dtype: torch.dtype) -> Outputs:
    x, residual = rows(3, 40, dtype=dtype), rows(3, 40, dtype=dtype, seed=2)
    return tuple(f(x, residual, randn(40, dtype=dtype, seed=1), 1e-6))


def swiglu(f: Any, dtype: torch.dtype) -> Outputs:
    return (f(rows(3, 34, dtype=dtype)),)


def rope_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    angle_RE = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    norms = [randn(6, dtype=dtype, seed=seed) for seed in (1, 2)]
    return rows(3, 8 * 6, dtype=dtype), torch.tensor([7, 0, 3]), angle_RE.cos(), angle_RE.sin(), 4, 2, *norms


def rope(f: Any, dtype: torch.dtype) -> Outputs:
    return tuple(f(*rope_arguments(dtype), eps=1e-6))


def pages_of(dtype: torch.dtype, seed: int = 10) -> tuple[Tensor, Tensor]:
    return rows(4, 4, 2, 6, dtype=dtype, seed=seed), rows(4, 4, 2, 6, dtype=dtype, seed=seed + 1)


def rope_write(f: Any, dtype: torch.dtype) -> Outputs:
    k, v = pages_of(dtype)
    q = f(*rope_arguments(dtype), slot_T=torch.tensor([9, 2, 15]), k_pages_PSGE=k, v_pages_PSGE=v, eps=1e-6)
    return q, k, v


def kv_write(f: Any, dtype: torch.dtype) -> Outputs:
    k, v = pages_of(dtype)
    new = (rows(3, 2, 6, dtype=dtype), rows(3, 2, 6, dtype=dtype, seed=1))
    f(*new, torch.tensor([9, 2, 15]), k, v)
    return k, v


def linear(f: Any, dtype: torch.dtype) -> Outputs:
    return (f(rows(5, 40, dtype=dtype), rows(9, 40, dtype=dtype, seed=1), randn(9, dtype=dtype, seed=2)),)


def lora(f: Any, dtype: torch.dtype) -> Outputs:
    a, b = randn(3, 16, dtype=dtype, seed=1), randn(8, 3, dtype=dtype, seed=2)
    parts = [LoraPart(a, b, 0.5, 2, 0, 3), LoraPart(-a, b, 0.5, 2, 3, 5)]
    return (f(randn(5, 12, dtype=dtype), randn(5, 16, dtype=dtype, seed=3), parts),)


def linear_logprob(f: Any, dtype: torch.dtype) -> Outputs:
    h, w = rows(4, 24, dtype=dtype), rows(70, 24, dtype=dtype, seed=1)
    return tuple(f(h, w, torch.tensor([3, 69, 0, 41]), 0.7))


def attention(f: Any, dtype: torch.dtype) -> Outputs:
    segments = Segments(*torch.tensor([[0, 4, 7], [4, 3, 2], [0, 0, 0], [0, 4, 4]], dtype=torch.int32))
    q, k, v = (rows(9, heads, 16, dtype=dtype, seed=seed) for seed, heads in enumerate((4, 2, 2)))
    return (f(q, k, v, segments, 0.25),)


def paged_attention(f: Any, dtype: torch.dtype) -> Outputs:
    k, v = (rows(5, 4, 2, 16, dtype=dtype, seed=seed) for seed in (1, 2))
    table_BM = torch.tensor([[3, 0, 2**30], [4, 1, 2]], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 1, 4], dtype=torch.int32), torch.tensor([6, 9], dtype=torch.int32)
    return (f(rows(4, 4, 16, dtype=dtype), k, v, table_BM, starts, lengths, 0.25),)


def policy_loss(f: Any, dtype: torch.dtype) -> Outputs:
    logp, old, ref, advantage, weight = (randn(30, seed=seed) for seed in range(5))
    return tuple(f(logp, old, ref, advantage, weight.abs(), PolicyLossConfig()))


def group_advantage(f: Any, dtype: torch.dtype) -> Outputs:
    return (f(randn(12), torch.arange(12) % 5, "std"),)


def adamw(f: Any, dtype: torch.dtype) -> Outputs:
    param, grad = randn(50, dtype=dtype), randn(50, dtype=dtype, seed=1)
    state = [randn(50, seed=2), randn(50, seed=3).square(), param.float()]
    f(param, grad, *state, AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.1, 3))
    return (param, *state)


CASES: Mapping[str, Case] = {
    f.__name__: f
    for f in (
        rmsnorm, add_rmsnorm, swiglu, rope, rope_write, kv_write, linear, lora, linear_logprob, attention,
        paged_attention, policy_loss, group_advantage, adamw,
    )
}  # fmt: skip


def triton_of(op: Op) -> Callable[..., Any]:
    """The Triton implementation, which `choose` gives only to a GPU."""
    return next(impl for impl in op.impls if impl.backend == "triton").load()


def test_every_triton_op_is_compared() -> None:
    assert {op.name for op in OPS if "triton" in op.backends} == set(CASES)


@needs_native
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if "triton" in op.backends], ids=lambda op: op.name)
def test_reference_native_and_triton_agree(op: Op, dtype: torch.dtype) -> None:
    functions = {"ref": op.reference, "triton": triton_of(op)}
    if "native" in op.backends:
        functions["native"] = choose(op, CPU, "native")[0]
    results = {name: CASES[op.name](f, dtype) for name, f in functions.items()}
    for a, b in combinations(results, 2):
        for i, (x, y) in enumerate(zip(results[a], results[b], strict=True)):
            assert x.dtype == y.dtype and x.shape == y.shape, f"result {i}: {a} and {b}"
            difference = (x.double() - y.double()).norm() / (x.double().norm() + 1e-30)
            assert difference <= ALLOWED[dtype], f"result {i}: {a} and {b} differ by {difference:.1e}"
