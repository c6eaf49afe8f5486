# SPDX-License-Identifier: Apache-2.0
"""A run is planned before it begins, and one that cannot fit is refused before anything is written."""

from pathlib import Path

import pytest
import torch

from rzero import loop
from rzero.config import load_config
from rzero.engine.errors import InputError
from rzero.engine.memory import MemoryPlan, Part
from rzero.memory_plan import require_memory, run_plan

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


def test_bytes_for_moments_make_the_plan_smaller() -> None:
    small = load_config("tiny", options={"engine": {"optimizer": "adamw_8bit"}})
    planned = [
        run_plan(c, torch.float32).bytes_of("optimizer: moments") for c in (small, load_config("tiny"))
    ]
    assert 0.25 * planned[1] < planned[0] < 0.26 * planned[1]
