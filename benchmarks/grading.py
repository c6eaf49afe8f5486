# SPDX-License-Identifier: Apache-2.0
"""Comparisons a second of the judge of the task math, after warm-up: python benchmarks/grading.py

Ordinary: votes on questions as they come in training, ten answers to each, of which most are numbers and the
rest fractions, roots, terms and tuples; answers repeat over the run, pairs do not. Hard: different terms that
no shortcut decides by their form. The last line of the output is one JSON object.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

from rzero.tasks.math import Math

TERMS = (
    r"\sqrt{#}", r"#\sqrt{#}", r"\frac{#}{#}", r"\frac{\sqrt{#}}{#}", r"#\pi", r"x^2+#x+#", r"2^{#}-#",
    r"\frac{#\pi}{#}", r"n(n+#)", r"#+#i", r"(#,#)", r"\{#,#\}", r"x=#", r"[#,#)",
)  # fmt: skip
NUMBER_SHARE = 0.8


def number(draw: Random) -> str:
    """What most answers are."""
    kind = draw.randrange(10)
    if kind < 7:
        return str(draw.randrange(-50, 2000))
    return f"{draw.randrange(100)}.{draw.randrange(1, 100)}" if kind < 9 else f"{draw.randrange(1, 99):,}000"


def term(draw: Random) -> str:
    parts = draw.choice(TERMS).split("#")
    return parts[0] + "".join(str(draw.randrange(2, 13)) + part for part in parts[1:])


def questions(draw: Random, count: int, make: Callable[[Random], str]) -> list[tuple[str, str]]:
    """Pairs as a vote asks for them: the first of ten answers against those that are written differently."""
    pairs = []
    for _ in range(count):
        answers = list(dict.fromkeys(make(draw) for _ in range(10)))
        pairs += [(answers[0], other) for other in answers[1:]]
    return pairs


def ordinary(draw: Random) -> str:
    return number(draw) if draw.random() < NUMBER_SHARE else term(draw)


def processor_s(process: int) -> float:
    """Processor time of a process and its children, which tells the cost also on a busy machine (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_s(int(child)) for child in children)


def measured(task: Math, pairs: list[tuple[str, str]], least_s: float) -> dict[str, float]:
    """Comparisons, per second and per second of one core."""
    task.counters()
    begin_s, spent_s, done, batch = time.monotonic(), processor_s(os.getpid()), 0, 512
    while done < len(pairs) and time.monotonic() - begin_s < least_s:
        done += len(task.same_many(pairs[done : done + batch]))
    counters = task.counters()
    return {
        "comparisons": done,
        "per_s": round(done / (time.monotonic() - begin_s)),
        "per_core_s": round(done / (processor_s(os.getpid()) - spent_s)),
        "judged": counters["judged"],
        "undecided": counters["timeouts"] + counters["crashes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    least_s = parser.parse_args().seconds
    draw = Random(0)
    with closing(Math()) as task:
        # Warm: processes started, every term of the measurement parsed once by some worker.
        task.same_many(questions(draw, 600, term))
        results = {
            "ordinary": measured(task, questions(draw, 20_000, ordinary), least_s),
            "hard": measured(task, questions(draw, 2_000, term), least_s),
        }
    print(json.dumps({"benchmark": "grading", **results, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
