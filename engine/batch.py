# SPDX-License-Identifier: Apache-2.0
"""The running answers as columns: row i of every array belongs to the i-th running answer, without gaps.

A decode step touches whole columns and no Python object per answer. Rows move when answers leave (the last
rows fill the holes); tokens and log-probs drawn so far are kept in records, which do not move. No torch
here.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rzero.engine.pages import Pages
from rzero.engine.sampling import SamplingParams

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

RUNS, STOPPED, FULL = 0, 1, 2
"""Why an answer ended: it did not, by a stop token or string, or for its length."""


@dataclass(eq=False)
class Request:
    """One prompt and how its answers are drawn."""

    request_id: int
    role: str
    prompt: Ints
    params: SamplingParams
    keys: Ints
    """Random key of each answer."""
    max_tokens: int
    """params.max_tokens, cut at the end of the context."""
    stop_ids: Ints
    """Tokens that end an answer."""
    stop_enders: npt.NDArray[np.bool_] | None = None
    """With stop strings: for each token of the vocabulary whether it can complete one of them."""


@dataclass(eq=False, slots=True)
class Answer:
    """Answer `index` to a request; its arrays are set when it leaves the batch."""

    request: Request
    index: int
    age: int
    """Rank by first start; the youngest running answer is preempted first, the oldest never."""
    tokens: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    logprobs: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    full_logprobs: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    reason: int = RUNS


class Batch:
    """Columns of up to `max_seqs` running answers with up to `max_pages` pages each."""

    def __init__(self, max_seqs: int, max_pages: int) -> None:
        self.max_seqs = max_seqs
        self.size = 0
        self.roles: list[str] = []
        """Every role that had a row; the column `role` holds places in this list."""
        self.role = np.zeros(max_seqs, np.int64)
        self.table = np.zeros((max_seqs, max_pages), np.int32)
        """Pages of each row; rows beyond `size` serve the prompts that are prefilled in the same step."""
        self.page_count = np.zeros(max_seqs, np.int64)
        self.token = np.zeros(max_seqs, np.int64)
        """The token that the next step feeds, at `position`; its successor is drawn."""
        self.position = np.zeros(max_seqs, np.int64)
        self.first = np.zeros(max_seqs, np.int64)
        """Position of the prompt's last token: an answer has position - first tokens."""
        self.last = np.zeros(max_seqs, np.int64)
        """The position at which the answer is full."""
        self.age = np.zeros(max_seqs, np.int64)
        self.temperature = np.zeros(max_seqs, np.float32)
        self.top_k = np.zeros(max_seqs, np.int32)
        self.top_p = np.zeros(max_seqs, np.float32)
        self.min_p = np.zeros(max_seqs, np.float32)
        self.key = np.zeros(max_seqs, np.int64)
        self.has_stop_strings = np.zeros(max_seqs, np.bool_)
        self.record = np.zeros(max_seqs, np.int64)
        self.owner = np.full(max_seqs, None, dtype=object)
        self.stop_ids = np.full((max_seqs, 1), -1, np.int64)
        self._free_records = list(range(max_seqs))[::-1]
        self._tokens = np.zeros((max_seqs, 1), np.int64)
        self._logprobs = np.zeros((max_seqs, 1), np.float32)
        self._full_logprobs = np.zeros((max_seqs, 1), np.float32)

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return (
            self.role, self.table, self.page_count, self.token, self.position, self.first, self.last,
            self.age, self.temperature, self.top_k, self.top_p, self.min_p, self.key, self.has_stop_strings,
            self.record, self.owner, self.stop_ids,
        )  # fmt: skip

    def add(self, answers: list[Answer], shared: Pages, own: Pages) -> None:
        """Start answers of one request at the same token: they hold `shared`, and answer i holds own[i].

        An answer that was preempted brings its tokens along (then it comes alone).
        """
        request, params = answers[0].request, answers[0].request.params
        rows = slice(self.size, self.size + len(answers))
        self.size += len(answers)
        self._widen(request)
        if request.role not in self.roles:
            self.roles.append(request.role)
        drawn = len(answers[0].tokens)
        self.role[rows] = self.roles.index(request.role)
        self.table[rows, : len(shared)] = shared
        self.table[rows, len(shared)] = own
        self.page_count[rows] = len(shared) + 1
        self.token[rows] = answers[0].tokens[-1] if drawn else request.prompt[-1]
        self.first[rows] = len(request.prompt) - 1
        self.position[rows] = self.first[rows] + drawn
        self.last[rows] = self.first[rows] + request.max_tokens
        self.age[rows] = [answer.age for answer in answers]
        self.temperature[rows] = params.temperature
        self.top_k[rows] = params.top_k
        self.top_p[rows] = params.top_p
        self.min_p[rows] = params.min_p
        self.key[rows] = request.keys[[answer.index for answer in answers]]
        self.has_stop_strings[rows] = request.stop_enders is not None
        self.record[rows] = [self._free_records.pop() for _ in answers]
        self.owner[rows] = answers
        self.stop_ids[rows] = -1
        self.stop_ids[rows, : len(request.stop_ids)] = request.stop_ids
        if drawn:
            record = self.record[rows.start]
            self._tokens[record, :drawn] = answers[0].tokens
            self._logprobs[record, :drawn] = answers[0].logprobs
            self._full_logprobs[record, :drawn] = answers[0].full_logprobs

    def _widen(self, request: Request) -> None:
        """Make room for the request's stop tokens and its longest answer."""
        if len(request.stop_ids) > self.stop_ids.shape[1]:
            more = len(request.stop_ids) - self.stop_ids.shape[1]
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, more)), constant_values=-1)
        have = self._tokens.shape[1]
        if request.max_tokens > have:
            more = max(request.max_tokens, 2 * have) - have
            self._tokens = np.pad(self._tokens, ((0, 0), (0, more)))
            self._logprobs = np.pad(self._logprobs, ((0, 0), (0, more)))
            self._full_logprobs = np.pad(self._full_logprobs, ((0, 0), (0, more)))

    def running_roles(self) -> list[str]:
        """The roles that have a row now."""
        return [self.roles[place] for place in np.unique(self.role[: self.size])]

    def advance(self, tokens: Ints, logprobs: Floats, full_logprobs: Floats) -> npt.NDArray[np.int8]:
        """Append one drawn token per row. Returns whether and why each row ended, stop strings aside."""
        rows = slice(0, self.size)
        record, column = self.record[rows], self.position[rows] - self.first[rows]
        self._tokens[record, column] = tokens
        self._logprobs[record, column] = logprobs
        self._full_logprobs[record, column] = full_logprobs
        self.token[rows] = tokens
        self.position[rows] += 1
        reasons = np.zeros(self.size, np.int8)
        reasons[self.position[rows] >= self.last[rows]] = FULL
        reasons[(self.stop_ids[rows] == tokens[:, None]).any(axis=1)] = STOPPED
        return reasons

    def drawn(self, row: int) -> Ints:
        """A view of the tokens that a running answer has so far."""
        return self._tokens[self.record[row], : self.position[row] - self.first[row]]

    def pages(self, row: int) -> Pages:
        """A view of the pages that a row holds."""
        return self.table[row, : self.page_count[row]]

    def carry(self, row: int) -> Answer:
        """Copy what a row has drawn into its Answer, which is about to leave."""
        answer: Answer = self.owner[row]
        record, count = self.record[row], self.position[row] - self.first[row]
        answer.tokens = self._tokens[record, :count].copy()
        answer.logprobs = self._logprobs[record, :count].copy()
        answer.full_logprobs = self._full_logprobs[record, :count].copy()
        return answer

    def remove(self, rows: Ints) -> None:
        """Take rows out and fill their places with the last rows."""
        self._free_records.extend(self.record[rows].tolist())
        kept = self.size - len(rows)
        moves = np.ones(self.size, np.bool_)
        moves[rows] = False
        sources = np.flatnonzero(moves[kept:]) + kept
        holes = rows[rows < kept]
        for column in self._columns():
            column[holes] = column[sources]
        self.owner[kept : self.size] = None
        self.size = kept
