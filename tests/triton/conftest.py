# SPDX-License-Identifier: Apache-2.0
"""Triton kernels under the strict interpreter, in a process whose triton never compiles."""

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("needs TRITON_INTERPRET=1 and a process of its own: make test-gpu-code")

import strict
import torch


@pytest.fixture(scope="session", autouse=True)
def strict_interpreter() -> Iterator[None]:
    """See strict.py. What torch.empty gives is NaN, so an output that no program writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with pytest.MonkeyPatch.context() as patch:
        strict.install(patch)
        yield
    torch.use_deterministic_algorithms(before)
