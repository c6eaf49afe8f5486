# SPDX-License-Identifier: Apache-2.0
"""The engine in use: step by step, with callbacks, faults and interrupts, by roles, beside training."""

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from small_engine import (
    PARAMS,
    PROMPTS,
    assert_same,
    byte_model,
    idle,
    is_exact,
    samples,
    small_engine,
    small_model,
)

from rzero.engine import InputError, RequestOutput, Sample, SamplingParams
from rzero.engine.weights import substitute

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
