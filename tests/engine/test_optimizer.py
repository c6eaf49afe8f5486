# SPDX-License-Identifier: Apache-2.0
"""AdamW over named tensors: the arithmetic of torch, masters, schedule, decay groups, clipping."""

from dataclasses import replace

import pytest
import torch
from plain import CPU
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig
from rzero.engine.optimizer import AdamW, clip_scale, global_norm, learning_rate
from rzero.kernels import resolve

CFG = TrainConfig(learning_rate=0.02, weight_decay=0.1)


def tensors(dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (5, 7), "norm": (7,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_updates_equal_those_of_torch(decay: str) -> None:
    cfg = replace(CFG, decay=decay, warmup_steps=3)
    params = tensors(torch.float32)
    copies = {name: p.clone().requires_grad_() for name, p in params.items()}
    bare = {"params": [copies["norm"]], "weight_decay": 0.1 if decay == "all" else 0.0}
    theirs = torch.optim.AdamW([{"params": [copies["matrix"]]}, bare], lr=0.02, weight_decay=0.1)
    ours = AdamW(resolve(CPU))
    for step in range(1, 6):
        grads = tensors(torch.float32, seed=step)
        for name, copy in copies.items():
            copy.grad = grads[name] * 0.5
        for part in theirs.param_groups:
            part["lr"] = 0.02 * min(1.0, step / 3)
        theirs.step()
        ours.update(params, grads, cfg, 0.5)
    assert ours.step == 5
    for name, p in params.items():
        torch.testing.assert_close(p, copies[name].detach(), rtol=1e-5, atol=1e-6)


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    cfg = replace(CFG, learning_rate=1e-5, weight_decay=0.0)
    params, wide = {"w": torch.ones(4, dtype=torch.bfloat16)}, {"w": torch.ones(4)}
    ours, reference = AdamW(resolve(CPU)), AdamW(resolve(CPU))
    for _ in range(400):
        ours.update(params, {"w": torch.ones(4)}, cfg, 1.0)
        reference.update(wide, {"w": torch.ones(4)}, cfg, 1.0)
    assert params["w"].float().mean() < 1.0, "one update is far below half a bit of the weight"
    assert torch.equal(params["w"], wide["w"].bfloat16())
    assert "master.w" in ours.state() and "master.w" not in reference.state()


def test_a_master_follows_copied_and_replaced_weights() -> None:
    cfg = replace(CFG, learning_rate=1e-5, weight_decay=0.0)
    optimizer, first = AdamW(resolve(CPU)), torch.ones(4, dtype=torch.bfloat16)
    optimizer.update({"w": first}, {"w": torch.ones(4)}, cfg, 1.0)
    master = optimizer.state()["master.w"]
    optimizer.update({"w": first.clone()}, {"w": torch.ones(4)}, cfg, 1.0)
    assert optimizer.state()["master.w"] is master, "a copy goes on where the original was"
    replaced = torch.full((4,), 3.0, dtype=torch.bfloat16)
    optimizer.update({"w": replaced}, {"w": torch.ones(4)}, cfg, 1.0)
    assert replaced.float().mean() == 3.0, "other weights are not undone by the old master"


def test_schedule_and_clipping() -> None:
    cfg = replace(CFG, warmup_steps=4)
    assert [learning_rate(cfg, step) for step in (1, 2, 4, 9)] == [0.005, 0.01, 0.02, 0.02]
    assert learning_rate(CFG, 1) == 0.02
    line = replace(CFG, warmup_steps=2, schedule="linear", total_steps=6)
    assert [learning_rate(line, step) for step in range(1, 9)] == pytest.approx(
        [0.01, 0.02, 0.02, 0.015, 0.01, 0.005, 0.0, 0.0]
    )
    curve = replace(line, schedule="cosine")
    assert [learning_rate(curve, step) for step in (3, 5, 7)] == pytest.approx([0.02, 0.01, 0.0])
    with pytest.raises(
        InputError, match="total_steps is 2; a cosine schedule needs more than warmup_steps = 2"
    ):
        replace(curve, total_steps=2)
    norm = global_norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]).item()
    assert norm == 5.0
    assert clip_scale(norm, 1.0) == pytest.approx(0.2, rel=1e-6)
    assert clip_scale(norm, 10.0) == 1.0
    assert clip_scale(norm, 0.0) == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_norm_tells_a_gradient_that_is_not_finite(bad: float) -> None:
    assert not global_norm([torch.ones(3), torch.tensor([1.0, bad])]).isfinite()
