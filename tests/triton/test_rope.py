# SPDX-License-Identifier: Apache-2.0
"""rope and rope_write in Triton: against float64, alone and in a batch, and the page slots."""

from typing import Any

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, check_error, randn
from torch import Tensor
from triton.runtime.errors import InterpreterError

from rzero.kernels.rope import rope_ref
from rzero.kernels.rope_triton import ROWS, rope_triton, rope_write_triton

EPS = 1e-6
POSITIONS = 40
SHAPES = ((5, 3, 1, 6), (0, 2, 1, 8), (ROWS + 2, 14, 2, 64))


def tables(E: int) -> tuple[Tensor, Tensor]:
    angle_RE = torch.arange(POSITIONS)[:, None] * 10000.0 ** (-torch.arange(0, E, 2) / E)
    return angle_RE.cos(), angle_RE.sin()


def positions(T: int) -> Tensor:
    return torch.randint(POSITIONS, (T,), generator=torch.Generator().manual_seed(T))


def bound(f: Any, T: int, H: int, G: int, E: int) -> Any:
    """f of qkv and the norms alone."""
    return lambda qkv, *norms: f(qkv, positions(T), *tables(E), H, G, *(norms or (None, None)), eps=EPS)


def norms_of(E: int, dtype: torch.dtype) -> list[Tensor]:
    return [randn(E, dtype=dtype, seed=1), randn(E, dtype=dtype, seed=2)]


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_that_of_torch(
    shape: tuple[int, int, int, int], dtype: torch.dtype, has_norms: bool
) -> None:
    T, H, G, E = shape
    inputs = (randn(T, (H + 2 * G) * E, dtype=dtype), *(norms_of(E, dtype) if has_norms else []))
    check_error(bound(rope_ref, *shape), bound(rope_triton, *shape), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_with_gradient_and_in_its_page(dtype: torch.dtype) -> None:
    T, H, G, E, P, S = 4, 5, 2, 24, 3, 2
    qkv, pos, norms = randn(T, (H + 2 * G) * E, dtype=dtype), positions(T), norms_of(E, dtype)

    def f(x: Tensor, p: Tensor) -> Any:
        return rope_triton(x, p, *tables(E), H, G, *norms, eps=EPS)

    rows = [f(x, p) for x, p in zip(qkv.split(1), pos.split(1), strict=True)]
    wanted = tuple(torch.cat(part) for part in zip(*rows, strict=True))
    assert_same_bits(f(apart(qkv), pos), wanted)
    assert_same_bits(f(qkv.clone().requires_grad_(), pos), wanted)
    slot_T = torch.tensor([5, 0, 3, 2])
    pages = [apart(torch.zeros(P, S, G, E, dtype=dtype)) for _ in range(2)]
    q_THE = rope_write_triton(
        apart(qkv), pos, *tables(E), H, G, *norms,
        slot_T=slot_T, k_pages_PSGE=pages[0], v_pages_PSGE=pages[1], eps=EPS,
    )  # fmt: skip
    assert_same_bits((q_THE, *(x.flatten(0, 1)[slot_T] for x in pages)), wanted)
    assert not any(x.flatten(0, 1)[[1, 4]].any() for x in pages), "the other slots keep what they held"


def test_position_or_slot_that_is_not_there_is_refused_when_debugging() -> None:
    rope = (randn(1, 16), torch.tensor([POSITIONS]), *tables(4), 2, 1, None, None)
    with pytest.raises(InterpreterError, match="pos_T must lie inside the tables"):
        rope_triton(*rope, eps=EPS)
    pages = {"k_pages_PSGE": torch.zeros(2, 2, 1, 4), "v_pages_PSGE": torch.zeros(2, 2, 1, 4)}
    with pytest.raises(InterpreterError, match="slot_T must lie inside the pages"):
        rope_write_triton(rope[0], torch.tensor([0]), *rope[2:], slot_T=torch.tensor([4]), **pages, eps=EPS)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv_TX", {0: randn(2, 17)}),
        ("qkv_TX", {0: randn(2, 16).double()}),
        ("pos_T", {1: torch.tensor([0, 1], dtype=torch.int32)}),
        ("pos_T", {1: torch.tensor([0])}),
        ("sin_RE", {3: torch.zeros(POSITIONS, 3)}),
        ("cos_RE", {2: torch.zeros(2, POSITIONS).t()}),
        ("q_norm_E and k_norm_E", {6: randn(4)}),
        ("k_norm_E", {6: randn(4), 7: randn(5)}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [randn(2, 16), torch.tensor([0, 1]), *tables(4), 2, 1, None, None]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"rope: {name} must"):
        rope_triton(*args, eps=EPS)
