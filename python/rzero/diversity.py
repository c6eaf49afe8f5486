# SPDX-License-Identifier: Apache-2.0
"""How alike questions are: clusters by average linkage on 1 - BLEU, over the tokens that the task names.

Words for mathematics in English, characters for bare arithmetic: the task's `tokens` decides. BLEU is not
symmetric; as in the authors' code the earlier question is the hypothesis and the later one the reference.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Bleu = Callable[[Sequence[Sequence[int]]], NDArray[np.float64]]


def similarity(texts: Sequence[Sequence[str]], bleu: Bleu) -> NDArray[np.float64]:
    """Symmetric [N, N] matrix of BLEU between token lists; 1 on the diagonal."""
    ids: dict[str, int] = {}
    tokens = [[ids.setdefault(token, len(ids)) for token in text] for text in texts]
    upper: NDArray[np.float64] = np.triu(bleu(tokens), 1)
    symmetric: NDArray[np.float64] = upper + upper.T + np.eye(len(texts))
    return symmetric


def nearest_earlier(
    new: Sequence[Sequence[str]], earlier: Sequence[Sequence[str]], bleu: Bleu
) -> list[float]:
    """For each new token list the BLEU with the nearest earlier one, which is the reference."""
    ids: dict[str, int] = {}
    tokens = [[ids.setdefault(token, len(ids)) for token in text] for text in [*new, *earlier]]
    nearest: list[float] = bleu(tokens)[: len(new), len(new) :].max(axis=1).tolist()
    return nearest


def clusters(distance: NDArray[np.float64], threshold: float) -> list[int]:
    """A cluster number per item: average linkage, merged while the mean distance is below `threshold`.

    The nearest-neighbour chain takes N^2 time. It finds the same tree as merging the nearest pair again and
    again, because averages never bring two clusters nearer than their parts were. Numbers go by appearance.
    """
    items = len(distance)
    apart = distance.astype(np.float64, copy=True)
    np.fill_diagonal(apart, np.inf)
    size = np.ones(items)
    parent = np.arange(items)
    waiting = np.ones(items, dtype=bool)
    chain: list[int] = []
    while chain or waiting.any():
        if not chain:
            chain.append(int(waiting.argmax()))
        last = chain[-1]
        nearest = int(apart[last].argmin())
        # Of neighbours at equal distance take the one before, or the chain would run in a circle.
        if len(chain) > 1 and apart[last, chain[-2]] <= apart[last, nearest]:
            nearest = chain[-2]
        if not apart[last, nearest] < threshold:
            # Nothing is near enough, and merging others cannot bring them nearer: this cluster is complete.
            apart[last, :] = apart[:, last] = np.inf
            waiting[last] = False
            chain.pop()
        elif len(chain) > 1 and nearest == chain[-2]:
            del chain[-2:]
            keep, drop = min(last, nearest), max(last, nearest)
            mean = (size[keep] * apart[keep] + size[drop] * apart[drop]) / (size[keep] + size[drop])
            apart[keep, :] = apart[:, keep] = mean
            apart[drop, :] = apart[:, drop] = np.inf
            apart[keep, keep] = np.inf
            size[keep] += size[drop]
            parent[drop] = keep
            waiting[drop] = False
        else:
            chain.append(nearest)
    return _numbered(parent)


def _numbered(parent: NDArray[np.intp]) -> list[int]:
    numbers: dict[int, int] = {}
    result = []
    for item in range(len(parent)):
        root = item
        while parent[root] != root:
            root = int(parent[root])
        result.append(numbers.setdefault(root, len(numbers)))
    return result
