# SPDX-License-Identifier: Apache-2.0
"""linear in Triton: error against float64, and rows that stand alone, forward and backward."""

from typing import Any

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, check_error, randn
from torch import Tensor

from rzero.kernels.linear import linear_ref
from rzero.kernels.linear_triton import linear_triton


def inputs(T: int, K: int, N: int, dtype: torch.dtype) -> list[Tensor]:
    """x, w, bias, with sums of the size of 1."""
    w_NK = (randn(N, K, seed=1) / K**0.5).to(dtype)
    return [randn(T, K, dtype=dtype), w_NK, randn(N, dtype=dtype, seed=2)]


def gradients(args: list[Tensor], grad_TN: Tensor) -> Any:
    leaves = [x.detach().requires_grad_() for x in args]
    return torch.autograd.grad(linear_triton(*leaves), leaves, grad_TN)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 25), (70, 72, 131), (3, 200, 7)], ids=str)
def test_error_is_that_of_torch(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TK, w_NK, bias_N = inputs(*shape, dtype)
    check_error(linear_ref, linear_triton, (x_TK, w_NK, bias_N))
    check_error(linear_ref, linear_triton, (x_TK, w_NK))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_in_a_batch(dtype: torch.dtype) -> None:
    x_TK, w_NK, bias_N = inputs(70, 72, 131, dtype)
    grad_TN = randn(70, 131, dtype=dtype, seed=3)
    wanted, grad_x_TK = linear_triton(x_TK, w_NK, bias_N), gradients([x_TK, w_NK, bias_N], grad_TN)[0]
    assert_same_bits(linear_triton(apart(x_TK), apart(w_NK), bias_N), wanted)
    # numpy's product, unlike a GPU's, depends on the place of a row in its tile: the rows keep theirs.
    for here in (slice(0, 1), slice(64, 70), slice(0, 45)):
        assert_same_bits(linear_triton(x_TK[here], w_NK, bias_N), wanted[here])
        alone = gradients([apart(x_TK[here]), apart(w_NK), bias_N], apart(grad_TN[here]))[0]
        assert_same_bits(alone, grad_x_TK[here])


def test_no_rows_are_legal_and_an_expanded_gradient_is_read_right() -> None:
    x_TK, w_NK, bias_N = inputs(3, 8, 5, torch.float32)
    for grad in gradients([x_TK[:0], w_NK, bias_N], torch.zeros(0, 5)):
        assert (grad == 0).all()
    expanded = gradients([x_TK, w_NK, bias_N], torch.ones(()).expand(3, 5))
    assert_same_bits(expanded, gradients([x_TK, w_NK, bias_N], torch.ones(3, 5)))


@pytest.mark.parametrize(
    ("name", "place", "wrong"),
    [
        ("x_TK", 0, randn(8)),
        ("x_TK", 0, randn(3, 8).double()),
        ("x_TK", 0, randn(8, 3).t()),
        ("w_NK", 1, randn(5, 7)),
        ("w_NK", 1, randn(5, 8, dtype=torch.bfloat16)),
        ("w_NK", 1, torch.empty(5, 8, device="meta")),
        ("bias_N", 2, randn(6)),
    ],
)
def test_wrong_tensor_is_named(name: str, place: int, wrong: Tensor) -> None:
    args = inputs(3, 8, 5, torch.float32)
    with pytest.raises(ValueError, match=f"linear: {name} must be"):
        linear_triton(*args[:place], wrong, *args[place + 1 :])
