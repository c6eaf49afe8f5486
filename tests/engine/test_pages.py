# SPDX-License-Identifier: Apache-2.0
"""The page pool: holders are counted, nothing is lost."""

import numpy as np
import pytest

from rzero.engine.pages import PagePool


def test_pages_return_when_the_last_holder_leaves() -> None:
    pool = PagePool(4, page_size=16)
    pages = pool.take(3)
    pool.share(pages[:2], times=2)
    for _ in range(2):
        pool.release(pages[:2])
        assert pool.free_count == 1
    pool.release(pages)
    assert pool.free_count == 4
    pool.check([])


def test_pages_for_rounds_up() -> None:
    pool = PagePool(4, page_size=16)
    assert [pool.pages_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_taking_more_than_is_free_fails() -> None:
    with pytest.raises(AssertionError, match=r"take\(3\) with 2 free pages"):
        PagePool(2, page_size=1).take(3)


def test_freed_page_is_reused_first() -> None:
    pool = PagePool(8, page_size=1)
    first = pool.take(2)
    pool.release(first[:1])
    assert pool.take(1)[0] == first[0]


@pytest.mark.parametrize("times", [0, 2])
def test_check_sees_a_wrong_count(times: int) -> None:
    pool = PagePool(3, page_size=1)
    page = pool.take(1)
    pool.check([page])
    with pytest.raises(AssertionError, match="holders"):
        pool.check([page] * times)


def test_check_sees_a_page_that_is_free_twice() -> None:
    pool = PagePool(3, page_size=1)
    page = pool.take(1)
    pool.release(page)
    pool.holders[page] = 1
    pool.release(page)
    with pytest.raises(AssertionError, match="free twice"):
        pool.check([])


def test_clear_forgets_all_holders() -> None:
    pool = PagePool(3, page_size=1)
    pool.take(3)
    pool.clear()
    pool.check([])
    assert sorted(pool.take(3)) == [0, 1, 2]
    assert np.array_equal(pool.holders, [1, 1, 1])
