# SPDX-License-Identifier: Apache-2.0
"""The tensors behind the pages: keys and values of every layer, made on first use and given back between
phases.
"""

import math
import mmap
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError

FREE_SHARE = 0.4
"""The cache takes at most this share of the free memory unless told otherwise; training needs the rest."""


class KvCache:
    """Per layer one tensor [P, S, G, E] of keys and one of values; page p is index p in all of them."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare_slots: int = 0,
    ) -> None:
        """spare_slots: places behind the pool's pages, for rows of a step that stand for nothing."""
        pages = num_pages + -(-spare_slots // page_size)
        self.num_pages, self.page_size = num_pages, page_size
        self.spare = np.arange(num_pages * page_size, num_pages * page_size + spare_slots)
        """Their numbers."""
        self.total_bytes = pages * page_size * config.kv_bytes_per_token(dtype.itemsize)
        self._layers, self._dtype, self._device = config.layers, dtype, device
        self._shape = (pages, page_size, config.kv_heads, config.head_size)
        self._pages: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def is_allocated(self) -> bool:
        return self._pages is not None

    def pages(self) -> tuple[list[Tensor], list[Tensor]]:
        """Key and value pages of all layers, zeros at first."""
        if self._pages is None:
            keys, values = (
                [_zeros(self._shape, self._dtype, self._device) for _ in range(self._layers)]
                for _ in range(2)
            )
            self._pages = keys, values
        return self._pages

    def release(self) -> None:
        """Give the memory back; whatever the pages held is gone."""
        self._pages = None


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU, memory that the system gives piece by piece on first write: torch.zeros writes all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size, how = math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    content = np.frombuffer(mmap.mmap(-1, size, flags=how), np.uint8)
    return torch.from_numpy(content).view(dtype).view(shape)


def choose_num_pages(
    page_bytes: int, num_pages: int | None, kv_cache_bytes: int | None, wanted: int, device: torch.device
) -> int:
    """Pages of the pool: as asked for, else `wanted` as far as a share of the free memory allows."""
    if num_pages is not None and kv_cache_bytes is not None:
        raise InputError(
            f"num_pages is {num_pages} and kv_cache_bytes is {kv_cache_bytes}: give only one of them"
        )
    if num_pages is not None:
        if num_pages < 1:
            raise InputError(f"num_pages is {num_pages}; it must be at least 1")
        return num_pages
    if kv_cache_bytes is not None:
        if kv_cache_bytes < page_bytes:
            raise InputError(f"kv_cache_bytes is {kv_cache_bytes}; one page takes {page_bytes} bytes")
        return kv_cache_bytes // page_bytes
    return max(1, min(wanted, int(FREE_SHARE * free_bytes(device)) // page_bytes))


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on the device now, a container's limit included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = 2**33
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else free
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free
