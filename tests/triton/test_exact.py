# SPDX-License-Identifier: Apache-2.0
"""Exact numerics of a GPU, end to end: the engine on the backends that it would take there, interpreted.

With a tl.dot whose rows stand alone (ordered.py), equal bits show that sampling and training take the same
steps. What a compiler makes of them is not shown.
"""

from collections.abc import Callable, Iterator

import ordered
import pytest
import torch
from attention_inputs import Cache
from gpu_engine import interpreted
from harness import assert_same_bits, randn
from small_engine import small_engine, small_model

from rzero.engine import Engine, SamplingParams, TrainConfig, TrainGroup
from rzero.engine import engine as module
from rzero.engine.lora import LoraConfig
from rzero.engine.numerics import EXACT_ON_GPU
from rzero.kernels.attention import Segments
from rzero.kernels.attention_triton import attention_triton
from rzero.kernels.paged_attention_triton import paged_attention_exact, paged_attention_triton

PROMPTS = ([1, 2, 3], [4] * 9)
MakeEngine = Callable[..., Engine]


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    """Makes engines on the CPU whose kernels are a GPU's."""
    ordered.install(monkeypatch)

    def make(dtype: torch.dtype) -> Engine:
        monkeypatch.setattr(module, "_resolve", lambda *_: interpreted(EXACT_ON_GPU))
        monkeypatch.setattr(module, "why_not_exact", lambda *_: None)
        return small_engine(small_model(dtype=dtype), num_pages=64, max_batch_tokens=8)

    yield make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sampled_and_trained_log_probs_are_the_same_bits(engine_of: MakeEngine, dtype: torch.dtype) -> None:
    """Ragged prompts, a prompt in two chunks, an adapter that was trained, two temperatures in one batch.

    1 / 0.85 and 1 / float32(0.85) are two float32 numbers.
    """
    engine = engine_of(dtype)
    engine.fork("solver")
    engine.weights.add_lora("solver", LoraConfig(rank=2, alpha=4.0))
    how = [SamplingParams(n=2, max_tokens=4, seed=3, temperature=t, ignore_eos=True) for t in (1.0, 0.85)]
    cfg = TrainConfig(learning_rate=0.05, kl_coef=0.0, temperature=1.0)
    for _ in range(2):
        outputs = engine.generate(PROMPTS, how, "solver")
        for output, params in zip(outputs, how, strict=True):
            answers = [(output.prompt_token_ids, s.token_ids) for s in output.samples]
            assert [s.full_logprobs for s in output.samples] == engine.logprobs("solver", answers)
            scores = engine.logprobs("solver", answers, params.temperature)
            assert [s.logprobs for s in output.samples] == scores
        groups = [TrainGroup(o.prompt_token_ids, o.samples, rewards=[0.0, 1.0]) for o in outputs]
        metrics = engine.train_step("solver", groups, cfg)
        assert metrics["mismatch_max"] == 0 and metrics["grad_norm"] > 0


def test_the_log_probs_of_sample_itself_are_near_and_not_equal(
    engine_of: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the second pass over the head is for; without a difference the test above could not fail."""
    monkeypatch.setattr(module, "must_score", lambda _: False)
    engine = engine_of(torch.float32)
    (output,) = engine.generate([PROMPTS[1]], SamplingParams(n=2, max_tokens=8, seed=3, ignore_eos=True))
    scores = engine.logprobs("base", [(output.prompt_token_ids, s.token_ids) for s in output.samples])
    sampled = torch.tensor([s.full_logprobs for s in output.samples])
    torch.testing.assert_close(sampled, torch.tensor(scores), rtol=1e-4, atol=1e-5)
    assert sampled.tolist() != scores


def test_far_positions_are_those_of_training_and_stretches_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered.install(monkeypatch)
    N = 1100
    q_THE, cache = randn(N, 2, 10, seed=99), Cache([N], 16, 1, 10, torch.float32)
    one = Segments(*(torch.tensor([n], dtype=torch.int32) for n in (0, N, 0, 0)))
    wanted = attention_triton(q_THE, cache.k[0], cache.v[0], one, 0.2)[N - 20 :]
    args = (q_THE[N - 20 :], *cache.args([20], [N]), 0.2)
    assert_same_bits(paged_attention_exact(*args), wanted)
    alone = paged_attention_exact(q_THE[N - 1 :], *cache.args([1], [N]), 0.2)
    assert_same_bits(alone, wanted[19:])
    assert not torch.equal(paged_attention_triton(*args), wanted)
