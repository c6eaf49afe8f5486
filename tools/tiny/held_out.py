# SPDX-License-Identifier: Apache-2.0
"""The fixed held-out sets: `problems` expressions of each difficulty, all of them reserved (see corpus.py).

    easy      2 or 3 numbers
    medium    4 or 5 numbers
    hard      6 or 7 numbers

Numbers and signs are distributed as in the corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tiny.corpus import draw_expression, is_reserved

from rzero.tasks.arithmetic import evaluate

OPERANDS: Mapping[str, tuple[int, ...]] = MappingProxyType({"easy": (2, 3), "medium": (4, 5), "hard": (6, 7)})
PROBLEMS = 200


def draw_sets(seed: int) -> dict[str, list[str]]:
    """Distinct reserved expressions by set."""
    rng = random.Random(f"held out {seed}")
    taken: set[str] = set()
    sets: dict[str, list[str]] = {}
    for name, operands in OPERANDS.items():
        sets[name] = []
        while len(sets[name]) < PROBLEMS:
            expression = draw_expression(rng, rng.choice(operands))
            if is_reserved(expression) and expression not in taken:
                taken.add(expression)
                sets[name].append(expression)
    return sets


def write_sets(folder: Path, seed: int) -> None:
    """arithmetic_<set>.jsonl in `folder`, one {"problem", "answer"} a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, expressions in draw_sets(seed).items():
        rows = (json.dumps({"problem": text, "answer": str(evaluate(text))}) + "\n" for text in expressions)
        (folder / f"arithmetic_{name}.jsonl").write_text("".join(rows), encoding="utf-8")
