# SPDX-License-Identifier: Apache-2.0
"""The engine from outside: what it samples, what it refuses, and what it survives."""

import dataclasses
import math
import re
import signal
from itertools import chain
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
    byte_model,
    is_exact,
    small_engine,
    small_model,
)

from rzero.engine import Engine, InputError, RequestOutput, Sample, SamplingParams
from rzero.engine.checkpoint import load_config, load_weights
from rzero.engine.engine import Model
from rzero.engine.weights import substitute


def samples(outputs: list[RequestOutput]) -> list[list[Sample]]:
    return [output.samples for output in outputs]


def assert_same(got: list[list[Sample]], wanted: list[list[Sample]], exact: bool) -> None:
    if exact:
        assert got == wanted
        return
    for a, b in zip(chain(*got), chain(*wanted), strict=True):
        assert a.token_ids == b.token_ids
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-5)


def idle(engine: Engine) -> bool:
    engine._scheduler.check()
    return not engine.has_work and engine._scheduler.pool.free_count == engine._scheduler.pool.num_pages


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


# ---- requests step by step


def test_submit_step_and_callbacks() -> None:
    engine = small_engine()
    wanted = engine.generate(PROMPTS, PARAMS)
    called: list[RequestOutput] = []
    ids = [engine.submit(prompt, PARAMS, callback=called.append) for prompt in PROMPTS]
    assert engine.has_work
    returned = []
    while engine.has_work:
        returned += engine.step()
    assert [output.request_id for output in returned] == [output.request_id for output in called]
    by_id = {output.request_id: output.samples for output in returned}
    assert_same([by_id[i] for i in ids], samples(wanted), is_exact(engine))
    assert engine.step() == []
    assert idle(engine)


def test_a_callback_may_submit_the_next_request() -> None:
    engine = small_engine()
    engine.fork("solver")
    answers: list[RequestOutput] = []

    def ask(output: RequestOutput) -> None:
        engine.submit(output.samples[0].token_ids, PARAMS, role="solver", callback=answers.append)

    for prompt in PROMPTS:
        engine.submit(prompt, PARAMS, callback=ask)
    while engine.has_work:
        engine.step()
    assert len(answers) == len(PROMPTS)
    assert idle(engine)


def test_generate_leaves_other_requests_to_step() -> None:
    engine = small_engine()
    other = engine.submit([9, 9], SamplingParams(max_tokens=2))
    longer = engine.submit([9], SamplingParams(max_tokens=60, ignore_eos=True))
    [output] = engine.generate([[1]], SamplingParams(max_tokens=5, ignore_eos=True))
    assert len(output.samples[0].token_ids) == 5
    returned = []
    while engine.has_work:
        returned += [output.request_id for output in engine.step()]
    assert returned == [other, longer]


def test_cancel_frees_pages_at_once() -> None:
    engine = small_engine()
    request_id = engine.submit([1] * 20, dataclasses.replace(PARAMS, n=9))
    for _ in range(3):
        engine.step()
    assert engine.cancel(request_id)
    assert idle(engine)
    assert not engine.cancel(request_id)
    assert not engine.cancel(12345)


def test_request_cancelled_by_on_output_comes_without_samples() -> None:
    engine = small_engine()
    params = [SamplingParams(max_tokens=2, ignore_eos=True), SamplingParams(max_tokens=50, ignore_eos=True)]
    outputs = engine.generate([[1], [2]], params, on_output=lambda o: engine.cancel(o.request_id + 1))
    assert [len(output.samples) for output in outputs] == [1, 0]
    assert idle(engine)


class Stop(RuntimeError):
    """Raised by a callback."""


def test_exception_in_a_callback_reaches_the_caller_and_costs_nothing_else() -> None:
    engine = small_engine()
    wanted = engine.generate(PROMPTS, PARAMS)
    one_token = SamplingParams(max_tokens=1)

    def fail(output: RequestOutput) -> None:
        raise Stop

    first = engine.submit([1], one_token)
    second = engine.submit([1], one_token, callback=fail)
    third = engine.submit([1], one_token)
    with pytest.raises(Stop):
        while engine.has_work:
            engine.step()
    assert [output.request_id for output in engine.step()] == [first, second, third]
    with pytest.raises(Stop):
        engine.generate(PROMPTS, PARAMS, on_output=fail)
    assert idle(engine)
    assert samples(engine.generate(PROMPTS, PARAMS)) == samples(wanted)


def test_failed_step_aborts_and_leaves_the_engine_usable() -> None:
    engine = small_engine()
    wanted = engine.generate(PROMPTS, PARAMS)
    base = engine.weights.role("base")
    engine.weights.replace("broken", substitute(base, {id(base.final_norm): base.final_norm * math.nan}))
    with pytest.raises(ValueError, match=r"(?i)row"):
        engine.generate(PROMPTS, PARAMS, role="broken")
    assert idle(engine)
    assert samples(engine.generate(PROMPTS, PARAMS)) == samples(wanted)


