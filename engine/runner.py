# SPDX-License-Identifier: Apache-2.0
"""From a plan to tokens: copy pages, one forward pass over rows and chunks, head and sampling for
the rows.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rzero.engine.batch import Batch, Floats, Ints
from rzero.engine.config import ModelConfig
from rzero.engine.kv_cache import KvCache
from rzero.engine.model import PagedStep, Step, forward
from rzero.engine.scheduler import Plan
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
    ) -> None:
        """tables: cos and sin of `rope_tables`, which also say the device."""
        self._config, self._kernels, self._cache = config, kernels, cache
        self._cos_RE, self._sin_RE = tables
        self._device = self._cos_RE.device
        self._ids = np.zeros(max_batch_tokens, np.int64)
        self._positions = np.zeros(max_batch_tokens, np.int64)
        self._slots = np.zeros(max_batch_tokens, np.int64)
        self._q_start = np.arange(max_seqs + 1, dtype=np.int32)
        self._kv_len = np.zeros(max_seqs, np.int32)
        self._rows = np.arange(max_seqs)

    @torch.inference_mode()
    def run(self, plan: Plan, batch: Batch, weights: ModelWeights) -> Drawn:
        """Compute a plan under a role's weights. Raises ValueError where a row's logits are not numbers."""
        self._copy_pages(plan)
        step = self._step(plan, batch)
        h_TD = forward(self._config, weights, step, self._kernels, self._cos_RE, self._sin_RE)
        return self._sample(h_TD[: plan.rows], batch, weights.head)

    def _copy_pages(self, plan: Plan) -> None:
        if plan.copies:
            sources = np.concatenate([np.full(len(copies), page) for page, copies in plan.copies])
            src = self._tensor(sources.astype(np.int64))
            dst = self._tensor(np.concatenate([copies for _, copies in plan.copies]).astype(np.int64))
            for k_pages_PSGE, v_pages_PSGE in zip(*self._cache.pages(), strict=True):
                self._kernels.copy_pages(k_pages_PSGE, v_pages_PSGE, src, dst)

    def _step(self, plan: Plan, batch: Batch) -> Step:
        """Rows first, one token each, then the chunks; a chunk's pages lie in the table behind the rows'."""
        n, size = plan.rows, self._cache.page_size
        positions = batch.position[:n]
        self._ids[:n] = batch.token[:n]
        self._positions[:n] = positions
        self._slots[:n] = batch.table[self._rows[:n], positions // size] * np.int64(size) + positions % size
        self._q_start[: n + 1] = np.arange(n + 1)
        self._kv_len[:n] = positions + 1
        end = n
        for row, chunk in enumerate(plan.chunks, n):
            prefix, here = chunk.prefix, slice(end, end + chunk.stop - chunk.start)
            places = np.arange(chunk.start, chunk.stop)
            self._ids[here] = prefix.ids[chunk.start : chunk.stop]
            self._positions[here] = places
            self._slots[here] = prefix.pages[places // size] * np.int64(size) + places % size
            batch.table[row, : len(prefix.pages)] = prefix.pages
            self._kv_len[row] = chunk.stop
            self._q_start[row + 1] = end = here.stop
        k_pages_LPSGE, v_pages_LPSGE = self._cache.pages()
        sequences = n + len(plan.chunks)
        attend = PagedStep(
            k_pages_LPSGE=k_pages_LPSGE,
            v_pages_LPSGE=v_pages_LPSGE,
            slot_T=self._tensor(self._slots[:end]),
            page_table_BM=self._tensor(batch.table[:sequences]),
            q_start_B1=self._tensor(self._q_start[: sequences + 1]),
            kv_len_B=self._tensor(self._kv_len[:sequences]),
        )
        return Step(self._tensor(self._ids[:end]), self._tensor(self._positions[:end]), attend)

    def _sample(self, h_BD: Tensor, batch: Batch, head_VD: Tensor) -> Drawn:
        """Rows are grouped for memory alone: a row's logits and its token do not depend on its neighbours."""
        n = len(h_BD)
        if not n:
            return Drawn(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
        columns = (batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.key, batch.position + 1)
        group = max(16, LOGITS_BYTES // (4 * len(head_VD)))
        parts = []
        for start in range(0, n, group):
            rows = slice(start, min(start + group, n))
            logits_BV = self._kernels.linear(h_BD[rows], head_VD)
            parts.append(self._kernels.sample(logits_BV, *(self._tensor(column[rows]) for column in columns)))
        return Drawn(*(torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True)))

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
