# SPDX-License-Identifier: Apache-2.0
"""Timing of functions in turn, the ceilings that they are held against, and the memory that they take."""

import ctypes
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

SHORTEST_S = (
    3e-3  # a sample is as many calls as take this long: far above the clock's error, within a time slice
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class Case(NamedTuple):
    """One op at one size: `work` is the bytes moved or floating-point operations done by one call.

    `functions` are timed in turn, our own first. `shown` adds figures of the case's own after the timing.
    """

    op: str
    size: str
    dtype: str
    unit: str
    """GB/s, GFLOP/s, or anything else, which has no ceiling."""
    work: float
    functions: Mapping[str, Callable[[], object]]
    targets: tuple[str, ...] = ()
    shown: Callable[[], Mapping[str, object]] | None = None
    scale: Mapping[str, float] | None = None
    """How many times a peer's work fits into ours, where the peer runs on a part."""


class Budget(NamedTuple):
    """Rounds of one case: all of `rounds`, but no new one after `seconds`."""

    rounds: int
    seconds: float
    is_cpu_time: bool = False
    """Count the CPU time of this thread: steadier than the clock where others use the machine."""


def copy_case(mib: int, device: torch.device) -> tuple[float, Callable[[], object]]:
    """Bytes read and written by one copy, and the copy, torch's own: the ceiling of memory-bound ops."""
    source = torch.ones(mib << 18, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() * source.element_size(), lambda: target.copy_(source)


def product_case(n: int, device: torch.device) -> tuple[float, Callable[[], object]]:
    """Operations of one matrix product, and the product: float32 on a CPU, bfloat16 on a GPU."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3, lambda: torch.mm(a, b, out=out)


def sample_s(function: Callable[[], object], calls: int, device: torch.device, is_cpu_time: bool) -> float:
    """Seconds of one call, averaged over `calls` of them."""
    now = time.thread_time if is_cpu_time else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(now() - start, 1e-9) / calls


def in_turn(
    functions: Mapping[str, Callable[[], object]], budget: Budget, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of each function in each round; a round times every one of them once.

    Each is called once before, unless that call alone has used up the budget: then it is the only round.
    """
    now = time.thread_time if budget.is_cpu_time else time.perf_counter
    begin = now()
    first = {name: sample_s(function, 1, device, budget.is_cpu_time) for name, function in functions.items()}
    if now() - begin > budget.seconds:
        return {name: [seconds] for name, seconds in first.items()}
    calls = {name: max(1, int(SHORTEST_S / seconds)) for name, seconds in first.items()}
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(budget.rounds):
        for name, function in functions.items():
            taken[name].append(sample_s(function, calls[name], device, budget.is_cpu_time))
        if now() - begin > budget.seconds:
            break
    return taken


@contextmanager
def kept_memory(is_kept: bool = True) -> Iterator[None]:
    """Freed blocks stay with the process, as the small ones of an engine's steps do.

    By default glibc gives blocks above 32 MiB back at once, and every large result would be timed with the
    page faults of fresh memory, ours and torch's alike. Elsewhere than on glibc nothing changes.
    """
    c = ctypes.CDLL(None)
    if not is_kept or platform.libc_ver()[0] != "glibc":
        yield
        return
    c.mallopt(M_MMAP_MAX, 0)
    c.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        c.mallopt(M_MMAP_MAX, 1 << 16)
        c.mallopt(M_TRIM_THRESHOLD, 1 << 20)
        c.malloc_trim(0)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """How far the memory in use rises above where it was while `function` runs; None where nobody counts.

    On a CPU this is resident memory as Linux sees it, so it takes `kept_memory(False)`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5", encoding="utf-8")  # 5: forget the highest resident size so far
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/self/status has no {name}")
