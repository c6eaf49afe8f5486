# SPDX-License-Identifier: Apache-2.0
r"""The math task: prompts, parsing of what a model may write, equality, held-out problems, boxes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rzero import anchors, tasks
from rzero.engine.errors import InputError
from rzero.tasks.base import Invalid, Question, last_box
from rzero.tasks.math import Math


class Words:
    """A tokenizer for tests: a token per character; it keeps what it was asked."""

    def __init__(self, has_chat_template: bool) -> None:
        self.has_chat_template = has_chat_template
        self.text = ""
        self.messages: list[dict[str, str]] = []

    def encode(self, text: str) -> list[int]:
        self.text = text
        return [ord(char) for char in text]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        self.messages = messages
        return [1]


@pytest.fixture(scope="module")
def math() -> Iterator[Math]:
    task = Math()
    yield task
    task.close()


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{a \boxed{3}", "3"),
        (r"}}} \boxed{5}", "5"),
        (r"{ \boxed{6}", "6"),
        (r"\\boxed{8}", None),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        (r"\boxed", None),
        (r"boxed{1}", None),
        ("", None),
    ],
)
def test_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


@pytest.mark.parametrize("unit", [r"\boxed{", "{", "}", "\\", r"\boxed ", "9", "\\{", r"\boxed{{"])
def test_last_box_of_a_megabyte_is_linear(unit: str) -> None:
    assert last_box(unit * (1_000_000 // len(unit))) is None


@given(st.text(alphabet="\\{}boxed 1", max_size=60))
def test_last_box_of_anything_is_a_part_of_it(text: str) -> None:
    box = last_box(text)
    assert box is None or (box in text and box == box.strip() != "")


def test_parse_question(math: Math) -> None:
    text = "thoughts <question>draft</question> <question>\nWhat is $1+1$?\n</question>\n\\boxed{2}"
    assert math.parse_question(text) == Question("What is $1+1$?", "2")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no question block"),
        ("<question>What?", "no question block"),
        ("</question><question>", "no question block"),
        (r"What is 1+1? \boxed{2}", "no question block"),
        (r"<question> </question> \boxed{2}", "empty question"),
        ("<question>What?</question> 2", "no boxed answer"),
        (r"\boxed{2} <question>What?</question>", "no boxed answer"),
        (r"<question>What?</question> \boxed{}", "no boxed answer"),
        (r"<question>What is \boxed{2}?</question> \boxed{2}", "answer inside the question"),
        ("<question>" + "9" * 5000 + r"</question> \boxed{2}", "question too long"),
        ("9" * 100_000, "no question block"),
    ],
)
def test_parse_question_says_why_not(math: Math, text: str, reason: str) -> None:
    assert math.parse_question(text) == Invalid(reason)


def test_prompts_with_and_without_a_template(math: Math) -> None:
    chat, plain = Words(True), Words(False)
    math.challenger_prompt(chat)
    assert [message["role"] for message in chat.messages] == ["system", "user"]
    assert "<question>" in chat.messages[0]["content"] and r"\boxed{" in chat.messages[0]["content"]
    math.solver_prompt(chat, "Why?")
    assert r"\boxed{}" in chat.messages[0]["content"] and chat.messages[1]["content"] == "Why?"
    math.solver_prompt(plain, "Why?")
    assert plain.text.startswith("system: ") and plain.text.endswith("\nuser: Why?\nassistant:")
    # Without a template nothing but these ends a turn, in a run as in an evaluation.
    assert math.solver_stop(chat) == math.challenger_stop(chat) == ()
    assert (
        math.solver_stop(plain)
        == math.challenger_stop(plain)
        == (
            "\nuser:",
            "\nsystem:",
            "\nassistant:",
        )
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("2", "2.0", True),
        ("1,000", "1000", True),
        ("1000000000000000000001", "1000000000000000000002", False),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        ("$5$", "5", True),
        ("0.5", r"\frac12", True),
        ("x=5", "5", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(1,2)", "(2,1)", False),
        ("10\u00b2", "100", True),
        ("10\u00b2", "102", False),
        ("x\u00b2\u207a\u00b9", "x^3", True),
        ("2\u02e3", "2x", False),
        ("a\u2099", "an", False),
        ("3\u00bd", "7/2", True),
        ("\u00bd", "0.5", True),
        ("101\u2082", "1012", False),
        ("\u22125", "-5", True),
        (r"A \leftarrow B", r"A \rightarrow B", False),
        (r"\left(1,2\right)", "(1,2)", True),
        (r"\text{yes}", "no", False),
        ("9" * 100_000, "8", False),
        (r"\frac{1}{", "1", False),
        ("", "1", False),
    ],
)
def test_same(math: Math, a: str, b: str, same: bool) -> None:
    assert math.same(a, b) is same
    assert math.same(b, a) is same


def test_held_out_problems_are_known_again(tmp_path: Path) -> None:
    long = "A train leaves the station at noon and travels at sixty miles per hour for three hours straight"
    rows = [{"problem": "What is 2 + 2?", "answer": 4}, {"problem": f"{long}; how far?", "answer": "180"}]
    (tmp_path / "set_a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    task = tasks.create("math", str(tmp_path))
    assert [problem.answer for problem in task.held_out()["set_a"]] == ["4", "180"]
    assert task.is_held_out("what  is 2 + 2")
    assert not task.is_held_out("What is 2 - 2?")
    assert task.is_held_out(f"Once more: {long}. Where is it?")
    assert not task.is_held_out("A train leaves the station at noon. Where is it?")


@pytest.mark.parametrize("line", ["{", '{"problem": "x"}', "[1]", "null", '{"problem": "x", "answer": null}'])
def test_a_bad_line_of_a_held_out_set_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"problem": "x", "answer": "1"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2"):
        tasks.create("math", str(tmp_path))


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    problem, answer = "One\u2028two?\x85", "3"
    row = json.dumps({"problem": problem, "answer": answer}, ensure_ascii=False)
    (tmp_path / "own.jsonl").write_text(row + "\r\n", encoding="utf-8")
    task = Math(str(tmp_path))
    assert [tuple(held) for held in task.held_out()["own"]] == [(problem, answer)]
    task.close()
    (tmp_path / "few.jsonl").write_text('{"question": "One\\u2028two?", "answer": "3"}\n', encoding="utf-8")
    plain = Math()
    first = anchors.of_run(tmp_path, str(tmp_path / "few.jsonl"), plain)
    assert anchors.of_run(tmp_path, str(tmp_path / "few.jsonl"), plain) == first
    assert first[0].question == "One\u2028two?"
    plain.close()


def test_a_run_reads_its_sets_as_an_evaluation_does(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "Eggs?", "answer": "16 - 7 = 9\\n#### 9"}\n')
    task = Math(str(tmp_path))
    assert [tuple(held) for held in task.held_out()["own"]] == [("Eggs?", "9")]
    task.close()
    file.write_text('{"question": "Eggs?", "options": ["8", "9"], "answer": "B"}\n')
    with pytest.raises(InputError, match="have options"):
        Math(str(tmp_path))
    file.write_text("\n")
    with pytest.raises(InputError, match="there is no problem in it"):
        Math(str(tmp_path))


def test_no_held_out_sets_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no held-out set"):
        tasks.create("math", str(tmp_path / "missing"))


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown task 'arithmetics'; did you mean 'arithmetic'"):
        tasks.create("arithmetics")
    with pytest.raises(InputError, match="cannot load no_such_module:create"):
        tasks.create("no_such_module:create")
