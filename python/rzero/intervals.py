# SPDX-License-Identifier: Apache-2.0
"""Intervals and paired tests for accuracies.

A share of problems has Wilson's interval. A mean over answers that depend on each other has the percentile
bootstrap over problems. Two models on the same problems: McNemar's exact test where each problem is right or
wrong (greedy), and the paired bootstrap over problems where it has a share of right answers (mean@k).
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rzero.seeds import generator

BOOTSTRAP_REPETITIONS = 2000
Z_95 = 1.959964
# Above this many discordant pairs the exact sum is replaced by the normal distribution's tail.
EXACT_PAIRS = 2000


class Paired(NamedTuple):
    """One model against another on the same problems."""

    test: str
    problems: int
    difference: float
    """mean of the first minus mean of the second"""
    interval: list[float]
    """95% percentile interval of the difference, by the paired bootstrap"""
    p: float
    """two-sided"""
    only_first: int
    """problems on which the first is better"""
    only_second: int


def wilson(right: float, of: int) -> list[float]:
    """Wilson's 95% interval of a share."""
    if of == 0:
        return [0.0, 1.0]
    share, z2 = right / of, Z_95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z_95 / (1 + z2 / of) * sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(values: Sequence[float], seed: int) -> list[float]:
    """95% percentile interval of the mean share when problems are drawn again, always the same draws.

    Where all shares are the same, all draws are, and Wilson's interval says what so many problems can.
    """
    if len({*values}) < 2:
        return wilson(sum(values), len(values))
    return _percentiles(values, seed)


def paired(first: Sequence[float], second: Sequence[float], seed: int) -> Paired:
    """Compare two models' results on the same problems in the same order: 0 or 1 each, or shares.

    McNemar's test where all are 0 or 1, else the p of the paired bootstrap. That is at least 1 in 2,000, and
    at least what the sign test gives when all problems that differ do so to one side: few cannot say more.
    """
    apart = [float(x) - float(y) for x, y in zip(first, second, strict=True)]
    better, worse = sum(d > 0 for d in apart), sum(d < 0 for d in apart)
    if not apart:
        return Paired("none: no problem in common", 0, 0.0, [0.0, 0.0], 1.0, 0, 0)
    difference = sum(apart) / len(apart)
    if {*first, *second} <= {0.0, 1.0}:
        name, p = "McNemar, exact", mcnemar(better, worse)
    else:
        means = _resampled_means(apart, seed)
        tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
        least = max(1 / BOOTSTRAP_REPETITIONS, mcnemar(better + worse, 0))
        name, p = "paired bootstrap over problems", min(1.0, max(2 * tail, least))
    # One problem says nothing about others.
    interval = _percentiles(apart, seed) if len(apart) > 1 else [-1.0, 1.0]
    return Paired(name, len(apart), difference, interval, p, better, worse)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's test: under the null each discordant problem is a fair coin's.

    Exact by the binomial distribution; for more than 2,000 discordant problems by the normal one.
    """
    n, few = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    if n > EXACT_PAIRS:
        return min(1.0, 2 * NormalDist().cdf((few + 0.5 - n / 2) / (sqrt(n) / 2)))
    return min(1.0, 2 * sum(comb(n, i) for i in range(few + 1)) / (1 << n))


def _percentiles(values: Sequence[float], seed: int) -> list[float]:
    low, high = np.quantile(_resampled_means(values, seed), [0.025, 0.975])
    return [float(low), float(high)]


def _resampled_means(values: Sequence[float], seed: int) -> npt.NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    draw = generator(seed, "bootstrap")
    # Row by row: all at once would take gigabytes for ten thousand problems.
    return np.array(
        [data[draw.integers(0, len(data), size=len(data))].mean() for _ in range(BOOTSTRAP_REPETITIONS)]
    )
