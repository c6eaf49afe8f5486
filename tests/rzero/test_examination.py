# SPDX-License-Identifier: Apache-2.0
"""`rzero eval`: stopped anywhere it ends with the same answers, models are compared pair by pair."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rzero.cli import app
from rzero.cli.evaluate import sets_to_ask
from rzero.config import model_path
from rzero.engine import Engine
from rzero.engine.errors import InputError
from rzero.examination import Asked, Examination, Protocol, closing_forms
from rzero.forms import TaskForm
from rzero.problem_sets import Item, ProblemSet
from rzero.tasks import create


def run(output: Path, *options: str) -> Result:
    common = ["eval", "tiny", "--set", "easy", "--limit", "5", "--max-tokens", "12", "--threads", "1"]
    return CliRunner().invoke(app, [*common, "--output", str(output), *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert "easy" in result.output
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_key(found: Sequence[dict[str, Any]]) -> dict[tuple[str, int, str], dict[str, Any]]:
    return {(row["set"], row["index"], row["kind"]): row for row in found}


def test_the_folder_holds_what_it_promises(whole: Path) -> None:
    about = json.loads((whole / "eval.json").read_text())
    assert about["sets"]["easy"]["source"] == {"task": "arithmetic"}
    assert about["facts"]["model_sha256"]
    answers = rows(whole / "answers.jsonl")
    assert len(by_key(answers)) == len(answers) == 10
    assert all({"question", "truth", "samples"} <= set(row) for row in answers)
    verdicts = by_key(rows(whole / "verdicts.jsonl"))
    assert [len(verdicts["easy", 0, kind]["answers"]) for kind in ("greedy", "sampled")] == [1, 2]
    result = json.loads((whole / "result.json").read_text())
    [row] = result["rows"]
    assert (row["problems"], row["k"]) == (5, 2)
    assert row["too_long_share"] == 0.0
    right = sum(verdicts["easy", index, "greedy"]["correct"][0] for index in range(5))
    assert row["greedy"] == pytest.approx(right / 5)


def test_a_problem_without_room_is_wrong_and_said(tmp_path: Path) -> None:
    items = (Item("1+1", "2"), Item("+".join("9" * 30), "270"))
    asked = [Asked(ProblemSet("sums", "arithmetic", items, {}), TaskForm(create("arithmetic")))]
    protocol = Protocol(samples=0, max_tokens=12)
    with Examination(tmp_path, "tiny", asked, protocol) as examination:
        with Engine(model_path("tiny"), max_model_len=16, threads=1) as engine:
            examination.ask(engine, lambda done, total, tokens: None)
        assert examination.is_complete
        [row] = examination.grade()["rows"]
    assert row["too_long_share"] == 0.5
    last = rows(tmp_path / "answers.jsonl")
    assert by_key(last)["sums", 1, "greedy"]["samples"][0]["finish_reason"] == "prompt too long"
    assert by_key(rows(tmp_path / "verdicts.jsonl"))["sums", 1, "greedy"]["correct"] == [False]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_stopped_anywhere_it_ends_with_the_same_answers(whole: Path, tmp_path: Path, share: float) -> None:
    text = (whole / "answers.jsonl").read_bytes()
    # What a kill leaves: some lines, the last one perhaps torn, and no result.
    (tmp_path / "answers.jsonl").write_bytes(text[: int(len(text) * share)])
    (tmp_path / "eval.json").write_bytes((whole / "eval.json").read_bytes())
    result = run(tmp_path, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert by_key(rows(tmp_path / "answers.jsonl")) == by_key(rows(whole / "answers.jsonl"))
    assert (tmp_path / "verdicts.jsonl").read_bytes() == (whole / "verdicts.jsonl").read_bytes()


def test_another_question_needs_another_folder(whole: Path) -> None:
    result = run(whole, "--samples", "3")
    assert isinstance(result.exception, InputError)
    assert "another protocol (samples: '2' there, '3' now)" in str(result.exception)
    result = run(whole, "--samples", "2", "--shuffle", "0")
    assert isinstance(result.exception, InputError)
    assert "source: shuffle: 'None' there, '0' now" in str(result.exception)


def test_other_weights_need_another_folder(tmp_path: Path) -> None:
    asked = sets_to_ask("tiny", [], {"task": None, "data": None, "limit": 1, "shuffle": None})
    with closing_forms(asked), Examination(tmp_path, "tiny", asked, Protocol()) as examination:
        examination.note_facts({"model_sha256": "a", "dtype": "float32"})
        examination.note_facts({"model_sha256": "a", "dtype": "float32"})
        with pytest.raises(InputError, match="other weights"):
            examination.note_facts({"model_sha256": "b", "dtype": "float32"})
        with pytest.raises(InputError, match="in use"):
            Examination(tmp_path, "tiny", asked, Protocol())


def test_two_results_are_compared_problem_by_problem(whole: Path, tmp_path: Path) -> None:
    worse = tmp_path / "worse"
    worse.mkdir()
    for name in ("eval.json", "verdicts.jsonl"):
        (worse / name).write_bytes((whole / name).read_bytes())
    changed = [row | {"correct": [False] * len(row["correct"])} for row in rows(whole / "verdicts.jsonl")]
    (worse / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    result = run(whole, "--samples", "2", "--against", str(worse))
    assert result.exit_code == 0, result.output
    compared = json.loads((whole / "result.json").read_text())["against"]["rows"]
    assert [row["kind"] for row in compared] == ["greedy", "sampled"]
    assert compared[0]["test"] == "McNemar, exact"
    assert compared[0]["only_second"] == 0
    own = json.loads((whole / "result.json").read_text())["rows"][0]
    assert compared[0]["difference"] == pytest.approx(own["greedy"])
    assert "McNemar" in result.output


def test_answers_of_other_lengths_are_not_compared(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "verdicts.jsonl").write_bytes((whole / "verdicts.jsonl").read_bytes())
    about = json.loads((whole / "eval.json").read_text())
    for changed, named in (
        ({"max_tokens": 7}, "max_tokens is 7"),
        ({"temperature": 0.5}, "temperature is 0.5"),
    ):
        (other / "eval.json").write_text(json.dumps(about | {"protocol": about["protocol"] | changed}))
        result = run(whole, "--samples", "2", "--against", str(other))
        assert isinstance(result.exception, InputError) and named in str(result.exception)
    (other / "eval.json").write_text(json.dumps(about | {"protocol": about["protocol"] | {"seed": 9}}))
    assert run(whole, "--samples", "2", "--against", str(other)).exit_code == 0


def test_a_model_can_be_the_other_side(tmp_path: Path) -> None:
    result = run(tmp_path, "--samples", "0", "--limit", "2", "--against", "tiny")
    assert result.exit_code == 0, result.output
    [row] = json.loads((tmp_path / "result.json").read_text())["against"]["rows"]
    assert (row["difference"], row["p"], row["problems"]) == (0.0, 1.0, 2)
    assert (tmp_path / "against" / "result.json").exists()
