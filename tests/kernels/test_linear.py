# SPDX-License-Identifier: Apache-2.0
"""linear: a row has the same bits in a batch of any size, with any number of threads."""

import pytest
import torch
from harness import CPU, DTYPES, randn
from torch.nn import functional

from rzero.kernels.dispatch import choose
from rzero.kernels.linear import LINEAR

MOST = 1100
linear = choose(LINEAR, CPU, "auto")[0]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("K", "N"), [(128, 256), (384, 128), (128, 25), (96, 130), (48, 100), (896, 64)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_in_any_batch(
    K: int, N: int, dtype: torch.dtype, has_bias: bool, restored_threads: None
) -> None:
    """MKL has other routines for few rows: torch's product fails this in float32 on Zen 3."""
    most = MOST if dtype == torch.float32 else 300  # slow where the CPU cannot multiply bfloat16
    x_TK, w_NK = randn(most, K, dtype=dtype), randn(N, K, dtype=dtype, seed=1)
    bias_N = randn(N, dtype=dtype, seed=2) if has_bias else None
    torch.set_num_threads(1)
    whole = linear(x_TK, w_NK, bias_N)
    for threads, counts in ((1, [*range(1, 71), 96, 255, 512, most]), (2, [1, 2, 7, 13, 64, 300, most])):
        torch.set_num_threads(threads)
        for T in counts:
            if most >= T:
                first = most - T  # not the same rows each time
                assert torch.equal(linear(x_TK[first:], w_NK, bias_N), whole[first:]), (
                    f"{T} rows, {threads} threads"
                )


@pytest.mark.parametrize("T", [0, 1, 5, 16, 40])
def test_value_and_gradient_are_those_of_torch(T: int) -> None:
    inputs = [randn(T, 12), randn(7, 12, seed=1), randn(7, seed=2)]
    mine, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    y, wanted = linear(*mine), functional.linear(*theirs)
    torch.testing.assert_close(y, wanted)
    (y.square().sum()).backward()
    (wanted.square().sum()).backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [1, 40, 75])
def test_gradients_of_whole_tiles_are_right(instruction_set: str, dtype: torch.dtype, T: int) -> None:
    """40 columns are more than a tile of rows where the left operand is a transposed gradient."""
    inputs = [randn(T, 24, dtype=dtype), randn(40, 24, dtype=dtype, seed=1), randn(40, dtype=dtype, seed=2)]
    grad_TN = randn(T, 40, dtype=dtype, seed=3)
    mine, theirs = [x.clone().requires_grad_() for x in inputs], [x.double().requires_grad_() for x in inputs]
    found = torch.autograd.grad(linear(*mine), mine, grad_TN)
    wanted = torch.autograd.grad(functional.linear(*theirs), theirs, grad_TN.double())
    rounding = 2 * torch.finfo(dtype).eps
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rounding, atol=rounding * float(b.abs().max()))


def test_small_numbers_are_no_zeros_where_pairs_look_like_subnormal_floats(instruction_set: str) -> None:
    """A pair of bfloat16 whose second one is 0 has the bits of a subnormal float, which nothing may flush."""
    x_TK, w_NK = randn(5, 64, dtype=torch.bfloat16), randn(40, 64, dtype=torch.bfloat16, seed=1)
    x_TK[:, 1::2] = 0
    w_NK[3::4, 1::2] = 0
    wanted_TN = functional.linear(x_TK.double(), w_NK.double())
    torch.set_flush_denormal(True)
    try:
        y_TN = linear(x_TK, w_NK)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(y_TN.double(), wanted_TN, rtol=2**-8, atol=1e-6)
