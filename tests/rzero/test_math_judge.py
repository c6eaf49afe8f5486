# SPDX-License-Identifier: Apache-2.0
"""The judge of the task math: shortcuts give math-verify's verdict, and hostile answers harm nobody."""

import os
import signal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hostile_answers import FAMILIES, hostile
from math_verify import verify

from rzero import math_judge
from rzero.grading import COUNTERS, Judge, Limits
from rzero.math_values import far_apart, values_of
from rzero.plain_numbers import same_number


def by_math_verify(a: str, b: str) -> bool:
    one, other = math_judge.parsed(a), math_judge.parsed(b)
    return any(verify(*pair, timeout_seconds=None) for pair in ((one, other), (other, one)))


def a_number(draw: Random) -> str:
    sign, kind = draw.choice(("", "", "-")), draw.randrange(6)
    if kind == 0:
        return sign + "0" * draw.randrange(3) + str(draw.randrange(10 ** draw.randrange(1, 20)))
    if kind == 1:
        return sign + f"{draw.randrange(20)}.{draw.randrange(10 ** draw.randrange(1, 9))}"
    if kind == 2:
        return sign + f"{draw.random() * draw.choice((1, 1000, 1e6)):.{draw.randrange(1, 9)}f}"
    if kind == 3:
        return sign + rf"\frac{{{draw.randrange(30)}}}{{{draw.randrange(1, 30)}}}"
    return sign + f"{draw.randrange(30)}/{draw.randrange(1, 30)}" if kind == 4 else f".{draw.randrange(999)}"


def rewritten(text: str, draw: Random) -> str:
    """About the same number in another writing."""
    top, _, bottom = text.replace(r"\frac{", "").replace("}{", "/").replace("}", "").partition("/")
    value = Fraction(top) / int(bottom or 1)
    kind = draw.randrange(4)
    if kind == 0:
        return f"{float(value):.{draw.randrange(1, 9)}f}"
    if kind == 1:
        return f"{value.numerator}/{value.denominator}"
    if kind == 2:
        return f"{float(value) + draw.uniform(-2e-6, 2e-6):.{draw.randrange(5, 10)}f}"
    return str(round(value))


def test_plain_numbers_are_judged_as_math_verify_does() -> None:
    draw, decided, true = Random(5), 0, 0
    for _ in range(250):
        a = a_number(draw)
        b = rewritten(a, draw) if draw.random() < 0.7 else a_number(draw)
        verdict = same_number(a, b)
        assert same_number(b, a) is verdict
        if verdict is not None and a != b:
            decided, true = decided + 1, true + verdict
            assert verdict is by_math_verify(a, b), (a, b)
    assert decided > 150
    assert 40 < true < decided - 40


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("5", "5.0000001", False),
        (r"\frac{1}{3}", "0.333333", True),
        ("0.1234567", "0.1234568", True),
        ("0.12345649999", "0.12345650001", None),
        ("1.0000000000000000000001", "1", None),
        ("1", "x", None),
        ("1/0", "1", None),
        ("9%", "9", None),
        ("\u0661", "1", None),
    ],
)
def test_what_is_near_a_tie_or_not_plain_is_left_open(a: str, b: str, verdict: bool | None) -> None:
    assert same_number(a, b) is verdict


TERMS = (
    "2\\sqrt{3}", "\\sqrt{12}", "\\frac{\\pi}{4}", "0.785398", "x^2+2x+1", "(x+1)^2", "p-q", "q-p", "e", "x",
    "X", "abc", "a \\cdot b \\cdot c", "9\\%", "9", "0.09", "(1,2)", "[1,2]", "\\{1,2\\}", "2,1", "x=5", "5",
    "y=5", "x>3", "3<x", "\\text{yes}", "yes", "i", "1+i", "\\infty", "\\frac{1}{x}", "x^{-1}",
    "\\sin^2(x)+\\cos^2(x)", "1", "\\ln(8)", "3\\ln(2)", "2^{10}", "1024", "\\frac{0}{0}", "10^{-9}", "0",
)  # fmt: skip


def test_the_shortcut_by_values_gives_math_verifys_verdict() -> None:
    found = true = 0
    draw = Random(7)
    pairs = [*pairwise(TERMS), *(tuple(draw.sample(TERMS, 2)) for _ in range(80))]
    for a, b in pairs:
        verdict = by_math_verify(a, b)
        assert math_judge.same(a, b) is math_judge.same(b, a) is verdict, (a, b)
        true += verdict
        one, other = math_judge.parsed(a), math_judge.parsed(b)
        found += bool(one and other) and far_apart(values_of(one[0]), values_of(other[0]))
    # Both sides must be seen: pairs that the shortcut decides, and pairs that are equal.
    assert found > 40 and true > 8


def test_values_that_are_in_doubt_are_not_given() -> None:
    for text in ("x=5", "9\\%", "x", "\\int_0^1 x dx", "9^{9^{9}}", "\\frac{1}{0}", "7!", "x>3"):
        assert values_of(math_judge.parsed(text)[0]) is None, text


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_three_hundred_hostile_answers_end_and_leave_nothing_behind() -> None:
    answers = hostile(300)
    assert len({name for name, _ in answers}) == len(FAMILIES) >= 30
    before = set(children(os.getpid()))
    judge = Judge("rzero.math_judge:same", workers=2, limits=Limits(cpu_seconds=0.1, memory_mib=1024))
    pairs = [(text, "1") for _, text in answers]
    verdicts = judge.compare(pairs)
    counts = judge.counters()
    assert len(verdicts) == 300
    assert set(counts) == set(COUNTERS)
    known = counts["judged"] + counts["timeouts"] + counts["crashes"] + counts["too_long"]
    assert known == len(set(pairs)) == 300
    assert counts["timeouts"] > 0 and counts["too_long"] > 0
    # The judge still judges, the same way as before, and a pair it gave up on is not tried again.
    assert judge.compare([("0.5", r"\frac{1}{2}"), ("2", "3")]) == [True, False]
    judge.counters()
    assert judge.compare(pairs) == verdicts
    assert judge.counters()["judged"] == judge.counters()["timeouts"] == 0
    workers = [worker.process.pid for worker in judge._workers]
    family = workers + [child for worker in workers for child in children(worker)]
    judge.close()
    assert set(children(os.getpid())) <= before
    for process in family:
        with pytest.raises(ProcessLookupError):
            while True:
                # A child of a killed worker is gone as soon as the system has collected it.
                os.kill(process, 0)
                if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] in "ZX":
                    raise ProcessLookupError
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL
