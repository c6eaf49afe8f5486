# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs for decoding: a step of rows alone, one token each, recorded once and replayed.

Such a step launches about ten kernels a layer, each of which can take less time than its launch; replayed,
they are one launch. A graph keeps addresses and sizes: its inputs are copied into tensors of its own, weights
and pages must stay where they are, and there is one graph per number of rows. That number is rounded up by at
most an eighth; what the added rows compute is of no use, and they write to slots of their own. Steps with
chunks of prompts, and steps that mix roles, are not recorded.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.model import PagedStep, Step
from rzero.engine.weights import ModelWeights
from rzero.kernels import Kernels
from rzero.kernels.dispatch import REFERENCE

Forward = Callable[[Step], Tensor]


class Record(Protocol):
    """Records computations."""

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """The place of a computation's output, and what computes it again from its inputs' places."""

    def forget(self) -> None:
        """What was recorded is gone."""


RECORDED = ("lora", "rmsnorm", "add_rmsnorm", "rope_write", "swiglu", "paged_attention")
"""The ops of a pass that may not run on their references, which may read numbers on the host. `linear` may:
its reference is torch's product, the default of a GPU.
"""


def recorder(is_wanted: bool, kernels: Kernels, device: torch.device, debug: bool) -> Record | None:
    """What records a pass on this device, None where that is not asked for.

    Raises InputError where it is and cannot be had.
    """
    if not is_wanted:
        return None
    reason = None
    if device.type != "cuda":
        reason = f"the engine runs on {device}"
    elif debug:
        reason = "debug checks the arguments of every call on the host"
    for choice in kernels.report:
        if reason is None and choice.op in RECORDED and choice.backend == REFERENCE:
            reason = f"{choice.op} runs on its reference, which may read numbers on the host"
    if reason is not None:
        raise InputError(f"cuda_graphs is true, but {reason}; set it to false")
    return CudaRecord(device)


class CudaRecord:
    """Records on the current device, all on one stream, which no other engine uses.

    The graphs share a pool of memory: no two run at a time, and what one leaves is used up before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool: Any = None

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Compiling, loading and cuBLAS' workspace come with the first call, and cannot be recorded.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = compute()
        return out, graph.replay

    def forget(self) -> None:
        # A pool whose last graph is gone cannot be recorded into again.
        self._pool = None


def rows_recorded(rows: int, most: int) -> int:
    """The rows of the graph that computes so many: from 8 on eight sizes between two powers of two."""
    unit = max(1, 1 << (rows - 1).bit_length() >> 4)
    return min(-(-rows // unit) * unit, most)


class _Graph(NamedTuple):
    weights: ModelWeights
    """Kept, so that no others come to have the same id."""
    step: Step
    """Inputs of its own, and the pages."""
    h_TD: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The recorded passes, by number of rows and weights. Memory of weights and pages is held until
    `forget`.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def run(self, step: Step, weights: ModelWeights, forward: Forward) -> Tensor:
        """What `forward` computes for a step whose rows are one token each, under the weights of one role.

        The hidden states are overwritten by the next call. `forward` is called only to record; weights may
        change in place between calls, and may not move.
        """
        key = len(step.ids_T), id(weights)
        if key not in self._graphs:
            mine = _with_inputs(step, [x.clone() for x in _inputs(step)])
            self._graphs[key] = _Graph(weights, mine, *self._record(partial(forward, mine)))
        graph = self._graphs[key]
        for place, value in zip(_inputs(graph.step), _inputs(step), strict=True):
            place.copy_(value)
        graph.replay()
        return graph.h_TD

    def forget(self) -> None:
        """Before pages or weights go."""
        self._graphs.clear()
        self._record.forget()


def _inputs(step: Step) -> tuple[Tensor, ...]:
    """What changes from step to step. All rows being one token long, `q_start_B1` does not."""
    paged = step.attend
    assert isinstance(paged, PagedStep), "training is not recorded"
    return step.ids_T, step.pos_T, paged.slot_T, paged.page_table_BM, paged.kv_len_B


def _with_inputs(step: Step, inputs: list[Tensor]) -> Step:
    ids_T, pos_T, slot_T, page_table_BM, kv_len_B = inputs
    assert isinstance(step.attend, PagedStep), "training is not recorded"
    paged = replace(step.attend, slot_T=slot_T, page_table_BM=page_table_BM, kv_len_B=kv_len_B)
    return Step(ids_T, pos_T, paged)
