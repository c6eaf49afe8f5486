# SPDX-License-Identifier: Apache-2.0
"""AdamW with moments of a byte, by bitsandbytes: near torch's, as small as planned, restored exactly."""

from dataclasses import replace
from importlib import util
from importlib.resources import files
from typing import Any

import pytest
import torch
from plain import CPU
from torch import Tensor

from rzero.engine import Engine, InputError, SamplingParams, TrainConfig, TrainGroup
from rzero.engine.memory import MemoryRequest, moments_bytes
from rzero.engine.optimizer_8bit import SMALLEST, AdamW8bit
from rzero.kernels import resolve

CFG = TrainConfig(learning_rate=0.01, weight_decay=0.1)
SHAPE = (70, 60)  # no multiple of a block


def start(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, generator=generator).to(dtype) for name, n in (("w", SHAPE), ("norm", (7,)))}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    # A slope that stays, so that the moments have something to remember.
    return {name: 1.0 + torch.randn(p.shape, generator=generator) for name, p in start().items()}


def test_updates_are_near_those_of_torch_in_a_quarter_of_the_memory() -> None:
    params, ours = start(), AdamW8bit(resolve(CPU))
    copies = {name: p.clone().requires_grad_() for name, p in params.items()}
    theirs = torch.optim.AdamW(list(copies.values()), lr=0.01, weight_decay=0.1)
    for step in range(1, 21):
        for name, grad in gradients(step).items():
            copies[name].grad = grad * 0.5
        theirs.step()
        ours.update(params, gradients(step), CFG, 0.5)
    first = start()
    for name, p in params.items():
        moved, expected = p - first[name], copies[name].detach() - first[name]
        apart = (moved - expected).norm() / expected.norm()
        assert apart < (0.02 if name == "w" else 1e-5), (name, apart)
    held = sum(t.nbytes for name, t in ours.state().items() if isinstance(t, Tensor) and ".w" in name)
    request = MemoryRequest(dtype=torch.float32, optimizer="adamw_8bit")
    assert held == moments_bytes(request, first["w"].numel())
    assert held < 0.26 * moments_bytes(replace(request, optimizer="adamw"), first["w"].numel())
    assert first["w"].numel() >= SMALLEST > first["norm"].numel()


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    params, whole = start(torch.bfloat16), AdamW8bit(resolve(CPU))
    for step in range(1, 4):
        whole.update(params, gradients(step), CFG, 1.0)
    kept = {name: t.clone() if isinstance(t, Tensor) else t for name, t in whole.state().items()}
    copies = {name: p.clone() for name, p in params.items()}
    again = AdamW8bit(resolve(CPU))
    again.load(kept, copies)
    for step in range(4, 7):
        whole.update(params, gradients(step), CFG, 1.0)
        again.update(copies, gradients(step), CFG, 1.0)
    assert all(torch.equal(copies[name], p) for name, p in params.items())
    with pytest.raises(InputError, match="exp_avg"):
        again.load({"step": 1, "exp_avg.w": torch.zeros(SHAPE)}, copies)


def test_the_engine_trains_with_it() -> None:
    tiny = str(files("rzero") / "models" / "tiny")
    params = SamplingParams(n=4, max_tokens=8, temperature=1.0, seed=1)
    with Engine(tiny, dtype="bfloat16", max_model_len=64, optimizer="adamw_8bit") as engine:
        engine.fork("solver")
        [output] = engine.generate([[1, 2, 3]], params, role="solver")
        group = TrainGroup(output.prompt_token_ids, output.samples, rewards=[1.0, 0.0, 0.0, 0.5])
        metrics = engine.train_step("solver", [group], TrainConfig(learning_rate=1e-3, kl_coef=0.0))
        assert metrics["updates"] == 1
        state = engine.training_state("solver")
        types = {
            t.dtype for name, t in state.items() if isinstance(t, Tensor) and name.startswith("exp_avg.")
        }
        assert types == {torch.uint8, torch.float32}, "matrices are quantized, norms are not"
        engine.load_training_state("solver", state)


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = "unused"
    with pytest.raises(InputError, match="optimizer is 'adam'; it must be one of adamw, adamw_8bit"):
        Engine(model, optimizer="adam")  # type: ignore[arg-type]
    monkeypatch.setattr("rzero.engine.optimizer_8bit.find_spec", lambda name: None)
    assert util.find_spec("bitsandbytes") is not None
    with pytest.raises(InputError, match=r"needs bitsandbytes: pip install bitsandbytes"):
        Engine(model, optimizer="adamw_8bit")
    monkeypatch.undo()
    with pytest.raises(InputError, match="float64"):
        AdamW8bit(resolve(CPU)).update({"w": start()["w"].double()}, gradients(1), CFG, 1.0)
