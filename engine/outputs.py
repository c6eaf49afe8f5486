# SPDX-License-Identifier: Apache-2.0
"""What the engine gives back: one RequestOutput per prompt with one Sample per answer."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: its tokens (the one that ended it included), its text and two log-probs per token."""

    token_ids: list[int]
    text: str
    """The decoded answer without special tokens, ending before a stop string; empty without a tokenizer."""
    logprobs: list[float]
    """Natural log of the probability under the distribution sampled from (tempered and truncated)."""
    full_logprobs: list[float]
    """The same under the full softmax at temperature 1."""
    finish_reason: FinishReason
    """"stop": end of sequence, stop token or stop string; "length": max_tokens or the end of the context."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All answers to one prompt, in the order of their random keys."""

    request_id: int
    prompt_token_ids: list[int]
    samples: list[Sample]
