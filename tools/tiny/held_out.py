# SPDX-License-Identifier: Apache-2.0
"""The fixed held-out sets: `problems` expressions of each difficulty, all of them reserved (see corpus.py).

    easy      2 numbers (4 of 5), 3 numbers (1 of 5)
    medium    3, 4 and 5 numbers
    hard      6 and 7 numbers

Numbers and signs are distributed as in the corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tiny.corpus import draw_expression, is_reserved

from rzero.tasks.arithmetic import evaluate

OPERAND_WEIGHTS: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {"easy": {2: 0.8, 3: 0.2}, "medium": {3: 0.3, 4: 0.4, 5: 0.3}, "hard": {6: 0.5, 7: 0.5}}
)
PROBLEMS = 200


def draw_sets(seed: int) -> dict[str, list[str]]:
    """Distinct reserved expressions by set."""
    rng = random.Random(f"held out {seed}")
    taken: set[str] = set()
    sets: dict[str, list[str]] = {}
    for name, weights in OPERAND_WEIGHTS.items():
        sets[name] = []
        while len(sets[name]) < PROBLEMS:
            expression = draw_expression(rng, rng.choices(list(weights), list(weights.values()))[0])
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
