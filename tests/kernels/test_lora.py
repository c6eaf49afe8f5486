# SPDX-License-Identifier: Apache-2.0
"""lora: several adapters in one batch against float64, and rows that do not know of each other."""

from collections.abc import Callable, Sequence

import pytest
import torch
from harness import BACKENDS, CPU, DTYPES, apart, assert_same_bits, native, needs_native, randn
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.lora import LORA, LoraPart

# rank, columns, first column, start, stop: two adapters on the rows of one batch, each on two projections;
# rows without any; an adapter without rows; columns that two parts add to.
Place = tuple[int, int, int, int, int]
PLACES: tuple[Place, ...] = (
    (8, 70, 0, 0, 19), (8, 33, 70, 0, 19), (3, 70, 0, 21, 40), (3, 33, 70, 21, 40), (16, 5, 90, 40, 41),
    (4, 9, 0, 41, 41), (5, 9, 3, 0, 41),
)  # fmt: skip
SIZES = (41, 103, 37)  # T, N, K
SCALES = (2.0, 0.5, -1.25)


def inputs(sizes: tuple[int, int, int], places: tuple[Place, ...], dtype: torch.dtype) -> list[Tensor]:
    """y, x, then a and b of every part."""
    T, N, K = sizes
    tensors = [randn(T, N, dtype=dtype), randn(T, K, dtype=dtype, seed=1)]
    for i, (rank, columns, *_) in enumerate(places):
        a, b = randn(rank, K, seed=2 + i) * K**-0.5, randn(columns, rank, seed=20 + i)
        tensors += [a.to(dtype), b.to(dtype)]
    return tensors


def parts(places: Sequence[Place], matrices: Sequence[Tensor]) -> list[LoraPart]:
    return [
        LoraPart(a, b, SCALES[i % 3], *place[2:])
        for i, (place, a, b) in enumerate(zip(places, matrices[::2], matrices[1::2], strict=True))
    ]


def bound(f: Callable[..., Tensor], places: Sequence[Place] = PLACES) -> Callable[..., Tensor]:
    """f of y, x and the matrices, with a copy of y to change."""
    return lambda y, x, *matrices: f(y.clone(), x, parts(places, matrices))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_row_gets_its_adapter_and_the_others_stay(backend: str) -> None:
    y, x, *matrices = inputs(SIZES, PLACES, torch.float32)
    wanted = y.clone()
    for part in parts(PLACES, matrices):
        for t in range(part.start, part.stop):
            wanted[t, part.place[1]] += part.scale * (part.b @ (part.a @ x[t]))
    got = y.clone()
    assert choose(LORA, CPU, backend)[0](got, x, parts(PLACES, matrices)) is got
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(got[40, 50:90], (y + 0)[40, 50:90]) and torch.equal(got[19:21, 12:], y[19:21, 12:])


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [37, 896])
def test_row_has_the_same_bits_alone_in_any_company_and_strided(
    instruction_set: str, K: int, dtype: torch.dtype, restored_threads: None
) -> None:
    f, (y, x, *matrices) = native(LORA), inputs((41, 103, K), PLACES, dtype)
    wanted = bound(f)(y, x, *matrices)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_bits(bound(f)(y, x, *matrices), wanted)
        assert_same_bits(bound(f)(y.clone().requires_grad_(), x, *matrices), wanted)
        strided = apart(y)
        assert_same_bits(f(strided, apart(x), parts(PLACES, matrices)), wanted)
    for t in range(41):
        mine = [
            part._replace(start=0, stop=1) for part in parts(PLACES, matrices) if part.start <= t < part.stop
        ]
        assert_same_bits(f(y[t : t + 1].clone(), x[t : t + 1], mine), wanted[t : t + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_no_parts(backend: str) -> None:
    f = choose(LORA, CPU, backend)[0]
    y, x, *matrices = inputs((0, 6, 4), ((2, 6, 0, 0, 0),), torch.float32)
    assert f(y, x, parts(((2, 6, 0, 0, 0),), matrices)).shape == (0, 6)
    y = randn(3, 6)
    assert torch.equal(f(y.clone(), randn(3, 4), []), y)


@needs_native
def test_gradient_goes_where_it_is_asked_for() -> None:
    y, x, *matrices = inputs((3, 6, 4), ((2, 6, 0, 0, 3),), torch.float32)
    for i in range(4):
        leaves = [z.clone().requires_grad_(i == k) for k, z in enumerate((y, x, *matrices))]
        bound(native(LORA), ((2, 6, 0, 0, 3),))(*leaves).sum().backward()
        assert [z.grad is not None for z in leaves] == [i == k for k in range(4)]


@needs_native
@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("y_TN must be", {"y": randn(3, 6).double()}),
        ("x_TK must be", {"x": randn(2, 4)}),
        ("x_TK must be", {"x": randn(4, 3).t()}),
        (r"parts\[0\].a must be", {"a": randn(2, 5)}),
        (r"parts\[0\].a must be", {"a": randn(4, 2).t()}),
        (r"parts\[0\].b must be", {"b": randn(6, 3)}),
        (r"parts\[0\].b must be", {"b": randn(6, 2, dtype=torch.float16)}),
        (r"parts\[0\].b must be", {"b": randn(6)}),
        (r"rows 0\.\.4 and the columns 0\.\.6", {"stop": 4}),
        (r"rows 2\.\.1 ", {"start": 2, "stop": 1}),
        (r"columns 1\.\.7 of y_TN, which is \[3, 6\]", {"column": 1}),
    ],
)
def test_what_does_not_go_together_is_named(message: str, change: dict[str, object]) -> None:
    given = {"y": randn(3, 6), "x": randn(3, 4), "a": randn(2, 4), "b": randn(6, 2)}
    given |= {"scale": 1.0, "column": 0, "start": 0, "stop": 3} | change
    y, x, *fields = given.values()
    with pytest.raises(ValueError, match=f"lora: .*{message}"):
        native(LORA)(y, x, [LoraPart(*fields)])
