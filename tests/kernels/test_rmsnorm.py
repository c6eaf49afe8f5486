# SPDX-License-Identifier: Apache-2.0
"""rmsnorm and add_rmsnorm against float64, alone and in a batch."""

from typing import Any

import pytest
import torch
from harness import BACKENDS, CPU, DTYPES, apart, assert_same_bits, native, needs_native, randn

from rzero.kernels.dispatch import choose
from rzero.kernels.rmsnorm import ADD_RMSNORM, RMSNORM

EPS = 1e-5


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_with_gradient(
    instruction_set: str, dtype: torch.dtype, restored_threads: None
) -> None:
    f, x_TD, w_D = native(ADD_RMSNORM), randn(300, 100, dtype=dtype), randn(100, dtype=dtype, seed=1)
    both = as_rows(f, x_TD, w_D)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_bits(f(x_TD, x_TD.flip(0), w_D, EPS), both)
        assert_same_bits(f(apart(x_TD), apart(x_TD.flip(0)), w_D, EPS), both)
        assert_same_bits(f(x_TD.clone().requires_grad_(), x_TD.flip(0), w_D, EPS), both)
        assert_same_bits(native(RMSNORM)(both[1], w_D, EPS), both[0])


def as_rows(f: Any, x_TD: torch.Tensor, w_D: torch.Tensor) -> list[torch.Tensor]:
    """y and the sum, computed row by row."""
    rows = [f(x, r, w_D, EPS) for x, r in zip(x_TD.split(1), x_TD.flip(0).split(1), strict=True)]
    return [torch.cat(part) for part in zip(*rows, strict=True)]


@needs_native
def test_gradient_has_the_same_bits_with_any_number_of_threads(restored_threads: None) -> None:
    grads = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x_TD, w_D = randn(500, 200).requires_grad_(), randn(200, seed=1).requires_grad_()
        grads.append(torch.autograd.grad(native(RMSNORM)(x_TD, w_D, EPS).square().sum(), (x_TD, w_D)))
    assert_same_bits(*grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_is_what_the_next_layer_adds_to(backend: str) -> None:
    x_TD, residual_TD = randn(4, 8, dtype=torch.bfloat16), randn(4, 8, dtype=torch.bfloat16, seed=1)
    w_D = torch.ones(8, dtype=torch.bfloat16)
    _, sum_TD = choose(ADD_RMSNORM, CPU, backend)[0](x_TD, residual_TD, w_D, EPS)
    assert torch.equal(sum_TD, x_TD + residual_TD)


@needs_native
@pytest.mark.parametrize(
    ("name", "x_TD", "w_D"),
    [
        ("x_TD", randn(4, 8).double(), randn(8).double()),
        ("x_TD", randn(8), randn(8)),
        ("x_TD", randn(8, 4).t(), randn(8)),
        ("x_TD", torch.empty(4, 8, device="meta"), randn(8)),
        ("w_D", randn(4, 8), randn(7)),
        ("w_D", randn(4, 8), randn(8, dtype=torch.bfloat16)),
        ("w_D", randn(4, 8), randn(16)[::2]),
    ],
)
def test_wrong_tensor_is_named(name: str, x_TD: torch.Tensor, w_D: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"rmsnorm: {name} must be"):
        native(RMSNORM)(x_TD, w_D, EPS)


@needs_native
def test_residual_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match="residual_TD must be"):
        native(ADD_RMSNORM)(randn(4, 8), randn(3, 8), randn(8), EPS)
