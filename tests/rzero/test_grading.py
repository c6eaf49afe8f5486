# SPDX-License-Identifier: Apache-2.0
"""Grading processes: right under attack, killed at their limits, gone when their parent is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rzero.engine.errors import InputError
from rzero.grading import COUNTERS, Judge, Limits

HERE = str(Path(__file__).parent)
LIMITS = Limits(cpu_seconds=0.5, memory_mib=512, chars=50)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("PYTHONPATH", HERE)
    judge = Judge("hostile_judges:same", workers=2, limits=LIMITS)
    yield judge
    judge.close()


def test_verdicts_come_in_order_and_pairs_are_unordered(judge: Judge) -> None:
    pairs = [(f"a{i}", f"A{i}" if i % 2 else f"b{i}") for i in range(200)]
    assert judge.compare(pairs) == [i % 2 == 1 for i in range(200)]
    assert judge.counters()["judged"] == 200
    assert judge.compare([(b, a) for a, b in pairs]) == [i % 2 == 1 for i in range(200)]
    assert judge.counters() == dict.fromkeys(COUNTERS, 0) | {"compared": 200, "cached": 200}


def test_hostile_answers_cost_their_own_verdict_only(judge: Judge) -> None:
    pairs = [("a", "A"), ("loop", "x"), ("b", "B"), ("die", "x"), ("c", "d"), ("memory", "x"), ("e", "E")]
    pairs += [("raise", "x"), ("f", "F"), ("recursion", "x"), ("g", "G")]
    verdicts = judge.compare(pairs)
    assert verdicts == [True, None, True, None, False, None, True, None, True, None, True]
    counts = judge.counters()
    assert (counts["timeouts"], counts["crashes"], counts["kills"]) == (1, 4, 3)
    assert judge.compare([("still", "STILL")]) == [True]


def test_a_worker_that_talks_nonsense_is_replaced(judge: Judge) -> None:
    assert judge.compare([("talk", "x"), ("a", "A")]) == [None, True]
    assert judge.counters()["crashes"] == 1


def test_a_worker_killed_by_others_costs_no_verdict(judge: Judge) -> None:
    for number in range(1000):
        assert judge.compare([(f"a{number}", f"A{number}"), ("b", f"c{number}")]) == [True, False]
        if all(worker.is_ready for worker in judge._workers):
            break
    judge.counters()
    for worker in judge._workers:
        worker.process.kill()
        assert worker.process.stdout is not None
        while worker.process.stdout.read(1) != b"":
            time.sleep(0.01)  # the child that compares dies a moment after its parent
    assert judge.compare([("d", "D"), ("e", "f"), ("g", "G")]) == [True, False, True]
    counts = judge.counters()
    assert counts["crashes"] == 0 and counts["kills"] == 2


def test_a_process_killed_between_two_batches_shifts_no_verdict(judge: Judge) -> None:
    assert judge.compare([("a", "A")]) == [True]
    [worker] = judge._workers
    tasks = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    [child] = tasks.read_text().split()
    os.kill(int(child), signal.SIGKILL)
    while tasks.read_text().split() in ([], [child]):
        time.sleep(0.01)
    pairs = [(f"b{i}", f"B{i}" if i % 3 == 0 else f"c{i}") for i in range(20)]
    assert judge.compare(pairs) == [i % 3 == 0 for i in range(20)]
    assert judge.compare([("d", "D"), ("e", "f")]) == [True, False]
    counts = judge.counters()
    assert (counts["crashes"], counts["kills"]) == (0, 1)


def test_a_worker_killed_at_work_costs_no_verdict(judge: Judge) -> None:
    assert judge.compare([("a", "A")]) == [True]
    [worker] = judge._workers
    killer = threading.Timer(0.2, worker.process.kill)
    killer.start()
    # Judging the first takes until the limit of 0.5 s of processor time, so that the killer comes in between.
    assert judge.compare([("loop", "x"), ("b", "B")]) == [None, True]
    killer.join()
    counts = judge.counters()
    assert (counts["timeouts"], counts["crashes"]) == (1, 0)


def test_long_answers_are_equal_only_as_texts(judge: Judge) -> None:
    long = "9" * 100_000
    assert judge.compare([(long, long), (long, "9" * 99_999), ("", "x"), ("", "")]) == [
        True,
        False,
        False,
        True,
    ]
    assert judge.counters()["too_long"] == 1


def test_odd_texts_survive_the_pipe(judge: Judge) -> None:
    texts = ["\n", "\x00", "\ud800", "é", '"', "\\", "🙂", "ready", "1"]
    assert judge.compare([(text, text + "x") for text in texts]) == [False] * len(texts)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    judge = Judge("hostile_judges:same", workers=1, limits=LIMITS, cache_pairs=2)
    judge.compare([("a", "A"), ("b", "B"), ("c", "C")])
    judge.counters()
    judge.compare([("c", "C"), ("a", "A")])
    assert judge.counters()["cached"] == 1
    judge.close()


def test_a_judge_that_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge("no_such_module:same", workers=1, limits=LIMITS)
    with pytest.raises(InputError, match="no_such_module:same does not start"):
        judge.compare([("a", "b")])
    judge.close()


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX"


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_no_worker_outlives_its_parent() -> None:
    """Killed with -9 in the middle of an endless comparison, the parent leaves nothing behind."""
    program = (
        "import sys; from rzero.grading import COUNTERS, Judge, Limits\n"
        "judge = Judge('hostile_judges:same', workers=2, limits=Limits(cpu_seconds=1000))\n"
        "judge.compare([('a', 'b'), ('c', 'd')])\n"
        "print(*[worker.process.pid for worker in judge._workers], flush=True)\n"
        "judge.compare([('loop', 'x'), ('loop', 'y')])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": HERE}
    )
    assert parent.stdout is not None
    workers = [int(number) for number in parent.stdout.readline().split()]
    assert len(workers) == 2
    until = time.monotonic() + 30
    while len(found := [child for worker in workers for child in children(worker)]) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    workers += found
    assert all(running(worker) for worker in workers)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while any(running(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(running(worker) for worker in workers)
