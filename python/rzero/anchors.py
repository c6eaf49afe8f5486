# SPDX-License-Identifier: Apache-2.0
"""A few examples by people that ground the Challenger's prompt (the idea of R-Few, arXiv:2512.02472).

They enter the prompt and nothing else: no reward, no label and no training question comes from them. A
question that copies one is invalid (`rollout.usable`).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rzero.engine.errors import InputError
from rzero.run_folder import explained, write_atomic
from rzero.seeds import generator
from rzero.tasks.base import Problem, Task

COPY = "anchors.jsonl"

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def of_run(folder: Path, file: str | None, task: Task, main: Path | None = None) -> tuple[Problem, ...]:
    """The examples of the run in `folder`, which keeps a copy of them: the file may change, the run does not.

    A control run has those of the run `main` that it belongs to. Raises InputError for a file that cannot be
    read, a line that is no example, or one that is held out.
    """
    if file is None:
        return ()
    copy = folder / COPY
    if not copy.exists():
        anchors = read(Path(file) if main is None else main / COPY, task)
        lines = [json.dumps(anchor._asdict(), ensure_ascii=False) + "\n" for anchor in anchors]
        with explained(copy):
            write_atomic(copy, "".join(lines))
    return read(copy, task)


def read(path: Path, task: Task) -> tuple[Problem, ...]:
    """The examples of a file of JSON lines {"question", "answer"}."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"anchors: {path} cannot be read: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(f"anchors: {path} holds no example")
    return tuple(_example(line, f"{path}, line {number}", task) for number, line in numbered)


def shown(anchors: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """`count` of the examples in random order, all of them where they are fewer."""
    order = generator(seed, "anchors").permutation(len(anchors))
    return [anchors[int(place)] for place in order[:count]]


def numbers(text: str) -> list[str]:
    """The numbers that stand in a text as digits, sorted."""
    return sorted(found.replace(",", "") for found in _NUMBER.findall(text))


def _example(line: str, where: str, task: Task) -> Problem:
    try:
        row = json.loads(line)
        question, answer = row["question"], row["answer"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f'{where}: expected {{"question": ..., "answer": ...}}, found {line[:80]!r}'
        ) from None
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: 'question' must be a text, not {question!r}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise InputError(f"{where}: 'answer' must be a text or a number, not {answer!r}")
    if task.is_held_out(question):
        raise InputError(
            f"{where}: {question[:80]!r} is in a held-out set, so the measure would be worthless"
        )
    return Problem(question, str(answer))
