# SPDX-License-Identifier: Apache-2.0
"""What both roles are paid for (R-Zero, arXiv:2508.05004, section 3). Pure functions, one definition each.

Where the paper and the authors' code differ: the uncertainty reward is the paper's 1 - 2 |p - 1/2| (the code
pays half of it); the repetition penalty is taken over the valid questions of a step; there is no floor unless
one is set; a question that cannot be used earns `invalid_reward`; the Challenger's own answer earns nothing.
"""

from collections import Counter
from collections.abc import Sequence

from rzero.settings import ChallengerSettings


def uncertainty_reward(share: float, scale: float = 1.0) -> float:
    """scale (1 - 2 |p - 1/2|): largest where half of the votes agree, 0 where all or none do."""
    return scale * (1.0 - 2.0 * abs(share - 0.5))


def repetition_penalties(clusters: Sequence[int]) -> list[float]:
    """|C| / B: share of the questions that lie in each question's cluster, given one per question."""
    sizes = Counter(clusters)
    return [sizes[cluster] / len(clusters) for cluster in clusters]


def challenger_rewards(
    shares: Sequence[float | None], clusters: Sequence[int], settings: ChallengerSettings
) -> list[float]:
    """Reward per question: `shares` is p, None for an invalid one; `clusters` is of the valid ones."""
    penalties = iter(repetition_penalties(clusters))
    rewards = []
    for share in shares:
        if share is None:
            rewards.append(settings.invalid_reward)
            continue
        reward = uncertainty_reward(share, settings.reward_scale) - settings.repetition_weight * next(
            penalties
        )
        rewards.append(reward if settings.reward_floor is None else max(settings.reward_floor, reward))
    return rewards


def solver_rewards(verdicts: Sequence[bool | None]) -> list[float]:
    """1 where the answer is the label, else 0; None: no box, or the judge gave up."""
    return [1.0 if verdict else 0.0 for verdict in verdicts]
