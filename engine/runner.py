# SPDX-License-Identifier: Apache-2.0
"""From a plan to tokens: copy pages, one forward pass over rows and chunks, head and sampling for
the rows.

The rows of a step come first, one token each, then the chunks; both sorted by role, so that a role's adapters
apply to at most two runs of rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rzero.engine.batch import Batch, Floats, Ints
from rzero.engine.config import ModelConfig
from rzero.engine.decode_graphs import DecodeGraphs, Record, rows_recorded
from rzero.engine.device import current
from rzero.engine.kv_cache import KvCache
from rzero.engine.model import PagedStep, RoleRows, Step, forward
from rzero.engine.scheduler import Chunk, Plan
from rzero.engine.weights import ModelWeights
from rzero.kernels import Kernels

LOGITS_BYTES = 2**26
"""Logits of at most this size are held at a time; large vocabularies are sampled in groups of rows."""


class Drawn(NamedTuple):
    """One token per row with its log-probs under the distribution sampled from and under the full one."""

    tokens: Ints
    logprobs: Floats
    full_logprobs: Floats


class Runner:
    """Computes plans. The arrays of a step are made once and reused; on the CPU the tensors are views of
    them.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        cache: KvCache,
        tables: tuple[Tensor, Tensor],
        max_batch_tokens: int,
        max_seqs: int,
        scores_drawn: bool = False,
        record: Record | None = None,
    ) -> None:
        """tables: cos and sin of `rope_tables`, which also say the device. scores_drawn: log-probs of what is
        drawn come from `linear_logprob`, as in training, and not from `sample`. record: how decoding is
        recorded; None: it is not.
        """
        self._config, self._kernels, self._cache = config, kernels, cache
        self._cos_RE, self._sin_RE = tables
        self._device, self._scores_drawn = self._cos_RE.device, scores_drawn
        self._graphs = None if record is None else DecodeGraphs(record)
        self._ids = np.zeros(max_batch_tokens, np.int64)
        self._positions = np.zeros(max_batch_tokens, np.int64)
        self._slots = np.zeros(max_batch_tokens, np.int64)
        self._q_start = np.arange(max_seqs + 1, dtype=np.int32)
        self._kv_len = np.zeros(max_seqs, np.int32)
        self._rows = np.arange(max_seqs)

    def run(self, plan: Plan, batch: Batch, weights_of: Callable[[str], ModelWeights]) -> Drawn:
        """Compute a plan, each answer under its role's weights, which share all tensors but adapters.

        Raises ValueError where a row's logits are not numbers.
        """
        with torch.inference_mode(), current(self._device):
            return self._run(plan, batch, weights_of)

    def _run(self, plan: Plan, batch: Batch, weights_of: Callable[[str], ModelWeights]) -> Drawn:
        self._copy_pages(plan)
        rows = batch.role[: plan.rows].argsort(kind="stable")
        chunks = sorted(plan.chunks, key=lambda chunk: chunk.prefix.role)
        mixed = [
            RoleRows(start, stop, weights_of(role)) for role, start, stop in _role_rows(rows, chunks, batch)
        ]
        weights = mixed[0].weights
        if self._graphs is None or chunks or len(mixed) > 1:
            h_TD = self._forward(mixed, self._step(rows, chunks, batch))
        else:
            count = rows_recorded(plan.rows, batch.max_seqs)
            every = partial(self._forward, [RoleRows(0, count, weights)])
            step = self._step(rows, [], batch, padding=count - plan.rows)
            h_TD = self._graphs.run(step, weights, every)
        return self._sample(h_TD[: plan.rows], rows, batch, weights.head)

    @property
    def is_recording(self) -> bool:
        """Whether steps that decode are replayed from graphs."""
        return self._graphs is not None

    def forget_graphs(self) -> None:
        """Before the pages or a role's tensors go."""
        if self._graphs is not None:
            self._graphs.forget()

    def _forward(self, mixed: list[RoleRows], step: Step) -> Tensor:
        tables = self._cos_RE, self._sin_RE
        return forward(self._config, mixed[0].weights, step, self._kernels, *tables, mixed=mixed)

    def _copy_pages(self, plan: Plan) -> None:
        if plan.copies:
            sources = np.concatenate([np.full(len(copies), page) for page, copies in plan.copies])
            src = self._tensor(sources.astype(np.int64))
            dst = self._tensor(np.concatenate([copies for _, copies in plan.copies]).astype(np.int64))
            for k_pages_PSGE, v_pages_PSGE in zip(*self._cache.pages(), strict=True):
                self._kernels.copy_pages(k_pages_PSGE, v_pages_PSGE, src, dst)

    def _step(self, rows: Ints, chunks: list[Chunk], batch: Batch, padding: int = 0) -> Step:
        """The batch's rows in this order, then the chunks, whose pages lie in the table behind the rows'.

        padding: so many rows more, which repeat the last row and write to spare slots.
        """
        rows = np.concatenate([rows, np.repeat(rows[-1:], padding)])
        n, size = len(rows), self._cache.page_size
        positions = batch.position[rows]
        self._ids[:n] = batch.token[rows]
        self._positions[:n] = positions
        self._slots[:n] = batch.table[rows, positions // size] * np.int64(size) + positions % size
        self._slots[n - padding : n] = self._cache.spare[:padding]
        self._q_start[: n + 1] = np.arange(n + 1)
        self._kv_len[:n] = positions + 1
        end = n
        for row, chunk in enumerate(chunks, n):
            prefix, here = chunk.prefix, slice(end, end + chunk.stop - chunk.start)
            places = np.arange(chunk.start, chunk.stop)
            self._ids[here] = prefix.ids[chunk.start : chunk.stop]
            self._positions[here] = places
            self._slots[here] = prefix.pages[places // size] * np.int64(size) + places % size
            batch.table[row, : len(prefix.pages)] = prefix.pages
            self._kv_len[row] = chunk.stop
            self._q_start[row + 1] = end = here.stop
        k_pages_LPSGE, v_pages_LPSGE = self._cache.pages()
        sequences = n + len(chunks)
        table = batch.table[:sequences]
        if (rows != self._rows[:n]).any():
            table = np.concatenate([table[rows], table[n:]])
        attend = PagedStep(
            k_pages_LPSGE=k_pages_LPSGE,
            v_pages_LPSGE=v_pages_LPSGE,
            slot_T=self._tensor(self._slots[:end]),
            page_table_BM=self._tensor(table),
            q_start_B1=self._tensor(self._q_start[: sequences + 1]),
            kv_len_B=self._tensor(self._kv_len[:sequences]),
        )
        return Step(self._tensor(self._ids[:end]), self._tensor(self._positions[:end]), attend)

    def _sample(self, h_BD: Tensor, rows: Ints, batch: Batch, head_VD: Tensor) -> Drawn:
        """What is drawn for each row of the batch; h_BD are `rows` of it, in this order.

        They are grouped for memory alone: a row's logits and its token do not depend on its neighbours.
        """
        n = len(rows)
        drawn = Drawn(np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32))
        outputs: tuple[npt.NDArray[Any], ...] = drawn
        columns = (batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.key, batch.position + 1)
        group = max(16, LOGITS_BYTES // (4 * len(head_VD)))
        for start in range(0, n, group):
            here = rows[start : start + group]
            logits_BV = self._kernels.linear(h_BD[start : start + group], head_VD)
            settings = (self._tensor(column[here]) for column in columns)
            parts = self._kernels.sample(logits_BV, *settings)
            if self._scores_drawn:
                parts = self._scored(h_BD[start : start + group], head_VD, parts, batch, here)
            for values, part in zip(outputs, parts, strict=True):
                values[here] = part.cpu().numpy()
        return drawn

    def _scored(
        self, h_BD: Tensor, head_VD: Tensor, parts: tuple[Tensor, Tensor, Tensor], batch: Batch, rows: Ints
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What was drawn, with the log-probs of the trainer, who knows a temperature and no truncation."""
        token_B, logp_B, _ = parts
        full_B = self._kernels.linear_logprob(h_BD, head_VD, token_B, 1.0)[0]
        is_cut_B = (batch.top_k[rows] > 0) | (batch.top_p[rows] < 1) | (batch.min_p[rows] > 0)
        temperature_B = np.where(is_cut_B, 0, batch.temperature[rows])
        for value in np.unique(temperature_B[temperature_B > 0]):
            at_B = full_B
            if value != 1:
                at_B, _ = self._kernels.linear_logprob(h_BD, head_VD, token_B, float(value))
            logp_B = torch.where(self._tensor(temperature_B == value), at_B, logp_B)
        return token_B, logp_B, full_B

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _role_rows(rows: Ints, chunks: list[Chunk], batch: Batch) -> list[tuple[str, int, int]]:
    """(role, start, stop) of each run of the step's rows that one role computes, in order."""
    places, counts = np.unique(batch.role[rows], return_counts=True)
    lengths = [(batch.roles[place], count) for place, count in zip(places, counts.tolist(), strict=True)]
    lengths += [(chunk.prefix.role, chunk.stop - chunk.start) for chunk in chunks]
    runs: list[tuple[str, int, int]] = []
    start = 0
    for role, length in lengths:
        stop = start + length
        if runs and runs[-1][0] == role:
            runs[-1] = (role, runs[-1][1], stop)
        else:
            runs.append((role, start, stop))
        start = stop
    return runs
