# SPDX-License-Identifier: Apache-2.0
"""Kills a tiny run at random moments until it has ended all the same; compares it with one left alone.

    python kill_run.py FOLDER KILLS SEED        kill -9 at KILLS moments
    python kill_run.py FOLDER full SEED         a disk that is full at random sizes of a file, then room again

Half of the kills come at a random write (the n-th time that a file of the run is opened for writing,
renamed, cut, made or deleted), half at a random time, which also hits the middle of a write. Every attempt is
a fork of this process, which has imported everything and computed nothing. The last line is JSON.
"""

import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_run import outcome, small

from rzero import loop
from rzero.engine.errors import InputError
from rzero.engine.trainer import Trainer
from rzero.run_folder import read_config

SETTINGS = ("ablation=true", "challenger.kl_reference=phase", "solver.keep_optimizer=true")
WRITES = ("os.rename", "os.truncate", "os.remove", "os.mkdir", "os.rmdir")
FULL, UNEXPECTED = 3, 4


def main() -> None:
    base, what, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # Named, so that its import, which the first step would do, is not done again in every fork.
    assert Trainer
    rng = random.Random(seed)
    alone = base / "alone"
    begin_s = time.monotonic()
    writes = counted(alone)
    alone_s = time.monotonic() - begin_s
    expected = outcome(alone)
    if what == "full":
        found = fill(base, rng, expected)
    else:
        found = kill(base, rng, int(what), (writes, alone_s), expected)
    print(json.dumps({"writes": writes, **found}))


def kill(
    base: Path, rng: random.Random, kills: int, size: tuple[int, float], expected: dict[str, Any]
) -> dict[str, Any]:
    """Kill `kills` times; whenever a run ends all the same, compare it and begin another."""
    writes, alone_s = size
    phases: Counter[str] = Counter()
    folder, ended, left = base / "run-0", 0, kills
    while left or not ended or (folder / "config.yaml").exists():
        # A third of a run, so that one run is killed several times before it ends.
        at_write = rng.randint(1, writes // 3) if left % 2 else None
        after_s = rng.uniform(0.05, 1.0) * alone_s / 2 if left and at_write is None else None
        status = attempt(folder, at_write if left else None, after_s)
        if status == -signal.SIGKILL:
            left -= 1
            phases[phase(folder)] += 1
        else:
            assert status == 0, f"the run failed with status {status}"
            assert outcome(folder) == expected, f"{folder} ended in other bits than the run left alone"
            ended += 1
            folder = base / f"run-{ended}"
    return {"kills": kills, "ended": ended, "phases": dict(phases)}


def fill(base: Path, rng: random.Random, expected: dict[str, Any]) -> dict[str, Any]:
    """Let a run meet a full disk at several sizes, each time with room afterwards; then compare."""
    folder, refusals = base / "run-0", 0
    largest = max(path.stat().st_size for path in (base / "alone").rglob("*") if path.is_file())
    for part in (0.001, rng.uniform(0.01, 0.3), rng.uniform(0.3, 0.99)):
        refusals += attempt(folder, None, None, limit_bytes=int(part * largest)) == FULL
    assert attempt(folder, None, None) == 0
    assert outcome(folder) == expected, "the run ended in other bits than the one left alone"
    return {"refusals": refusals}


def attempt(folder: Path, at_write: int | None, after_s: float | None, limit_bytes: int | None = None) -> int:
    """One process that begins or resumes the run; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        run_and_exit(folder, at_write, limit_bytes)
    timer = threading.Timer(after_s, os.kill, (child, signal.SIGKILL)) if after_s is not None else None
    if timer:
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer:
        timer.cancel()
    return os.waitstatus_to_exitcode(status)


def run_and_exit(folder: Path, at_write: int | None, limit_bytes: int | None) -> None:
    """In the child: begin or resume, perhaps with a limit; never returns."""
    status = UNEXPECTED
    try:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
        if at_write is not None:
            on_write(folder, die_at(at_write))
        begin_or_resume(folder)
        status = 0
    except InputError as error:
        status = FULL if "full" in str(error) or "too large" in str(error) else UNEXPECTED
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


def begin_or_resume(folder: Path) -> None:
    if (folder / "config.yaml").exists():
        loop.resume(folder, read_config(folder))
    else:
        loop.run(small(*SETTINGS), folder)


def counted(folder: Path) -> int:
    """Run without an interruption; the number of its writes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]

        def more() -> None:
            count[0] += 1

        on_write(folder, more)
        begin_or_resume(folder)
        os.write(writing, str(count[0]).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the run that was left alone failed"
    return int(os.read(reading, 20))


def die_at(number: int) -> Callable[[], None]:
    left = [number]

    def write() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return write


def on_write(folder: Path, then: Callable[[], None]) -> None:
    """Call `then` before everything that changes a file below `folder`."""
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_write = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, is_write = (arguments or ("",))[0], event in WRITES
        if is_write and isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(inside):
            then()

    sys.addaudithook(hook)


def phase(folder: Path) -> str:
    """The unit after which a run was killed, as its state tells."""
    for name, path in (("ablation", folder / "ablation"), ("main", folder)):
        record = path / "state" / "state.json"
        if record.exists():
            unit = json.loads(record.read_text())["unit"]
            return f"{name}, after {unit}"
    return "before the first state"


if __name__ == "__main__":
    main()
