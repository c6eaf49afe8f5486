# SPDX-License-Identifier: Apache-2.0
"""Every instruction set that was built and can run here, one after the other; the number of threads."""

from collections.abc import Iterator

import pytest
import torch

from rzero.kernels.native import lib


@pytest.fixture(params=lib.instruction_sets() if lib is not None else ())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = lib.instruction_set()
    lib.use_instruction_set(request.param)
    yield request.param
    lib.use_instruction_set(before)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
