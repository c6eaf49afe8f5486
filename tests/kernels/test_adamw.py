# SPDX-License-Identifier: Apache-2.0
"""adamw against torch.optim.AdamW and float64."""

from typing import Any

import pytest
import torch
from harness import DTYPES
from torch import Tensor

from rzero.kernels.adamw import ADAMW, AdamwStep, adamw_ref
from rzero.kernels.dispatch import choose
from rzero.kernels.native import lib

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(lib is None, reason="rzero._native is not built")


@pytest.fixture(params=["ref", pytest.param("native", marks=needs_native)])
def adamw(request: pytest.FixtureRequest) -> Any:
    return choose(ADAMW, CPU, request.param)[0]


def start(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    param = torch.randn(*shape, generator=generator).to(dtype)
    return param, torch.zeros(shape), torch.zeros(shape)


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(*shape, generator=generator) * 10.0 ** (i % 5 - 4) for i in range(steps)]


@pytest.mark.parametrize("shape", [(1,), (7, 5), (3, 40_003)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_updates_equal_those_of_torch(adamw: Any, shape: Any, weight_decay: float) -> None:
    param, exp_avg, exp_avg_sq = start(shape)
    theirs = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=weight_decay)
    for step, grad in enumerate(gradients(shape, 20), start=1):
        scale = 0.5 if step % 2 else 1.0
        theirs.grad = grad * scale
        optimizer.step()
        adamw(
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            None,
            AdamwStep(1e-2, 0.9, 0.95, 1e-6, weight_decay, step, scale),
        )
    torch.testing.assert_close(param, theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exp_avg, optimizer.state[theirs]["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(exp_avg_sq, optimizer.state[theirs]["exp_avg_sq"], rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_master_keeps_what_bfloat16_would_lose(adamw: Any, grad_dtype: torch.dtype) -> None:
    shape = (1000,)
    param, exp_avg, exp_avg_sq = start(shape, torch.bfloat16)
    master = param.float()
    exact, *moments = param.float(), torch.zeros(shape), torch.zeros(shape)
    lossy, *others = param.clone(), torch.zeros(shape), torch.zeros(shape)
    for step in range(1, 31):
        grad = torch.ones(shape, dtype=grad_dtype)
        how = AdamwStep(1e-4, 0.9, 0.999, 1e-8, 0.0, step)
        adamw(param, grad, exp_avg, exp_avg_sq, master, how)
        adamw(lossy, grad, *others, None, how)
        adamw_ref(exact, grad.float(), *moments, None, how)
    torch.testing.assert_close(master, exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(param, master.bfloat16())
    # A step of 1e-4 is below half a unit of the last place of numbers above 1: it leaves no trace there.
    is_large = exact.abs() > 1
    assert torch.equal(lossy[is_large], start(shape, torch.bfloat16)[0][is_large])
    assert (master - lossy.float())[is_large].abs().min() > 1e-3


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("restored_threads")
def test_threads_and_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    native = choose(ADAMW, CPU, "native")[0]
    shape = (100_003,)
    [grad] = gradients(shape, 1)
    how = AdamwStep(1e-2, 0.9, 0.999, 1e-8, 0.01, 2, 0.7)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for here in (slice(None), slice(12_345, 12_352)):
            param, exp_avg, exp_avg_sq = (x[here] for x in start(shape, dtype))
            native(param, grad[here], exp_avg, exp_avg_sq, param.float(), how)
            results.append(param if here.start else param[12_345:12_352])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_parameter_that_requires_a_gradient_and_an_empty_one(adamw: Any) -> None:
    param, exp_avg, exp_avg_sq = start((4,))
    param.requires_grad_()
    before = param.detach().clone()
    adamw(param, torch.ones(4), exp_avg, exp_avg_sq, None, AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1))
    torch.testing.assert_close(param.detach(), before - 0.1)
    empty = torch.zeros(0)
    adamw(empty, empty, empty.clone(), empty.clone(), None, AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1))


def test_tensors_that_do_not_belong_together_are_named(adamw: Any) -> None:
    param, exp_avg, exp_avg_sq = start((6, 4))
    good = (param, torch.ones(6, 4), exp_avg, exp_avg_sq, param.clone())
    how = AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1)
    for i, name in enumerate(("param", "grad", "exp_avg", "exp_avg_sq", "master")):
        for wrong in (good[i][:3], good[i].double()) if i else ():
            with pytest.raises(ValueError, match=name):
                adamw(*good[:i], wrong, *good[i + 1 :], how)
    with pytest.raises(ValueError, match="step"):
        adamw(*good, how._replace(step=0))


@needs_native
def test_strided_tensors_are_refused_not_misread() -> None:
    native = choose(ADAMW, CPU, "native")[0]
    param, exp_avg, exp_avg_sq = start((6, 4))
    with pytest.raises(ValueError, match="grad"):
        native(
            param, torch.ones(4, 6).t(), exp_avg, exp_avg_sq, None, AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1)
        )
