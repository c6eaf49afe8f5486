# SPDX-License-Identifier: Apache-2.0
"""The memory behind the pages."""

import re
import sys
from pathlib import Path

import pytest
import torch
from small_engine import PARAMS, PROMPTS, small_engine

from rzero.engine.kv_cache import KvCache

LINE_BYTES = 64


def resident_bytes() -> int:
    found = re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_nobody_wrote_take_no_memory() -> None:
    engine = small_engine(num_pages=2**18)
    size = engine._cache.total_bytes
    assert size >= 2**28
    before = resident_bytes()
    engine.generate(PROMPTS, PARAMS)
    assert resident_bytes() - before < size / 8
    keys, values = engine._cache.pages()
    assert sum(x.numel() * x.element_size() for x in (*keys, *values)) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_are_zeros_on_cache_lines_and_zeros_again(dtype: torch.dtype) -> None:
    config = small_engine().config
    cache = KvCache(config, 3, 4, dtype, torch.device("cpu"), spare_slots=5)
    for _ in range(2):
        for page in (*cache.pages()[0], *cache.pages()[1]):
            assert page.shape == (5, 4, config.kv_heads, config.head_size) and page.dtype is dtype
            assert page.data_ptr() % LINE_BYTES == 0 and not page.any()
            page.fill_(7)
        cache.release()
