# SPDX-License-Identifier: Apache-2.0
"""Inputs of the attention tests of every backend."""

import torch
from harness import apart, randn
from torch import Tensor

from rzero.kernels.attention import Segments

Rows = tuple[int, int, int, int]
"""start, length, prefix start, prefix length"""
UNUSED = 2**30


def segments(rows: tuple[Rows, ...]) -> Segments:
    return Segments(*(torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True)))


def count(rows: tuple[Rows, ...]) -> int:
    return sum(length for _, length, _, _ in rows)


def tensors(rows: tuple[Rows, ...], H: int, G: int, E: int, dtype: torch.dtype) -> list[Tensor]:
    T = count(rows)
    return [randn(T, n, E, dtype=dtype, seed=seed) for seed, n in enumerate((H, G, G))]


class Cache:
    """Keys and values in shuffled pages; what no sequence owns is NaN, unused slots of the table absurd."""

    def __init__(self, lengths: list[int], S: int, G: int, E: int, dtype: torch.dtype) -> None:
        self.k = [randn(n, G, E, dtype=dtype, seed=2 * b) for b, n in enumerate(lengths)]
        self.v = [randn(n, G, E, dtype=dtype, seed=2 * b + 1) for b, n in enumerate(lengths)]
        used = [-(-n // S) for n in lengths]
        P, M = sum(used) + 3, max(used) + 2
        free = iter(torch.randperm(P, generator=torch.Generator().manual_seed(S)).tolist())
        self.table_BM = torch.full((len(lengths), M), UNUSED, dtype=torch.int32)
        self.k_pages, self.v_pages = (
            apart(torch.full((P, S, G, E), float("nan"), dtype=dtype)) for _ in "kv"
        )
        for b, n in enumerate(lengths):
            for m in range(used[b]):
                page, rows = next(free), slice(m * S, min(n, (m + 1) * S))
                self.table_BM[b, m] = page
                self.k_pages[page, : rows.stop - rows.start] = self.k[b][rows]
                self.v_pages[page, : rows.stop - rows.start] = self.v[b][rows]

    def args(self, rows: list[int], lengths: list[int]) -> tuple[Tensor, ...]:
        """Everything after q, but for the scale."""
        starts = torch.tensor([0, *rows]).cumsum(0).int()
        return self.k_pages, self.v_pages, self.table_BM, starts, torch.tensor(lengths, dtype=torch.int32)
