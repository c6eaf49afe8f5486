# SPDX-License-Identifier: Apache-2.0
"""What each step computes: which answers take their next token and which prompts are prefilled how far. No
torch here.

A request's prompt is prefilled once, for all positions but the last, into the pages of a Prefix. An answer
starts by feeding the prompt's last token itself, so each running answer feeds exactly one token per step,
prefill never draws, and the first token is no special case. Answers share the prefix's full pages and take
a copy of its last, partial page; the last answer to start takes that page over. Requests with the same
prompt that wait together share one Prefix.

When pages run short, prefixes that no running answer uses are dropped (to be prefilled again), then the
youngest answer is preempted: it becomes a prefix made of prompt and drawn tokens. Keys and values of a
token do not depend on the step that computed them (where the engine is exact) and random numbers are keyed by
answer and position, so none of this shows in the result.

Roles that share all tensors but adapters have one base, and one queue: a step mixes them. Bases take turns: a
turn lasts until the requests that were waiting at its start are done, longer if no other base waits.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rzero.engine.batch import Answer, Batch, Ints, Request
from rzero.engine.errors import InputError
from rzero.engine.pages import PagePool, Pages

_NO_PAGES: Pages = np.empty(0, np.int32)
_NO_PAGES.setflags(write=False)


@dataclass(eq=False, slots=True)
class Prefix:
    """Positions 0..len(ids)-2 of one text: computed once, read by every answer that starts from it."""

    ids: Ints
    role: str
    key: tuple[str, bytes] | None
    """Role and prompt, by which later requests find it; None for the private prefix of a preempted answer."""
    pages: Pages = field(default_factory=lambda: _NO_PAGES)
    filled: int = 0
    """Positions computed so far."""
    waiting: int = 0
    """Answers that have yet to start from here; the last one takes the pages over."""

    @property
    def length(self) -> int:
        return len(self.ids) - 1

    @property
    def is_ready(self) -> bool:
        return self.filled == self.length


@dataclass(eq=False, slots=True)
class Group:
    """The answers of a request that wait for their start, or one answer that was preempted."""

    request: Request
    prefix: Prefix
    next_index: int
    waiting: int
    preempted: Answer | None = None

    @property
    def rank(self) -> tuple[bool, int]:
        """Its place in a queue: preempted answers first, oldest first, then requests as they came."""
        if self.preempted is not None:
            return False, self.preempted.age
        return True, self.request.request_id


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions start..stop-1 of a prefix, computed in this step."""

    prefix: Prefix
    start: int
    stop: int


@dataclass(slots=True)
class Plan:
    """One step: page copies first, then one token for each of the batch's rows and the chunks."""

    rows: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, Pages]] = field(default_factory=list)
    """(page, its copies)"""


