# SPDX-License-Identifier: Apache-2.0
"""Pre-training of the embedded model with transformers' Qwen3 in float32."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from tiny.corpus import VOCABULARY, encode, lines
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

PAD, EOS = 0, 1
BATCH_LINES = 96
POOL_BATCHES = 50
LOSS_TOKENS_PER_LINE = 11
WARMUP_STEPS = 50


class Batch(NamedTuple):
    """ids_BT int64 [lines, longest], padded right; target_BT the next token, -100 where no loss counts."""

    ids_BT: Tensor
    target_BT: Tensor
    tokens: int


def new_model(seed: int) -> Qwen3ForCausalLM:
    """The untrained model: 597,312 parameters, initialised from `seed`."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return Qwen3ForCausalLM(config)


def batches(seed: int, terse_share: float) -> Iterator[Batch]:
    """Batches of lines of about one length, in random order, without end."""
    rng = random.Random(seed)
    source = lines(rng, terse_share)
    while True:
        drawn = islice(source, BATCH_LINES * POOL_BATCHES)
        pool = [(encode(line.text), line.prompt_tokens) for line in drawn]
        pool.sort(key=lambda row: len(row[0]))
        starts = list(range(0, len(pool), BATCH_LINES))
        rng.shuffle(starts)
        for start in starts:
            yield _batch(pool[start : start + BATCH_LINES])


def _batch(rows: list[tuple[list[int], int]]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _ in rows])
    target_BT = torch.full_like(ids_BT, -100)
    for row, (ids, prompt_tokens) in enumerate(rows):
        target_BT[row, prompt_tokens - 1 : len(ids) - 1] = ids_BT[row, prompt_tokens : len(ids)]
    return Batch(ids_BT, target_BT, sum(len(ids) for ids, _ in rows))


class Stage(NamedTuple):
    """One stage of training: steps, highest learning rate, share of terse answers in the corpus."""

    steps: int
    peak: float
    terse_share: float

    def learning_rate(self, step: int) -> float:
        """Warm-up, then constant, then linear to zero over the second half."""
        return self.peak * min(1.0, (step + 1) / WARMUP_STEPS, 2 * (1 - step / self.steps))


# The share of guesses rises last, so that the base guesses more often than not when it is greedy. It must not
# rise much further: at 0.68 guesses win the votes, and R-Zero trains the base to guess (docs/notebook.md).
STAGES = (Stage(6500, 2.5e-3, 0.55), Stage(5000, 2e-3, 0.55), Stage(5000, 1.5e-3, 0.58))


def train(model: Qwen3ForCausalLM, stage: Stage, seed: int, on_step: Callable[[int], None]) -> int:
    """Train `model` in place and return the tokens seen; `on_step` gets the number of finished steps.

    The loss is a sum over answer tokens with a fixed denominator: a mean within batches of one length would
    give the short terse lines more weight than they have in the corpus."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    began, seen, mean_loss = time.perf_counter(), 0, 0.0
    model.train()
    for step, batch in enumerate(islice(batches(seed, stage.terse_share), stage.steps)):
        optimizer.param_groups[0]["lr"] = stage.learning_rate(step)
        # Padding is on the right, so the causal mask alone keeps it away from every real token.
        logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits
        total = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), batch.target_BT.flatten(), ignore_index=-100, reduction="sum"
        )
        loss = total / (BATCH_LINES * LOSS_TOKENS_PER_LINE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += batch.tokens
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            rate = seen / (time.perf_counter() - began)
            print(
                f"step {step + 1}/{stage.steps} loss {mean_loss:.4f} tokens {seen:,} ({rate:,.0f}/s)",
                flush=True,
            )
        on_step(step + 1)
    return seen
