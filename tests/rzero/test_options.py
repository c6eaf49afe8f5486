# SPDX-License-Identifier: Apache-2.0
"""Options of a run: votes used twice, examples by people, likeness to earlier questions, comparisons."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from small_run import Crash, CrashAfter, outcome, small

from rzero import anchors, loop
from rzero.challenger import by_prompt, paid_shares
from rzero.cli import app
from rzero.config import load_config
from rzero.engine.errors import InputError
from rzero.engine.outputs import Sample
from rzero.journals import read_journal
from rzero.kernels import resolve
from rzero.rewards import challenger_rewards
from rzero.rollout import Draw, is_copy
from rzero.seeds import shuffled
from rzero.settings import ChallengerSettings
from rzero.tasks.arithmetic import Arithmetic
from rzero.tasks.base import Problem, TaskTokenizer
from rzero.tasks.math import Math
from rzero.votes import Vote

REUSE = ("pool.reuse_votes=true", "iterations=2")


def test_votes_of_the_last_step_begin_the_pool(tmp_path: Path) -> None:
    """Nothing is asked again, fewer candidates are drawn, and a crash in between changes nothing."""
    loop.run(small(*REUSE), tmp_path / "alone")
    votes = list(read_journal(tmp_path / "alone" / "votes.jsonl"))
    asked = list(read_journal(tmp_path / "alone" / "questions.jsonl"))
    pools = [row for row in read_journal(tmp_path / "alone" / "metrics.jsonl") if row["phase"] == "pool"]
    assert {row["iteration"] for row in votes} == {1, 2}
    for iteration, pool in zip((1, 2), pools, strict=True):
        reused = [row for row in votes if row["iteration"] == iteration]
        rows = [row for row in asked if row["iteration"] == iteration]
        assert pool["pool/reused"] == len(reused) > 0
        assert [row["question"] for row in rows[: len(reused)]] == [row["question"] for row in reused]
        for row, before in zip(rows, reused, strict=False):
            assert [given["text"] for given in row["answers"]] == before["texts"]
        # 24 questions of the step count as candidates.
        assert pool["pool/candidates"] == 40 - 24
        lost = pool["pool/invalid"] + pool["pool/held_out"] + pool["pool/duplicates"]
        assert pool["pool/questions"] == pool["pool/reused"] + pool["pool/candidates"] - lost
        assert len({row["question"] for row in rows}) == len(rows)
    with pytest.raises(Crash):
        loop.run(small(*REUSE), tmp_path / "run", CrashAfter(3))
    loop.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")


def test_problems_can_be_measured_in_a_random_order(tmp_path: Path) -> None:
    settings = small("evaluation.shuffle=3", "evaluation.samples=0")
    with pytest.raises(Crash):
        loop.run(settings, tmp_path / "run", CrashAfter(1))
    measured = list(read_journal(tmp_path / "run" / "evaluation_answers.jsonl"))
    for name, problems in Arithmetic().held_out().items():
        asked = [row["question"] for row in measured if row["set"] == name]
        assert asked == [problem.question for problem in shuffled(problems, 3)[:4]]
        assert asked != [problem.question for problem in problems[:4]]


def test_a_label_can_ask_for_the_challengers_own_answer(tmp_path: Path) -> None:
    loop.run(small("pool.only_confirmed=true", "iterations=1"), tmp_path / "run")
    loop.run(small("iterations=1"), tmp_path / "free")
    rows, free = (list(read_journal(tmp_path / name / "questions.jsonl")) for name in ("run", "free"))
    kept = [row for row in rows if row["kept"]]
    assert kept and all(int(row["label"]) == int(row["challenger_answer"]) for row in kept)
    dropped = {row["question"] for row in rows if row["reason"] == "not confirmed"}
    assert dropped
    # Nothing else decides otherwise, and by default it does not matter.
    assert {row["question"] for row in free if row["kept"]} == dropped | {row["question"] for row in kept}


def test_pay_can_ask_for_the_challengers_own_answer(tmp_path: Path) -> None:
    votes = [Vote(("7", "7", "8"), (("7", 2), ("8", 1)), 0)] * 3
    assert paid_shares(votes, [True, False, None], only_confirmed=True) == [votes[0].share, 0.0, 0.0]
    assert paid_shares(votes, [True, False, None], only_confirmed=False) == [votes[0].share] * 3
    first = {}
    for only in ("true", "false"):
        loop.run(small(f"challenger.only_confirmed={only}", "iterations=1"), tmp_path / only)
        rows = read_journal(tmp_path / only / "metrics.jsonl")
        first[only] = next(row for row in rows if row["phase"] == "challenger")
    agree, paid = "challenger/answer_agrees_share", "challenger/reward_mean"
    assert 0 < first["true"][agree] == first["false"][agree] < 1
    assert first["true"][paid] < first["false"][paid]


def test_votes_can_be_used_twice_only_where_they_are_as_many() -> None:
    with pytest.raises(InputError, match=r"pool\.reuse_votes needs as many votes"):
        load_config(overrides=["pool.reuse_votes=true", "pool.votes=9"])


def test_likeness_to_earlier_questions_can_be_paid_for() -> None:
    settings = ChallengerSettings(earlier_weight=0.5, repetition_weight=0.0)
    assert challenger_rewards([0.5, None, 0.5], [0, 1], settings, [1.0, 0.2]) == pytest.approx([0.5, -1, 0.9])


def test_likeness_to_earlier_questions_is_measured_over_iterations(tmp_path: Path) -> None:
    loop.run(small("iterations=2", "challenger.earlier_weight=0.5"), tmp_path / "run")
    for row in read_journal(tmp_path / "run" / "metrics.jsonl"):
        if row["phase"] == "challenger":
            likeness = row["challenger/similarity_to_earlier"]
            assert likeness is None if row["iteration"] == 1 else 0 < likeness <= 1
        if row["phase"] == "pool":
            assert 0 < row["pool/cluster_share"] <= 1
            assert row["iteration"] == 2 or row["pool/asked_before_share"] == 0


EXAMPLES = ('{"question": "17+25-8", "answer": 34}', '{"question": "2*3+4", "answer": "10"}', "")


class Shown(Arithmetic):
    """Notes the examples of each prompt in a file; the embedded model itself cannot be shown any."""

    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence[Problem] = ()) -> list[int]:
        assert self.notes is not None
        with Path(self.notes).open("a") as file:
            file.write("".join(f"{example.question}={example.answer} " for example in examples) + "\n")
        return super().challenger_prompt(tokenizer)

    def __init__(self, data: str | None) -> None:
        super().__init__(None)
        self.notes = data


def test_examples_reach_the_prompt_and_a_copy_stays_with_the_run(tmp_path: Path) -> None:
    file, notes = tmp_path / "mine.jsonl", tmp_path / "notes"
    file.write_text("\n".join(EXAMPLES))
    shown_one = ("anchors_shown=1", "anchors_every=12", "challenger.group=8")
    settings = small("task=test_options:Shown", f"data={notes}", f"anchors={file}", *shown_one)
    loop.run(settings, tmp_path / "alone")
    shown = notes.read_text().splitlines()
    # Two steps of three groups, and a pool of 40 questions, twelve from each prompt but the last.
    assert len(shown) == 2 * 3 + 4
    assert set(shown[-4:]) == {"17+25-8=34 ", "2*3+4=10 "}
    rows = read_journal(tmp_path / "alone" / "metrics.jsonl")
    assert [row["pool/candidates"] for row in rows if row["phase"] == "pool"] == [40]
    with pytest.raises(Crash):
        loop.run(settings, tmp_path / "run", CrashAfter(2))
    # What the file becomes later does not reach a run that has begun.
    file.unlink()
    loop.resume(tmp_path / "run")
    assert notes.read_text().splitlines()[len(shown) :] == shown
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
    loop.resume(tmp_path / "run", settings.model_copy(update={"ablation": True}))
    for folder in (tmp_path / "run", tmp_path / "run" / "ablation"):
        copied = anchors.read(folder / "anchors.jsonl", Arithmetic())
        assert copied == (Problem("17+25-8", "34"), Problem("2*3+4", "10"))


def test_samples_of_several_prompts_keep_their_rewards_and_groups() -> None:
    """Two prompts of two groups each; one sample of the first and all of the last group are dropped."""
    names = [Sample([number], "", [0.0], [0.0], "stop") for number in range(8)]
    drawn = [Draw([1], names[:4]), Draw([2], names[4:]), Draw([3], names[:2])]
    scored = by_prompt(drawn, [10.0 * place for place in range(10)], 2, {1, 8, 9})
    seen = [
        (
            part.drawn.prompt_ids,
            [sample.token_ids[0] for sample in part.drawn.samples],
            part.rewards,
            part.group,
        )
        for part in scored
    ]
    assert seen == [
        ([1], [0, 2, 3], [0.0, 20.0, 30.0], [0, 1, 1]),
        ([2], [4, 5, 6, 7], [40.0, 50.0, 60.0, 70.0], [2, 2, 3, 3]),
    ]


def test_a_copy_of_an_example_is_no_question(tmp_path: Path) -> None:
    """The model in the package is not shown any, so both runs draw the same texts."""
    file, shown = tmp_path / "mine.jsonl", ["task=test_options:Shown", f"data={tmp_path / 'notes'}"]
    file.write_text(EXAMPLES[0])
    loop.run(small(*shown, f"anchors={file}"), tmp_path / "before")
    [*_, common] = [row["question"] for row in read_journal(tmp_path / "before" / "questions.jsonl")]
    file.write_text(json.dumps({"question": common, "answer": "0"}))
    loop.run(small(*shown, f"anchors={file}"), tmp_path / "run")
    assert common not in [row["question"] for row in read_journal(tmp_path / "run" / "questions.jsonl")]
    rows = read_journal(tmp_path / "run" / "metrics.jsonl")
    [pool] = [row for row in rows if row["phase"] == "pool"]
    assert pool["pool/invalid"] > 0


@pytest.mark.parametrize(
    ("question", "is_one"),
    [
        (
            "A class of 28 pupils and 4 teachers go by car. Each car takes 4. How many cars do they need?",
            True,
        ),
        ("A car takes 4 people. If 28 pupils and 4 teachers come, how many cars are needed?", True),
        ("A car takes 4 people. If 30 pupils and 4 teachers come, how many cars are needed?", False),
        ("Multiply 28 by 4, and then by 4 again.", False),
    ],
)
def test_an_example_told_anew_is_a_copy(question: str, is_one: bool) -> None:
    example = (
        "A class of 28 pupils and 4 teachers go by car. Each car takes 4 people. How many cars do they need?"
    )
    run = SimpleNamespace(
        anchors=(Problem(example, "8"), Problem("A goat eats 2 carrots. How many do 3 goats eat?", "6")),
        task=SimpleNamespace(tokens=str.split),
        engine=SimpleNamespace(kernels=resolve(torch.device("cpu"))),
    )
    assert is_copy(run, question) is is_one  # type: ignore[arg-type]


def test_the_embedded_model_cannot_be_shown_examples(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(EXAMPLES[0])
    with pytest.raises(InputError, match="embedded model"):
        loop.run(small(f"anchors={tmp_path / 'mine.jsonl'}"), tmp_path / "run")


def test_each_prompt_shows_other_examples() -> None:
    given = [Problem(str(n), "0") for n in range(5)]
    assert sorted(anchors.shown(given, 9, seed=1)) == given
    assert len({tuple(anchors.shown(given, 2, seed)) for seed in range(20)}) > 5


class Spelled:
    """A tokenizer without a chat template whose tokens are characters."""

    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        raise AssertionError(messages)


@pytest.mark.parametrize("task", [Arithmetic(), Math()], ids=["arithmetic", "math"])
def test_a_prompt_shows_its_examples_and_stays_as_it_was_without(task: Arithmetic | Math) -> None:
    plain = "".join(map(chr, task.challenger_prompt(Spelled())))
    shown = "".join(map(chr, task.challenger_prompt(Spelled(), [Problem("17+25-8", "34")])))
    assert "17+25-8" in shown and r"\boxed{34}" in shown and "17+25-8" not in plain
    assert "".join(map(chr, task.challenger_prompt(Spelled(), []))) == plain


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "line 1: expected"),
        ('{"question": "1+2"}', "line 1: expected"),
        ('{"question": 3, "answer": 3}', "'question' must be a text"),
        ('{"question": "1+2", "answer": null}', "'answer' must be a text or a number"),
        ("\n\n", "holds no example"),
        (None, "cannot be read"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(tmp_path: Path, text: str | None, part: str) -> None:
    file = tmp_path / "mine.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=part):
        anchors.read(file, Arithmetic())


def test_a_held_out_problem_is_no_example(tmp_path: Path) -> None:
    task = Arithmetic()
    problem = task.held_out()["easy"][0]
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": problem.question, "answer": problem.answer}))
    with pytest.raises(InputError, match="held-out set"):
        anchors.read(file, task)


def test_settings_are_compared_field_by_field(tmp_path: Path) -> None:
    command = ["run", "--preset", "recommended", "--print-config", "--diff"]
    lines = CliRunner().invoke(app, [*command, "code"]).output.splitlines()
    assert lines[0].split() == ["setting", "here", "->", "code"]
    assert ["challenger.reward_scale", "1.0", "->", "0.5"] in [line.split() for line in lines]
    assert CliRunner().invoke(app, [*command, "recommended"]).output == "nothing differs from recommended\n"
    (tmp_path / "mine.yaml").write_text("seed: 2")
    assert "seed" in CliRunner().invoke(app, [*command, str(tmp_path / "mine.yaml")]).output
    assert isinstance(CliRunner().invoke(app, [*command, "papier"]).exception, InputError)
