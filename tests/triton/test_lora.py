# SPDX-License-Identifier: Apache-2.0
"""lora in Triton against float64, rows that stand alone, and the same numbers as the native kernel."""

from collections.abc import Callable, Sequence

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, check_error, native, needs_native, randn
from torch import Tensor

from rzero.kernels.lora import LORA, LoraPart, lora_ref
from rzero.kernels.lora_triton import BLOCK_K, BLOCK_N, ROWS, lora_triton

T, N, K = ROWS + 5, BLOCK_N + 21, BLOCK_K + 6
# rank, columns, first column, start, stop
PLACES = ((5, BLOCK_N + 3, 2, 0, ROWS + 1), (18, 9, 70, 0, 3), (3, 7, 1, ROWS + 1, T), (2, 4, 0, 4, 4))


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """y, x, then a and b of every part."""
    tensors = [randn(T, N, dtype=dtype), randn(T, K, dtype=dtype, seed=1)]
    for i, (rank, columns, *_) in enumerate(PLACES):
        tensors += [
            (randn(rank, K, seed=2 + i) / 8).to(dtype),
            randn(columns, rank, dtype=dtype, seed=20 + i),
        ]
    return tensors


def parts(matrices: Sequence[Tensor]) -> list[LoraPart]:
    pairs = zip(PLACES, matrices[::2], matrices[1::2], strict=False)
    return [LoraPart(a, b, 1.5 - i, *place[2:]) for i, (place, a, b) in enumerate(pairs)]


def bound(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """f of y, x and the matrices, with a copy of y to change."""
    return lambda y, x, *matrices: f(y.clone(), x, parts(matrices))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_that_of_torch(dtype: torch.dtype) -> None:
    check_error(bound(lora_ref), bound(lora_triton), inputs(dtype)[:8])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_and_strided(dtype: torch.dtype) -> None:
    y, x, *matrices = inputs(dtype)
    wanted = bound(lora_triton)(y, x, *matrices)
    assert_same_bits(lora_triton(apart(y), apart(x), parts(matrices)), wanted)
    for t in (0, ROWS, T - 1):
        mine = [part._replace(start=0, stop=1) for part in parts(matrices) if part.start <= t < part.stop]
        assert_same_bits(lora_triton(y[t : t + 1].clone(), x[t : t + 1], mine), wanted[t : t + 1])


@needs_native
def test_numbers_are_those_of_the_native_kernel() -> None:
    tensors = inputs(torch.float32)
    torch.testing.assert_close(
        bound(lora_triton)(*tensors), bound(native(LORA))(*tensors), rtol=1e-5, atol=1e-5
    )


def test_no_rows_and_no_parts() -> None:
    y, x, *matrices = inputs(torch.float32)
    empty = [part._replace(start=0, stop=0) for part in parts(matrices)]
    assert lora_triton(y[:0], x[:0], empty).shape == (0, N)
    assert torch.equal(lora_triton(y.clone(), x, []), y)


def test_what_does_not_go_together_is_named() -> None:
    y, x, *matrices = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"lora: x_TK must be .* \[21, K\]"):
        lora_triton(y, x[:3], parts(matrices))
    with pytest.raises(ValueError, match=r"parts\[0\] adds to the rows 0..99 "):
        lora_triton(y, x, [parts(matrices)[0]._replace(stop=99)])
