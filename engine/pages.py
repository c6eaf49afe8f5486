# SPDX-License-Identifier: Apache-2.0
"""The page pool: which pages of the key/value cache are free and how many holders each of the others has.

A page holds the keys and values of `page_size` consecutive positions. Whoever reads a page holds one
reference; a page with more than one holder is never written: the writer takes a copy first. No tensors
here, only numbers; the calls take arrays, so that a step that needs 500 pages costs one call.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int32]


class PagePool:
    """Counts the holders of each page. Free pages are reused last in, first out: memory stays warm."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        assert num_pages > 0 and page_size > 0, f"num_pages={num_pages}, page_size={page_size}"
        self.num_pages = num_pages
        self.page_size = page_size
        self.clear()

    def clear(self) -> None:
        """Forget every holder."""
        self.holders: Pages = np.zeros(self.num_pages, dtype=np.int32)
        self._free: Pages = np.arange(self.num_pages, dtype=np.int32)[::-1].copy()
        self.free_count = self.num_pages

    def pages_for(self, positions: int) -> int:
        """Number of pages that hold `positions` positions."""
        return -(-positions // self.page_size)

    def take(self, count: int) -> Pages:
        """`count` free pages with one holder each; the caller has looked at `free_count`."""
        assert 0 <= count <= self.free_count, f"take({count}) with {self.free_count} free pages"
        self.free_count -= count
        pages: Pages = self._free[self.free_count : self.free_count + count].copy()
        self.holders[pages] = 1
        return pages

    def share(self, pages: Pages, times: int = 1) -> None:
        """`times` more holders for each of `pages`, which differ from one another and are held already."""
        self.holders[pages] += times

    def release(self, pages: Pages) -> None:
        """One holder less for each of `pages`, which differ from one another; without any, a page is free."""
        self.holders[pages] -= 1
        freed = pages[self.holders[pages] == 0]
        self._free[self.free_count : self.free_count + len(freed)] = freed
        self.free_count += len(freed)

    def check(self, held: Sequence[Pages]) -> None:
        """Assert that the pool agrees with all holders' pages and that no page is lost or free twice."""
        count = np.zeros(self.num_pages, dtype=np.int32)
        for pages in held:
            np.add.at(count, pages, 1)
        assert (self.holders == count).all(), f"holders {self.holders}, expected {count}"
        free = self._free[: self.free_count]
        assert len(np.unique(free)) == self.free_count, "a page is free twice"
        assert (self.holders[free] == 0).all(), "a free page has a holder"
        assert len(free) + np.count_nonzero(self.holders) == self.num_pages, "a page is lost"
