# SPDX-License-Identifier: Apache-2.0
"""What a task is: the prompts of both roles, the form of questions and answers, equality, held-out sets."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

# Model output is untrusted input: longer texts are cut before anything parses them.
MAX_TEXT_CHARS = 20_000


class TaskTokenizer(Protocol):
    """What a task needs of a tokenizer."""

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def chat(self, messages: list[dict[str, str]]) -> list[int]: ...


class Question(NamedTuple):
    """A question that can be used, with the Challenger's own answer (it earns nothing by itself)."""

    text: str
    answer: str | None


class Invalid(NamedTuple):
    """Why a text holds no usable question, in a word or two that can be counted."""

    reason: str


class Problem(NamedTuple):
    """A held-out question with its true answer."""

    question: str
    answer: str


class Task(ABC):
    """What questions are about. Subclass it and name the class: `--task FILE.py:CLASS` (docs/tasks.md)."""

    name: str

    @abstractmethod
    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence["Problem"] = ()) -> list[int]:
        """Token ids of the prompt from which every question of a step is sampled.

        `examples` are questions by people that the prompt shows, given only where a run has anchors."""

    @abstractmethod
    def solver_prompt(self, tokenizer: TaskTokenizer, question: str) -> list[int]:
        """Token ids that ask the Solver for an answer to `question`."""

    @abstractmethod
    def parse_question(self, text: str) -> Question | Invalid:
        """The question in a text of the Challenger; both the question and its boxed answer must be there."""

    @abstractmethod
    def extract_answer(self, text: str) -> str | None:
        """The final answer in a text of the Solver; None when there is none."""

    @abstractmethod
    def same(self, a: str, b: str) -> bool | None:
        """Whether two answers are equal: symmetric and deterministic; None when the judge gave up."""

    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """`same` for many pairs, in order."""
        return [self.same(a, b) for a, b in pairs]

    def canonical(self, question: str) -> str:
        """One text for questions that count as the same question."""
        return " ".join(question.split()).casefold()

    def tokens(self, question: str) -> list[str]:
        """The units in which the similarity of questions is measured."""
        return question.split()

    def held_out(self) -> Mapping[str, Sequence[Problem]]:
        """Held-out problems by set name."""
        return {}

    def is_held_out(self, question: str) -> bool:
        """Whether `question` is in a held-out set and so must never reach training."""
        return False

    def truth(self, question: str) -> str | None:
        """The true answer where the task knows it: used for measuring only, never for training."""
        return None

    def shows_work(self, text: str) -> bool | None:
        """Whether an answer works its result out; None where the task cannot tell."""
        return None

    def challenger_stop(self, tokenizer: TaskTokenizer) -> tuple[str, ...]:
        """Strings that end a question's sample."""
        return ()

    def solver_stop(self, tokenizer: TaskTokenizer) -> tuple[str, ...]:
        """Strings that end an answer's sample."""
        return ()

    def counters(self) -> dict[str, float]:
        """Counts of the judge since the last call (timeouts, cache hits); empty where there is no judge."""
        return {}

    def close(self) -> None:  # noqa: B027 (most tasks hold nothing)
        """Give back processes and files."""


_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_box(text: str) -> str | None:
    r"""What the last \boxed{...} in the end of `text` holds; None when there is none or it is empty.

    A box that is never closed counts for nothing, escaped braces are signs and not brackets, of boxes inside
    each other the inner one counts. Linear in time.
    """
    text = text[-MAX_TEXT_CHARS:]
    last_start, content = -1, ""
    # Where each open brace begins its content; -1 for braces that are not a box.
    open_at: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0].startswith("\\boxed"):
            open_at.append(match.end())
        elif match[0] == "{":
            open_at.append(-1)
        elif match[0] == "}" and open_at and (start := open_at.pop()) > last_start:
            last_start, content = start, text[start : match.start()]
    return content.strip() or None
