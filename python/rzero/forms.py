# SPDX-License-Identifier: Apache-2.0
"""The forms of a benchmark's answers: how a problem is asked, where the answer stands, when it is right.

No answer is a wrong answer: nothing is guessed, no letter is drawn, and no letter is taken from the middle of
a text. Every form asks for a box and takes the last one by matched braces.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from rzero.engine.tokenizer import Tokenizer
from rzero.problem_sets import Item
from rzero.tasks import create
from rzero.tasks.base import MAX_TEXT_CHARS, Task, last_box
from rzero.tasks.math import ask, plain_characters, stop_strings

CHOICE_SYSTEM = (
    r"Please reason step by step, and put the letter of your final answer within \boxed{}, "
    r"for example \boxed{A}. Exactly one option is right."
)
WORDS_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."

# An option's letter. A and I are words, too ("A rise", "I do not know"): they need a mark or the end behind.
_OPTION = r"\(?(?:(?P<letter>[B-HJ-Z])(?![A-Za-z])|(?P<word>[AI])(?=[).:,*\\]|\s*(?:\n|$)))"
_SAID = re.compile(r"answer is:?\s*\**" + _OPTION)
_LETTER = re.compile(_OPTION)
_BARE_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|texttt|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_SAID_WORDS = re.compile(r"the (?:final )?answer is:?", re.IGNORECASE)


class AnswerForm(ABC):
    """How the problems of a set are asked and graded."""

    @abstractmethod
    def prompt(self, tokenizer: Tokenizer, item: Item) -> list[int]:
        """Token ids of one problem."""

    @abstractmethod
    def extract(self, text: str, item: Item) -> str | None:
        """The final answer in a model's text; None when there is none."""

    @abstractmethod
    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether the two of each pair are equal answers; None when the judge gave up."""

    def stop(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Strings that end an answer: a base model would go on and ask itself the next question."""
        return stop_strings(tokenizer)

    def counters(self) -> dict[str, float]:
        """Counts of the judge since the last call."""
        return {}

    def close(self) -> None:  # noqa: B027 (most forms hold nothing)
        """Give back processes."""


class TaskForm(AnswerForm):
    """The prompts and the judge of a task, as in a run: the form "math" is that of the task math."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def prompt(self, tokenizer: Tokenizer, item: Item) -> list[int]:
        return self.task.solver_prompt(tokenizer, item.question)

    def extract(self, text: str, item: Item) -> str | None:
        return self.task.extract_answer(text)

    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        return self.task.same_many(pairs)

    def stop(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return self.task.solver_stop(tokenizer)

    def counters(self) -> dict[str, float]:
        return self.task.counters()

    def close(self) -> None:
        self.task.close()


class Choice(AnswerForm):
    """One letter: in the last box, or after "the answer is"; or the very text of one option in the box."""

    def prompt(self, tokenizer: Tokenizer, item: Item) -> list[int]:
        lines = [f"{letter}. {option}" for letter, option in zip(_letters(item), item.options, strict=True)]
        return ask(tokenizer, CHOICE_SYSTEM, "\n".join([item.question, "", *lines]))

    def extract(self, text: str, item: Item) -> str | None:
        text = text[-MAX_TEXT_CHARS:]
        box = last_box(text)
        if box is None:
            return _letter(list(_SAID.finditer(text))[-1:], item)
        plain = unwrapped(box)
        # First the options: "A decrease in supply" may be the text of C.
        alike = [_folded(option) for option in item.options]
        if alike.count(_folded(plain)) == 1 and not _BARE_LETTER.fullmatch(plain):
            return _letters(item)[alike.index(_folded(plain))]
        match = _LETTER.match(plain)
        return _letter([] if match is None else [match], item)

    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        return [a == b for a, b in pairs]


class Words(AnswerForm):
    """A short text: equal but for case, blanks, quotes, brackets around a letter, how a number is written.

    The rules are those of BIG-Bench Extra Hard's own evaluation (google-deepmind/bbeh, evaluate.py).
    """

    def prompt(self, tokenizer: Tokenizer, item: Item) -> list[int]:
        return ask(tokenizer, WORDS_SYSTEM, item.question)

    def extract(self, text: str, item: Item) -> str | None:
        text = text[-MAX_TEXT_CHARS:]
        box = last_box(text)
        if box is not None:
            return unwrapped(box)
        parts = _SAID_WORDS.split(text)
        lines = parts[-1].strip().splitlines() if len(parts) > 1 else []
        return (lines[0].strip(" .*$") or None) if lines else None

    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        return [_same_words(_folded(unwrapped(a)), _folded(unwrapped(b))) for a, b in pairs]


def create_form(form: str) -> AnswerForm:
    """The form of that name: math, choice or words."""
    forms = {"choice": Choice, "words": Words}
    return forms[form]() if form in forms else TaskForm(create(form))


def unwrapped(text: str) -> str:
    """A text without dollar signs and without \\text{...} and its like around parts of it."""
    text = text.strip().strip("$").strip()
    while (plain := _WRAPPED.sub(r"\1", text)) != text:
        text = plain
    return text.strip()


def _letter(found: Sequence[re.Match[str]], item: Item) -> str | None:
    """The letter of the only match, if the problem has such an option."""
    letters = [match["letter"] or match["word"] for match in found]
    return letters[0] if letters and letters[0] in _letters(item) else None


def _letters(item: Item) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(item.options)]


def _folded(text: str) -> str:
    text = plain_characters(text, is_words=True).casefold().replace("**", "")
    return " ".join(text.split()).replace(", ", ",").rstrip(".").strip()


def _same_words(a: str, b: str) -> bool:
    if a == b or a.replace("'", "") == b.replace("'", "") or a.rstrip("?") == b.rstrip("?"):
        return True
    if a in (f"({b})", f"[{b}]") or b in (f"({a})", f"[{a}]"):
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False
