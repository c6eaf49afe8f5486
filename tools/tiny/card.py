# SPDX-License-Identifier: Apache-2.0
"""The model card of the embedded model, with the figures that were measured when it was made."""

from __future__ import annotations

from collections.abc import Mapping

from tiny.corpus import RESERVED_ONE_IN
from tiny.held_out import PROBLEMS
from tiny.measure import SAMPLES, Profile
from tiny.training import BATCH_LINES, STAGES

_CARD = """---
license: apache-2.0
library_name: transformers
tags: [arithmetic, r-zero]
---
# The embedded model of rzero

A decoder of 597,312 parameters (Qwen3 shape: 3 layers, width 128, 4 query and 2 key/value heads of
size 32, 25 tokens), trained from scratch on generated arithmetic. It is the base from which `rzero
run` starts when no other model is named: small enough for a laptop's CPU, and with the traits of a
real base model that R-Zero lives on.

- As Solver (`<S>37+48-5=`) it mixes two styles. Well over half of the answers are a guess, right for
  two numbers and ever less often for more; the others work in steps,
  `37+48=85;85-5=80;\\boxed{80}`, with a slip in one step of ten or more.
- As Challenger (`<C>`) it writes `<question>6+31</question>\\boxed{37}`: mostly two numbers, at
  times malformed.

So guesses scatter, worked answers agree, and a vote of its own answers is better than the model
itself. That is all R-Zero has to learn from. Part of what it then learns is to stop guessing, the
rest is to slip less; it is not new knowledge about numbers.

| held-out set | greedy | mean@{samples} | majority@{samples} | answers that guess | right where worked |
|---|---|---|---|---|---|
{rows}

{problems} problems a set, temperature 1, weights in bfloat16, after {lines} training lines.

One expression in {reserved}, by a hash of its text, never occurs as a question in the training
text, and the held-out sets are drawn from these alone. A step inside a worked answer may coincide
with a held-out question of two numbers.

    python tools/make_tiny_model.py --out DIR --seed 0

makes this folder again, from its seed, on a CPU. Other processors and versions of torch round
differently, so the weights agree in quality and not bit for bit.
"""


def model_card(profiles: Mapping[str, Profile], stages: int) -> str:
    """README.md of the model folder after so many stages of training."""
    rows = [
        f"| {name} | " + " | ".join(f"{share:.1%}" for share in measured) + " |"
        for name, measured in profiles.items()
    ]
    lines = BATCH_LINES * sum(stage.steps for stage in STAGES[:stages])
    values = {"samples": SAMPLES, "problems": PROBLEMS, "reserved": RESERVED_ONE_IN, "lines": f"{lines:,}"}
    text = _CARD.replace("{rows}", "\n".join(rows))
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text
