# SPDX-License-Identifier: Apache-2.0
r"""Mathematics in words and LaTeX: R-Zero's own task, with math-verify as the judge.

Prompts say what those of the paper's code say (verl/utils/dataset.py of R-Zero): the Challenger writes a
question between tags and its answer in a box, the Solver reasons and boxes. Without a chat template the same
text stands after "system:" and "user:", with a cue for the assistant that the authors' code lacks.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rzero.engine.errors import InputError
from rzero.grading import Judge
from rzero.plain_numbers import same_number
from rzero.problem_sets import read_items
from rzero.tasks.base import MAX_TEXT_CHARS, Invalid, Problem, Question, Task, TaskTokenizer, last_box

CHALLENGER_SYSTEM = r"""You are an expert competition-math problem setter.
FIRST, in your private scratch-pad, think step by step to design a brand-new, non-trivial problem. It may come from any field of mathematics: algebra, geometry, number theory, combinatorics, prealgebra, probability, statistics, calculus and others. Aim for a difficulty at which fewer than 30% of advanced high-school students could solve it. Do not reuse textbook problems or problems of known contests.
THEN, without revealing any of your private thoughts, output exactly the following two blocks:

<question>
{The full problem statement on one or more lines}
</question>

\boxed{final_answer}

Do NOT output anything else: no explanations, no extra markup."""  # noqa: E501
CHALLENGER_USER = (
    "Generate one new, challenging reasoning question now. "
    "Remember to format the output exactly as instructed."
)
EXAMPLES = "These are examples of the kind of question that is wanted. Write a new one, not one of these."
EXAMPLE = "<question>\n{question}\n</question>\n\n\\boxed{{{answer}}}"
SOLVER_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."

# What a base model would write after its text where the prompt is plain text: the next turn.
PLAIN_STOP = ("\nuser:", "\nsystem:", "\nassistant:")

MAX_QUESTION_CHARS = 4000
# Questions that share this many words in a row with a held-out problem count as that problem.
OVERLAP_WORDS = 13

_WORD = re.compile(r"\w+")
_SIDE = re.compile(r"\\(?:left|right)(?![A-Za-z])")


class Math(Task):
    """Word problems with one boxed answer; held-out sets come from a folder of JSON lines."""

    name = "math"

    def __init__(self, data: str | None = None) -> None:
        self._sets = _read_sets(Path(data)) if data is not None else {}
        problems = [problem for rows in self._sets.values() for problem in rows]
        self._held_out = {self.canonical(problem.question) for problem in problems}
        self._held_out_runs = {run for problem in problems for run in _word_runs(problem.question)}
        self._judge = Judge("rzero.math_judge:same")

    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence[Problem] = ()) -> list[int]:
        shown = [EXAMPLE.format(question=example.question, answer=example.answer) for example in examples]
        user = "\n\n".join([EXAMPLES, *shown, CHALLENGER_USER]) if shown else CHALLENGER_USER
        return ask(tokenizer, CHALLENGER_SYSTEM, user)

    def solver_prompt(self, tokenizer: TaskTokenizer, question: str) -> list[int]:
        return ask(tokenizer, SOLVER_SYSTEM, question)

    def challenger_stop(self, tokenizer: TaskTokenizer) -> tuple[str, ...]:
        return stop_strings(tokenizer)

    def solver_stop(self, tokenizer: TaskTokenizer) -> tuple[str, ...]:
        return stop_strings(tokenizer)

    def parse_question(self, text: str) -> Question | Invalid:
        text = text[:MAX_TEXT_CHARS]
        before, closing, after = text.rpartition("</question>")
        _, opening, question = before.rpartition("<question>")
        question = question.strip()
        if not (opening and closing):
            return Invalid("no question block")
        if not question:
            return Invalid("empty question")
        if len(question) > MAX_QUESTION_CHARS:
            return Invalid("question too long")
        if r"\boxed" in question:
            return Invalid("answer inside the question")
        answer = last_box(after)
        return Question(question, answer) if answer is not None else Invalid("no boxed answer")

    def extract_answer(self, text: str) -> str | None:
        return last_box(text)

    def same(self, a: str, b: str) -> bool | None:
        return self.same_many([(a, b)])[0]

    def same_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Equal texts and plain numbers are decided here, all others by math-verify in its own processes."""
        normal = [(normalised(a), normalised(b)) for a, b in pairs]
        verdicts = [_decided(a, b) for a, b in normal]
        unclear = [pair for pair, verdict in zip(normal, verdicts, strict=True) if verdict is None]
        judged = iter(self._judge.compare(unclear))
        return [next(judged) if verdict is None else verdict for verdict in verdicts]

    def canonical(self, question: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", question).casefold().split()).rstrip(" .?!")

    def held_out(self) -> Mapping[str, Sequence[Problem]]:
        return self._sets

    def is_held_out(self, question: str) -> bool:
        """Whether it is a held-out problem but for case and blanks, or shares 13 words in a row with one."""
        if self.canonical(question) in self._held_out:
            return True
        return not self._held_out_runs.isdisjoint(_word_runs(question))

    def counters(self) -> dict[str, float]:
        return self._judge.counters()

    def close(self) -> None:
        self._judge.close()


def create(data: str | None) -> Task:
    """The math task with the held-out sets of folder `data`, or none."""
    return Math(data)


def normalised(answer: str) -> str:
    """An answer without outer blanks, dollar signs, a final full stop, thousands commas, \\left, \\right."""
    text = plain_characters(answer[:MAX_TEXT_CHARS]).strip().strip("$").strip().rstrip(".")
    text = _SIDE.sub("", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text):
        text = text.replace(",", "")
    return " ".join(text.split())


def plain_characters(text: str, is_words: bool = False) -> str:
    """Unicode's form NFKC without its changes of value: 10² is 10^{2}, not 102, and 3½ is not 31/2.

    is_words: subscripts are plain characters, as in names: H₂O is H2O.
    """
    if text.isascii():
        return text
    parts = []
    for kind, run in groupby(text, _compatibility):
        part = "".join(run)
        plain = unicodedata.normalize("NFKC", part)
        match kind:
            case "<super>":
                part = f"^{{{plain}}}"
            case "<sub>" if not is_words:
                part = f"_{{{plain}}}"
            case "<fraction>":
                fractions = (unicodedata.normalize("NFKC", char).split("\u2044") for char in part)
                part = "".join(f"\\frac{{{above}}}{{{below}}}" for above, below in fractions)
        parts.append(part)
    return unicodedata.normalize("NFKC", "".join(parts)).replace("\u2212", "-")


def _compatibility(char: str) -> str:
    """What a character is a form of another for ("<super>"), or nothing."""
    kind = unicodedata.decomposition(char).partition(" ")[0]
    return kind if kind in ("<super>", "<sub>", "<fraction>") else ""


def _decided(a: str, b: str) -> bool | None:
    return True if a == b else same_number(a, b)


def ask(tokenizer: TaskTokenizer, system: str, user: str) -> list[int]:
    """Token ids of a system's and a user's text under the chat template, or as plain text without one."""
    if tokenizer.has_chat_template:
        return tokenizer.chat([{"role": "system", "content": system}, {"role": "user", "content": user}])
    return tokenizer.encode(f"system: {system}\nuser: {user}\nassistant:")


def stop_strings(tokenizer: TaskTokenizer) -> tuple[str, ...]:
    """What ends a text that answers `ask`: without a chat template nothing else does."""
    return () if tokenizer.has_chat_template else PLAIN_STOP


def _word_runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [tuple(words[i : i + OVERLAP_WORDS]) for i in range(len(words) - OVERLAP_WORDS + 1)]


def _read_sets(folder: Path) -> dict[str, list[Problem]]:
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise InputError(
            f"data = {str(folder)!r} holds no held-out set: expected a folder with <name>.jsonl files"
        )
    return {path.stem: _read_set(path) for path in paths}


def _read_set(path: Path) -> list[Problem]:
    items = read_items(path)
    if any(item.options for item in items):
        raise InputError(
            f"{path}: its problems have options, and a run asks for a box: measure it with rzero eval"
        )
    return [Problem(item.question, item.answer) for item in items]
