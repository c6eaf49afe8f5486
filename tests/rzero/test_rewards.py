# SPDX-License-Identifier: Apache-2.0
"""Rewards of both roles, against numbers worked out by hand."""

import pytest

from rzero.rewards import challenger_rewards, repetition_penalties, solver_rewards, uncertainty_reward
from rzero.settings import ChallengerSettings


@pytest.mark.parametrize(("share", "reward"), [(0.0, 0.0), (0.1, 0.2), (0.5, 1.0), (0.7, 0.6), (1.0, 0.0)])
def test_uncertainty_is_largest_at_one_half(share: float, reward: float) -> None:
    assert uncertainty_reward(share) == pytest.approx(reward)
    # The authors' code pays min(p, 1 - p), half of the paper's.
    assert uncertainty_reward(share, scale=0.5) == pytest.approx(min(share, 1 - share))


def test_repetition_is_the_share_of_the_cluster() -> None:
    assert repetition_penalties([0, 1, 0, 2], 4) == [0.5, 0.25, 0.5, 0.25]
    assert repetition_penalties([], 1) == []


def test_invalid_questions_are_neither_clustered_nor_counted() -> None:
    settings = ChallengerSettings()
    rewards = challenger_rewards([0.5, None, 0.5, 1.0], [0, 0, 1], settings)
    assert rewards == pytest.approx([1 - 2 / 3, -1.0, 1 - 2 / 3, 0 - 1 / 3])


def test_a_floor_holds_valid_questions_only() -> None:
    settings = ChallengerSettings(reward_floor=0.0, invalid_reward=-0.5, repetition_weight=2.0)
    assert challenger_rewards([1.0, None], [0], settings) == [0.0, -0.5]
    assert challenger_rewards([0.5, 0.5], [0, 0], settings) == [0.0, 0.0]


def test_the_solver_is_paid_for_the_label_only() -> None:
    assert solver_rewards([True, False, None]) == [1.0, 0.0, 0.0]
