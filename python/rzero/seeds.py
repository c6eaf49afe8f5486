# SPDX-License-Identifier: Apache-2.0
"""Every random choice has a key made of what it is for, so no generator's state is ever kept or saved."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def derive(run_seed: int, *place: int | str) -> int:
    """A 63-bit key for one place of a run, for example derive(seed, iteration, "votes", step, index)."""
    # repr keeps 1 and "1" apart.
    digest = hashlib.blake2b(repr((run_seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(run_seed: int, *place: int | str) -> np.random.Generator:
    """A fresh numpy generator for one place of a run."""
    return np.random.Generator(np.random.Philox(derive(run_seed, *place)))


def shuffled(items: Sequence[T], seed: int | None) -> Sequence[T]:
    """The items in a random order of their number and the seed alone; None: as they come."""
    if seed is None:
        return items
    return [items[index] for index in generator(seed, "order").permutation(len(items))]
