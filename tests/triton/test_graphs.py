# SPDX-License-Identifier: Apache-2.0
"""Recorded decoding on a GPU's kernels, interpreted: what a CUDA graph would replay, and nothing else.

A tape holds the launches and torch's calls of one pass with the tensors and numbers that they were given.
Playing it runs no code of ours again: a grid, a size or a number that depends on a step's contents would be
the first step's for ever.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_engine import interpreted
from small_engine import small_engine, small_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from rzero.engine import SamplingParams, TrainConfig, TrainGroup, runner
from rzero.engine import engine as module
from rzero.engine.decode_graphs import RECORDED
from rzero.engine.lora import LoraConfig
from rzero.engine.numerics import EXACT_ON_GPU

Play = Callable[[], object]
FAST = dict.fromkeys(RECORDED, "triton")


class Tape(TorchDispatchMode):
    """Records while it is entered; a number read on the host is an error, as it is in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.plays: list[Play] = []
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read on the host"
        outs = func(*args, **(kwargs or {}))

        def play() -> None:
            for mine, new in zip(tensors(outs), tensors(func(*args, **(kwargs or {}))), strict=True):
                if mine.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    mine.copy_(new)

        self.plays.append(play)
        return outs

    def launch(self, play: Play) -> None:
        self.launches += 1
        self.plays.append(play)
        with _disable_current_modes():
            play()


def tensors(outs: object) -> list[Tensor]:
    return [x for x in tree_leaves(outs) if isinstance(x, Tensor)]


class Recorder:
    """Records passes as tapes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tapes: list[Tape] = []
        self.replays = 0
        self._current: list[Tape] = []
        launch = GridExecutor.__call__

        def noted(executor: Any, *args: Any, **kwargs: Any) -> None:
            def play() -> None:
                launch(executor, *args, **kwargs)

            if self._current:
                self._current[-1].launch(play)
            else:
                play()

        monkeypatch.setattr(GridExecutor, "__call__", noted)

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        tape = Tape()
        self._current.append(tape)
        with tape:
            out = compute()
        self._current.pop()
        self.tapes.append(tape)

        def replay() -> None:
            self.replays += 1
            for play in tape.plays:
                play()

        return out, replay

    def forget(self) -> None:
        pass


@pytest.mark.parametrize(
    ("backends", "lengths"), [(FAST, (5, 4)), (EXACT_ON_GPU, (3, 2))], ids=["fast", "exact"]
)
def test_what_a_tape_plays_is_what_is_launched(
    monkeypatch: pytest.MonkeyPatch, backends: dict[str, str], lengths: tuple[int, int]
) -> None:
    """Rows that end, a row added to each step, sequences that grow over pages, an adapter that is trained."""
    monkeypatch.setattr(module, "_resolve", lambda *_: interpreted(backends))
    monkeypatch.setattr(module, "why_not_exact", lambda *_: None)
    monkeypatch.setattr(runner, "rows_recorded", lambda rows, most: min(rows + 1, most))
    recorder, answers = Recorder(monkeypatch), []
    for is_recorded in (False, True):
        monkeypatch.setattr(module, "recorder", lambda wanted, *_: recorder if wanted else None)
        engine = small_engine(small_model(), num_pages=64, max_batch_tokens=16, cuda_graphs=is_recorded)
        engine.fork("solver")
        engine.weights.add_lora("solver", LoraConfig(rank=2, alpha=4.0))
        how = [SamplingParams(n=2, max_tokens=n, seed=3, ignore_eos=True) for n in lengths]
        outputs = engine.generate(([1, 2, 3], [4] * 6), how, "solver")
        groups = [TrainGroup(o.prompt_token_ids, o.samples, rewards=[0.0, 1.0]) for o in outputs]
        engine.train_step("solver", groups, TrainConfig(learning_rate=0.05, kl_coef=0.0))
        outputs += engine.generate(([9, 8, 7], [2]), how, "solver")
        answers.append([o.samples for o in outputs])
    assert answers[0] == answers[1]
    assert recorder.replays > len(recorder.tapes) > 1
    assert all(tape.launches > 20 for tape in recorder.tapes), "kernels are missing from the tape"


def test_a_number_read_on_the_host_is_seen() -> None:
    with pytest.raises(AssertionError, match="read on the host"), Tape():
        torch.ones(1).item()
