# SPDX-License-Identifier: Apache-2.0
"""bleu against nltk, pair by pair, with the cases that nltk treats specially."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from rzero.kernels.bleu import BLEU, bleu_ref
from rzero.kernels.dispatch import choose
from rzero.kernels.native import lib

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(lib is None, reason="rzero._native is not built")


@pytest.fixture(params=["ref", pytest.param("native", marks=needs_native)])
def bleu(request: pytest.FixtureRequest) -> Any:
    return choose(BLEU, CPU, request.param)[0]


def nltk_scores(lists: list[list[int]]) -> Any:
    method1 = SmoothingFunction().method1
    return np.array([[sentence_bleu([r], h, smoothing_function=method1) for r in lists] for h in lists])


def random_lists(count: int, longest: int, words: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(words) for _ in range(rng.randrange(longest + 1))] for _ in range(count)]


SPECIAL = [
    [], [5], [6], [5, 5], [5, 5, 5, 5, 5, 5, 5, 5], [5, 6, 5], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7],
    [7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 1, 2, 3, 4], [2**40, -3, 2**40, -3, 1], [100, 101, 102, 103, 104],
]  # fmt: skip


def test_special_cases_equal_nltk(bleu: Any) -> None:
    """Empty, shorter than four tokens, nothing in common, repeated words, long and negative numbers."""
    np.testing.assert_allclose(bleu(SPECIAL), nltk_scores(SPECIAL), rtol=0, atol=1e-12)


@pytest.mark.parametrize("words", [2, 9, 200])
def test_random_lists_equal_nltk(bleu: Any, words: int) -> None:
    lists = random_lists(25, 30, words, seed=words)
    wanted = nltk_scores(lists)
    assert 0 < wanted.mean() < 1
    np.testing.assert_allclose(bleu(lists), wanted, rtol=0, atol=1e-12)


def test_hypothesis_is_the_row(bleu: Any) -> None:
    scores = bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4]])
    assert scores[1, 0] == pytest.approx(
        np.exp(-0.25)
    )  # brevity only: every n-gram of the shorter one is found
    assert scores[0, 1] < scores[1, 0] and scores[0, 0] == scores[1, 1] == 1


def test_identical_lists_score_one_from_four_tokens_on(bleu: Any) -> None:
    scores = bleu([[1, 2, 3, 4]] * 3)
    assert scores.dtype == np.float64 and (scores == 1).all()


@needs_native
@pytest.mark.usefixtures("restored_threads")
def test_native_equals_the_reference_on_many_lists_and_a_pair_alone() -> None:
    native = choose(BLEU, CPU, "native")[0]
    lists = random_lists(120, 60, 300, seed=1)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(native(lists))
    assert np.array_equal(*results)
    np.testing.assert_allclose(results[0], bleu_ref(lists), rtol=0, atol=1e-12)
    for i, j in ((0, 1), (17, 90), (119, 3)):
        assert native([lists[i], lists[j]])[0, 1] == results[0][i, j]


def test_nothing_and_empty_lists(bleu: Any) -> None:
    assert bleu([]).shape == (0, 0)
    assert (bleu([[], []]) == 0).all()


def test_tokens_must_be_whole_numbers(bleu: Any) -> None:
    for bad in ([[1.5, 2.0]], [["a", "b"]]):
        with pytest.raises(ValueError, match="whole numbers"):
            bleu(bad)
