# SPDX-License-Identifier: Apache-2.0
"""The scheduler on a cache of tokens: sharing, chunks, preemption, turns of roles, refusals."""

import numpy as np
import pytest
from text_cache import TextCache, expected, request

from rzero.engine.errors import InputError
from rzero.engine.scheduler import Scheduler

PROMPT = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


def cache(
    num_pages: int = 64, page_size: int = 4, max_seqs: int = 8, max_batch_tokens: int = 32
) -> TextCache:
    return TextCache(Scheduler(num_pages, page_size, max_seqs, max_batch_tokens, max_length=64))


def test_answers_follow_from_the_request_alone() -> None:
    run = cache()
    requests = [request(i, PROMPT[: i + 1], n=i + 1, max_tokens=9) for i in range(len(PROMPT))]
    for r in requests:
        run.scheduler.submit(r)
    run.run()
    assert [run.of(r.request_id) for r in requests] == [expected(r) for r in requests]


def test_a_groups_prompt_is_computed_and_stored_once() -> None:
    run = cache(num_pages=256, max_seqs=64, max_batch_tokens=64)
    run.scheduler.submit(request(0, PROMPT, n=64, max_tokens=1))
    run.step()
    assert run.computed_tokens == len(PROMPT) - 1
    ended = run.step()
    assert len(ended) == 64
    assert run.computed_tokens == len(PROMPT) - 1 + 64


def test_full_pages_are_shared_and_the_partial_one_is_copied_once_less_than_there_are_answers() -> None:
    run = cache(max_seqs=5)
    run.scheduler.submit(request(0, PROMPT, n=5, max_tokens=30, stop=99))
    run.step()
    run.step()
    batch, pool = run.scheduler.batch, run.scheduler.pool
    assert (batch.table[:5, :2] == batch.table[0, :2]).all()
    assert pool.holders[batch.table[0, :2]].tolist() == [5, 5]
    assert len(set(batch.table[:5, 2])) == 5
    assert pool.num_pages - pool.free_count == 2 + 5


def test_a_group_larger_than_the_batch_keeps_its_prompt_until_the_last_answer_starts() -> None:
    run = cache(max_seqs=4)
    r = request(0, PROMPT, n=21, max_tokens=6)
    run.scheduler.submit(r)
    run.run()
    assert run.of(0) == expected(r)
    drawn = sum(len(answer) for answer in run.of(0))
    assert run.computed_tokens == len(PROMPT) - 1 + drawn


def test_same_prompt_of_two_waiting_requests_is_computed_once() -> None:
    run = cache(max_seqs=64)
    for i in range(3):
        run.scheduler.submit(request(i, PROMPT, n=2, max_tokens=1))
    run.run()
    assert run.computed_tokens == len(PROMPT) - 1 + 6


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks_beside_running_answers() -> None:
    run = cache(max_batch_tokens=4, max_seqs=4)
    first, second = (
        request(0, [1], n=1, max_tokens=20, stop=99),
        request(1, [2] * 19, n=1, max_tokens=3, stop=99),
    )
    run.scheduler.submit(first)
    run.step()
    run.scheduler.submit(second)
    for _ in range(6):
        plan_rows = run.scheduler.batch.size
        run.step()
        assert plan_rows == 1
    assert run.scheduler.batch.size == 1
    run.step()
    assert run.scheduler.batch.size == 2
    run.run()
    assert [run.of(0), run.of(1)] == [expected(first), expected(second)]


@pytest.mark.parametrize("num_pages", [5, 6, 7, 11, 16])
def test_any_pool_that_fits_one_sequence_gives_the_same_answers(num_pages: int) -> None:
    run = cache(num_pages=num_pages)
    requests = [request(i, PROMPT[: 2 + i], n=3, max_tokens=20 - i - 1, stop=99) for i in range(6)]
    for r in requests:
        run.scheduler.submit(r)
    run.run()
    assert [run.of(r.request_id) for r in requests] == [expected(r) for r in requests]


def test_one_page_serves_a_group() -> None:
    run = TextCache(Scheduler(1, 16, max_seqs=8, max_batch_tokens=8, max_length=16))
    r = request(0, PROMPT, n=4, max_tokens=6, stop=99)
    run.scheduler.submit(r)
    run.run()
    assert run.of(0) == expected(r)


