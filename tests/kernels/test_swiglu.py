# SPDX-License-Identifier: Apache-2.0
"""swiglu against float64, at the ends of the number range, alone and in a batch."""

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, native, needs_native, randn

from rzero.kernels.swiglu import SWIGLU, swiglu_ref


@needs_native
def test_huge_and_tiny_gates(instruction_set: str) -> None:
    gate = torch.tensor([[-1e4, -90.0, -87.0, -1e-30, 0.0, 1e-30, 87.0, 90.0, 1e4]])
    x = torch.cat((gate, torch.ones_like(gate)), dim=1)
    torch.testing.assert_close(native(SWIGLU)(x), swiglu_ref(x), rtol=1e-6, atol=1e-35)
    assert native(SWIGLU)(torch.tensor([[float("nan"), 1.0]])).isnan().all()


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_with_gradient(
    instruction_set: str, dtype: torch.dtype
) -> None:
    f, x = native(SWIGLU), randn(200, 66, dtype=dtype)
    wanted = torch.cat([f(row) for row in x.split(1)])
    assert_same_bits(f(x), wanted)
    assert_same_bits(f(apart(x)), wanted)
    assert_same_bits(f(x.clone().requires_grad_()), wanted)


@needs_native
@pytest.mark.parametrize("x", [randn(3, 5), randn(3, 4).double(), randn(4, 3).t(), randn(4)])
def test_wrong_tensor_is_named(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="swiglu: gate_up_T2F must be"):
        native(SWIGLU)(x)
