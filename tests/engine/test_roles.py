# SPDX-License-Identifier: Apache-2.0
"""Several roles in one running batch: who may share a step, and that nobody's answers show it."""

from collections.abc import Sequence

import pytest
import torch
from small_engine import PROMPTS, assert_same, idle, is_exact, samples, small_engine, small_model

from rzero.engine import Engine, LoraConfig, RequestOutput, SamplingParams
from rzero.engine.weights import adapter_tensors

PARAMS = SamplingParams(n=3, max_tokens=12, seed=5, ignore_eos=True)
LORA = ("challenger", "solver")
DTYPES = (torch.float32, torch.bfloat16)


def adapted_engine(dtype: torch.dtype = torch.float32, **options: object) -> Engine:
    """A base and two roles with adapters that change what it says."""
    engine = small_engine(small_model(dtype=dtype), **options)
    for seed, role in enumerate(LORA):
        targets = ("q_proj", "v_proj", "down_proj", "up_proj") if seed else LoraConfig().targets
        engine.fork(role)
        engine.weights.add_lora(role, LoraConfig(rank=3 + seed, alpha=8.0, targets=targets), seed)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in adapter_tensors(engine.weights.role(role)):
            if name.endswith(".b"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return engine


def run(engine: Engine) -> tuple[list[RequestOutput], list[list[str]]]:
    """All outputs, and the roles of the batch in every step."""
    outputs, roles = [], []
    while engine.has_work:
        outputs += engine.step()
        engine._scheduler.check()
        roles.append(engine._scheduler.batch.running_roles())
    return outputs, roles


def in_order(outputs: Sequence[RequestOutput]) -> list[RequestOutput]:
    return sorted(outputs, key=lambda output: output.request_id)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_pages", [256, 14])
def test_answers_and_log_probs_are_those_of_the_role_alone(dtype: torch.dtype, num_pages: int) -> None:
    """Also when pages run short, so that answers of one role push out those of another."""
    engine = adapted_engine(dtype, num_pages=num_pages, max_batch_tokens=32)
    names = ("base", *LORA)
    alone = {role: engine.generate(PROMPTS, PARAMS, role=role) for role in names}
    assert samples(alone["base"]) != samples(alone["solver"]) != samples(alone["challenger"])
    for prompt in PROMPTS:
        for role in names:
            engine.submit(prompt, PARAMS, role)
    outputs, roles = run(engine)
    assert any(len(together) == 3 for together in roles) and idle(engine)
    assert num_pages > 100 or engine._scheduler.preemptions > 0
    for i, role in enumerate(names):
        mine = in_order(outputs)[i::3]
        assert_same(samples(mine), samples(alone[role]), is_exact(engine))
        answers = [(o.prompt_token_ids, s.token_ids) for o in mine for s in o.samples]
        if is_exact(engine):
            assert engine.logprobs(role, answers) == [s.logprobs for o in mine for s in o.samples]


def test_finished_question_goes_to_the_solver_in_the_next_step_of_the_same_batch() -> None:
    engine = adapted_engine()
    alone = engine.generate([[1, 2, 3]], PARAMS, role="challenger")
    wanted = engine.generate([s.token_ids for s in alone[0].samples], PARAMS, role="solver")
    answered: dict[int, RequestOutput] = {}
    started: list[int] = []

    def ask(output: RequestOutput) -> None:
        for question in output.samples:
            number = engine.submit(
                question.token_ids, PARAMS, "solver", lambda o: answered.update({o.request_id: o})
            )
            started.append(number)

    engine.submit([1, 2, 3], PARAMS, "challenger", ask)
    engine.submit([9, 9, 9], SamplingParams(max_tokens=60, ignore_eos=True), "challenger")
    _, roles = run(engine)
    first = roles.index(["challenger", "solver"]) if ["challenger", "solver"] in roles else len(roles)
    assert roles[first - 1] == ["challenger"] and len(started) == PARAMS.n
    assert_same(samples([answered[n] for n in started]), samples(wanted), is_exact(engine))
    # 12 steps for the questions, 12 for their answers, and a prefill each: far from the 60 of the long one.
    assert first <= 16 and ["solver"] not in roles


def test_roles_with_tensors_of_their_own_still_take_turns() -> None:
    engine = small_engine()
    engine.fork("solver")
    assert engine.weights.base("solver") == engine.weights.base("base")
    engine.weights.own("solver")
    assert engine.weights.base("solver") != engine.weights.base("base")
    alone = {role: engine.generate(PROMPTS, PARAMS, role=role) for role in ("base", "solver")}
    for prompt in PROMPTS:
        for role in ("base", "solver"):
            engine.submit(prompt, PARAMS, role)
    outputs, roles = run(engine)
    assert all(len(together) <= 1 for together in roles)
    for i, role in enumerate(("base", "solver")):
        assert_same(samples(in_order(outputs)[i::2]), samples(alone[role]), is_exact(engine))


def test_roles_part_in_flight_when_one_gets_tensors_of_its_own() -> None:
    engine = small_engine()
    engine.fork("solver")
    alone = engine.generate(PROMPTS, PARAMS)
    for prompt in PROMPTS:
        for role in ("base", "solver"):
            engine.submit(prompt, PARAMS, role)
    for _ in range(4):
        assert engine.step() == []
    assert len(engine._scheduler.batch.running_roles()) == 2
    engine.weights.own("solver")  # equal values in other tensors: the answers must not change
    outputs, roles = run(engine)
    assert all(len(together) <= 1 for together in roles) and len(outputs) == 2 * len(PROMPTS)
    for i in (0, 1):
        assert_same(samples(in_order(outputs)[i::2]), samples(alone), is_exact(engine))


def test_cancelling_one_role_leaves_the_others_alone() -> None:
    engine = adapted_engine()
    wanted = engine.generate(PROMPTS, PARAMS, role="solver")
    numbers = [[engine.submit(prompt, PARAMS, role) for role in LORA] for prompt in PROMPTS]
    engine.step()
    for number, _ in numbers:
        engine.cancel(number)
    outputs, _ = run(engine)
    assert_same(samples(in_order(outputs)), samples(wanted), is_exact(engine))


def test_checking_every_call_changes_no_answer() -> None:
    plain, checked = adapted_engine(), adapted_engine(debug=True)
    for role in LORA:
        assert samples(checked.generate(PROMPTS, PARAMS, role=role)) == samples(
            plain.generate(PROMPTS, PARAMS, role=role)
        )
