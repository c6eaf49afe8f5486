# SPDX-License-Identifier: Apache-2.0
"""Recorded decoding on the CPU: a replay computes again, from the inputs that the graph holds.

tests/triton/test_graphs.py replays the GPU's launches themselves.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from small_engine import PARAMS, PROMPTS, small_engine, small_model
from torch import Tensor

from rzero.engine import Engine, InputError, SamplingParams, TrainConfig, TrainGroup
from rzero.engine import engine as module
from rzero.engine.decode_graphs import CudaRecord, recorder, rows_recorded
from rzero.engine.lora import LoraConfig
from rzero.kernels import resolve

CPU = torch.device("cpu")


class Recorder:
    """Computes again into the first output, as a graph does."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        """Rows of each recording."""
        self.replays = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        out = torch.full_like(compute(), torch.nan)
        self.recorded.append(len(out))

        def replay() -> None:
            self.replays += 1
            out.copy_(compute())

        return out, replay

    def forget(self) -> None:
        self.recorded.clear()


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    record = Recorder()
    monkeypatch.setattr(module, "recorder", lambda wanted, *_: record if wanted else None)
    return record


def both(**options: object) -> tuple[Engine, Engine]:
    """An engine that launches, and one that replays."""
    plain, recorded = (small_engine(small_model(), cuda_graphs=on, **options) for on in (False, True))
    assert "graphs" in recorded.describe()["batch"] and "graphs" not in plain.describe()["batch"]
    return plain, recorded


def test_rows_are_rounded_up_by_an_eighth_at_most() -> None:
    for rows in range(1, 2000):
        assert rows <= rows_recorded(rows, 10**6) <= rows * 9 / 8
    assert len({rows_recorded(rows, 256) for rows in range(1, 257)}) == 48
    assert rows_recorded(250, 253) == 253


@pytest.mark.parametrize("chunk", [256, 24])
def test_the_answers_are_those_of_steps_that_are_launched(record: Recorder, chunk: int) -> None:
    """Ragged prompts and answers, so that the number of rows falls; and again, in recordings that exist."""
    plain, recorded = both(max_batch_tokens=chunk)
    many = SamplingParams(n=9, max_tokens=30, seed=8)
    for params in (PARAMS, many, many):
        assert [o.samples for o in recorded.generate(PROMPTS, params)] == [
            o.samples for o in plain.generate(PROMPTS, params)
        ]
    assert len(record.recorded) == len(set(record.recorded)) > 5
    assert max(record.recorded) > 16, "no step had rows added"
    assert record.replays > 3 * len(record.recorded)


def test_a_full_pool_with_preemption(record: Recorder) -> None:
    """Spare slots are no pages of the pool: nothing that is in use is written over."""
    plain, recorded = both(num_pages=24, max_seqs=20)
    params = SamplingParams(n=6, max_tokens=12, seed=2)
    wanted = [o.samples for o in plain.generate(PROMPTS, params)]
    assert [o.samples for o in recorded.generate(PROMPTS, params)] == wanted
    assert record.replays


def test_roles_training_and_other_tensors(record: Recorder) -> None:
    """Adapters that change in place, tensors that are replaced, a role that turns up under an old name."""
    engines = both()
    seen = []
    for engine in engines:
        outputs = [engine.generate(PROMPTS, PARAMS)]
        engine.fork("solver")
        engine.weights.add_lora("solver", LoraConfig(rank=2, alpha=4.0))
        for _ in range(2):
            outputs += [engine.generate(PROMPTS[:2], PARAMS, role) for role in ("base", "solver")]
            groups = [TrainGroup(o.prompt_token_ids, o.samples, rewards=[0.0, 1.0, 0.0]) for o in outputs[-1]]
            engine.train_step("solver", groups, TrainConfig(learning_rate=0.05, kl_coef=0.0))
        mixed = [engine.submit(PROMPTS[0], PARAMS, role) for role in ("base", "solver")]
        while engine.has_work:
            outputs.append([o for o in engine.step() if o.request_id in mixed])
        engine.weights.replace("base", small_model(seed=1).weights)
        outputs.append(engine.generate(PROMPTS, PARAMS))
        engine.drop("solver")
        engine.fork("solver")
        outputs.append(engine.generate(PROMPTS, PARAMS, "solver"))
        seen.append([[o.samples for o in some] for some in outputs])
    assert seen[0] == seen[1]
    assert record.replays


@pytest.mark.parametrize("how", ["release_kv", "drop", "close"])
def test_nothing_is_held_after(record: Recorder, how: str) -> None:
    _, engine = both()
    engine.weights.replace("other", small_model(seed=1).weights)
    engine.generate(PROMPTS, PARAMS, "other")
    page = weakref.ref(engine._cache.pages()[0][0])
    head = weakref.ref(engine.weights.role("other").head)
    if how == "drop":
        engine.drop("other")
    else:
        getattr(engine, how)()
    gc.collect()
    assert (page() is None) == (how != "drop")
    assert (head() is None) == (how != "release_kv")


def test_what_is_recorded_after_the_last_graph_went_takes_a_new_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a pool whose graphs are gone; and streams that engines share, share cuBLAS' workspace."""
    recorded: list[dict[str, Any]] = []
    streams = iter(range(10))

    class Stream:
        def __init__(self, device: object) -> None:
            self.number = next(streams)

        def wait_stream(self, other: object) -> None:
            pass

    @contextmanager
    def graph(graph: object, **options: Any) -> Iterator[None]:
        recorded.append(options)
        yield

    pools = iter(range(10))
    for name, value in (
        ("Stream", Stream), ("current_stream", Stream), ("stream", lambda _: nullcontext()), ("graph", graph),
        ("CUDAGraph", mock.Mock), ("graph_pool_handle", lambda: next(pools)),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    record = CudaRecord(torch.device("cuda"))
    for _ in range(2):
        for _ in range(2):
            record(lambda: torch.zeros(1))
        record.forget()
    assert [options["pool"] for options in recorded] == [0, 0, 1, 1]
    assert {options["stream"].number for options in recorded} == {0}


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match="cuda_graphs is true, but the engine runs on cpu; set it to false"):
        small_engine(cuda_graphs=True)
    gpu = torch.device("cuda")
    with pytest.raises(InputError, match="lora runs on its reference"):
        recorder(True, resolve(CPU, {"default": "ref"}), gpu, False)
    with pytest.raises(InputError, match="debug checks"):
        recorder(True, resolve(CPU), gpu, True)
    assert recorder(False, resolve(CPU), CPU, True) is None
