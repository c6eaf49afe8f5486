# SPDX-License-Identifier: Apache-2.0
"""adamw in Triton against torch.optim.AdamW, float64 and the native form."""

from typing import Any

import pytest
import torch
from harness import native, needs_native
from test_adamw import gradients, start
from torch import Tensor

from rzero.kernels.adamw import ADAMW, AdamwStep, adamw_ref
from rzero.kernels.adamw_triton import BLOCK, adamw_triton

HOW = AdamwStep(1e-2, 0.9, 0.999, 1e-8, 0.01, 3, 0.7)
SMALL = (torch.bfloat16, torch.float16)


def test_updates_equal_those_of_torch() -> None:
    shape = (7, 5)
    param, exp_avg, exp_avg_sq = start(shape)
    theirs = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    for step, grad in enumerate(gradients(shape, 10), start=1):
        scale = 0.5 if step % 2 else 1.0
        theirs.grad = grad * scale
        optimizer.step()
        how = AdamwStep(1e-2, 0.9, 0.95, 1e-6, 0.1, step, scale)
        adamw_triton(param, grad, exp_avg, exp_avg_sq, None, how)
    torch.testing.assert_close(param, theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exp_avg, optimizer.state[theirs]["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(exp_avg_sq, optimizer.state[theirs]["exp_avg_sq"], rtol=1e-5, atol=1e-10)


def updated(function: Any, grad: Tensor, dtype: torch.dtype, has_master: bool) -> list[Tensor]:
    """param, moments and master after one update from moments that are not zero."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    param = start(tuple(grad.shape))[0].to(torch.float16 if has_master else dtype).to(dtype)
    state = [param, grad.to(wide) / 3, grad.to(wide).square() / 5]
    master = start(tuple(grad.shape))[0].to(wide) if has_master else None
    function(state[0], grad.to(wide), *state[1:], master, HOW)
    return [x.double() for x in (*state, *([] if master is None else [master]))]


@needs_native
@pytest.mark.parametrize("has_master", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *SMALL], ids=str)
def test_error_of_one_update_is_that_of_torch(dtype: torch.dtype, has_master: bool) -> None:
    [grad] = gradients((BLOCK + 101,), 1)
    # The truth starts from the same rounded param and ends without rounding.
    truth = updated(
        lambda param, *rest: adamw_ref(param.copy_(param.to(dtype)), *rest), grad, torch.float64, has_master
    )
    torchs = updated(adamw_ref, grad, dtype, has_master)
    for function in (adamw_triton, native(ADAMW)):
        for t, base, got in zip(truth, torchs, updated(function, grad, dtype, has_master), strict=True):
            for norm, slack in ((torch.linalg.vector_norm, 1.25), (lambda x: x.abs().max(), 2.0)):
                assert norm(got - t) <= slack * norm(base - t) + 1e-7 * norm(t)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_master_keeps_what_a_small_type_would_lose(dtype: torch.dtype) -> None:
    param, exp_avg, exp_avg_sq = start((1000,), dtype)
    master, before = param.float(), param.clone()
    for step in range(1, 4):
        how = AdamwStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step)
        adamw_triton(param, torch.ones(1000, dtype=dtype), exp_avg, exp_avg_sq, master, how)
    torch.testing.assert_close(master, before.float() - 3e-5, rtol=0, atol=1e-6)
    assert torch.equal(param, master.to(dtype))


def test_a_parameter_that_requires_a_gradient_and_an_empty_one() -> None:
    param, exp_avg, exp_avg_sq = start((4,))
    param.requires_grad_()
    before, how = param.detach().clone(), AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1)
    adamw_triton(param, torch.ones(4), exp_avg, exp_avg_sq, None, how)
    torch.testing.assert_close(param.detach(), before - 0.1)
    empty = torch.zeros(0)
    adamw_triton(empty, empty, empty.clone(), empty.clone(), None, how)


def test_wrong_tensors_are_named() -> None:
    param, exp_avg, exp_avg_sq = start((6, 4))
    good = (param, torch.ones(6, 4), exp_avg, exp_avg_sq, param.clone())
    for i, name in enumerate(("param", "grad", "exp_avg", "exp_avg_sq", "master")):
        strided = torch.ones(4, 6).t()
        for wrong in (strided, good[i][:3], good[i].double()) if i else (strided, param.long()):
            with pytest.raises(ValueError, match=name):
                adamw_triton(*good[:i], wrong, *good[i + 1 :], HOW)
    with pytest.raises(ValueError, match="step"):
        adamw_triton(*good, HOW._replace(step=0))
