# SPDX-License-Identifier: Apache-2.0
"""The arithmetic task: exact sums, differences and products of small whole numbers.

A question is an expression `int (op int)+` with + - *, products first, at most 4 digits a number; an answer
is a whole number in a box. The embedded model reads the compact prompts `<C>` and `<S>37+48-5=`; any other
model gets the same task in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from rzero.engine.errors import InputError
from rzero.tasks.base import MAX_TEXT_CHARS, Invalid, Problem, Question, Task, TaskTokenizer, last_box

SETS = ("easy", "medium", "hard")
MAX_QUESTION_CHARS = 64
MAX_ANSWER_DIGITS = 12

_NUMBER = r"(?:0|[1-9][0-9]{0,3})"
_EXPRESSION = re.compile(rf"{_NUMBER}(?:[+*-]{_NUMBER})+")
_TERM = re.compile(r"([+-]?)([0-9*]+)")
_ANSWER = re.compile(rf"([+-]?)0*([0-9]{{1,{MAX_ANSWER_DIGITS}}})")
_BLANKS = re.compile(r"\s+")
# Signs that people and models write for the same operations.
_SIGNS = MappingProxyType({ord("×"): "*", ord("·"): "*", ord("−"): "-"})  # noqa: RUF001

_CHALLENGER_SYSTEM = (
    "You write arithmetic problems that make a student think. A problem is one expression of whole numbers "
    "with at most 4 digits each, joined by the signs +, - and *; it has no parentheses and no equals sign."
)
_CHALLENGER_USER = (
    "Write one new arithmetic problem that takes several steps. Put the expression between <question> and "
    "</question>, then put its value in \\boxed{}. For example: <question>37+48-5</question> \\boxed{80}"
)
_EXAMPLES = "These are examples of what is wanted; write a new one, not one of these."
_SOLVER_SYSTEM = "Work step by step, then put the final whole number in \\boxed{}."
_SOLVER_USER = "What is {question}?"


def is_expression(text: str) -> bool:
    """Whether `text` is `int (op int)+` without blanks and leading zeros, at most 4 digits a number."""
    return len(text) <= MAX_QUESTION_CHARS and _EXPRESSION.fullmatch(text) is not None


def evaluate(expression: str) -> int:
    """Exact value of a canonical expression, products before sums.

    Raises ValueError when `expression` is not canonical."""
    if not is_expression(expression):
        raise ValueError(f"not an arithmetic expression: {expression[:80]!r}")
    value = 0
    for sign, term in _TERM.findall(expression):
        product = prod(int(number) for number in term.split("*"))
        value += -product if sign == "-" else product
    return value


def normal_integer(text: str) -> str | None:
    """`text` as an integer in its one spelling ("+007" -> "7"); None if it is none or has over 12 digits."""
    match = _ANSWER.fullmatch(text.translate(_SIGNS).strip())
    return str(int(match[1] + match[2])) if match else None


class Arithmetic(Task):
    """Expressions as questions, whole numbers as answers.

    `data` is a folder with easy.jsonl, medium.jsonl and hard.jsonl, one {"problem", "answer"} a line; None
    takes the sets of the package. Raises InputError when a set is missing or a line is not such a problem."""

    name = "arithmetic"

    def __init__(self, data: str | None = None) -> None:
        self._held_out = {name: _read_set(name, data) for name in SETS}
        self._held_out_questions = frozenset(p.question for rows in self._held_out.values() for p in rows)

    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence[Problem] = ()) -> list[int]:
        if _is_compact(tokenizer):
            if examples:
                raise InputError(
                    "anchors: the embedded model knows one prompt only and cannot be shown examples"
                )
            return tokenizer.encode("<C>")
        shown = [
            f"<question>{self.canonical(example.question)}</question> \\boxed{{{example.answer}}}"
            for example in examples
        ]
        user = "\n".join([_EXAMPLES, *shown, _CHALLENGER_USER]) if shown else _CHALLENGER_USER
        return _in_words(tokenizer, _CHALLENGER_SYSTEM, user)

    def solver_prompt(self, tokenizer: TaskTokenizer, question: str) -> list[int]:
        """Token ids that ask for the value of `question`.

        Raises InputError when `question` is no expression: what the embedded model's tokenizer does not know
        must not reach it."""
        expression = self.canonical(question)
        if not is_expression(expression):
            raise InputError(
                f"question {question[:80]!r} is no arithmetic expression such as 37+48*2 "
                "(signs + - *, at most 4 digits a number)"
            )
        if _is_compact(tokenizer):
            return tokenizer.encode(f"<S>{expression}=")
        return _in_words(tokenizer, _SOLVER_SYSTEM, _SOLVER_USER.format(question=expression))

    def parse_question(self, text: str) -> Question | Invalid:
        text = text[:MAX_TEXT_CHARS]
        before, closing, _ = text.rpartition("</question>")
        _, opening, inside = before.rpartition("<question>")
        if not (opening and closing):
            return Invalid("no question")
        answer = self.extract_answer(text)
        if answer is None:
            return Invalid("no answer")
        expression = self.canonical(inside)
        return Question(expression, answer) if is_expression(expression) else Invalid("not an expression")

    def extract_answer(self, text: str) -> str | None:
        content = last_box(text)
        return None if content is None else normal_integer(content)

    def same(self, a: str, b: str) -> bool:
        left, right = normal_integer(a), normal_integer(b)
        return left is not None and left == right

    def canonical(self, question: str) -> str:
        return _BLANKS.sub("", question[:MAX_TEXT_CHARS]).translate(_SIGNS)

    def tokens(self, question: str) -> list[str]:
        """Characters: in numbers and signs most expressions would be too short for BLEU-4."""
        return list(self.canonical(question))

    def held_out(self) -> Mapping[str, Sequence[Problem]]:
        return self._held_out

    def is_held_out(self, question: str) -> bool:
        return self.canonical(question) in self._held_out_questions

    def truth(self, question: str) -> str | None:
        expression = self.canonical(question)
        return str(evaluate(expression)) if is_expression(expression) else None

    def shows_work(self, text: str) -> bool:
        """Whether an equation stands before the last box."""
        return "=" in text.rpartition("\\boxed{")[0]


def create(data: str | None) -> Task:
    """The arithmetic task with the held-out sets of folder `data`, or of the package."""
    return Arithmetic(data)


class _Readable(Protocol):
    """What a file of the package and a file of the user have in common."""

    def read_text(self, encoding: str) -> str: ...


def _read_set(name: str, data: str | None) -> tuple[Problem, ...]:
    own = files("rzero") / "data" / f"arithmetic_{name}.jsonl"
    source: _Readable = Path(data, f"{name}.jsonl") if data else own
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot read the held-out set {name!r}: {error}") from None
    lines = enumerate(text.splitlines(), 1)
    return tuple(_read_problem(line, f"{source}:{number}") for number, line in lines if line.strip())


def _read_problem(line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    problem, answer = (row.get("problem"), row.get("answer")) if isinstance(row, dict) else (None, None)
    if not isinstance(problem, str) or not is_expression(problem):
        raise InputError(f"{where}: 'problem' must be like 37+48*2, not {str(problem)[:80]!r}")
    truth = str(evaluate(problem))
    if str(answer) != truth:
        raise InputError(f"{where}: 'answer' to {problem} must be {truth}, not {str(answer)[:80]!r}")
    return Problem(problem, truth)


def _is_compact(tokenizer: TaskTokenizer) -> bool:
    """Whether the tokenizer knows the role marks of the embedded model, each as one token."""
    return len(tokenizer.encode("<C>")) == 1 and len(tokenizer.encode("<S>")) == 1


def _in_words(tokenizer: TaskTokenizer, system: str, user: str) -> list[int]:
    if tokenizer.has_chat_template:
        return tokenizer.chat([{"role": "system", "content": system}, {"role": "user", "content": user}])
    return tokenizer.encode(f"{system}\n\n{user}\n\n")
