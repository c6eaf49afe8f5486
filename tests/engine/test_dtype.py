# SPDX-License-Identifier: Apache-2.0
"""The number type follows the machine, or what was asked for."""

import platform
from pathlib import Path

import pytest
import torch
from hf_models import CPU

from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_asked_for_is_taken(name: str, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU) == (dtype, "asked for")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 processor")
def test_the_default_follows_the_processor() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    is_fast = any(flag in text for flag in ("avx512_bf16", "amx_bf16"))
    dtype, reason = choose_dtype("auto", CPU)
    assert dtype == (torch.bfloat16 if is_fast else torch.float32) and "bf16" in reason


def test_other_names_are_refused() -> None:
    with pytest.raises(InputError, match="dtype 'int8' is not known"):
        choose_dtype("int8", CPU)
