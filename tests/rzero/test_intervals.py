# SPDX-License-Identifier: Apache-2.0
"""Intervals and paired tests, against textbook numbers and the normal distribution."""

from statistics import NormalDist, mean, stdev

import pytest

from rzero.intervals import bootstrap, mcnemar, paired, wilson


def test_wilson() -> None:
    assert wilson(0, 0) == [0.0, 1.0]
    assert wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)


def test_bootstrap_is_the_same_every_time_and_holds_the_mean() -> None:
    values = [0.0, 0.25, 1.0, 0.5] * 10
    low, high = bootstrap(values, 1)
    assert [low, high] == bootstrap(values, 1)
    assert low < sum(values) / len(values) < high


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    values = [((37 * i) % 101) / 100 for i in range(200)]
    half = 1.96 * stdev(values) / 200**0.5
    low, high = bootstrap(values, 1)
    assert low == pytest.approx(mean(values) - half, abs=0.1 * half)
    assert high == pytest.approx(mean(values) + half, abs=0.1 * half)


@pytest.mark.parametrize("shift", [0.03, 0.05, -0.05])
def test_paired_bootstrap_has_the_p_and_the_interval_of_the_normal_test(shift: float) -> None:
    first = [((37 * i) % 101) / 100 for i in range(200)]
    second = [((53 * i + 11) % 101) / 100 - shift for i in range(200)]
    apart = [x - y for x, y in zip(first, second, strict=True)]
    error = stdev(apart) / 200**0.5
    found = paired(first, second, 1)
    assert found.difference == pytest.approx(mean(apart))
    assert found.p == pytest.approx(2 * NormalDist().cdf(-abs(mean(apart)) / error), rel=0.15)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1) and low < mean(apart) < high


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (9, 1, 22 / 1024), (1, 9, 22 / 1024)],
)
def test_mcnemar_is_the_fair_coin(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p)


def test_mcnemar_goes_over_into_the_normal_tail() -> None:
    assert mcnemar(1040, 960) == pytest.approx(mcnemar(1040, 961), rel=0.1)


def test_paired_names_its_test() -> None:
    greedy = paired([1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], 1)
    assert greedy.test == "McNemar, exact"
    assert (greedy.only_first, greedy.only_second, greedy.problems) == (5, 1, 7)
    assert greedy.difference == pytest.approx(4 / 7)
    assert greedy.p == pytest.approx(mcnemar(5, 1))
    shares = paired([0.5, 0.75, 1.0] * 20, [0.25, 0.5, 0.75] * 20, 1)
    assert shares.test.startswith("paired bootstrap")
    assert shares.p == pytest.approx(1 / 2000)
    assert shares.interval == pytest.approx([0.25, 0.25])
    assert paired([0.5, 0.2], [0.5, 0.2], 1).p == 1.0
    assert paired([], [], 1).problems == 0


def test_one_problem_says_nothing_about_others() -> None:
    low, high = bootstrap([0.25], 1)
    assert low < 0.05 and high > 0.8
    assert bootstrap([1.0] * 30, 1) == wilson(30, 30)
    alone = paired([0.5], [0.25], 1)
    assert alone.p == 1.0 and alone.interval == [-1.0, 1.0]
    # Three that gain: a fair coin falls so one time in four.
    assert paired([0.5, 0.75, 0.6], [0.25, 0.5, 0.5], 1).p == pytest.approx(0.25)
