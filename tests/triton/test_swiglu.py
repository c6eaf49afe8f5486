# SPDX-License-Identifier: Apache-2.0
"""swiglu in Triton against float64, at the ends of the number range, alone and in a batch."""

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, check_error, randn

from rzero.kernels.swiglu import swiglu_ref
from rzero.kernels.swiglu_triton import BLOCK, swiglu_triton


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 33), (0, 8), (2, BLOCK + 5)], ids=str)
def test_error_is_that_of_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_error(swiglu_ref, swiglu_triton, (randn(shape[0], 2 * shape[1], dtype=dtype) * 4,))


def test_huge_and_tiny_gates() -> None:
    gate = torch.tensor([[-1e4, -90.0, -87.0, -1e-30, 0.0, 1e-30, 87.0, 90.0, 1e4]])
    x = torch.cat((gate, torch.ones_like(gate)), dim=1)
    torch.testing.assert_close(swiglu_triton(x), swiglu_ref(x), rtol=1e-6, atol=1e-35)
    assert swiglu_triton(torch.tensor([[float("nan"), 1.0]])).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_with_gradient(dtype: torch.dtype) -> None:
    x = randn(5, 66, dtype=dtype)
    wanted = torch.cat([swiglu_triton(row) for row in x.split(1)])
    assert_same_bits(swiglu_triton(apart(x)), wanted)
    assert_same_bits(swiglu_triton(x.clone().requires_grad_()), wanted)


@pytest.mark.parametrize("x", [randn(3, 5), randn(3, 4).double(), randn(4, 3).t(), randn(4)])
def test_wrong_tensor_is_named(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="swiglu: gate_up_T2F must be"):
        swiglu_triton(x)
