# SPDX-License-Identifier: Apache-2.0
"""Which program of `attention_triton` computes what.

Segments lie on the host, so the plan is made there, once per content: the layers of a model share it, and
only the first of them pays for the copy to the device.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from rzero.kernels.attention import Segments
from rzero.kernels.native import check

Row = tuple[int, ...]


def parsed(segments: Segments, T: int) -> tuple[Row, ...]:
    """start, length, prefix start and prefix length of each segment; raises ValueError unless they share out
    the T rows."""
    shape = (segments.start_B.shape[0],) if segments.start_B.ndim == 1 else (-1,)
    for name, x in zip(Segments._fields, segments, strict=True):
        check("attention", name, x, torch.int32, shape)
    return _parsed(b"".join(x.numpy().tobytes() for x in segments), T)


@lru_cache(maxsize=16)
def _parsed(content: bytes, T: int) -> tuple[Row, ...]:
    rows = [tuple(row) for row in np.frombuffer(content, np.int32).reshape(4, -1).T.tolist()]
    order = sorted(range(len(rows)), key=lambda b: rows[b][:2])
    free = accumulate((rows[b][1] for b in order), initial=0)
    for b, next_free in zip(order, free, strict=False):
        start, length, prefix_start, prefix_length = rows[b]
        if length < 0 or start != next_free:
            raise ValueError(
                f"attention: segment {b} has start_B {start} and length_B {length}, but every row must "
                f"belong to exactly one segment and the next free row is {next_free}"
            )
        until = prefix_start + prefix_length
        if prefix_length < 0 or (prefix_length and (prefix_start < 0 or until > T)):
            raise ValueError(
                f"attention: segment {b} has the prefix rows {prefix_start}..{until}, there are {T} rows"
            )
    covered = sum(row[1] for row in rows)
    if covered != T:
        raise ValueError(f"attention: the segments cover {covered} rows of {T}")
    return tuple(rows)


@lru_cache(maxsize=16)
def row_tiles(segments: tuple[Row, ...], tokens: int, device: torch.device) -> Tensor:
    """int32 [tiles, 6]: first row, rows, position of the first, prefix start, prefix length, start."""
    tiles = [
        (start + i, min(tokens, length - i), prefix + i, prefix_start, prefix, start)
        for start, length, prefix_start, prefix in segments
        for i in range(0, length, tokens)
    ]
    return _table(tiles, 6, device)


@lru_cache(maxsize=16)
def key_tiles(segments: tuple[Row, ...], keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tiles of keys, int32 [tiles, 4]: first row, rows, range of readers. Readers, int32 [readers, 5]: a
    range of rows, the range of the tile's keys that they see, how far a row may lie before a key it sees.
    """
    T = sum(row[1] for row in segments)
    tiles: list[Row] = []
    readers: list[Row] = []
    for start, length, _, _ in segments:
        for a in range(start, start + length, keys):
            z, first = min(a + keys, start + length), len(readers)
            readers.append((a, start + length, a, z, 0))
            for begin, rows, prefix_start, prefix in segments:
                since, until = max(prefix_start, a), min(prefix_start + prefix, z)
                if rows and since < until:
                    readers.append((begin, begin + rows, since, until, T))
            tiles.append((a, z - a, first, len(readers)))
    return _table(tiles, 4, device), _table(readers, 5, device)


def _table(rows: Sequence[Row], columns: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, columns).to(device)
