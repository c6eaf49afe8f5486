# SPDX-License-Identifier: Apache-2.0
"""A run is planned before it begins, and one that cannot fit is refused before anything is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small

from rzero import loop
from rzero.config import load_config
from rzero.engine import Engine
from rzero.engine.errors import InputError
from rzero.engine.memory import MemoryPlan, Part
from rzero.memory_plan import require_memory, run_plan
from rzero.observer import Observer

MIB = 2**20


def test_sampling_and_training_take_turns_with_what_is_not_always_there() -> None:
    always = Part("weights", 10 * MIB)
    plan = MemoryPlan((always, Part("pages", 5 * MIB, "sampling"), Part("activations", 7 * MIB, "training")))
    assert plan.peak_bytes == 17 * MIB
    assert dict(plan.rows()) == {
        "weights": "10.00 MiB",
        "pages, while sampling": "5.00 MiB",
        "activations, while training": "7.00 MiB",
        "at most at a time": "17.00 MiB",
    }


def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_config("tiny")
    plan = run_plan(settings, torch.float32)
    pages = plan.bytes_of("kv pages")
    assert pages > 0
    monkeypatch.setattr("rzero.memory_plan.free_bytes", lambda device: MIB)
    with pytest.raises(InputError, match=r"memory: .* are needed and 1\.00 MiB are available.*roles: lora"):
        loop.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    without_check = settings.engine.model_copy(update={"check_memory": False})
    require_memory(settings.model_copy(update={"engine": without_check}))


def test_a_page_pool_counts_only_where_its_size_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    free = run_plan(load_config("tiny", options={"engine": {"dtype": "fp32"}}), torch.float32).peak_bytes
    monkeypatch.setattr("rzero.memory_plan.free_bytes", lambda device: free)
    require_memory(load_config("tiny", options={"engine": {"dtype": "fp32"}}))
    with pytest.raises(InputError, match="largest part is kv pages"):
        require_memory(load_config("tiny", options={"engine": {"dtype": "fp32", "kv_cache_gib": 64.0}}))


def test_an_evaluation_needs_no_memory_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config("tiny", options={"engine": {"dtype": "fp32"}})
    plan = run_plan(settings, torch.float32, trains=False)
    assert {part.name for part in plan.parts} == {"weights: base", "kv pages", "logits"}
    needed = plan.peak_bytes - plan.bytes_of("kv pages")
    monkeypatch.setattr("rzero.memory_plan.free_bytes", lambda device: needed)
    require_memory(settings, trains=False)
    with pytest.raises(InputError, match="roles: lora"):
        require_memory(settings)
    monkeypatch.setattr("rzero.memory_plan.free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError, match="--max-seqs"):
        require_memory(settings, trains=False)


@pytest.mark.parametrize("roles", ["full", "single"])
def test_the_plan_counts_the_tensors_that_a_run_holds(roles: str, tmp_path: Path) -> None:
    settings = small(f"roles={roles}", "iterations=2", "engine.dtype=fp32", "solver.kl_reference=phase")
    held = HeldTensors()
    with loop.engine_of(settings) as engine:
        held.engine = engine
        loop._main_and_ablation(engine, tmp_path / "run", settings, held)
    plan = run_plan(settings, torch.float32)
    weights = sum(part.bytes for part in plan.parts if part.name.startswith("weights: "))
    assert held.weights == weights and held.optimizer == plan.bytes_of("optimizer: moments")


class HeldTensors(Observer):
    """The most bytes that the roles' tensors and optimizer states hold after any unit, each tensor once."""

    engine: Engine
    weights = optimizer = 0

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        roles = self.engine.weights.roles
        tensors = {id(t): t.nbytes for role in roles for _, t in self.engine.weights.named_tensors(role)}
        states = [
            t
            for role in roles
            for t in self.engine.training_state(role).values()
            if isinstance(t, torch.Tensor)
        ]
        self.weights = max(self.weights, sum(tensors.values()))
        self.optimizer = max(self.optimizer, sum(t.nbytes for t in states))


def test_bytes_for_moments_make_the_plan_smaller() -> None:
    small = load_config("tiny", options={"engine": {"optimizer": "adamw_8bit"}})
    planned = [
        run_plan(c, torch.float32).bytes_of("optimizer: moments") for c in (small, load_config("tiny"))
    ]
    assert 0.25 * planned[1] < planned[0] < 0.26 * planned[1]
