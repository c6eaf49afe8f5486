# SPDX-License-Identifier: Apache-2.0
"""The adapter for lm-evaluation-harness, through the harness itself, against transformers' numbers."""

import json
from pathlib import Path

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install '.[eval]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from small_engine import byte_model, small_model  # noqa: E402

from rzero.engine import Engine  # noqa: E402
from rzero.engine.errors import InputError  # noqa: E402
from rzero.lm_eval import RZeroLM  # noqa: E402

PAIRS = [
    ("The sky is", " blue"),
    ("The sky is", " green"),
    ("ends in a blank ", "word"),
    ("", "no context"),
    ("a" * 120, "left of this is cut"),
    ("é 🙂", "ü"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bytes"
    tokenizer = byte_model().tokenizer
    assert tokenizer is not None
    # transformers gives a Qwen2 tokenizer a token of its own when it is loaded again.
    with Engine(small_model(vocab_size=264)) as engine:
        engine.save("base", path)
    tokenizer.hf.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> RZeroLM:
    return RZeroLM(pretrained=str(folder), dtype="fp32")


def asked(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=index) for index, each in enumerate(arguments)
    ]


def reference(folder: Path, context: list[int], answer: list[int]) -> tuple[float, bool]:
    """Sum of log-probs and whether each token is the likeliest, by transformers in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
    picked = torch.log_softmax(logits, -1)[range(len(answer)), answer]
    return float(picked.sum()), logits.argmax(-1).tolist() == answer


def test_loglikelihoods_are_those_of_transformers(ours: RZeroLM, folder: Path) -> None:
    likeliest = ours.generate_until(asked("generate_until", ("Once", {"max_gen_toks": 3})))[0]
    pairs = [*PAIRS, ("Once", likeliest)] if likeliest.isascii() and likeliest else PAIRS
    found = ours.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    for (context, answer), (total, is_greedy) in zip(pairs, found, strict=True):
        encoded = (
            ours._encode_pair(context, answer)
            if context
            else ([ours.prefix_token_id], ours.tok_encode(answer))
        )
        fitting = ours._fitting(*encoded)
        assert sum(map(len, fitting)) <= ours.max_length
        expected, expected_greedy = reference(folder, *fitting)
        assert total == pytest.approx(expected, abs=1e-3)
        assert is_greedy == expected_greedy


def test_a_rolled_text_is_scored_once_in_full(ours: RZeroLM, folder: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4
    windows = list(ours._windows(text))
    assert len(windows) > 1
    assert [token for _, answer in windows for token in answer] == ours.tok_encode(text)
    [total] = ours.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert total == pytest.approx(sum(reference(folder, *window)[0] for window in windows), abs=1e-2)


def test_generation_ends_before_a_stop_string_and_knows_its_wishes(ours: RZeroLM) -> None:
    free = ours.generate_until(asked("generate_until", ("Q:", {"max_gen_toks": 12})))[0]
    assert len(free) >= 2
    stopped = ours.generate_until(asked("generate_until", ("Q:", {"until": [free[1]], "max_gen_toks": 12})))
    assert stopped == [free[: free.index(free[1])]]
    with pytest.raises(InputError, match="repetition_penalty"):
        ours.generate_until(asked("generate_until", ("Q:", {"repetition_penalty": 1.1})))


def test_the_harness_runs_a_task_on_it(ours: RZeroLM, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1 =", "choices": [f" {i + 1}", f" {i + 2}"], "label": 0} for i in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choice = {**common, "task": "tiny_choice", "output_type": "multiple_choice"}
    choice |= {"doc_to_target": "label", "doc_to_choice": "{{choices}}"}
    free = {**common, "task": "tiny_free", "output_type": "generate_until"}
    free |= {"doc_to_target": "{{choices[0]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}}
    for task in (choice, free):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tmp_path))
    results = lm_eval.simple_evaluate(
        model=ours, tasks=["tiny_choice", "tiny_free"], task_manager=manager, bootstrap_iters=0
    )
    assert results is not None
    assert 0.0 <= results["results"]["tiny_choice"]["acc,none"] <= 1.0
    assert results["results"]["tiny_free"]["exact_match,none"] == 0.0
