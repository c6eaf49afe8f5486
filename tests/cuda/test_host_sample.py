# SPDX-License-Identifier: Apache-2.0
"""csrc/sample.cu on the CPU: the random numbers, tokens and log-probs of the native kernel, bit for bit.

The tests that judge every backend of `sample` are taken over as they are: `sample` is the CUDA launcher here.
"""

from typing import Any

import pytest
import torch
from harness import DTYPES, needs_native
from test_sample import (
    CASES,
    keys,
    logits,
    settings,
    test_every_token_equal_to_a_bound_stays,
    test_greedy_takes_the_first_of_the_largest_with_logp_zero,
    test_row_that_nothing_can_be_drawn_from_is_named,
    test_rows_may_be_strided_and_the_batch_empty,
    test_setting_out_of_range_is_named,
    test_tokens_without_mass_are_never_drawn,
    test_wrong_type_or_shape_is_named,
)
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.native import lib
from rzero.kernels.sample import SAMPLE, sample_ref
from rzero.kernels.sample_cuda import sample_cuda

__all__ = [
    "test_every_token_equal_to_a_bound_stays",
    "test_greedy_takes_the_first_of_the_largest_with_logp_zero",
    "test_row_that_nothing_can_be_drawn_from_is_named",
    "test_rows_may_be_strided_and_the_batch_empty",
    "test_setting_out_of_range_is_named",
    "test_tokens_without_mass_are_never_drawn",
    "test_wrong_type_or_shape_is_named",
]

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("on_host")


@pytest.fixture
def sample() -> Any:
    return sample_cuda


def all_cases(rows: int, V: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`rows` rows with each of the settings, in one batch."""
    columns = zip(*(settings(rows, **case) for case in CASES), strict=True)
    B = rows * len(CASES)
    return (logits(B, V, dtype=dtype), *(torch.cat(column) for column in columns), *keys(B))


@needs_native
@pytest.mark.parametrize("V", [1, 25, 1000, 2503])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_and_log_probs_have_the_bits_of_the_native_kernel(V: int, dtype: torch.dtype) -> None:
    args = all_cases(8, V, dtype)
    got, native, ref = sample_cuda(*args), choose(SAMPLE, CPU, "native")[0](*args), sample_ref(*args)
    assert torch.equal(got[0], native[0]) and torch.equal(got[0], ref[0])
    is_fused = lib.instruction_set() != "baseline"  # plain x86-64 has no fused multiply-add
    for mine, natives, refs in zip(got[1:], native[1:], ref[1:], strict=True):
        assert not is_fused or torch.equal(mine, natives)
        torch.testing.assert_close(mine, refs, rtol=2e-6, atol=2e-6)


def test_row_has_the_same_bits_alone_and_with_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = all_cases(1, 2503, torch.bfloat16)
    together = sample_cuda(*args)
    for threads in (64, 96, 1024):
        monkeypatch.setattr("rzero.kernels.sample_cuda.THREADS", threads)
        for b in range(0, len(CASES), 4):
            alone = sample_cuda(*(x[b : b + 1] for x in args))
            assert all(torch.equal(x, y[b : b + 1]) for x, y in zip(alone, together, strict=True))


@pytest.mark.parametrize("case", [{}, {"temperature": 0.8, "top_k": 12, "top_p": 0.9}], ids=str)
def test_distribution_passes_chi_square(case: Any) -> None:
    V, draws = 20, 4000
    row_V = logits(1, V, spread=1.5)[0]
    key_B, position_B = torch.full((draws,), 99), torch.arange(draws)
    token_B, logp_B, _ = sample_cuda(row_V.expand(draws, V), *settings(draws, **case), key_B, position_B)
    seen_V = torch.bincount(token_B, minlength=V).double()
    p_V = torch.zeros(V, dtype=torch.float64).index_put((token_B,), logp_B.double().exp())
    assert abs(p_V.sum() - 1) < 1e-5, "the log-probs of what is drawn are those of a distribution"
    expected_V = p_V * draws
    is_common_V = expected_V > 5
    chi2 = ((seen_V - expected_V).square() / expected_V)[is_common_V].sum()
    degrees = int(is_common_V.sum()) - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5  # four sigmas
