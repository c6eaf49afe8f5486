# SPDX-License-Identifier: Apache-2.0
"""What the engine samples, where answers end, and which requests and options it refuses."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import random_hf, save
from small_engine import (
    EOS,
    PARAMS,
    POSITIONS,
    PROMPTS,
    VOCABULARY,
    assert_same,
    byte_model,
    idle,
    is_exact,
    samples,
    small_engine,
)

from rzero.engine import Engine, InputError, SamplingParams
from rzero.engine.checkpoint import load_config, load_weights
from rzero.engine.engine import Model

# ---- what is sampled


@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    hf = random_hf(shape)
    folder = save(hf, tmp_path / "m")
    config = load_config(folder)
    engine = Engine(
        Model(config, load_weights(folder, config, torch.float32, torch.device("cpu"))), max_batch_tokens=19
    )
    prompts = [
        [5, 17, 2, 90],
        list(range(50, 90)),
    ]  # transformers takes the pad token in a prompt for padding
    settings = {
        "do_sample": False,
        "max_new_tokens": 64,
        "min_new_tokens": 64,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    truth = [hf.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in prompts]
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))
    assert [output.samples[0].token_ids for output in outputs] == truth
    assert all(set(output.samples[0].logprobs) == {0.0} for output in outputs)


def test_logprobs_are_those_of_the_training_forward() -> None:
    engine = small_engine()
    outputs = engine.generate(PROMPTS, PARAMS)
    pairs = [(output.prompt_token_ids, sample.token_ids) for output in outputs for sample in output.samples]
    scored = engine.logprobs("base", pairs)
    sampled = [sample.logprobs for output in outputs for sample in output.samples]
    assert sampled == [sample.full_logprobs for output in outputs for sample in output.samples]
    assert np.allclose(np.concatenate(sampled), np.concatenate(scored), atol=1e-5)
    if is_exact(engine) and all(
        c.backend != "ref" for c in engine.kernels.report if c.op in ("linear_logprob", "sample")
    ):
        assert sampled == scored


def test_temperature_shows_in_logprobs_but_not_in_full_logprobs() -> None:
    engine = small_engine()
    [output] = engine.generate([[1, 2]], dataclasses.replace(PARAMS, temperature=0.5, n=2))
    for sample in output.samples:
        [cold] = engine.logprobs("base", [([1, 2], sample.token_ids)], temperature=0.5)
        [full] = engine.logprobs("base", [([1, 2], sample.token_ids)])
        assert np.allclose(sample.logprobs, cold, atol=1e-5)
        assert np.allclose(sample.full_logprobs, full, atol=1e-5)
        assert not np.allclose(sample.logprobs, sample.full_logprobs, atol=1e-2)


def test_top_k_of_one_is_greedy() -> None:
    engine = small_engine()
    [greedy] = engine.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=12))
    [top] = engine.generate([[1, 2]], SamplingParams(top_k=1, max_tokens=12))
    assert greedy.samples[0].token_ids == top.samples[0].token_ids
    assert top.samples[0].logprobs == [0.0] * len(top.samples[0].token_ids)


def test_samples_follow_the_distribution() -> None:
    engine = small_engine(max_seqs=64)
    [output] = engine.generate([[3, 4]], SamplingParams(n=2000, max_tokens=1, seed=1))
    counts = np.bincount([sample.token_ids[0] for sample in output.samples], minlength=VOCABULARY)
    chances = np.zeros(VOCABULARY)
    for sample in output.samples:
        chances[sample.token_ids[0]] = math.exp(sample.logprobs[0])
    likely = chances * 2000 > 20
    assert likely.sum() > 5
    error = (counts - 2000 * chances)[likely] / np.sqrt(2000 * chances * (1 - chances))[likely]
    assert abs(error).max() < 4.5


def test_group_larger_than_the_batch_is_complete() -> None:
    [output] = small_engine(max_seqs=5).generate([[3, 4]], dataclasses.replace(PARAMS, n=23))
    assert len({tuple(sample.token_ids) for sample in output.samples}) == 23


def test_seeds() -> None:
    engine = small_engine()
    with_seed, without = PARAMS, dataclasses.replace(PARAMS, seed=None)
    assert samples(engine.generate(PROMPTS, with_seed)) == samples(engine.generate(PROMPTS, with_seed))
    assert samples(engine.generate(PROMPTS, without)) != samples(engine.generate(PROMPTS, without))
    first = samples(small_engine(seed=1).generate(PROMPTS, without))
    assert first == samples(small_engine(seed=1).generate(PROMPTS, without))
    assert first != samples(small_engine(seed=2).generate(PROMPTS, without))


def test_limits_of_the_params_reach_the_kernels() -> None:
    engine = small_engine()
    widest = SamplingParams(top_k=2**31 - 1, temperature=3e38, seed=np.int64(5), max_tokens=3)  # type: ignore[arg-type]
    assert len(engine.generate([[1, 2]], widest)[0].samples[0].token_ids) == 3


def test_params_for_each_prompt() -> None:
    engine = small_engine()
    params = [
        SamplingParams(n=i + 1, max_tokens=3 + i, seed=i, temperature=0.5 + i) for i in range(len(PROMPTS))
    ]
    together = engine.generate(PROMPTS, params)
    apart = [engine.generate([prompt], p)[0] for prompt, p in zip(PROMPTS, params, strict=True)]
    assert_same(samples(together), samples(apart), is_exact(engine))
    assert [len(output.samples) for output in together] == [1, 2, 3, 4, 5]


def test_no_prompts_give_no_outputs() -> None:
    assert small_engine().generate([], PARAMS) == []


# ---- where answers end


def test_end_of_sequence_is_part_of_the_answer_and_can_be_ignored() -> None:
    engine = small_engine()
    params = SamplingParams(n=64, max_tokens=40, seed=0)
    [output] = engine.generate([[1]], params)
    reasons = [sample.finish_reason for sample in output.samples]
    assert {"stop", "length"} == set(reasons)
    for sample in output.samples:
        assert (sample.token_ids.index(EOS) + 1 if EOS in sample.token_ids else 40) == len(sample.token_ids)
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == EOS)
        assert len(sample.logprobs) == len(sample.full_logprobs) == len(sample.token_ids)
    [longer] = engine.generate([[1]], dataclasses.replace(params, ignore_eos=True))
    for short, long in zip(output.samples, longer.samples, strict=True):
        assert len(long.token_ids) == 40
        assert long.token_ids[: len(short.token_ids)] == short.token_ids


def test_stop_token_ids_end_an_answer() -> None:
    engine = small_engine()
    [output] = engine.generate([[1]], SamplingParams(n=32, max_tokens=40, seed=0, stop_token_ids=(9, 20)))
    ends = {sample.token_ids[-1] for sample in output.samples if sample.finish_reason == "stop"}
    assert ends == {9, 20, EOS}
    assert not any({9, 20} & set(sample.token_ids[:-1]) for sample in output.samples)


def test_context_ends_an_answer() -> None:
    engine = small_engine(max_model_len=24)
    [output] = engine.generate([[1] * 20], SamplingParams(max_tokens=100, ignore_eos=True))
    assert (len(output.samples[0].token_ids), output.samples[0].finish_reason) == (4, "length")


@pytest.mark.parametrize("pattern", ["[a-z]", "[^\x00-\x7f\ufffd]", "[a-z][^a-z]", r"[^\s\ufffd]\s", r"\s"])
def test_stop_string_ends_text_before_it_and_tokens_with_it(pattern: str) -> None:
    model = byte_model()
    engine = small_engine(model)
    assert model.tokenizer is not None
    params = SamplingParams(n=24, max_tokens=60, seed=0, ignore_eos=True)
    [free] = engine.generate("q", params)
    found = [re.findall(pattern, sample.text, re.DOTALL) for sample in free.samples]
    stops = [texts[-1] for texts in found if texts][:2]
    assert len(stops) == 2
    [output] = engine.generate("q", dataclasses.replace(params, stop=stops))
    reasons = set()
    for sample, whole in zip(output.samples, free.samples, strict=True):
        assert whole.token_ids[: len(sample.token_ids)] == sample.token_ids
        text = model.tokenizer.decode(sample.token_ids)
        reasons.add(sample.finish_reason)
        if sample.finish_reason == "stop":
            assert sample.text == text[: min(text.index(stop) for stop in stops if stop in text)]
            assert not any(stop in model.tokenizer.decode(sample.token_ids[:-1]) for stop in stops)
        else:
            assert sample.text == text == whole.text
            assert not any(stop in text for stop in stops)
    assert "stop" in reasons


def test_texts_and_text_prompts() -> None:
    model = byte_model()
    assert model.tokenizer is not None
    engine = small_engine(model)
    by_text = engine.generate("hello", PARAMS)
    by_ids = engine.generate([model.tokenizer.encode("hello")], PARAMS)
    assert samples(by_text) == samples(by_ids)
    assert [s.text for s in by_text[0].samples] == [
        model.tokenizer.decode(s.token_ids) for s in by_text[0].samples
    ]


def test_logprobs_can_be_left_out() -> None:
    engine = small_engine()
    [output], [full] = (
        engine.generate([[1]], dataclasses.replace(PARAMS, logprobs=x)) for x in (False, True)
    )
    assert [(s.token_ids, s.logprobs, s.full_logprobs) for s in output.samples] == [
        (s.token_ids, [], []) for s in full.samples
    ]


# ---- bad input

BAD_REQUESTS: tuple[tuple[Any, dict[str, Any], str], ...] = (
    ([], {}, "the prompt is empty"),
    ("text", {}, "no tokenizer"),
    (
        [1, VOCABULARY],
        {},
        f"token 1 of the prompt is {VOCABULARY}; the vocabulary has the ids 0 to {VOCABULARY - 1}",
    ),
    ([-1], {}, "token 0 of the prompt is -1"),
    ([0.5], {}, r"the prompt is [0.5]; it must be a text or a list of token ids"),
    ([[1, 2]], {}, "it must be a text or a list of token ids"),
    ([1, [2, 3]], {}, "it must be a text or a list of token ids"),
    ([1] * POSITIONS, {}, f"the prompt has {POSITIONS} tokens, but the context holds {POSITIONS}"),
    ([1] * 40, {"max_tokens": 30}, "needs 18 pages of 4 tokens, but the page pool has 16"),
    ([1], {"stop": "x"}, "no tokenizer"),
    ([1], {"stop_token_ids": [VOCABULARY]}, f"stop_token_ids contains {VOCABULARY}"),
)


@pytest.mark.parametrize(("prompt", "fields", "message"), BAD_REQUESTS)
def test_bad_request_is_refused_before_anything_runs(
    prompt: Any, fields: dict[str, Any], message: str
) -> None:
    engine = small_engine(num_pages=16)
    params = SamplingParams(**fields)
    with pytest.raises(InputError) as error:
        engine.submit(prompt, params)
    assert message in str(error.value)
    with pytest.raises(InputError) as error:
        engine.generate([[1], prompt], params)
    assert "prompts[" in str(error.value)
    assert idle(engine)


def test_unknown_role_and_wrong_number_of_params_are_refused() -> None:
    engine = small_engine()
    with pytest.raises(InputError, match="'judge' does not exist"):
        engine.submit([1], PARAMS, role="judge")
    with pytest.raises(InputError, match="2 prompts and 1 params"):
        engine.generate([[1], [2]], [PARAMS])


BAD_ENGINES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"max_seqs": 0}, "max_seqs is 0"),
    ({"max_batch_tokens": -1}, "max_batch_tokens is -1"),
    ({"page_size": 0}, "page_size is 0"),
    ({"threads": 0}, "threads is 0"),
    ({"num_pages": 0}, "num_pages is 0"),
    ({"num_pages": 4, "kv_cache_bytes": 4096}, "give only one of them"),
    ({"num_pages": None, "kv_cache_bytes": 10}, "kv_cache_bytes is 10; one page takes 1024 bytes"),
    ({"max_model_len": 1}, "max_model_len is 1"),
    ({"max_model_len": POSITIONS + 1}, f"between 2 and the model's {POSITIONS}"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64 - 1}, "seed is 18446744073709551615"),
    ({"device": "gpu"}, "device 'gpu' is unknown"),
    ({"device": "meta"}, "the model's tensors are on cpu, the engine on meta"),
    ({"kernels": {"atention": "ref"}}, "atention"),
)


@pytest.mark.parametrize(("options", "message"), BAD_ENGINES)
def test_bad_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        small_engine(**options)
    assert message in str(error.value)


def test_kv_cache_bytes_give_the_number_of_pages() -> None:
    engine = small_engine(num_pages=None, kv_cache_bytes=10_000)
    assert engine._scheduler.pool.num_pages == 9
    assert small_engine(num_pages=None, max_seqs=3)._scheduler.pool.num_pages == 3 * POSITIONS // 4
