# SPDX-License-Identifier: Apache-2.0
"""Clusters of questions: average linkage against a plain one, and on questions a person can judge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rzero.diversity import clusters, similarity
from rzero.kernels import resolve


def plain_clusters(distance: NDArray[np.float64], threshold: float) -> list[int]:
    """Merge the nearest two clusters again and again; distances of clusters are means over their members."""
    parts = [[item] for item in range(len(distance))]

    def apart(a: list[int], b: list[int]) -> float:
        return float(np.mean([distance[i, j] for i in a for j in b]))

    while len(parts) > 1:
        nearest, i, j = min(
            (apart(a, b), i, j) for i, a in enumerate(parts) for j, b in enumerate(parts) if i < j
        )
        if nearest >= threshold:
            break
        parts[i] += parts.pop(j)
    number = {item: min(part) for part in parts for item in part}
    order = {first: position for position, first in enumerate(sorted(set(number.values())))}
    return [order[number[item]] for item in range(len(distance))]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.4, 0.5, 0.7]))
def test_average_linkage_is_that_of_merging_the_nearest(items: int, seed: int, threshold: float) -> None:
    draws = np.random.default_rng(seed).random((items, items))
    distance = np.triu(draws, 1) + np.triu(draws, 1).T
    before = distance.copy()
    assert clusters(distance, threshold) == plain_clusters(distance, threshold)
    assert np.array_equal(distance, before)


def test_ties_end() -> None:
    """Equal distances everywhere once sent a nearest-neighbour chain round in circles."""
    same = np.full((50, 50), 0.25)
    assert clusters(same, 0.5) == [0] * 50
    assert clusters(same, 0.25) == list(range(50))


def test_questions_of_one_kind_are_one_cluster() -> None:
    bleu = resolve(torch.device("cpu")).bleu
    questions = [
        "What is the sum of the first ten odd numbers ?",
        "What is the sum of the first ten even numbers ?",
        "How many prime numbers lie between 10 and 50 ?",
        "What is the sum of the first twenty odd numbers ?",
    ]
    alike = similarity([question.split() for question in questions], bleu)
    assert np.array_equal(alike, alike.T)
    assert np.array_equal(np.diag(alike), np.ones(4))
    assert clusters(1 - alike, 0.5) == [0, 0, 1, 0]


def test_similarity_is_the_bleu_of_nltk() -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    texts = [list("12+34-5"), list("12+34*7"), list("9*9-1"), list("3+6")]
    alike = similarity(texts, resolve(torch.device("cpu")).bleu)
    smooth = nltk.SmoothingFunction().method1
    for i in range(len(texts)):
        for j in range(i + 1, len(texts)):
            # As in the authors' code: the earlier question is the hypothesis, the later one the reference.
            expected = nltk.sentence_bleu([texts[j]], texts[i], smoothing_function=smooth)
            assert alike[i, j] == pytest.approx(expected, abs=1e-9)


def test_nothing_and_one() -> None:
    bleu = resolve(torch.device("cpu")).bleu
    assert clusters(1 - similarity([], bleu), 0.5) == []
    assert clusters(1 - similarity([["a"]], bleu), 0.5) == [0]
