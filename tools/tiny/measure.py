# SPDX-License-Identifier: Apache-2.0
"""How good the model is on held-out problems, sampled through transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tiny.corpus import VOCABULARY, encode
from transformers import Qwen3ForCausalLM

from rzero.tasks.arithmetic import evaluate, normal_integer
from rzero.tasks.base import last_box

SAMPLES = 8
MAX_TOKENS = 96


class Profile(NamedTuple):
    """Shares of right answers: greedy, mean of 8 samples, majority of 8; and of samples that only guess."""

    greedy: float
    mean_at_8: float
    majority_at_8: float
    terse: float
    worked_accuracy: float


def profile(model: Qwen3ForCausalLM, expressions: Sequence[str], seed: int) -> Profile:
    """Answer `expressions` greedily and 8 times at temperature 1."""
    torch.manual_seed(seed)
    greedy = answers(model, expressions, 1)
    samples = answers(model, expressions, SAMPLES)
    truths = [str(evaluate(text)) for text in expressions]
    is_right = [[_value(text) == truth for text in row] for row, truth in zip(samples, truths, strict=True)]
    is_worked = [["=" in text for text in row] for row in samples]
    worked = [
        r
        for rights, works in zip(is_right, is_worked, strict=True)
        for r, w in zip(rights, works, strict=True)
        if w
    ]
    votes = [Counter(v for text in row if (v := _value(text))).most_common(1) for row in samples]
    total = len(expressions)
    return Profile(
        greedy=sum(_value(row[0]) == truth for row, truth in zip(greedy, truths, strict=True)) / total,
        mean_at_8=sum(map(sum, is_right)) / (total * SAMPLES),
        majority_at_8=sum(bool(v) and v[0][0] == truth for v, truth in zip(votes, truths, strict=True))
        / total,
        terse=1 - sum(map(sum, is_worked)) / (total * SAMPLES),
        worked_accuracy=sum(worked) / max(1, len(worked)),
    )


def _value(text: str) -> str | None:
    box = last_box(text)
    return None if box is None else normal_integer(box)


@torch.no_grad()
def answers(model: Qwen3ForCausalLM, expressions: Sequence[str], samples: int) -> list[list[str]]:
    """Answers by expression: greedy for one sample, else at temperature 1."""
    prompts = [encode(f"<S>{text}=") for text in expressions]
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    out_BT = model.eval().generate(
        input_ids=ids_BT,
        attention_mask=(ids_BT != 0).long(),
        max_new_tokens=MAX_TOKENS,
        **({"do_sample": True, "top_k": 0} if samples > 1 else {"do_sample": False}),
        num_return_sequences=samples,
        eos_token_id=1,
        pad_token_id=0,
    )
    texts = ["".join(VOCABULARY[i] for i in row if i > 1) for row in out_BT[:, longest:].tolist()]
    return [texts[at : at + samples] for at in range(0, len(texts), samples)]
