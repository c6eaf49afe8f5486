# SPDX-License-Identifier: Apache-2.0
"""linear_logprob: values and gradients against float64, chunks that leave no trace, rows that stand alone."""

from functools import partial
from typing import Any

import pytest
import torch
from harness import DTYPES
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.linear_logprob import LINEAR_LOGPROB
from rzero.kernels.native import lib

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(lib is None, reason="rzero._native is not built")
BACKENDS = ("ref", pytest.param("native", marks=needs_native))


@pytest.fixture(params=BACKENDS)
def linear_logprob(request: pytest.FixtureRequest) -> Any:
    return choose(LINEAR_LOGPROB, CPU, request.param)[0]


def case(T: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T + V)
    h_TD = torch.randn(T, D, generator=generator).to(dtype)
    w_VD = (torch.randn(V, D, generator=generator) * 0.3).to(dtype)
    return h_TD, w_VD, torch.randint(V, (T,), generator=generator)


def run(function: Any, args: Any, temperature: float) -> list[Tensor]:
    """logp, entropy, gradient of h and of w for a loss that weighs the tokens differently."""
    h_TD, w_VD, target_T = args
    h_TD, w_VD = (x.detach().clone().requires_grad_() for x in (h_TD, w_VD))
    logp_T, entropy_T = function(h_TD, w_VD, target_T, temperature)
    weight_T = torch.linspace(-1, 2, len(logp_T)).to(logp_T.dtype)
    (logp_T * weight_T).sum().backward()
    assert not entropy_T.requires_grad
    return [x.detach().double() for x in (logp_T, entropy_T, h_TD.grad, w_VD.grad)]


@needs_native
def test_chunks_leave_no_trace_in_the_results() -> None:
    native = choose(LINEAR_LOGPROB, CPU, "native")[0]
    args = case(70, 16, 300)
    whole = run(native, args, 0.9)
    # 16 rows forward, 64 columns backward: both ends have a part chunk.
    parts = run(partial(native, chunk_bytes=1), args, 0.9)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
    for a, b in zip(whole[2:], parts[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [25, 2051])
@pytest.mark.usefixtures("restored_threads")
def test_row_alone_has_the_bits_of_the_row_in_a_batch(V: int, dtype: torch.dtype) -> None:
    linear_logprob = choose(LINEAR_LOGPROB, CPU, "native")[0]
    h_TD, w_VD, target_T = case(50, 48, V, dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        together = linear_logprob(h_TD, w_VD, target_T, 0.8)
        for here in (slice(0, 1), slice(11, 12), slice(3, 10), slice(20, 50)):
            alone = linear_logprob(h_TD[here], w_VD, target_T[here], 0.8)
            assert all(torch.equal(x[here], y) for x, y in zip(together, alone, strict=True))


def test_gradient_goes_where_it_is_asked_for(linear_logprob: Any) -> None:
    h_TD, w_VD, target_T = case(6, 8, 25)
    for needs_h, needs_w in ((True, False), (False, True)):
        h, w = h_TD.clone().requires_grad_(needs_h), w_VD.clone().requires_grad_(needs_w)
        linear_logprob(h, w, target_T)[0].sum().backward()
        assert (h.grad is not None) == needs_h and (w.grad is not None) == needs_w
    with torch.no_grad():
        assert not linear_logprob(h_TD.requires_grad_(), w_VD, target_T)[0].requires_grad


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.9, 30.0])
def test_a_frozen_head_gives_the_gradient_of_a_trained_one(dtype: torch.dtype, temperature: float) -> None:
    """More columns than one product takes; the error is that of the trained head's gradient at most."""
    native = choose(LINEAR_LOGPROB, CPU, "native")[0]
    h_TD, w_VD, target_T = case(70, 16, 20000, dtype)
    weight_T = torch.linspace(-1, 2, 70)

    def gradient(function: Any, h: Tensor, w: Tensor, trained: bool, **how: int) -> Tensor:
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_(trained)
        (function(h, w, target_T, temperature, **how)[0] * weight_T).sum().backward()
        assert h.grad is not None and h.grad.dtype == h.dtype
        return h.grad.double()

    reference = choose(LINEAR_LOGPROB, CPU, "ref")[0]
    truth = gradient(reference, h_TD.double(), w_VD.double(), False)
    trained = gradient(native, h_TD, w_VD, True)
    for chunk_bytes in (128 << 20, 1):
        frozen = gradient(native, h_TD, w_VD, False, chunk_bytes=chunk_bytes)
        assert (frozen - truth).norm() <= 1.25 * (trained - truth).norm() + 1e-7 * truth.norm()


@needs_native
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_a_token_without_weight_gives_no_gradient_even_if_its_row_is_nan(trained: bool) -> None:
    h_TD, w_VD, target_T = case(5, 8, 25)
    h_TD[2] = torch.nan
    h_TD.requires_grad_()
    w_VD.requires_grad_(trained)
    logp_T = choose(LINEAR_LOGPROB, CPU, "native")[0](h_TD, w_VD, target_T)[0]
    assert logp_T.isnan().tolist() == [False, False, True, False, False]
    torch.where(logp_T.isnan(), 0, logp_T).sum().backward()
    assert h_TD.grad is not None and h_TD.grad.isfinite().all() and (h_TD.grad[2] == 0).all()


def test_extreme_logits_and_temperatures_stay_finite(linear_logprob: Any) -> None:
    h_TD = torch.tensor([[1000.0], [-1000.0], [0.0]])
    w_VD = torch.tensor([[1.0], [0.0], [-1.0]])
    for temperature in (1e-4, 1.0, 1e4):
        logp_T, entropy_T = linear_logprob(h_TD, w_VD, torch.tensor([0, 2, 1]), temperature)
        assert logp_T.isfinite().all() and entropy_T.isfinite().all()
        assert (entropy_T >= -1e-6).all() and (entropy_T <= 1.0987).all()


def test_no_tokens_are_legal(linear_logprob: Any) -> None:
    h_TD, w_VD, target_T = case(3, 8, 25)
    h_TD, w_VD = h_TD[:0].requires_grad_(), w_VD.requires_grad_()
    logp_T, entropy_T = linear_logprob(h_TD, w_VD, target_T[:0])
    assert logp_T.shape == entropy_T.shape == (0,)
    logp_T.sum().backward()


@needs_native
def test_wrong_arguments_are_named() -> None:
    native = choose(LINEAR_LOGPROB, CPU, "native")[0]
    h_TD, w_VD, target_T = case(3, 8, 25)
    for args, name in (
        ((h_TD[0], w_VD, target_T), "h_TD"),
        ((h_TD.double(), w_VD, target_T), "h_TD"),
        ((h_TD, w_VD[:, :7], target_T), "w_VD"),
        ((h_TD, w_VD.bfloat16(), target_T), "w_VD"),
        ((h_TD, w_VD, target_T[:2]), "target_T"),
        ((h_TD, w_VD, target_T.int()), "target_T"),
        ((h_TD, w_VD, target_T + 25), "target_T"),
        ((h_TD, w_VD, target_T, 0.0), "temperature"),
    ):
        with pytest.raises(ValueError, match=name):
            native(*args)
