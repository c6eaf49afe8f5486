# SPDX-License-Identifier: Apache-2.0
"""The examples do what their first lines say."""

import importlib.util
import operator
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

from rzero import anchors
from rzero.config import load_config
from rzero.engine import Engine, SamplingParams
from rzero.tasks import create
from rzero.tasks.base import Invalid, Question

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = Path(str(files("rzero") / "models" / "tiny"))


class Bytes:
    """A tokenizer without a chat template."""

    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        raise AssertionError("has no template")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grpo_learns() -> None:
    rewards = example("grpo").train(steps=10)
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.15


def test_a_transformers_model_shares_the_memory_that_the_engine_samples_from() -> None:
    engine = Engine(TINY, dtype="float32", max_model_len=64)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    before = engine.tensors()["model.layers.0.self_attn.q_proj.weight"].clone()
    example("shared_memory").share(engine, model)
    ids = engine.tokenizer.encode("<S>1+2=") if engine.tokenizer else []
    model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert not torch.equal(engine.tensors()["model.layers.0.self_attn.q_proj.weight"], before)
    [output] = engine.generate([ids], SamplingParams(max_tokens=8, seed=0, ignore_eos=True))
    answer = output.samples[0]
    logits = model(torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
    theirs = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    assert answer.full_logprobs == pytest.approx(theirs.tolist(), abs=1e-4)


def worked_out(a: str, sign: str, b: str) -> Fraction:
    """a sign b, exactly."""
    operation = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
    return Fraction(operation(Fraction(a), Fraction(b)))


def test_the_school_task_reads_what_its_prompt_asks_for() -> None:
    config = load_config(file=EXAMPLES / "school" / "school.yaml")
    task = create(config.task)
    examples = anchors.read(Path(str(config.anchors)), task)
    assert len(examples) > config.anchors_shown
    for shown in examples:
        text = bytes(task.challenger_prompt(Bytes(), [shown])).decode()
        assert task.parse_question(text) == Question(shown.question, shown.answer.rpartition("= ")[2])
        for calculation in shown.answer.split(", "):
            left, result = calculation.split(" = ")
            assert Fraction(result) == worked_out(*left.split()), shown
    for question, reason in (
        ("Tom has 9 apples and eats two. How many are left?", None),
        ("Tom has 9 apples and eats two.", "no question mark at the end"),
        ("Tom has 9 apples and eats some. How many are left?", "fewer than two numbers"),
    ):
        parsed = task.parse_question(f"<question>\n{question}\n</question>\n\n\\boxed{{1}}")
        assert parsed == (Question(question, "1") if reason is None else Invalid(reason))
    task.close()


def test_somebody_elses_loop_runs() -> None:
    lengths = example("shared_memory").train(str(TINY), steps=2, prompt="<S>12+34=")
    assert len(lengths) == 2 and all(length > 0 for length in lengths)


def test_trl_trains_on_our_rollouts() -> None:
    pytest.importorskip("trl")
    rewards = example("trl_rollouts").train(steps=10)
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.1, "what TRL learns must show in what the engine samples"