def test_interrupts_at_any_moment_leave_the_engine_usable() -> None:
    engine = small_engine(num_pages=40, max_batch_tokens=16)
    wanted = samples(engine.generate(PROMPTS, PARAMS))

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old, interrupted = signal.signal(signal.SIGALRM, interrupt), 0
    try:
        for i in range(30):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0007 * i)
                engine.generate(PROMPTS * 3, dataclasses.replace(PARAMS, ignore_eos=True, max_tokens=60))
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert idle(engine)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 0
    assert samples(engine.generate(PROMPTS, PARAMS)) == wanted


# ---- roles, memory, training


def test_roles_sample_from_their_own_weights() -> None:
    engine = small_engine()
    engine.weights.replace("other", small_model(seed=1).weights)
    wanted = samples(small_engine(small_model(seed=1)).generate(PROMPTS, PARAMS))
    engine.submit(PROMPTS[0], PARAMS, role="base")
    assert_same(samples(engine.generate(PROMPTS, PARAMS, role="other")), wanted, is_exact(engine))


def test_fork_and_drop() -> None:
    engine = small_engine()
    engine.fork("solver")
    assert engine.weights.shared_bytes() == engine.weights.total_bytes()
    request_id = engine.submit([1], PARAMS, role="solver")
    with pytest.raises(InputError, match="role 'solver' has 1 requests in flight"):
        engine.drop("solver")
    engine.cancel(request_id)
    engine.drop("solver")
    with pytest.raises(InputError, match="solver"):
        engine.submit([1], PARAMS, role="solver")


def test_pages_are_allocated_on_first_use_and_given_back_in_the_middle() -> None:
    engine = small_engine()
    wanted = samples(engine.generate(PROMPTS, PARAMS))
    engine.release_kv()
    assert not engine._cache.is_allocated
    outputs: dict[int, RequestOutput] = {}
    ids = [engine.submit(p, PARAMS, callback=lambda o: outputs.update({o.request_id: o})) for p in PROMPTS]
    while engine.has_work:
        for _ in range(3):
            engine.step()
        engine.release_kv()
        assert not engine._cache.is_allocated
    assert_same([outputs[i].samples for i in ids], wanted, is_exact(engine))


def test_training_changes_what_is_sampled_and_only_in_that_role() -> None:
    from rzero.engine import TrainConfig, TrainGroup

    engine = small_engine()
    engine.fork("solver")
    outputs = engine.generate(PROMPTS, PARAMS, role="solver")
    groups = [TrainGroup(o.prompt_token_ids, o.samples, rewards=[1.0, 0.0, 0.0]) for o in outputs]
    metrics = engine.train_step("solver", groups, TrainConfig(learning_rate=0.01, kl_coef=0.0))
    assert metrics["skipped"] == 0
    assert metrics["mismatch_max"] < 1e-5
    assert samples(engine.generate(PROMPTS, PARAMS)) == samples(outputs)
    assert samples(engine.generate(PROMPTS, PARAMS, role="solver")) != samples(outputs)
    state = engine.training_state("solver")
    assert state["step"] == 1
    engine.load_training_state("solver", state)
    engine.reset_optimizer("solver")
    assert engine.training_state("solver")["step"] == 0


def test_saved_role_can_be_loaded(tmp_path: Path) -> None:
    engine = small_engine()
    engine.weights.replace("other", small_model(seed=1).weights)
    engine.save("other", tmp_path / "other")
    engine.load("again", tmp_path / "other")
    assert engine.weights.hash("again") == engine.weights.hash("other") != engine.weights.hash("base")
    small_engine(byte_model()).save("base", tmp_path / "wide")
    with pytest.raises(InputError, match="another model"):
        engine.load("again", tmp_path / "wide")


def test_two_engines_do_not_know_of_each_other() -> None:
    a, b = small_engine(), small_engine(small_model(seed=1), num_pages=30, page_size=8)
    wanted = samples(a.generate(PROMPTS, PARAMS)), samples(b.generate(PROMPTS, PARAMS))
    got: tuple[dict[int, list[Sample]], dict[int, list[Sample]]] = ({}, {})
    for engine, into in zip((a, b), got, strict=True):
        for prompt in PROMPTS:
            engine.submit(
                prompt, PARAMS, callback=lambda o, into=into: into.update({o.request_id: o.samples})
            )
    while a.has_work or b.has_work:
        a.step()
        b.step()
    for into, want in zip(got, wanted, strict=True):
        assert [into[i] for i in sorted(into)] == want


def test_describe_and_close() -> None:
    with small_engine() as engine:
        lines = engine.describe()
        assert "256 pages of 4 tokens" in lines["kv cache"]
        assert "paged_attention" in lines["kernels"]
        assert lines["dtype"] == "float32"
        engine.submit([1], PARAMS)
        engine.step()
    assert not engine.has_work
    assert not engine._cache.is_allocated
    with pytest.raises(InputError, match="role 'base' does not exist"):
        engine.generate([[1]], PARAMS)


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
