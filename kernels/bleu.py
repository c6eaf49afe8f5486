# SPDX-License-Identifier: Apache-2.0
"""bleu: sentence BLEU-4 of every pair of token lists, smoothing method 1 (Papineni et al., ACL 2002).

Equal within 1e-12 to nltk's sentence_bleu([reference], hypothesis, smoothing_function=method1) (Chen and
Cherry, WMT 2014). token_ids: N sequences of whole numbers, any may be empty -> float64 numpy array [N, N];
[i, j] has hypothesis i and reference j. Order n counts clipped matches over max(1, len - n + 1); an order
without a match counts 0.1 matches; no common token at all gives 0; a hypothesis shorter than its reference is
multiplied by exp(1 - len(reference) / len(hypothesis)).
Raises ValueError for tokens that are not whole numbers.
There is no GPU version: the input is lists of token numbers on the host, the output a matrix that the host
clusters, and counting n-grams is integer work on short lists, which a CPU does while the GPU trains.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.native import MISSING, lib

ORDERS = 4
EPSILON = 0.1


def flatten(token_ids: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All tokens in one array, and the place where each sequence begins (one more at the end)."""
    flat = np.asarray(list(chain.from_iterable(token_ids)))
    if flat.size and flat.dtype.kind not in "iu":
        raise ValueError(f"bleu: tokens must be whole numbers, they are {flat.dtype}")
    begins = np.zeros(len(token_ids) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in token_ids], out=begins[1:])
    return flat.astype(np.int64), begins


def bleu_ref(token_ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    flat, begins = flatten(token_ids)
    lists = [flat[a:b].tolist() for a, b in pairwise(begins)]
    counts = [
        [Counter(zip(*(ids[k:] for k in range(n + 1)), strict=False)) for n in range(ORDERS)] for ids in lists
    ]
    scores = np.zeros((len(lists), len(lists)))
    for i, hypothesis in enumerate(counts):
        for j, reference in enumerate(counts):
            matches = [(h & r).total() for h, r in zip(hypothesis, reference, strict=True)]
            scores[i, j] = _score(matches, len(lists[i]), len(lists[j]))
    return scores


def _score(matches: list[int], hypothesis: int, reference: int) -> float:
    """BLEU from the clipped matches of each order and the two lengths."""
    if not matches[0]:
        return 0.0
    logs = [math.log((m or EPSILON) / max(1, hypothesis - n)) for n, m in enumerate(matches)]
    brevity = min(1.0, math.exp(1 - reference / hypothesis))
    return brevity * math.exp(math.fsum(logs) / ORDERS)


def _bleu_native(token_ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    flat, begins = flatten(token_ids)
    scores = np.empty((len(begins) - 1, len(begins) - 1))
    lib.bleu(len(begins) - 1, flat.ctypes.data, begins.ctypes.data, scores.ctypes.data)
    return scores


# Whatever the engine's device: this runs on the host.
BLEU = Op("bleu", bleu_ref, (Impl("native", _bleu_native, lambda device: MISSING),))
