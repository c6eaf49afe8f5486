# SPDX-License-Identifier: Apache-2.0
"""rmsnorm and add_rmsnorm in Triton against float64, alone and in a batch."""

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, check_error, randn
from torch import Tensor

from rzero.kernels.rmsnorm import add_rmsnorm_ref, rmsnorm_ref
from rzero.kernels.rmsnorm_triton import ROWS, add_rmsnorm_triton, rmsnorm_triton

EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 128), (ROWS + 3, 100), (0, 8), (3, 33)], ids=str)
def test_error_is_that_of_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x_TD, residual_TD = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1)
    w_D = randn(shape[1], dtype=dtype, seed=2)
    check_error(lambda x, w: rmsnorm_ref(x, w, EPS), lambda x, w: rmsnorm_triton(x, w, EPS), (x_TD, w_D))
    check_error(
        lambda x, r, w: add_rmsnorm_ref(x, r, w, EPS),
        lambda x, r, w: add_rmsnorm_triton(x, r, w, EPS),
        (x_TD, residual_TD, w_D),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_with_gradient(dtype: torch.dtype) -> None:
    f, x_TD, w_D = add_rmsnorm_triton, randn(7, 100, dtype=dtype), randn(100, dtype=dtype, seed=1)
    rows = [f(x, r, w_D, EPS) for x, r in zip(x_TD.split(1), x_TD.flip(0).split(1), strict=True)]
    wanted = [torch.cat(part) for part in zip(*rows, strict=True)]
    assert_same_bits(f(apart(x_TD), apart(x_TD.flip(0)), w_D, EPS), wanted)
    assert_same_bits(f(x_TD.clone().requires_grad_(), x_TD.flip(0), w_D, EPS), wanted)
    assert_same_bits(rmsnorm_triton(wanted[1], w_D, EPS), wanted[0])


@pytest.mark.parametrize(
    ("name", "x_TD", "w_D"),
    [
        ("x_TD", randn(4, 8).double(), randn(8).double()),
        ("x_TD", randn(8), randn(8)),
        ("x_TD", randn(8, 4).t(), randn(8)),
        ("w_D", randn(4, 8), randn(7)),
        ("w_D", randn(4, 8), randn(8, dtype=torch.bfloat16)),
        ("w_D", randn(4, 8), torch.empty(8, device="meta")),
    ],
)
def test_wrong_tensor_is_named(name: str, x_TD: Tensor, w_D: Tensor) -> None:
    with pytest.raises(ValueError, match=f"rmsnorm: {name} must be"):
        rmsnorm_triton(x_TD, w_D, EPS)


def test_residual_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match="residual_TD must be"):
        add_rmsnorm_triton(randn(4, 8), randn(3, 8), randn(8), EPS)
