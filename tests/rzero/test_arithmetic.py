# SPDX-License-Identifier: Apache-2.0
"""The arithmetic task: grammar, exact values, questions and answers out of any text, held-out sets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rzero.engine.errors import InputError
from rzero.tasks.arithmetic import SETS, Arithmetic, evaluate, is_expression, normal_integer
from rzero.tasks.base import Invalid, Question

NUMBERS = st.integers(0, 9999)
TASK = Arithmetic()


class CharTokenizer:
    """One id per character; knows the role marks when it is `compact`."""

    def __init__(self, compact: bool, has_chat_template: bool = True) -> None:
        self.compact, self.has_chat_template = compact, has_chat_template

    def encode(self, text: str) -> list[int]:
        if self.compact:
            text = text.replace("<C>", "\x01").replace("<S>", "\x02")
        return [ord(char) for char in text]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode("".join(f"[{m['role']}]{m['content']}" for m in messages))


def text_of(ids: list[int]) -> str:
    return "".join(map(chr, ids))


@given(NUMBERS, st.lists(st.tuples(st.sampled_from("+-*"), NUMBERS), min_size=1, max_size=7))
def test_values_are_those_of_python(first: int, rest: list[tuple[str, int]]) -> None:
    expression = str(first) + "".join(f"{sign}{number}" for sign, number in rest)
    assert is_expression(expression)
    assert evaluate(expression) == eval(expression)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "-3+4",
        "3+",
        "+3",
        "3++4",
        "3+-4",
        "07+1",
        "3+00",
        "10000+1",
        "3/4",
        "(3+4)*2",
        "3 + 4",
        "3+4=",
        "٣+٤",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    assert not is_expression(text)
    with pytest.raises(ValueError, match="not an arithmetic expression"):
        evaluate(text)


def test_an_expression_has_at_most_64_characters() -> None:
    assert is_expression("+".join("1" * 32))
    assert not is_expression("+".join("1" * 33))
    assert not is_expression("9999" + "*9999" * 20_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<question>3+4</question>\\boxed{7}", Question("3+4", "7")),
        ("<question>3+4</question>\\boxed{8}", Question("3+4", "8")),
        ("Sure. <question> 12 \u00d7 3 \u2212 4\n</question> so \\boxed{ 032 }.", Question("12*3-4", "32")),
        ("<question>1+1</question>\\boxed{2}<question>2+2</question>\\boxed{4}", Question("2+2", "4")),
        ("3+4</question>\\boxed{7}", Invalid("no question")),
        ("<question>3+4\\boxed{7}", Invalid("no question")),
        ("</question>3+4<question>\\boxed{7}", Invalid("no question")),
        ("<question>3+4</question>", Invalid("no answer")),
        ("<question>3+4</question>\\boxed{", Invalid("no answer")),
        ("<question>3+4</question>\\boxed{seven}", Invalid("no answer")),
        ("<question>3+04</question>\\boxed{7}", Invalid("not an expression")),
        ("<question></question>\\boxed{7}", Invalid("not an expression")),
        ("", Invalid("no question")),
    ],
)  # fmt: skip
def test_questions_need_both_blocks_and_the_grammar(text: str, expected: Question | Invalid) -> None:
    assert TASK.parse_question(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{80}", "80"),
        ("37+48=85;85-5=80;\\boxed{80}", "80"),
        ("\\boxed{1} no, \\boxed{-2}", "-2"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("\\boxed{+007}", "7"),
        ("\\boxed{-0}", "0"),
        ("\\boxed{}", None),
        ("\\boxed{3.5}", None),
        ("\\boxed{{5}}", None),
        ("80", None),
        ("", None),
        ("\\boxed{" + "9" * 13 + "}", None),
        ("\\boxed{" + "9" * 100_000 + "}", None),
        ("\\boxed{" * 5_000, None),
    ],
)
def test_the_answer_is_the_whole_number_in_the_last_box(text: str, expected: str | None) -> None:
    assert TASK.extract_answer(text) == expected


@given(st.integers(-(10**12) + 1, 10**12 - 1))
def test_integers_have_one_spelling(value: int) -> None:
    assert normal_integer(str(value)) == str(value)
    assert TASK.same(f" {value:+}", str(value))
    assert not TASK.same(str(value), str(-value or 1))


def test_answers_that_are_no_numbers_equal_nothing() -> None:
    assert not TASK.same("x", "x")
    assert not TASK.same("None", "None")


def test_work_is_seen_before_the_box() -> None:
    assert TASK.shows_work("37+48=85;\\boxed{85}")
    assert not TASK.shows_work("\\boxed{85}")
    assert not TASK.shows_work("\\boxed{85};85=85")


def test_prompts_are_compact_where_the_tokenizer_knows_the_role_marks() -> None:
    tokenizer = CharTokenizer(compact=True)
    assert text_of(TASK.challenger_prompt(tokenizer)) == "\x01"
    assert text_of(TASK.solver_prompt(tokenizer, "3 + 4")) == "\x023+4="


@pytest.mark.parametrize("has_chat_template", [True, False])
def test_other_models_are_asked_in_words(has_chat_template: bool) -> None:
    tokenizer = CharTokenizer(compact=False, has_chat_template=has_chat_template)
    asks = text_of(TASK.challenger_prompt(tokenizer))
    answers = text_of(TASK.solver_prompt(tokenizer, "37+48-5"))
    assert ("[system]" in asks and "[user]" in answers) == has_chat_template
    assert all(part in asks for part in ("<question>", "</question>", "\\boxed{}"))
    assert "37+48-5" in answers and "\\boxed{}" in answers
    # The example in the prompt is a question that the task itself accepts.
    assert TASK.parse_question(asks) == Question("37+48-5", "80")


def test_only_expressions_are_put_to_the_solver() -> None:
    with pytest.raises(InputError, match="hello"):
        TASK.solver_prompt(CharTokenizer(compact=True), "hello")


def test_held_out_sets_are_three_times_200_distinct_problems_with_true_answers() -> None:
    sets = TASK.held_out()
    assert tuple(sets) == SETS
    problems = [problem for rows in sets.values() for problem in rows]
    assert [len(rows) for rows in sets.values()] == [200, 200, 200]
    assert len({TASK.canonical(problem.question) for problem in problems}) == 600
    assert all(TASK.truth(problem.question) == problem.answer for problem in problems)
    assert all(TASK.is_held_out(" + ".join(problem.question.split("+"))) for problem in problems)
    assert not TASK.is_held_out("1+1+1+1+1+1+1+1+1")


def write_sets(folder: Path, **lines: str) -> str:
    for name in SETS:
        (folder / f"{name}.jsonl").write_text(lines.get(name, '{"problem": "3+4", "answer": 7}\n'))
    return str(folder)


def test_held_out_sets_of_ones_own(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"problem": f"{n}*2", "answer": str(2 * n)}) + "\n" for n in range(5))
    task = Arithmetic(write_sets(tmp_path, hard=rows))
    assert [problem.answer for problem in task.held_out()["hard"]] == ["0", "2", "4", "6", "8"]
    assert task.is_held_out("3+4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "'problem'"),
        ('{"problem": "3/4", "answer": "1"}', "'problem'"),
        ('{"problem": 7, "answer": "7"}', "'problem'"),
        ('{"problem": "3+4", "answer": "8"}', "'answer'"),
        ('{"problem": "3+4"}', "'answer'"),
    ],
)
def test_a_bad_held_out_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"easy\.jsonl:1: .*{message}"):
        Arithmetic(write_sets(tmp_path, easy=line))


def test_a_missing_held_out_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"easy\.jsonl"):
        Arithmetic(str(tmp_path))
