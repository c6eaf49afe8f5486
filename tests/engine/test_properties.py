# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in whatever order, with however few pages: no page is lost and no answer changes.

The scheduler is driven for thousands of random steps on a cache of tokens, which shows a wrong page at once;
the engine with a real model shows that tokens and log-probs are the same bit for bit.
"""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import is_exact, small_engine, small_model
from text_cache import TextCache, expected, request

from rzero.engine import RequestOutput, SamplingParams
from rzero.engine.batch import Request
from rzero.engine.errors import InputError
from rzero.engine.scheduler import Scheduler

MAX_LENGTH = 40


class RandomRun:
    """Random submits, cancels, page releases, changes of bases and steps; answers are compared."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        page_size = self.draw.choice((1, 2, 3, 4, 8, 16))
        least = -(-MAX_LENGTH // page_size)
        pages = self.draw.choice((least, least + 1, least + 3, 2 * least, 8 * least))
        max_seqs, budget = self.draw.choice((1, 2, 5, 16)), self.draw.choice((1, 2, 3, 7, 64))
        self.base = {"a": 0, "b": self.draw.choice((0, 1))}
        scheduler = Scheduler(pages, page_size, max_seqs, budget, MAX_LENGTH, self.base.__getitem__)
        self.cache = TextCache(scheduler)
        self.open: dict[int, Request] = {}
        self.prompts: list[list[int]] = []
        self.number = 0

    def submit(self) -> None:
        if self.prompts and self.draw.random() < 0.4:
            prompt = self.draw.choice(self.prompts)
        else:
            prompt = [
                self.draw.randrange(6) for _ in range(self.draw.choice((1, 2, 3, 9, 17, MAX_LENGTH - 1)))
            ]
            self.prompts.append(prompt)
        max_tokens = self.draw.randint(1, MAX_LENGTH - len(prompt))
        n, role = self.draw.choice((1, 1, 2, 5, 12)), self.draw.choice("aab")
        new = request(self.number, prompt, n, max_tokens, role, self.draw.choice((6, 99)))
        self.cache.scheduler.submit(new)
        self.open[self.number] = new
        self.number += 1

    def cancel(self) -> None:
        request_id = self.draw.choice(list(self.open))
        self.cache.scheduler.cancel(request_id)
        self.cache.scheduler.check()
        self.cache.answers.pop(request_id, None)
        del self.open[request_id]

    def act(self) -> None:
        chance = self.draw.random()
        if chance < 0.1 and len(self.open) < 12:
            self.submit()
        elif chance < 0.12 and self.open:
            self.cancel()
        elif chance < 0.13:
            self.cache.scheduler.give_up_pages()
            self.cache.scheduler.check()
        elif chance < 0.15:
            self.base["b"] = 1 - self.base["b"]
            self.cache.scheduler.regroup()
            self.cache.scheduler.check()
        elif self.cache.scheduler.has_work:
            self.cache.step()
        self.finish()

    def finish(self) -> None:
        for request_id, answers in list(self.cache.answers.items()):
            if len(answers) == self.open[request_id].params.n:
                assert self.cache.of(request_id) == expected(self.open.pop(request_id))
                del self.cache.answers[request_id]


@pytest.mark.parametrize("seed", range(60))
def test_scheduler_survives_random_work(seed: int) -> None:
    run = RandomRun(seed)
    for _ in range(150):
        run.act()
    while run.cache.scheduler.has_work:
        run.cache.step()
        run.finish()
    assert not run.open, "a request never finished"
    assert run.cache.scheduler.pool.free_count == run.cache.scheduler.pool.num_pages, "pages leaked"


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    n=st.integers(1, 6),
    max_tokens=st.integers(1, 12),
    page_size=st.integers(1, 9),
    spare=st.integers(0, 6),
    max_seqs=st.integers(1, 9),
    budget=st.integers(1, 30),
)
def test_any_pool_that_fits_one_sequence_is_enough(
    lengths: list[int], n: int, max_tokens: int, page_size: int, spare: int, max_seqs: int, budget: int
) -> None:
    need = -(-(max(lengths) + max_tokens - 1) // page_size)
    scheduler = Scheduler(need + spare, page_size, max_seqs, budget, max_length=64)
    run = TextCache(scheduler)
    requests = [request(i, [i % 3] * length, n, max_tokens, stop=99) for i, length in enumerate(lengths)]
    for r in requests:
        scheduler.submit(r)
    run.run()
    assert [run.of(r.request_id) for r in requests] == [expected(r) for r in requests]
    if need > 1:
        tight = Scheduler(need - 1, page_size, max_seqs, budget, max_length=64)
        with pytest.raises(InputError, match=f"needs {need} pages .* has {need - 1}"):
            tight.submit(requests[int(np.argmax(lengths))])


MODEL = small_model()
PROMPTS = ([1, 2, 3], [4] * 30, [1, 2, 3, 4], [50, 8, 9, 10, 11, 12, 13, 14], [60], [4] * 29, [1, 2, 3])


def params(i: int) -> SamplingParams:
    """Settings of all kinds."""
    kinds = ({}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.3}, {"min_p": 0.05})
    return SamplingParams(n=1 + i % 4, max_tokens=9 + 2 * i, seed=i, **kinds[i % 5])


@pytest.fixture(scope="module")
def alone() -> list[RequestOutput]:
    """Each prompt's output from an engine of its own."""
    return [small_engine(MODEL).generate([prompt], params(i))[0] for i, prompt in enumerate(PROMPTS)]


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(len(PROMPTS))),
    page_size=st.sampled_from((1, 3, 4, 16)),
    spare=st.sampled_from((0, 1, 5, 40)),
    max_seqs=st.sampled_from((1, 2, 3, 7, 40)),
    budget=st.sampled_from((1, 2, 5, 17, 200)),
    pause=st.integers(0, 4),
)
def test_answers_are_bitwise_those_of_the_request_alone(
    alone: list[RequestOutput],
    order: list[int],
    page_size: int,
    spare: int,
    max_seqs: int,
    budget: int,
    pause: int,
) -> None:
    need = max(-(-(len(prompt) + params(i).max_tokens - 1) // page_size) for i, prompt in enumerate(PROMPTS))
    engine = small_engine(
        MODEL, page_size=page_size, num_pages=need + spare, max_seqs=max_seqs, max_batch_tokens=budget
    )
    if not is_exact(engine):
        pytest.skip("the native attention kernels are not built")
    got: dict[int, RequestOutput] = {}
    ids = {}
    for i in order:
        ids[i] = engine.submit(PROMPTS[i], params(i), callback=lambda o: got.update({o.request_id: o}))
        for _ in range(pause):
            engine.step()
    while engine.has_work:
        engine.step()
    engine._scheduler.check()
    assert engine._scheduler.pool.free_count == engine._scheduler.pool.num_pages
    for i, wanted in enumerate(alone):
        assert dataclasses.replace(got[ids[i]], request_id=0) == wanted, f"prompt {i}"