def test_the_youngest_answer_is_preempted_and_the_oldest_never() -> None:
    run = cache(num_pages=12, max_seqs=4)
    for i in range(4):
        run.scheduler.submit(request(i, [i, i, i], n=1, max_tokens=30, stop=99))
    oldest = []
    while run.scheduler.has_work:
        run.step()
        oldest.append(0 in run.answers or 0 in [a.request.request_id for a in run.scheduler.batch.owner if a])
    assert run.scheduler.preemptions > 0
    assert all(oldest[1:])
    assert list(run.answers) == [0, 1, 2, 3]


def test_a_preempted_answer_shares_its_groups_prompt_again() -> None:
    run = cache(num_pages=9, max_seqs=2)
    r = request(0, PROMPT, n=3, max_tokens=20, stop=99)
    run.scheduler.submit(r)
    run.run()
    assert run.scheduler.preemptions > 0
    assert run.of(0) == expected(r)


def test_cancelled_request_frees_its_pages_at_once() -> None:
    run = cache(max_seqs=3)
    other = request(1, [3, 3], n=2, max_tokens=5)
    run.scheduler.submit(request(0, PROMPT, n=9, max_tokens=20, stop=99))
    run.scheduler.submit(other)
    for _ in range(4):
        run.step()
    assert run.scheduler.pool.free_count < 64
    run.scheduler.cancel(0)
    run.scheduler.check()
    assert run.scheduler.pool.free_count == 64
    run.run()
    assert list(run.answers) == [1]
    assert run.of(1) == expected(other)


def test_roles_take_turns_in_order() -> None:
    run = cache(max_seqs=2)
    requests = [request(i, [i], n=2, max_tokens=3, role="ab"[i % 2], stop=99) for i in range(6)]
    for r in requests:
        run.scheduler.submit(r)
    roles = []
    while run.scheduler.has_work:
        run.step()
        roles.append(run.scheduler.base)
        if len(roles) == 1:  # comes while b waits: a's turn does not get longer
            late = request(6, [5], n=1, max_tokens=3, role="a")
            run.scheduler.submit(late)
    assert "".join(roles).rstrip("a").lstrip("a").strip("b") == ""
    assert list(run.answers)[:6] == [0, 2, 4, 1, 3, 5]
    assert run.of(6) == expected(late)


def test_giving_up_all_pages_changes_no_answer() -> None:
    run = cache()
    requests = [request(i, PROMPT[: 3 + i], n=3, max_tokens=12) for i in range(4)]
    for r in requests:
        run.scheduler.submit(r)
    while run.scheduler.has_work:
        run.step()
        if run.steps % 4 == 0:
            run.scheduler.give_up_pages()
            run.scheduler.check()
            assert run.scheduler.pool.free_count == 64
    assert [run.of(r.request_id) for r in requests] == [expected(r) for r in requests]


def test_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(3, 4, max_seqs=8, max_batch_tokens=8, max_length=64)
    scheduler.submit(request(0, [1] * 10, n=1, max_tokens=3))
    with pytest.raises(InputError, match=r"10 tokens with max_tokens=4 needs 4 pages of 4 tokens.* has 3"):
        scheduler.submit(request(1, [1] * 10, n=1, max_tokens=4))
    with pytest.raises(InputError, match=r"the prompt has 64 tokens.* holds 64 .*at most 63"):
        scheduler.submit(request(2, [1] * 64, n=1, max_tokens=1))
    scheduler.check()


def test_clear_forgets_everything() -> None:
    run = cache(max_seqs=2)
    run.scheduler.submit(request(0, PROMPT, n=5, max_tokens=9, stop=99))
    for _ in range(3):
        run.step()
    run.scheduler.clear()
    run.scheduler.check()
    assert not run.scheduler.has_work
    again = request(1, PROMPT, n=2, max_tokens=9)
    run.scheduler.submit(again)
    run.run()
    assert run.of(1) == expected(again)


def test_a_wider_request_after_a_narrow_one_keeps_what_runs() -> None:
    run = cache()
    narrow, wide = request(0, [1], n=2, max_tokens=4, stop=99), request(1, [2], n=2, max_tokens=40)
    wide.stop_ids = np.array([STOP_A, STOP_B])
    run.scheduler.submit(narrow)
    run.step()
    run.step()
    run.scheduler.submit(wide)
    run.run()
    assert [run.of(0), run.of(1)] == [expected(narrow), expected(wide)]


STOP_A, STOP_B = 5, 6
