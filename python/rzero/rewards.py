# SPDX-License-Identifier: Apache-2.0
"""What both roles are paid for (R-Zero, arXiv:2508.05004, section 3). Pure functions, one definition each.

Where the paper and the authors' code differ, a setting chooses; docs/algorithm.md has the table. The
Challenger's own answer earns nothing in any of them; `only_confirmed` makes it a condition.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from rzero.settings import ChallengerSettings


def uncertainty_reward(share: float, scale: float = 1.0) -> float:
    """scale (1 - 2 |p - 1/2|): largest where half of the votes agree, 0 where all or none do."""
    return scale * (1.0 - 2.0 * abs(share - 0.5))


def repetition_penalties(clusters: Sequence[int], base: int) -> list[float]:
    """|C| / B: the size of each question's cluster over `base`, given a cluster number per question."""
    sizes = Counter(clusters)
    return [sizes[cluster] / base for cluster in clusters]


def challenger_rewards(
    shares: Sequence[float | None],
    clusters: Sequence[int],
    settings: ChallengerSettings,
    likeness: Sequence[float] = (),
    failed: Collection[int] = (),
) -> list[float]:
    """Reward per text of a step.

    `shares` is p, None for a text without a usable question; `clusters` and `likeness` (to earlier questions,
    0 to 1; empty where it is not measured) are of the valid ones; `failed` holds the places, among all
    texts, of questions on which the judge gave up.
    """
    base = max(len(shares) if settings.repetition_base == "all" else len(clusters), 1)
    penalties = iter(repetition_penalties(clusters, base))
    alike = iter(likeness or [0.0] * len(clusters))
    rewards = []
    for place, share in enumerate(shares):
        if share is None:
            alone = settings.repetition_weight / base if settings.invalid_penalty else 0.0
            rewards.append(settings.invalid_reward - alone)
            continue
        worth = uncertainty_reward(share, settings.reward_scale)
        if place in failed:
            worth = settings.invalid_reward
        reward = worth - settings.repetition_weight * next(penalties) - settings.earlier_weight * next(alike)
        rewards.append(reward if settings.reward_floor is None else max(settings.reward_floor, reward))
    return rewards


def solver_rewards(
    verdicts: Sequence[bool | None], texts: Sequence[str] = (), format_weight: float = 0.0
) -> list[float]:
    """1 where the answer is the label, else 0; None: no box, or the judge gave up.

    With a format weight w, 1 - w for the label and w for the form of the text.
    """
    right = [1.0 if verdict else 0.0 for verdict in verdicts]
    if format_weight == 0:
        return right
    return [
        (1 - format_weight) * correct + format_weight * has_format(text)
        for correct, text in zip(right, texts, strict=True)
    ]


def has_format(text: str) -> bool:
    """Whether a text begins with <think>, closes it, and has a box after that (EasyR1's format reward)."""
    opening, _, rest = text.partition("<think>")
    _, closing, after = rest.partition("</think>")
    _, box, inside = after.partition("\\boxed{")
    return not opening and bool(closing) and bool(box) and "}" in inside


def edited(text: str) -> str:
    """A text without blanks around <, > and /, as the authors' code has it before grading."""
    for sign in "<>/":
        first, *others = text.split(sign)
        if others:
            inner = [part.strip() for part in others[:-1]]
            text = sign.join([first.rstrip(), *inner, others[-1].lstrip()])
    return text