class Scheduler:
    """Waiting groups, running answers and the pages of both."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        max_seqs: int,
        max_batch_tokens: int,
        max_length: int,
        base_of: Callable[[str], Hashable] = str,
    ) -> None:
        """base_of: what two roles have in common exactly if a step can mix them; by default no two can."""
        self.pool = PagePool(num_pages, page_size)
        self.max_batch_tokens = max_batch_tokens
        self.max_length = max_length
        self.batch = Batch(min(max_seqs, max_batch_tokens), min(self.pool.pages_for(max_length), num_pages))
        self.base: Hashable = None
        """Whose turn it is."""
        self._base_of = base_of
        self.preemptions = 0
        self._started = 0
        self._turn_ends = -1
        self._newest = -1
        self.queues: dict[Hashable, deque[Group]] = {}
        """By base; in order of `Group.rank`."""
        self._prefixes: dict[tuple[str, bytes], Prefix] = {}
        self._held: list[Prefix] = []

    @property
    def has_work(self) -> bool:
        return self.batch.size > 0 or any(self.queues.values())

    def check_fits(self, request: Request) -> None:
        """Raise InputError for a request that could never run, with the numbers."""
        length = len(request.prompt)
        if length >= self.max_length:
            raise InputError(
                f"the prompt has {length} tokens, but the context holds {self.max_length} and one must be "
                f"left for the answer; at most {self.max_length - 1} are allowed"
            )
        positions = length + request.max_tokens - 1  # the last token drawn is never fed
        needed = self.pool.pages_for(positions)
        if needed > self.pool.num_pages:
            raise InputError(
                f"a prompt of {length} tokens with max_tokens={request.max_tokens} needs {needed} pages of "
                f"{self.pool.page_size} tokens, but the page pool has {self.pool.num_pages}; "
                "shorten it or enlarge the pool"
            )

    def submit(self, request: Request) -> None:
        """Queue a request that fits; request ids grow."""
        self.check_fits(request)
        key = (request.role, request.prompt.tobytes())
        prefix = self._prefixes.setdefault(key, Prefix(request.prompt, request.role, key))
        prefix.waiting += request.params.n
        self._queue(request.role).append(Group(request, prefix, 0, request.params.n))
        self._newest = request.request_id

    def _queue(self, role: str) -> deque[Group]:
        return self.queues.setdefault(self._base_of(role), deque())

    def regroup(self) -> None:
        """Sort everything by bases anew, after some roles have got other tensors."""
        if {self._base_of(role) for role in self.batch.running_roles()} - {self.base}:
            while self.batch.size:
                self._preempt()
        groups = [group for queue in self.queues.values() for group in queue]
        self.queues = {}
        for group in sorted(groups, key=lambda group: group.rank):
            self._queue(group.request.role).append(group)

    def plan(self) -> Plan:
        """Choose the next step's work and give it its pages; the caller computes it and calls `commit`."""
        self._take_turns()
        plan = Plan()
        self._grow()
        queue = self.queues.get(self.base, deque())
        self._admit(queue, plan)
        if not self.batch.size and not plan.chunks and queue:
            for prefix in [p for p in self._held if p is not queue[0].prefix]:
                self._drop(prefix)
            self._admit(queue, plan, is_forced=True)
            assert self.batch.size or plan.chunks, "a request that fits the pool cannot start"
        plan.rows = self.batch.size
        return plan

    def commit(self, plan: Plan) -> None:
        """The plan's chunks have been computed."""
        for chunk in plan.chunks:
            chunk.prefix.filled = chunk.stop

    def retire(self, reasons: npt.NDArray[np.int8]) -> list[Answer]:
        """Take the answers out that have ended, one reason per row; their pages are free at once."""
        rows = np.flatnonzero(reasons)
        if not len(rows):
            return []
        ended = []
        for row in rows.tolist():
            answer = self.batch.carry(row)
            answer.reason = int(reasons[row])
            ended.append(answer)
        self._remove(rows)
        return ended

    def cancel(self, request_id: int) -> None:
        """Forget a request wherever it is; its pages are free at once."""
        owners = self.batch.owner[: self.batch.size]
        rows = [row for row, answer in enumerate(owners) if answer.request.request_id == request_id]
        self._remove(np.array(rows, np.int64))
        for base, queue in self.queues.items():
            gone = [group for group in queue if group.request.request_id == request_id]
            if gone:
                self.queues[base] = deque(group for group in queue if group.request.request_id != request_id)
            for group in gone:
                self._leave(group.prefix, group.waiting)

    def clear(self) -> None:
        """Forget all requests, in whatever state an interrupted step has left them."""
        self.batch = Batch(self.batch.max_seqs, self.batch.table.shape[1])
        self.queues.clear()
        self._prefixes.clear()
        self._held.clear()
        self.pool.clear()

    def give_up_pages(self) -> None:
        """Give every page back; all requests stay and are computed again."""
        while self.batch.size:
            self._preempt()
        for prefix in list(self._held):
            self._drop(prefix)

    def check(self) -> None:
        """Assert that pages, queues and batch agree (for tests)."""
        batch = self.batch
        self.pool.check([p.pages for p in self._held] + [batch.pages(row) for row in range(batch.size)])
        groups = [group for queue in self.queues.values() for group in queue]
        prefixes = {id(group.prefix): group.prefix for group in groups}
        for prefix in prefixes.values():
            waiting = sum(group.waiting for group in groups if group.prefix is prefix)
            assert prefix.waiting == waiting > 0, f"{prefix.waiting} answers wait, {waiting} are queued"
            assert (len(prefix.pages) > 0) == (prefix in self._held)
            assert prefix.filled <= self.pool.page_size * len(prefix.pages)
        assert len(self._prefixes) == sum(p.key is not None for p in prefixes.values())
        assert all(id(p) in prefixes for p in self._held), "a prefix without a request holds pages"
        assert len(set(batch.record[: batch.size])) == batch.size
        assert all(answer is None for answer in batch.owner[batch.size :])
        written = batch.page_count[: batch.size] * self.pool.page_size
        assert (batch.position[: batch.size] <= written).all()

    def _take_turns(self) -> None:
        heads = {base: queue[0].request.request_id for base, queue in self.queues.items() if queue}
        if self.batch.size or not heads:
            return
        mine = heads.get(self.base)
        if mine is None or (len(heads) > 1 and mine > self._turn_ends):
            self.base = min(heads, key=lambda base: (base == self.base, heads[base]))
            self._turn_ends = self._newest

    def _is_in_turn(self, group: Group) -> bool:
        if group.request.request_id <= self._turn_ends:
            return True
        return not any(queue for base, queue in self.queues.items() if base != self.base)

    def _grow(self) -> None:
        """Give a page to each running answer whose next token opens one."""
        batch = self.batch
        while True:
            used = batch.page_count[: batch.size]
            rows = np.flatnonzero(batch.position[: batch.size] >= used * self.pool.page_size)
            if len(rows) <= self.pool.free_count:
                break
            self._reclaim()
        if len(rows):
            batch.table[rows, used[rows]] = self.pool.take(len(rows))
            batch.page_count[rows] += 1

    def _reclaim(self) -> None:
        """Free some pages, the cheapest first."""
        for prefix in reversed(self._held):
            if (self.pool.holders[prefix.pages] == 1).all():
                return self._drop(prefix)
        if self.batch.size > 1:
            return self._preempt()
        return self._drop(self._held[-1])

    def _preempt(self) -> None:
        """The youngest answer goes back to the head of the queue."""
        row = int(self.batch.age[: self.batch.size].argmax())
        answer = self.batch.carry(row)
        self._remove(np.array([row]))
        role, text = answer.request.role, np.concatenate([answer.request.prompt, answer.tokens])
        prefix = Prefix(text, role, None, waiting=1)
        self._queue(role).appendleft(Group(answer.request, prefix, answer.index, 1, answer))
        self.preemptions += 1

    def _remove(self, rows: Ints) -> None:
        for row in rows.tolist():
            self.pool.release(self.batch.pages(row))
        self.batch.remove(rows)

    def _admit(self, queue: deque[Group], plan: Plan, is_forced: bool = False) -> None:
        """Walk the queue as far as rows, pages and the token budget allow: start answers, prefill prompts."""
        seats = self.batch.max_seqs - self.batch.size
        budget = self.max_batch_tokens - self.batch.size
        planned: set[int] = set()
        i = 0
        while i < len(queue) and seats > 0 and budget > 0 and self._is_in_turn(queue[i]):
            group, prefix = queue[i], queue[i].prefix
            if not (prefix.is_ready or len(prefix.pages) or self._begin(group)):
                return
            if prefix.is_ready:
                wanted = min(group.waiting, seats, budget)
                started = self._start(group, wanted, plan, is_forced)
                seats, budget = seats - started, budget - started
                if started < wanted:
                    return
                if not group.waiting:
                    del queue[i]
                    continue
            else:
                if id(prefix) not in planned:
                    stop = min(prefix.length, prefix.filled + budget)
                    plan.chunks.append(Chunk(prefix, prefix.filled, stop))
                    planned.add(id(prefix))
                    budget -= stop - prefix.filled
                seats -= group.waiting
            i += 1

    def _begin(self, group: Group) -> bool:
        """Give a prefix all its pages, if that leaves one for its answer and one for each running answer."""
        prefix, shared = group.prefix, _NO_PAGES
        if group.preempted:
            whole = self._prefixes.get((group.request.role, group.request.prompt.tobytes()))
            if whole is not None and whole.is_ready:
                shared = whole.pages[: whole.length // self.pool.page_size]
        count = self.pool.pages_for(prefix.length) - len(shared)
        spare = self.batch.size + 1 if self.batch.size else 0
        if count + spare > self.pool.free_count:
            return False
        self.pool.share(shared)
        prefix.pages = np.concatenate([shared, self.pool.take(count)])
        prefix.filled = len(shared) * self.pool.page_size
        self._held.append(prefix)
        return True

    def _start(self, group: Group, wanted: int, plan: Plan, is_forced: bool) -> int:
        """Start up to `wanted` answers of a ready group as far as pages allow; returns how many."""
        pool, prefix = self.pool, group.prefix
        full, tail = divmod(prefix.length, pool.page_size)
        count = self._affordable(prefix, wanted, tail > 0, is_forced)
        if count == 0:
            return 0
        takes_over = count == prefix.waiting or pool.free_count == 0
        answers = self._next_answers(group, count)
        shared = prefix.pages[:full]
        own = pool.take(count - (takes_over and tail > 0))
        if tail and len(own):
            plan.copies.append((int(prefix.pages[full]), own))
        if takes_over:
            own = np.concatenate([own, prefix.pages[full:]])
            prefix.pages, prefix.filled = _NO_PAGES, 0
            self._held = [p for p in self._held if p is not prefix]
        pool.share(shared, count - takes_over)
        self.batch.add(answers, shared, own)
        group.waiting -= count
        self._leave(prefix, count)
        return count

    def _affordable(self, prefix: Prefix, wanted: int, has_tail: bool, is_forced: bool) -> int:
        """How many answers can start: each takes a page now and may soon take another, as the running may."""
        room = self.pool.free_count - self.batch.size
        saved = 1 if has_tail and wanted == prefix.waiting else 0
        count = max(0, min(wanted, (room + saved) // 2))
        if count or self.batch.size:
            return count
        # Nothing runs, so one answer must start whatever the margin; without a page it takes the prefix's.
        return 1 if self.pool.free_count or (has_tail and (is_forced or prefix.waiting == 1)) else 0

    def _next_answers(self, group: Group, count: int) -> list[Answer]:
        if group.preempted:
            return [group.preempted]
        first, age = group.next_index, self._started
        group.next_index += count
        self._started += count
        return [Answer(group.request, first + i, age + i) for i in range(count)]

    def _leave(self, prefix: Prefix, count: int) -> None:
        """`count` answers no longer wait for a prefix; without any it goes."""
        prefix.waiting -= count
        if prefix.waiting == 0:
            self._drop(prefix)
            if prefix.key is not None:
                del self._prefixes[prefix.key]

    def _drop(self, prefix: Prefix) -> None:
        """Give a prefix's pages back; it is computed again when its turn comes."""
        if len(prefix.pages):
            self.pool.release(prefix.pages)
            self._held = [p for p in self._held if p is not prefix]
        prefix.pages, prefix.filled = _NO_PAGES, 0
