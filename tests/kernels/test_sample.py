# SPDX-License-Identifier: Apache-2.0
"""sample: the random numbers, the supports, the distribution, and rows that depend on nothing else."""

from typing import Any

import pytest
import torch
from harness import DTYPES
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.linear import LINEAR
from rzero.kernels.linear_logprob import LINEAR_LOGPROB
from rzero.kernels.native import lib
from rzero.kernels.sample import SAMPLE, philox_ref, sample_ref, support_ref, uniform_ref

CPU = torch.device("cpu")
BACKENDS = (
    "ref",
    pytest.param("native", marks=pytest.mark.skipif(lib is None, reason="rzero._native is not built")),
)
KNOWN_ANSWERS = (  # Random123's kat_vectors: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.fixture(params=BACKENDS)
def sample(request: pytest.FixtureRequest) -> Any:
    return choose(SAMPLE, CPU, request.param)[0]


def settings(B: int, **given: float | list[float]) -> tuple[Tensor, ...]:
    """temperature, top_k, top_p, min_p for B rows; what is not given is off."""
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    return tuple(
        torch.tensor(v, dtype=d).expand(B).clone() for v, d in zip(off.values(), dtypes, strict=True)
    )


def keys(B: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key_B = torch.randint(-(2**63), 2**63 - 1, (B,), generator=generator)
    return key_B, torch.randint(0, 2**40, (B,), generator=generator)


def logits(B: int, V: int, spread: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(B, V, generator=torch.Generator().manual_seed(B * V)) * spread).to(dtype)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_numbers(counter: Any, key: Any, words: Any) -> None:
    key_1 = torch.tensor([key[0] | (key[1] - ((key[1] >> 31) << 32)) << 32])
    assert tuple(philox_ref(key_1, torch.tensor([counter]))[0].tolist()) == words


def test_uniform_is_exact_and_inside_the_open_interval() -> None:
    u = uniform_ref(torch.tensor([0]), torch.tensor([0]))
    assert u.item() == (2 * (0x6627E8D5E169C58D >> 12) + 1) / 2**53
    u = uniform_ref(*keys(20000))
    assert u.min() > 0 and u.max() < 1
    assert (
        torch.histc(u.float(), 20, 0, 1).sub(1000).square().sum() / 1000 < 43.8
    )  # chi-square, 19 degrees, p = 0.001


CASES = (
    {},
    {"temperature": 0.6},
    {"temperature": 3.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1e-6},
    {"temperature": 1e6, "top_p": 0.5},
)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("V", [1, 25, 1000, 5003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("instruction_set")
def test_native_draws_what_the_reference_draws(case: Any, V: int, dtype: torch.dtype) -> None:
    native = choose(SAMPLE, CPU, "native")[0]
    B = 200
    args = (logits(B, V, dtype=dtype), *settings(B, **case), *keys(B))
    token, logp, full = native(*args)
    wanted = sample_ref(*args)
    # u falls within rounding of a boundary once in millions of draws; 200 fixed ones have no such case.
    assert torch.equal(token, wanted[0])
    truth = sample_ref(args[0].double(), *args[1:])
    assert torch.equal(token, truth[0])
    for got, theirs, exact in zip((logp, full), wanted[1:], truth[1:], strict=True):
        torchs = (theirs.double() - exact.double()).abs().max()
        assert (got.double() - exact.double()).abs().max() <= 1.25 * torchs + 1e-6


@pytest.mark.parametrize("case", CASES[3:10], ids=str)
def test_drawn_tokens_are_the_support_and_all_of_it(sample: Any, case: Any) -> None:
    V, draws = 40, 4000
    row_1V = logits(1, V, spread=1.0)
    temperature, *rest = settings(1, **case)
    y_1V = (row_1V - row_1V.amax()) / temperature
    keep_V = support_ref(row_1V, y_1V, *rest)[0]
    p_V = torch.where(keep_V, y_1V[0].exp(), 0)
    likely_V = p_V / p_V.sum() > 1 / 200  # missed by 4000 draws with probability below 1e-8
    drawn = sample(row_1V.expand(draws, V), *settings(draws, **case), *keys(draws))[0]
    seen_V = torch.zeros(V, dtype=torch.bool).index_fill(0, drawn, True)
    assert not (seen_V & ~keep_V).any()
    assert not (likely_V & ~seen_V).any()


@pytest.mark.parametrize(
    "case", [{}, {"temperature": 0.7}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str
)
def test_distribution_passes_chi_square(sample: Any, case: Any) -> None:
    V, draws = 30, 100_000
    row_V = logits(1, V, spread=1.5)[0]
    # A key for the answer and a position for the token, as the engine uses them.
    position = torch.arange(draws)
    key = torch.full((draws,), 1234567)
    token, logp, _ = sample(row_V.expand(draws, V), *settings(draws, **case), key, position)
    temperature, *rest = settings(1, **case)
    y_1V = ((row_V - row_V.amax()) / temperature)[None]
    p_V = torch.where(support_ref(row_V[None], y_1V, *rest), y_1V.double().exp(), 0)[0]
    p_V = p_V / p_V.sum()
    expected_V, seen_V = p_V * draws, torch.bincount(token, minlength=V).double()
    assert seen_V[p_V == 0].sum() == 0
    is_common_V = expected_V > 5
    chi2 = ((seen_V - expected_V).square() / expected_V)[is_common_V].sum()
    degrees = int(is_common_V.sum()) - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5  # four sigmas
    torch.testing.assert_close(logp.double(), p_V.log()[token], rtol=2e-6, atol=2e-6)


def test_every_token_equal_to_a_bound_stays(sample: Any) -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 2.0, 3.0, 2.0, -1.0])
    B = 2000
    for case, kept in (
        ({"top_k": 3}, {1, 2, 3, 4, 5}),
        ({"top_k": 2}, {1, 4}),
        ({"top_p": 0.7}, {1, 2, 3, 4, 5}),
    ):
        drawn = sample(row.expand(B, 7), *settings(B, **case), *keys(B))[0]
        assert set(drawn.tolist()) == kept, case


def test_greedy_takes_the_first_of_the_largest_with_logp_zero(sample: Any) -> None:
    x_BV = torch.tensor([[0.0, 5.0, 5.0], [-torch.inf, -2.0, -torch.inf], [4.0, 4.0, 4.0]])
    token, logp, full = sample(x_BV, *settings(3, temperature=0.0, top_k=2, top_p=0.5), *keys(3))
    assert token.tolist() == [1, 1, 0] and logp.tolist() == [0, 0, 0]
    torch.testing.assert_close(full, x_BV.log_softmax(-1).gather(1, token[:, None])[:, 0])


def test_tokens_without_mass_are_never_drawn(sample: Any) -> None:
    x_V = torch.full((1500,), -torch.inf)
    x_V[torch.tensor([3, 1100, 1499])] = torch.tensor([0.0, 1.0, -200.0])
    B = 500
    for case in ({}, {"top_p": 0.999}, {"top_k": 1000}, {"min_p": 1e-6}):
        token, logp, _ = sample(x_V.expand(B, -1), *settings(B, **case), *keys(B))
        assert set(token.tolist()) == {3, 1100}, case
        assert logp.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("restored_threads")
def test_row_alone_has_the_bits_of_the_row_in_a_batch(backend: str, dtype: torch.dtype) -> None:
    sample = choose(SAMPLE, CPU, backend)[0]
    B, V = 12, 3001
    case = {
        "temperature": [0, 1, 0.7] * 4,
        "top_k": [0, 5, 0, 9] * 3,
        "top_p": [1, 0.9] * 6,
        "min_p": [0, 0, 0.1] * 4,
    }
    args = (logits(B, V, dtype=dtype), *settings(B, **case), *keys(B))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        together = sample(*args)
        for b in range(B):
            alone = sample(*(a[b : b + 1] for a in args))
            assert all(torch.equal(x[b : b + 1], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [25, 4099])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probs_have_the_bits_of_linear_logprob(
    backend: str, temperature: float, V: int, dtype: torch.dtype
) -> None:
    sample, linear, linear_logprob = (choose(op, CPU, backend)[0] for op in (SAMPLE, LINEAR, LINEAR_LOGPROB))
    B, D = 40, 24
    h_BD, w_VD = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        for shape in ((B, D), (V, D))
    )
    token, logp, full = sample(linear(h_BD, w_VD), *settings(B, temperature=temperature), *keys(B))
    assert torch.equal(linear_logprob(h_BD, w_VD, token, temperature)[0], logp)
    assert torch.equal(linear_logprob(h_BD, w_VD, token)[0], full)


@pytest.mark.skipif(lib is None, reason="rzero._native is not built")
def test_log_prob_error_against_float64_is_that_of_torch() -> None:
    native = choose(SAMPLE, CPU, "native")[0]
    B, V = 6, 151_936
    x_BV = logits(B, V)
    token, logp, _ = native(x_BV, *settings(B), *keys(B))
    truth = x_BV.double().log_softmax(-1).gather(1, token[:, None])[:, 0]
    torchs = (x_BV.log_softmax(-1).gather(1, token[:, None])[:, 0] - truth).abs().max()
    assert (logp - truth).abs().max() <= 1.25 * torchs + 5e-7


def test_rows_may_be_strided_and_the_batch_empty(sample: Any) -> None:
    wide_BV = logits(4, 50)
    args = (*settings(4, top_k=5), *keys(4))
    for got, wanted in zip(
        sample(wide_BV[:, 7:31], *args), sample(wide_BV[:, 7:31].contiguous(), *args), strict=True
    ):
        assert torch.equal(got, wanted)
    empty = sample(wide_BV[:0], *(a[:0] for a in args))
    assert [x.shape for x in empty] == [(0,)] * 3 and empty[0].dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_that_nothing_can_be_drawn_from_is_named(sample: Any, bad: float, temperature: float) -> None:
    x_BV = logits(3, 2000)
    x_BV[2, 1500] = bad
    if bad < 0:
        x_BV[2] = bad
    with pytest.raises(ValueError, match="row 2 of logits_BV"):
        sample(x_BV, *settings(3, temperature=temperature), *keys(3))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ({"temperature": -1.0}, "temperature_B"),
        ({"temperature": float("nan")}, "temperature_B"),
        ({"top_k": -1}, "top_k_B"),
        ({"top_p": 0.0}, "top_p_B"),
        ({"top_p": 1.5}, "top_p_B"),
        ({"min_p": -0.1}, "min_p_B"),
    ],
)
def test_setting_out_of_range_is_named(sample: Any, case: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        sample(logits(2, 9), *settings(2, **case), *keys(2))


def test_wrong_type_or_shape_is_named(sample: Any) -> None:
    good = (logits(2, 9), *settings(2), *keys(2))
    names = ("logits_BV", "temperature_B", "top_k_B", "top_p_B", "min_p_B", "key_B", "position_B")
    for i, name in enumerate(names):
        for wrong in (good[i][:1] if i else good[i][0], good[i].to(torch.int16)):
            if i or wrong.ndim == 1:
                with pytest.raises(ValueError, match=name):
                    sample(*good[:i], wrong, *good[i + 1 :])
