# SPDX-License-Identifier: Apache-2.0
"""Packing: every answer token is predicted by the right row, prompts are stored once, budgets hold."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rzero.engine.packing import Pack, Scored, pack, split

CPU = torch.device("cpu")
PROMPTS = ((1,), (1, 2), (3, 4, 5), (1, 2, 3, 4, 5, 6, 7))


def visible(packed: Pack, row: int) -> list[tuple[int, int]]:
    """(token, position) of every row that `row` attends to, itself last."""
    for start, length, prefix_start, prefix_length in zip(
        *(x.tolist() for x in packed.segments), strict=True
    ):
        if start <= row < start + length:
            rows = [*range(prefix_start, prefix_start + prefix_length), *range(start, row + 1)]
            return [(int(packed.ids_T[r]), int(packed.pos_T[r])) for r in rows]
    raise AssertionError(f"row {row} belongs to no segment")


@st.composite
def answer_lists(draw: st.DrawFn) -> list[Scored]:
    groups = draw(st.lists(st.sampled_from(PROMPTS), max_size=5))
    answer = st.lists(st.integers(10, 20), max_size=6)
    return [Scored(prompt, draw(answer)) for prompt in groups for _ in range(draw(st.integers(0, 4)))]


@settings(deadline=None)
@given(answers=answer_lists(), budget=st.integers(1, 60))
def test_every_answer_token_is_predicted_from_exactly_what_precedes_it(
    answers: list[Scored], budget: int
) -> None:
    flat = [(answer, i) for answer in answers for i in range(len(answer.answer_ids))]
    seen = 0
    for packed in pack(answers, budget, CPU):
        assert packed.begin == seen
        for row, target, (answer, i) in zip(
            packed.row_A.tolist(), packed.target_A.tolist(), flat[packed.begin : packed.end], strict=True
        ):
            before = [*answer.prompt_ids, *answer.answer_ids[:i]]
            assert visible(packed, row) == list(zip(before, range(len(before)), strict=True))
            assert target == answer.answer_ids[i]
        seen = packed.end
        rows = sorted(
            r for s, n in zip(*packed.segments[:2], strict=True) for r in range(int(s), int(s) + int(n))
        )
        assert rows == list(range(len(packed.ids_T))), "each row belongs to exactly one segment"
    assert seen == len(flat)


@settings(deadline=None)
@given(answers=answer_lists(), budget=st.integers(1, 60))
def test_a_pass_exceeds_the_budget_only_for_a_single_answer(answers: list[Scored], budget: int) -> None:
    members = split(answers, budget)
    assert [i for one in members for i in one] == [i for i, a in enumerate(answers) if a.answer_ids]
    for one, packed in zip(members, pack(answers, budget, CPU), strict=True):
        assert len(packed.ids_T) <= budget or len(one) == 1


def test_a_prompt_is_computed_once_per_pass_and_the_last_token_never() -> None:
    answers = [
        Scored((1, 2, 3), (7, 8, 9)),
        Scored((1, 2, 3), (7, 8)),
        Scored((4,), (9,)),
        Scored((1, 2, 3), (5,)),
    ]
    (packed,) = pack(answers, 100, CPU)
    assert packed.ids_T.tolist() == [1, 2, 3, 7, 8, 7, 4]
    assert packed.pos_T.tolist() == [0, 1, 2, 3, 4, 3, 0]
    assert packed.row_A.tolist() == [2, 3, 4, 2, 5, 6, 2]


def test_a_group_that_fits_one_pass_is_not_cut() -> None:
    answers = [Scored((1, 2), (5, 6, 7))] * 2 + [Scored((3, 4), (5, 6, 7))] * 2
    assert split(answers, 8) == [[0, 1], [2, 3]]


def test_a_group_larger_than_the_budget_is_cut_and_its_prompt_repeated() -> None:
    answers = [Scored((1, 2), (5, 6, 7))] * 5
    passes = list(pack(answers, 6, CPU))
    assert [len(packed.ids_T) for packed in passes] == [6, 6, 4]


def test_nothing_to_score_gives_no_pass() -> None:
    assert list(pack([], 10, CPU)) == []
    assert list(pack([Scored((1, 2), ())], 10, CPU)) == []
