# SPDX-License-Identifier: Apache-2.0
"""A judge in processes that can be killed: equality of untrusted answers under limits of time and memory.

Workers are started as plain commands and spoken to through pipes: nothing is forked from a program with
threads, and the user's main module is not imported again. A worker loads the judge once and compares in a
child that it forks, so a comparison which exceeds a limit costs a fork and not a new start; its pair has the
verdict None. Workers and their children end with the process that started them, however that ends.

A worker has one batch of pairs at a time and says one verdict a line, so the pair at which a child died is
the first without a verdict. Where the worker itself died, which only others bring about (the system when
memory runs out), its pairs are judged by a new one; a pair at which two workers died has no verdict.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from rzero.engine.errors import InputError

Pair = tuple[str, str]

# A busy machine may be this much slower than its processor time says; beyond it a worker counts as stuck.
CLOCK_FACTOR = 20.0
START_LIMIT_S = 300.0
# Most pairs of one message: enough to hide the pipe's latency, few enough that workers finish together.
BATCH = 64
COUNTERS = ("compared", "cached", "too_long", "judged", "timeouts", "crashes", "kills")


class Limits(NamedTuple):
    """What one comparison may take."""

    cpu_seconds: float = 5.0
    """processor time"""
    memory_mib: int = 2048
    """address space of a worker"""
    chars: int = 1000
    """longer answers are not judged; they are equal only if they are the same text"""


LIMITS = Limits()


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    is_ready: bool = False
    has_begun: bool = False
    """It has read what is pending."""
    pending: deque[Pair] = field(default_factory=deque)
    unread: bytes = b""


class _Broken(Exception):
    """A worker that cannot go on: gone, or saying what no worker says."""

    def __init__(self, is_gone: bool) -> None:
        self.is_gone = is_gone


class Judge:
    """Verdicts of `function` ("module:name", two texts to a bool) on pairs of texts, cached.

    Pairs are unordered: (a, b) and (b, a) are one. Processes start with the first pair that needs one.
    """

    def __init__(
        self, function: str, workers: int = 2, limits: Limits = LIMITS, cache_pairs: int = 100_000
    ) -> None:
        self._function, self._limits = function, limits
        self._count, self._cache_pairs = workers, cache_pairs
        self._workers: list[_Worker] = []
        self._survived: set[Pair] = set()
        self._cache: OrderedDict[Pair, bool | None] = OrderedDict()
        self._counts = dict.fromkeys(COUNTERS, 0)

    def compare(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """A verdict per pair, in order: True, False, or None where a limit was exceeded."""
        keys = [(a, b) if a <= b else (b, a) for a, b in pairs]
        self._counts["compared"] += len(keys)
        verdicts: dict[Pair, bool | None] = {}
        wanted = []
        for key in dict.fromkeys(keys):
            if key[0] == key[1]:
                verdicts[key] = True
            elif max(map(len, key)) > self._limits.chars:
                verdicts[key] = False
                self._counts["too_long"] += 1
            elif key in self._cache:
                self._cache.move_to_end(key)
                verdicts[key] = self._cache[key]
                self._counts["cached"] += 1
            else:
                wanted.append(key)
        for key, verdict in self._judge(wanted).items():
            verdicts[key] = self._cache[key] = verdict
        while len(self._cache) > self._cache_pairs:
            self._cache.popitem(last=False)
        return [verdicts[key] for key in keys]

    def counters(self) -> dict[str, float]:
        """Counts since the last call.

        compared: pairs asked for. Of the different ones, cached: known from before, too_long: not judged,
        judged: decided by a worker; timeouts and crashes (memory, recursion, a judge that died) have the
        verdict None. kills: processes that did not survive their pair.
        """
        counts = {name: float(count) for name, count in self._counts.items()}
        self._counts = dict.fromkeys(self._counts, 0)
        return counts

    def close(self) -> None:
        """End the workers; the next pair would start new ones."""
        for worker in self._workers:
            _kill(worker)
        self._workers = []

    def _judge(self, pairs: Sequence[Pair]) -> dict[Pair, bool | None]:
        verdicts: dict[Pair, bool | None] = {}
        waiting = deque(pairs)
        self._survived.clear()
        try:
            while len(verdicts) < len(pairs):
                while len(self._workers) < min(self._count, len(pairs)):
                    self._workers.append(self._start())
                for worker in self._workers:
                    self._feed(worker, waiting)
                self._collect(verdicts, waiting)
        except BaseException:
            # Ctrl-C in between: replies to pairs of this call must not be taken for those of the next.
            self.close()
            raise
        return verdicts

    def _start(self) -> _Worker:
        limits = [str(self._limits.cpu_seconds), str(self._limits.memory_mib)]
        command = [sys.executable, "-m", "rzero.grading_worker", self._function, *limits]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return _Worker(process, time.monotonic() + START_LIMIT_S)

    def _feed(self, worker: _Worker, waiting: deque[Pair]) -> None:
        """The next batch for a worker that has none: a share of what waits, so that all end together."""
        if worker.pending or not worker.is_ready or not waiting:
            return
        count = min(BATCH, -(-len(waiting) // (2 * self._count)))
        worker.pending = deque(waiting.popleft() for _ in range(count))
        worker.has_begun = False
        worker.deadline = self._deadline()
        assert worker.process.stdin is not None
        left = memoryview((json.dumps(list(worker.pending)) + "\n").encode())
        # A worker that died breaks the pipe; _collect finds out and has these pairs judged again.
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(worker.process.stdin.fileno(), left) :]

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.cpu_seconds * CLOCK_FACTOR

    def _collect(self, verdicts: dict[Pair, bool | None], waiting: deque[Pair]) -> None:
        """Take what the workers say next, or let the nearest deadline pass."""
        busy = [worker for worker in self._workers if worker.pending or not worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            nearest = min(worker.deadline for worker in busy)
            ready = [key.data for key, _ in selector.select(max(0.0, nearest - time.monotonic()))]
        for worker in ready:
            try:
                self._read(worker, verdicts, waiting)
            except _Broken as broken:
                self._replace(worker, "crashes", verdicts, waiting, is_innocent=broken.is_gone)
        now = time.monotonic()
        for worker in [w for w in busy if w not in ready and w.deadline <= now]:
            self._replace(worker, "timeouts", verdicts, waiting, is_innocent=not worker.has_begun)

    def _read(self, worker: _Worker, verdicts: dict[Pair, bool | None], waiting: deque[Pair]) -> None:
        """Take the verdicts that are there; raises _Broken for a worker that is gone or talks nonsense."""
        assert worker.process.stdout is not None
        part = worker.process.stdout.read(1 << 16)
        if not part:
            raise _Broken(is_gone=True)
        *lines, worker.unread = (worker.unread + part).split(b"\n")
        for line in lines:
            if line == b"ready" and not worker.is_ready:
                worker.is_ready = True
            elif line == b"begin" and worker.pending and not worker.has_begun:
                worker.has_begun = True
            elif line in (b"0", b"1") and worker.has_begun and worker.pending:
                verdicts[worker.pending.popleft()] = line == b"1"
                self._counts["judged"] += 1
            elif line == b"?" and worker.has_begun and worker.pending:
                verdicts[worker.pending.popleft()] = None
                self._counts["crashes"] += 1
            elif line in (b"timeout", b"crash") and not worker.has_begun:
                self._counts["kills"] += 1  # between two batches; the next process reads what is pending
            elif line in (b"timeout", b"crash") and worker.pending:
                self._give_up("timeouts" if line == b"timeout" else "crashes", worker, verdicts, waiting)
            else:
                raise _Broken(is_gone=False)
            worker.deadline = self._deadline()

    def _give_up(
        self, reason: str, worker: _Worker, verdicts: dict[Pair, bool | None], waiting: deque[Pair]
    ) -> None:
        """The pair a worker's process was at has no verdict; the rest of its batch waits again."""
        self._counts[reason] += 1
        self._counts["kills"] += 1
        if worker.pending:
            verdicts[worker.pending.popleft()] = None
        waiting.extendleft(reversed(worker.pending))
        worker.pending.clear()

    def _replace(
        self,
        worker: _Worker,
        reason: str,
        verdicts: dict[Pair, bool | None],
        waiting: deque[Pair],
        is_innocent: bool = False,
    ) -> None:
        """End a worker. The pair it was at has another try if it `is_innocent`, but only one."""
        _kill(worker)
        self._workers.remove(worker)
        if not worker.is_ready:
            raise InputError(f"a grading process for {self._function} does not start; its error is above")
        if is_innocent and worker.pending and worker.pending[0] not in self._survived:
            self._survived.add(worker.pending[0])
            self._counts["kills"] += 1
            waiting.extendleft(reversed(worker.pending))
            return
        self._give_up(reason, worker, verdicts, waiting)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            pipe.close()
