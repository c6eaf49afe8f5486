# SPDX-License-Identifier: Apache-2.0
"""The doctor: everything it promises is there, and the memory plan follows the settings."""

import pytest
import torch

from rzero.config import load_config
from rzero.doctor import Section, dtype_row, examine, kernels, memory, numerics_row, torch_device
from rzero.engine.errors import InputError
from rzero.kernels import OPS
from rzero.kernels.native import lib

CPU = torch.device("cpu")


def section(sections: list[Section], title: str) -> dict[str, str]:
    return dict(next(one.rows for one in sections if one.title.startswith(title)))


def test_all_sections_are_there() -> None:
    found = examine(model="tiny", preset="tiny", device="cpu", dtype="auto")
    assert section(found, "versions")["torch"] == torch.__version__
    assert "threads" in section(found, "devices")["cpu"]
    assert set(section(found, "kernels")) == {op.name for op in OPS}
    assert section(found, "memory")["at most at a time"].endswith(("GiB", "MiB"))


def test_every_kernel_that_is_not_native_has_a_reason_or_no_other() -> None:
    for op in OPS:
        text = dict(kernels(CPU))[op.name]
        assert text.split()[0] in op.backends
        if text.split()[0] == "ref" and len(op.backends) > 1:
            assert "(" in text


def test_number_type_is_given_with_its_reason() -> None:
    assert dtype_row("fp32", CPU) == ("float32", "asked for")
    assert dtype_row("auto", CPU)[1].startswith("the CPU has")


def test_memory_plan_follows_the_settings() -> None:
    full = dict(memory(load_config("tiny"), "fp32", CPU))
    lora = dict(memory(load_config("tiny", options={"roles": "lora"}), "fp32", CPU))
    assert "weights: solver" in full
    assert "adapters: solver" in lora
    assert "weights: solver" not in lora


def test_a_plan_says_whether_a_run_would_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dict(memory(load_config("tiny"), "fp32", CPU))
    assert "a run begins" in rows and rows["free now"].endswith("GiB")
    for module in ("doctor", "memory_plan"):
        monkeypatch.setattr(f"rzero.{module}.free_bytes", lambda device: 2**20)
    rows = dict(memory(load_config("tiny"), "fp32", CPU))
    assert "a run begins" not in rows and "micro_batch_tokens" in rows["a run is refused"]


def test_numerics_are_given_with_their_reason() -> None:
    assert numerics_row(CPU)[0] == ("exact" if lib is not None else "fast")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="device"):
        torch_device(name)
