# SPDX-License-Identifier: Apache-2.0
"""Exact where the kernels are, refused where it is asked for and they are not."""

from dataclasses import replace

import pytest
import torch
from plain import CPU
from small_engine import PROMPTS, small_engine

from rzero.engine import InputError, SamplingParams
from rzero.engine.numerics import EXACT_ON_GPU, backends, must_score, why_not_exact
from rzero.kernels import OPS, Choice, resolve
from rzero.kernels.native import native_why_not

GPU = torch.device("cuda")
needs_native = pytest.mark.skipif(native_why_not(CPU) is not None, reason="only the native kernels are exact")


@needs_native
def test_native_kernels_are_exact_and_others_are_named() -> None:
    assert why_not_exact(resolve(CPU), CPU) is None
    mixed = resolve(CPU, {"linear": "ref"})
    assert why_not_exact(mixed, CPU) == (
        "linear runs on the backend ref, whose rows may depend on the batch or differ from training's; "
        "exact takes native"
    )
    assert why_not_exact(resolve(CPU, {"bleu": "ref"}), CPU) is None, "bleu is not on the way"
    assert "exact takes triton" in str(why_not_exact(resolve(CPU), GPU))


def test_a_gpu_takes_the_exact_backends_where_exact_is_asked_for() -> None:
    asked = {"attention": "ref", "bleu": "ref"}
    assert backends("auto", GPU, asked) == backends("exact", CPU, asked) == asked
    assert backends("exact", GPU, asked) == {**EXACT_ON_GPU, **asked}
    available = {op.name: op.backends for op in OPS}
    assert all(backend in available[op] for op, backend in EXACT_ON_GPU.items())
    report = tuple(Choice(op.name, EXACT_ON_GPU.get(op.name, "cuda")) for op in OPS)
    chosen = replace(resolve(CPU, {"default": "ref"}), report=report)
    assert why_not_exact(chosen, GPU) is None and must_score(chosen)
    split = tuple(Choice(c.op, "triton") if c.op == "paged_attention" else c for c in report)
    assert "paged_attention" in str(why_not_exact(replace(chosen, report=split), GPU))


@needs_native
def test_log_probs_of_another_sample_come_from_linear_logprob() -> None:
    """The reference of `sample` adds up in another order than the native linear_logprob."""
    params = [SamplingParams(n=4, max_tokens=8, seed=3, temperature=t) for t in (1.0, 0.7, 0.7)]
    params[2] = replace(params[2], top_k=5)
    engine = small_engine(kernels={"sample": "ref"})
    assert engine.is_exact and must_score(engine.kernels) and not must_score(resolve(CPU))
    outputs = engine.generate(PROMPTS[:3], params)
    for output, how in zip(outputs, params, strict=True):
        answers = [(output.prompt_token_ids, s.token_ids) for s in output.samples]
        for field, temperature in (("full_logprobs", 1.0), ("logprobs", how.temperature)):
            own = [getattr(s, field) for s in output.samples]
            assert (own == engine.logprobs("base", answers, temperature)) == (
                field != "logprobs" or not how.top_k
            )


@needs_native
def test_the_engine_says_which_it_is() -> None:
    assert small_engine().is_exact and "exact" in small_engine().describe()["numerics"]
    fast = small_engine(numerics="fast")
    assert not fast.is_exact and fast.describe()["numerics"] == "fast: asked for"
    reference = small_engine(kernels={"default": "ref"})
    assert not reference.is_exact and "backend ref" in reference.describe()["numerics"]


def test_what_cannot_be_exact_is_refused() -> None:
    with pytest.raises(InputError, match="numerics is exact, but linear runs on the backend ref"):
        small_engine(kernels={"default": "ref"}, numerics="exact")
    with pytest.raises(InputError, match="numerics is 'precise'; it must be one of auto, exact, fast"):
        small_engine(numerics="precise")
