# SPDX-License-Identifier: Apache-2.0
"""The embedded model and its script: folder, tokenizer, corpus without held-out questions, profile."""

import json
import random
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

import rzero
from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.tokenizer import load_tokenizer
from rzero.tasks.arithmetic import Arithmetic, evaluate
from rzero.tasks.base import Invalid, Question

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny import corpus
from tiny.folder import write_folder
from tiny.held_out import draw_sets
from tiny.measure import profile
from tiny.training import Stage, new_model, train

FOLDER = Path(rzero.__file__).parent / "models" / "tiny"
TASK = Arithmetic()


def drawn_lines(count: int, seed: int = 1) -> list[corpus.Line]:
    return list(islice(corpus.lines(random.Random(seed), 0.55), count))


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def test_the_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) <= 5_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= set(files)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)


def test_transformers_loads_the_model_as_the_script_built_it(model: Qwen3ForCausalLM) -> None:
    made = new_model(0)
    assert {name: t.shape for name, t in model.state_dict().items()} == {
        name: t.shape for name, t in made.state_dict().items()
    }
    assert sum(p.numel() for p in model.parameters()) == 597_312
    # The written config.json and the one trained with must mean the same.
    made.load_state_dict(model.state_dict())
    ids = torch.tensor([corpus.encode("<S>37+48-5=37+48=85;85-5=80;\\boxed{80}<eos>")])
    with torch.no_grad():
        assert torch.equal(made(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_tokenizer_gives_every_line_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (25, 0, 1)
    for line in drawn_lines(300):
        ids = tokenizer.encode(line.text)
        assert ids == corpus.encode(line.text)
        assert tokenizer.decode(ids) == line.text
    assert tokenizer.decode([1, 17, 10, 17], skip_special_tokens=True) == "4+4"


@pytest.mark.parametrize("text", ["hello", "3 + 4", "3/4", "3\n", "\\boxed", "boxed{", "é"])
def test_what_the_tokenizer_does_not_know_is_never_dropped_in_silence(text: str) -> None:
    config = ModelConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
    with pytest.raises(InputError, match="cannot encode"):
        load_tokenizer(FOLDER, config).encode(text)


def test_the_task_finds_the_role_marks() -> None:
    tokenizer = load_tokenizer(FOLDER, ModelConfig.from_hf(json.loads((FOLDER / "config.json").read_text())))
    assert TASK.challenger_prompt(tokenizer) == [2]
    assert TASK.solver_prompt(tokenizer, "3+4") == [3, 16, 10, 17, 8]


def test_held_out_questions_are_never_in_the_corpus() -> None:
    held_out = {problem.question for rows in TASK.held_out().values() for problem in rows}
    assert all(corpus.is_reserved(question) for question in held_out)
    asked = []
    for line in drawn_lines(5_000):
        text = line.text.removeprefix("<S>").removeprefix("<C>").replace("<question>", "")
        asked.append(text.split("=")[0].split("<")[0].split("\\")[0])
    assert not [question for question in asked if corpus.is_reserved(question)]
    # The rule is at work: without it one question in 16 would be a reserved one.
    rng = random.Random(2)
    unruly = [corpus.is_reserved(corpus.draw_expression(rng, 3)) for _ in range(2_000)]
    assert 0.04 < sum(unruly) / len(unruly) < 0.09


def test_the_held_out_files_are_those_of_the_script() -> None:
    files = {name: [problem.question for problem in rows] for name, rows in TASK.held_out().items()}
    assert draw_sets(seed=0) == files


def test_worked_answers_without_slips_are_true() -> None:
    rng = random.Random(3)
    for _ in range(1_000):
        expression = corpus.draw_expression(rng, rng.randint(2, 7))
        answer = corpus.worked_answer(expression, rng, slip=0.0)
        assert TASK.extract_answer(answer) == str(evaluate(expression))
        for step in answer.split(";")[:-1]:
            left, _, right = step.partition("=")
            assert eval(left) == int(right)
    assert corpus.worked_answer("3+4*5-6", rng, 0.0) == "4*5=20;3+20=23;23-6=17;\\boxed{17}"


def test_the_corpus_mixes_styles_and_roles_as_it_says() -> None:
    lines = drawn_lines(8_000)
    solver = [line.text for line in lines if line.text.startswith("<S>")]
    challenger = [line.text for line in lines if line.text.startswith("<C>")]
    assert abs(len(challenger) / len(lines) - 0.10) < 0.015
    assert abs(sum(not TASK.shows_work(text.split("=", 1)[1]) for text in solver) / len(solver) - 0.55) < 0.02
    questions = [TASK.parse_question(text.removeprefix("<C>").removesuffix("<eos>")) for text in challenger]
    malformed = sum(isinstance(question, Invalid) for question in questions) / len(questions)
    assert abs(malformed - 0.08) < 0.03
    assert all(TASK.truth(q.text) == q.answer for q in questions if isinstance(q, Question))


def test_training_is_repeatable_from_its_seed() -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        fresh = new_model(seed)
        assert train(fresh, Stage(2, 1e-3, 0.5), seed, lambda _: None) > 2 * 96
        return fresh.state_dict()

    first, again, other = trained(5), trained(5), trained(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_learning_rate_warms_up_and_falls_to_zero_in_the_second_half() -> None:
    rates = [Stage(1_000, 1e-3, 0.5).learning_rate(step) for step in range(1_000)]
    assert rates[0] < rates[20] < rates[49] == rates[500] == max(rates)
    assert rates[500] > rates[750] > rates[999] > 0


def test_the_script_writes_what_it_trained(tmp_path: Path) -> None:
    made = new_model(1)
    write_folder(tmp_path / "m", made, "old card\n")
    write_folder(tmp_path / "m", made, "new card\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "README.md").read_text() == "new card\n"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight.to(torch.bfloat16))


def test_the_embedded_model_is_the_base_that_r_zero_needs(model: Qwen3ForCausalLM) -> None:
    sets = draw_sets(seed=0)
    easy, hard = profile(model, sets["easy"][:60], seed=0), profile(model, sets["hard"][:40], seed=0)
    assert easy.greedy > 0.6
    assert hard.greedy < 0.3
    assert 0.4 < easy.terse < 0.8
    # A vote of its answers must know more than one answer does, or there is nothing to learn from.
    assert hard.majority_at_8 > hard.mean_at_8
