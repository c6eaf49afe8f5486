# SPDX-License-Identifier: Apache-2.0
"""A scheduler whose cache holds tokens instead of keys and values, so that what a row would read can be
compared.

Each drawn token is a function of the whole history found in the row's pages, of its key and its position,
as with a real model; a page that was lost, overwritten, shared too long or not copied gives a wrong
history.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from rzero.engine.batch import Answer, Request
from rzero.engine.sampling import SamplingParams, answer_keys
from rzero.engine.scheduler import Scheduler

VOCABULARY = 7
STOP = 6
FREE = -1


def request(
    request_id: int, prompt: Sequence[int], n: int, max_tokens: int, role: str = "base", stop: int = STOP
) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens)
    ids = np.array(prompt)
    return Request(request_id, role, ids, params, answer_keys(ids, 0, n), max_tokens, np.array([stop]))


def next_token(history: Sequence[int], key: int) -> int:
    return zlib.crc32(repr((list(map(int, history)), int(key))).encode()) % VOCABULARY


def expected(r: Request) -> list[list[int]]:
    """The answers that follow from the request alone."""
    answers = []
    for key in r.keys:
        drawn: list[int] = []
        while len(drawn) < r.max_tokens and (not drawn or drawn[-1] not in r.stop_ids):
            drawn.append(next_token([*r.prompt, *drawn], key))
        answers.append(drawn)
    return answers


class TextCache:
    """Runs a scheduler's plans on pages of tokens and collects the answers by request."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cells = np.full((scheduler.pool.num_pages, scheduler.pool.page_size), FREE)
        self.answers: dict[int, dict[int, list[int]]] = {}
        self.computed_tokens = 0
        self.steps = 0

    def write(self, pages: np.ndarray, position: int, token: int) -> None:
        page, place = pages[position // self.cells.shape[1]], position % self.cells.shape[1]
        assert self.scheduler.pool.holders[page] == 1, "a page with several holders is written"
        self.cells[page, place] = token

    def step(self) -> list[Answer]:
        scheduler, batch = self.scheduler, self.scheduler.batch
        plan = scheduler.plan()
        tokens = plan.rows + sum(chunk.stop - chunk.start for chunk in plan.chunks)
        assert 0 < tokens <= scheduler.max_batch_tokens
        assert plan.rows + len(plan.chunks) <= batch.max_seqs
        roles = [answer.request.role for answer in batch.owner[: plan.rows]]
        assert batch.running_roles() == sorted(set(roles), key=batch.roles.index)
        assert all(scheduler._base_of(role) == scheduler.base for role in roles)
        self.cells[scheduler.pool.holders == 0] = FREE
        for source, copies in plan.copies:
            self.cells[copies] = self.cells[source]
        for chunk in plan.chunks:
            for position in range(chunk.start, chunk.stop):
                self.write(chunk.prefix.pages, position, chunk.prefix.ids[position])
        drawn = np.zeros(plan.rows, np.int64)
        for row in range(plan.rows):
            position = int(batch.position[row])
            self.write(batch.pages(row), position, int(batch.token[row]))
            history = self.cells[batch.pages(row)].ravel()[: position + 1]
            answer = batch.owner[row]
            assert history.tolist() == [*answer.request.prompt, *batch.drawn(row)]
            drawn[row] = next_token(history, batch.key[row])
        scheduler.commit(plan)
        ended = scheduler.retire(batch.advance(drawn, drawn / 2, drawn / 4))
        for answer in ended:
            assert (answer.logprobs == answer.tokens / 2).all()
            assert (answer.full_logprobs == answer.tokens / 4).all()
            self.answers.setdefault(answer.request.request_id, {})[answer.index] = answer.tokens.tolist()
        scheduler.check()
        self.computed_tokens += tokens
        self.steps += 1
        return ended

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()
        assert self.scheduler.pool.free_count == self.scheduler.pool.num_pages, "pages leaked"

    def of(self, request_id: int) -> list[list[int]]:
        answers = self.answers[request_id]
        assert sorted(answers) == list(range(len(answers)))
        return [answers[i] for i in range(len(answers))]
