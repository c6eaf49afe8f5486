# SPDX-License-Identifier: Apache-2.0
"""16-bit types in the native kernels: numbers are read and written as torch does, on any instruction set."""

import pytest
import torch
from harness import assert_same_bits, native, needs_native
from torch import Tensor

from rzero.kernels.adamw import ADAMW, AdamwStep

# One update that changes nothing: exp_avg becomes the gradient, param the rounded master.
IDLE = AdamwStep(lr=0.0, beta1=0.0, beta2=0.9, eps=1.0, weight_decay=0.0, step=1)


def as_bits(x: Tensor) -> Tensor:
    """The bits, all NaN as one: which of them an operation gives is nobody's promise."""
    return torch.where(x.isnan(), torch.full_like(x, torch.nan), x).view(torch.int16)


@needs_native
def test_every_float16_is_read_exactly(instruction_set: str) -> None:
    grad = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    read, other = torch.zeros(2, 2**16)
    native(ADAMW)(grad.clone(), grad, read, other, None, IDLE)
    is_number = ~grad.isnan()
    assert torch.equal(read[is_number], grad.float()[is_number])
    assert read[~is_number].isnan().all() and (~is_number).sum() == 2046


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_floats_are_rounded_to_the_nearest_half_ties_to_even(
    instruction_set: str, dtype: torch.dtype
) -> None:
    """Every half, what lies halfway to the next one, and the floats beside both; subnormals are no zeros."""
    half = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    half = half[half.isfinite()]
    exact = half.float()
    middle = exact / 2 + torch.nextafter(half, torch.tensor(torch.inf, dtype=dtype)).float() / 2
    # Halfway from the largest to what would come next.
    beyond = {torch.float16: 65520.0, torch.bfloat16: (2 - 2**-8) * 2.0**127}[dtype]
    middle = torch.where(middle.isinf(), beyond, middle)
    points = torch.cat(
        (exact, middle, middle.neg(), torch.tensor([1e-30, 1e30, 1e-45, torch.inf, torch.nan]))
    )
    infinity = torch.tensor(torch.inf)
    master = torch.cat((points, torch.nextafter(points, infinity), torch.nextafter(points, -infinity)))
    for sign in (1, -1):
        param = torch.zeros(len(master), dtype=dtype)
        native(ADAMW)(param, torch.zeros_like(param), *torch.zeros(2, len(master)), sign * master, IDLE)
        assert_same_bits(as_bits(param), as_bits((sign * master).to(dtype)))
