# SPDX-License-Identifier: Apache-2.0
"""Which addresses the programs of a launch may touch, and which of them they did touch.

Addresses are element addresses; accesses of one element are assumed to have one size.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Addresses = npt.NDArray[np.uint64]
Program = tuple[int, int, int]
NONE: Addresses = np.empty(0, np.uint64)


class AccessError(Exception):
    """A lane outside of every tensor argument, or two accesses that get in each other's way."""


class View(NamedTuple):
    """The elements of one tensor argument."""

    name: str
    low: int
    high: int
    """First and last address, the last one excluded."""
    axes: tuple[tuple[int, int], ...]
    """Stride in bytes and size of each axis, the largest stride first."""
    item_bytes: int

    @staticmethod
    def of(name: str, tensor: torch.Tensor) -> "View":
        item, low = tensor.element_size(), tensor.data_ptr()
        axes = [(stride * item, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)]
        last = sum(stride * (size - 1) for stride, size in axes)
        kept = sorted(((stride, size) for stride, size in axes if stride and size > 1), reverse=True)
        return View(name, low, low + last + item, tuple(kept), item)

    def holds(self, address: Addresses, item_bytes: int) -> npt.NDArray[np.bool_]:
        """Which accesses hit an element and nothing beside it. Exact where no axis lies across another."""
        inside = (address >= self.low) & (address + np.uint64(item_bytes) <= self.high)
        is_dense = math.prod(size for _, size in self.axes) * self.item_bytes == self.high - self.low
        if is_dense or not inside.any():
            return inside
        rest = np.where(inside, address - np.uint64(self.low), 0).astype(np.int64)
        for stride, size in self.axes:
            rest -= np.minimum(rest // stride, size - 1) * stride
        return inside & (rest + item_bytes <= self.item_bytes)


class Launch:
    """One launch: every access is checked at once against the tensors, at the end against other programs."""

    def __init__(self, views: tuple[View, ...]) -> None:
        self.views = views
        self.program: Program = (0, 0, 0)
        self.mine: dict[str, list[Addresses]] = {"read": [], "write": [], "atomic": []}
        self.unsynced: list[Addresses] = []
        self.all: dict[str, list[tuple[Program, Addresses]]] = {"read": [], "write": [], "atomic": []}

    def load(self, address: Addresses, item_bytes: int) -> None:
        self._check(address, item_bytes, "load")
        for written in self.unsynced:
            if address.size and written[0] <= address.max() and address.min() <= written[-1]:
                again = np.isin(address, written)
                if again.any():
                    raise AccessError(f"{self._where(address[again])}: read back without a barrier")
        self.mine["read"].append(address)

    def store(self, address: Addresses, item_bytes: int) -> None:
        self._check(address, item_bytes, "store")
        ordered = np.sort(address)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.size:
            raise AccessError(f"{self._where(twice)}: hit twice by one store")
        if ordered.size:
            self.unsynced.append(ordered)
        self.mine["write"].append(address)

    def atomic(self, address: Addresses, item_bytes: int) -> None:
        self._check(address, item_bytes, "atomic")
        self.mine["atomic"].append(address)

    def barrier(self) -> None:
        self.unsynced.clear()

    def next_program(self, program: Program) -> None:
        for kind, parts in self.mine.items():
            if parts:
                self.all[kind].append((self.program, np.unique(np.concatenate(parts))))
            parts.clear()
        self.unsynced.clear()
        self.program = program

    def finish(self) -> None:
        """Raises where two programs met at one element and one of them wrote it."""
        self.next_program(self.program)
        self._meet("write", "write")
        self._meet("write", "read")
        self._meet("write", "atomic")
        self._meet("atomic", "read")

    def _meet(self, first: str, second: str) -> None:
        if not self.all[first] or not self.all[second]:
            return
        owners = [program for program, _ in self.all[first]]
        address = np.concatenate([part for _, part in self.all[first]])
        owner = np.repeat(np.arange(len(owners)), [part.size for _, part in self.all[first]])
        order = np.argsort(address, kind="stable")
        address, owner = address[order], owner[order]
        if first == second:
            clash = np.flatnonzero(address[1:] == address[:-1])
            if clash.size:
                i = int(clash[0])
                self._race(address[i], owners[owner[i]], first, owners[owner[i + 1]], second)
            return
        for program, part in self.all[second]:
            for side in ("left", "right"):  # the first and the last of several owners: one is another program
                place = np.searchsorted(address, part, side=side) - (side == "right")  # type: ignore[call-overload]
                place = np.clip(place, 0, max(address.size - 1, 0))
                for i in np.flatnonzero(address[place] == part) if address.size else ():
                    if owners[owner[place[i]]] != program:
                        self._race(part[i], owners[owner[place[i]]], first, program, second)

    def _race(self, address: Any, a: Program, first: str, b: Program, second: str) -> None:
        where = self._where(np.array([address], np.uint64), shows_program=False)
        raise AccessError(f"{where}: {first} by program {a} and {second} by program {b}, in no fixed order")

    def _check(self, address: Addresses, item_bytes: int, kind: str) -> None:
        left = address
        for view in self.views:
            if not left.size:
                return
            left = left[~view.holds(left, item_bytes)]
        if left.size:
            raise AccessError(f"{self._where(left)}: {kind} outside of every argument, {left.size} lane(s)")

    def _where(self, address: Addresses, shows_program: bool = True) -> str:
        """The first address in words: the argument that it belongs to or comes after."""
        first = int(address[0])
        before = [view for view in self.views if view.low <= first]
        near = max(before, key=lambda view: view.low, default=None)
        place = f"{near.name} + {first - near.low} bytes" if near else f"address {first:#x}"
        return f"program {self.program}, {place}" if shows_program else place
