# SPDX-License-Identifier: Apache-2.0
"""The synthetic corpus that the embedded model is pre-trained on.

It imitates what a real base model has: two styles of answer, a quick guess and a worked one with slips, and a
Challenger who asks mostly easy questions and sometimes forgets the format.

    <S>37+48-5=\\boxed{80}<eos>                      terse: always true, but past two numbers only a guess
    <S>37+48-5=37+48=85;85-5=80;\\boxed{80}<eos>     worked: each step wrong with probability SLIP
    <C><question>6+31</question>\\boxed{37}<eos>     Challenger

One expression in RESERVED_ONE_IN, chosen by a hash of its text, never occurs as a question in the corpus; the
held-out sets are drawn from these alone, so no held-out question was trained on whatever the seed."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rzero.tasks.arithmetic import evaluate

SOLVER_SHARE = 0.90
SLIP = 0.10
MALFORMED_SHARE = 0.08
TIMES_SHARE = 0.10
BELOW_ZERO_SHARE = 0.20
OPERANDS = (2, 3, 4, 5, 6, 7)
SOLVER_OPERAND_WEIGHTS = (0.42, 0.26, 0.15, 0.09, 0.05, 0.03)
CHALLENGER_OPERAND_WEIGHTS = (0.82, 0.12, 0.04, 0.013, 0.005, 0.002)
RESERVED_ONE_IN = 16

VOCABULARY = (
    *("<pad>", "<eos>", "<C>", "<S>", "<question>", "</question>", "\\boxed{", "}", "=", ";"),
    *"+-*0123456789()",
)
_TOKEN = re.compile("|".join(re.escape(token) for token in VOCABULARY))


class Line(NamedTuple):
    """One training line; the loss counts the tokens from `prompt_tokens` on."""

    text: str
    prompt_tokens: int


def encode(text: str) -> list[int]:
    """Token ids of `text`; KeyError for a character outside of the vocabulary."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    return [ids[token] for token in _TOKEN.findall(text)]


def is_reserved(expression: str) -> bool:
    """Whether `expression` is kept out of the corpus, by a hash of its text."""
    digest = hashlib.blake2b(expression.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % RESERVED_ONE_IN == 0


def draw_expression(rng: random.Random, operands: int) -> str:
    """An expression of `operands` numbers: sums, differences and some products by one digit."""
    terms: list[str] = []
    for _ in range(operands):
        if terms and rng.random() < TIMES_SHARE:
            terms[-1] += f"*{rng.randint(2, 9)}"
        else:
            low, high = rng.choices(((0, 9), (10, 99), (100, 999)), (0.46, 0.50, 0.04))[0]
            terms.append(str(rng.randint(low, high)))
    expression = terms[0]
    for term in terms[1:]:
        sign = rng.choice("+-")
        # Few results below zero: they are harder, and half of all differences would be among them.
        if sign == "-" and evaluate(f"{expression}-{term}") < 0 and rng.random() >= BELOW_ZERO_SHARE:
            sign = "+"
        expression += sign + term
    return expression


def draw_unreserved(rng: random.Random, operand_weights: Sequence[float]) -> str:
    """An expression that is not reserved for the held-out sets."""
    while True:
        expression = draw_expression(rng, rng.choices(OPERANDS, operand_weights)[0])
        if not is_reserved(expression):
            return expression


def worked_answer(expression: str, rng: random.Random, slip: float) -> str:
    """`expression` worked out in steps of two numbers, products first; a slip is carried on, as people do."""
    steps = []

    def step(left: int, sign: str, right: int) -> int:
        value = {"+": left + right, "-": left - right, "*": left * right}[sign]
        if rng.random() < slip:
            value = _slipped(value, rng)
            value = abs(value) if sign == "*" else value
        steps.append(f"{left}{sign}{right}={value};")
        return value

    parts = re.split(r"([+-])", expression)
    values = []
    for term in parts[::2]:
        first, *factors = (int(number) for number in term.split("*"))
        for factor in factors:
            first = step(first, "*", factor)
        values.append(first)
    total = values[0]
    for sign, value in zip(parts[1::2], values[1:], strict=True):
        total = step(total, sign, value)
    return "".join(steps) + f"\\boxed{{{total}}}"


def _slipped(value: int, rng: random.Random) -> int:
    """A plausible wrong value: off by one, off by ten, or two neighbouring digits swapped."""
    kind = rng.randrange(3)
    digits = str(abs(value))
    if kind == 2 and len(digits) > 1:
        at = rng.randrange(len(digits) - 1)
        swapped = int(digits[:at] + digits[at + 1] + digits[at] + digits[at + 2 :])
        if swapped != abs(value):
            return -swapped if value < 0 else swapped
    return value + rng.choice((-1, 1)) * (10 if kind == 1 else 1)


def solver_line(rng: random.Random, terse_share: float) -> Line:
    """A question with a terse or a worked answer."""
    expression = draw_unreserved(rng, SOLVER_OPERAND_WEIGHTS)
    if rng.random() < terse_share:
        answer = f"\\boxed{{{evaluate(expression)}}}"
    else:
        answer = worked_answer(expression, rng, SLIP)
    return Line(f"<S>{expression}={answer}<eos>", 2 + len(expression))


def challenger_line(rng: random.Random) -> Line:
    """A mostly easy question with its answer, at times without a tag or the box."""
    expression = draw_unreserved(rng, CHALLENGER_OPERAND_WEIGHTS)
    parts = ["<question>", expression, "</question>", f"\\boxed{{{evaluate(expression)}}}"]
    if rng.random() < MALFORMED_SHARE:
        del parts[rng.choice((0, 2, 3))]
    return Line("<C>" + "".join(parts) + "<eos>", 1)


def lines(rng: random.Random, terse_share: float) -> Iterator[Line]:
    """Training lines without end; `terse_share` of the Solver's answers are terse."""
    while True:
        yield solver_line(rng, terse_share) if rng.random() < SOLVER_SHARE else challenger_line(rng)
