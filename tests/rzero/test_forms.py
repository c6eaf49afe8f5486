# SPDX-License-Identifier: Apache-2.0
"""Forms of answers: where the answer stands, when two are equal, and that nothing is guessed."""

import pytest

from rzero.forms import Choice, Words, create_form
from rzero.problem_sets import Item, read_item

ITEM = Item("Which?", "B", ("12 apples", "the square of $x$", "none", "12 pears"))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"so \boxed{B}", "B"),
        (r"\boxed{A} no, \boxed{(C)}", "C"),
        (r"\boxed{\text{D}}", "D"),
        (r"\boxed{\textbf{(A) } 12 apples}", "A"),
        (r"\boxed{B. the square}", "B"),
        (r"\boxed{None}", "C"),
        (r"\boxed{Apples}", None),
        (r"\boxed{E}", None),
        (r"\boxed{12}", None),
        ("The answer is (B).", "B"),
        ("The answer is **C**", "C"),
        ("The answer is Alice", None),
        ("The answer is B because of that", "B"),
        ("The answer is A.", "A"),
        ("The answer is A\nindeed", "A"),
        ("The answer is A fruit", None),
        (r"\boxed{A fruit}", None),
        (r"\boxed{B the square}", "B"),
        ("A or B, hard to say", None),
        ("", None),
    ],
)
def test_a_letter_is_read_and_never_guessed(text: str, letter: str | None) -> None:
    assert Choice().extract(text, ITEM) == letter


def test_a_subscript_is_a_plain_character_in_words_and_a_power_is_none() -> None:
    item = Item("Which?", "A", ("H\u2082O", "10\u00b2", "102", *"DEFGHIJ"))
    assert Choice().extract(r"\boxed{H2O}", item) == "A"
    assert Choice().extract(r"\boxed{102}", item) == "C"
    assert Words().same_many([("CO\u2082", "CO2"), ("10\u00b2", "102")]) == [True, False]


def test_a_and_i_are_words_too() -> None:
    item = Item("Why?", "C", ("A rise in supply", "None", "A decrease in supply", *"DEFGHIJ"))
    assert Choice().extract(r"\boxed{A decrease in supply}", item) == "C"
    assert Choice().extract("The answer is I do not know", item) is None
    assert Choice().extract("The answer is (I)", item) == "I"
    blood = read_item({"question": "Which group?", "options": ["A", "B", "AB", "O"], "answer": "AB"}, "here")
    assert blood.answer == "C" and Choice().extract(r"\boxed{AB}", blood) == "C"
    assert Choice().extract(r"\boxed{B}", blood) == "B"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\text{left, right}}", "left, right"),
        ("Hm. The answer is: 42.\nBye", "42"),
        ("The final answer is **no**", "no"),
        ("The answer is", None),
        ("no idea", None),
    ],
)
def test_words_are_read(text: str, answer: str | None) -> None:
    assert Words().extract(text, Item("?", "42")) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("(A)", "a", True),
        ("2, 3", "2,3", True),
        ("4.0", "4", True),
        ("Alice's", "alices", True),
        ("[yes]", "Yes", True),
        ("yes", "no", False),
        ("ab", "a", False),
    ],
)
def test_words_are_compared(a: str, b: str, same: bool) -> None:
    assert Words().same_many([(a, b), (b, a)]) == [same, same]


def test_forms_by_name() -> None:
    form = create_form("math")
    assert form.extract(r"\boxed{1} \boxed{\frac{1}{2}}", ITEM) == r"\frac{1}{2}"
    form.close()
