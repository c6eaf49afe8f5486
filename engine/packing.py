# SPDX-License-Identifier: Apache-2.0
"""Answers packed without padding, a shared prompt stored once.

A pack is one row of tokens: every distinct prompt is one segment, every answer a segment whose prefix is its
prompt. The row that predicts an answer's token is the row before it; for the first token that is the last row
of the prompt, which all the answers of a group therefore share. The last token of an answer predicts nothing
that is trained, so it needs no row.

Letters: T rows of the pack, A answer tokens (each predicted by one of the T rows).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from rzero.kernels import Segments


class Scored(NamedTuple):
    """One answer whose tokens are to be scored."""

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Pack:
    """What one forward pass computes.

    ids_T, pos_T int64 [T]: tokens and their positions in their sequences. segments: who sees whom.
    row_A int64 [A]: the row that predicts each answer token. target_A int64 [A]: that token.
    begin, end: the range of these tokens among the answer tokens of everything that was packed.
    """

    ids_T: Tensor
    pos_T: Tensor
    segments: Segments
    row_A: Tensor
    target_A: Tensor
    begin: int
    end: int


def pack(answers: Sequence[Scored], budget_tokens: int, device: torch.device) -> Iterator[Pack]:
    """Packs all answers, in their order, into passes of at most `budget_tokens` rows.

    Answers to one prompt should be neighbours: they stay together where they fit one pass, and their prompt
    is computed once per pass. One answer longer than the budget gets a pass of its own. Empty answers take no
    part.
    """
    begin = 0
    for members in split(answers, budget_tokens):
        chosen = [answers[i] for i in members]
        end = begin + sum(len(answer.answer_ids) for answer in chosen)
        yield _build(chosen, begin, end, device)
        begin = end


def split(answers: Sequence[Scored], budget_tokens: int) -> list[list[int]]:
    """Indices of the answers of each pass, in order, without those of empty answers."""
    passes: list[list[int]] = []
    members: list[int] = []
    prompts: set[tuple[int, ...]] = set()
    used_tokens = 0

    def cost(own_tokens: int, prompt: tuple[int, ...]) -> int:
        return own_tokens + (0 if prompt in prompts else len(prompt))

    def close() -> None:
        nonlocal members, used_tokens
        if members:
            passes.append(members)
        members, used_tokens = [], 0
        prompts.clear()

    filled = [i for i, answer in enumerate(answers) if len(answer.answer_ids)]
    for prompt, neighbours in groupby(filled, key=lambda i: tuple(answers[i].prompt_ids)):
        group = list(neighbours)
        group_tokens = sum(len(answers[i].answer_ids) - 1 for i in group)
        fits_alone = len(prompt) + group_tokens <= budget_tokens
        if fits_alone and used_tokens + cost(group_tokens, prompt) > budget_tokens:
            close()
        for i in group:
            own_tokens = len(answers[i].answer_ids) - 1
            if used_tokens + cost(own_tokens, prompt) > budget_tokens:
                close()
            used_tokens += cost(own_tokens, prompt)
            prompts.add(prompt)
            members.append(i)
    close()
    return passes


def _build(answers: Sequence[Scored], begin: int, end: int, device: torch.device) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    segments: list[tuple[int, int, int, int]] = []
    prompt_start: dict[tuple[int, ...], int] = {}
    for prompt_ids, answer_ids in answers:
        prompt, length = tuple(prompt_ids), len(prompt_ids)
        if prompt not in prompt_start:
            prompt_start[prompt] = len(ids)
            segments.append((len(ids), length, 0, 0))
            ids.extend(prompt)
            positions.extend(range(length))
        start, own = len(ids), len(answer_ids) - 1
        rows.append(prompt_start[prompt] + length - 1)
        rows.extend(range(start, start + own))
        targets.extend(answer_ids)
        if own:
            segments.append((start, own, prompt_start[prompt], length))
            ids.extend(answer_ids[:own])
            positions.extend(range(length, length + own))
    # Attention plans its work from the segments on the host, so they stay there.
    table = torch.tensor(segments, dtype=torch.int32).T.contiguous()
    ids_T, pos_T, row_A, target_A = (torch.tensor(x, device=device) for x in (ids, positions, rows, targets))
    return Pack(ids_T, pos_T, Segments(*table.unbind()), row_A, target_A, begin, end)
