# SPDX-License-Identifier: Apache-2.0
"""What an update is given: checks that name the place, advantages, weights of tokens, old log-probs."""

import math
from typing import Any

import pytest
import torch
from plain import CPU, sample

from rzero.engine import grpo
from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.outputs import Sample
from rzero.kernels import resolve

GOOD = TrainGroup([1, 2], [sample([3, 4]), sample([5])], rewards=[0.0, 1.0])


def group(**changes: Any) -> TrainGroup:
    fields = {"prompt_ids": [1, 2], "samples": [sample([3, 4]), sample([5])], "rewards": [0.0, 1.0]}
    return TrainGroup(**{**fields, **changes})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (group(prompt_ids=[]), r"groups\[1\].prompt_ids is empty"),
        (group(prompt_ids=[1, 31]), r"groups\[1\].prompt_ids holds a token outside 0..30"),
        (group(samples=[sample([3]), sample([-1])]), r"groups\[1\].samples\[1\] holds a token outside"),
        (group(samples=[sample([3]), sample([4] * 47)]), "49 tokens; the model has 48 positions"),
        (group(rewards=[0.0]), r"groups\[1\].rewards has 1 values for 2 samples"),
        (group(rewards=[0.0, math.nan]), r"groups\[1\].rewards\[1\] is nan"),
        (group(rewards=[math.inf, 0.0]), r"groups\[1\].rewards\[0\] is inf"),
        (group(rewards=None, advantages=[0.0, -math.inf]), r"groups\[1\].advantages\[1\] is -inf"),
        (group(rewards=None), "either rewards or advantages"),
        (group(advantages=[0.0, 0.0]), "either rewards or advantages"),
        (
            group(samples=[sample([3]), Sample([4, 5], "", [], [], "stop")]),
            "0 values for 2 tokens; sample with logprobs=True",
        ),
    ],
)
def test_a_group_that_cannot_be_trained_on_is_refused_by_place(bad: TrainGroup, words: str) -> None:
    grpo.check_groups([GOOD, GOOD], 31, 48)
    with pytest.raises(InputError, match=words):
        grpo.check_groups([GOOD, bad], 31, 48)


def test_no_groups_are_refused() -> None:
    with pytest.raises(InputError, match="groups is empty"):
        grpo.check_groups([], 31, 48)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("eps", -1.0),
        ("temperature", 0.0),
        ("micro_batch_tokens", 0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("grad_clip", math.inf),
        ("clip_low", 1.5),
        ("clip_dual", 1.0),
        ("kl_coef", -0.1),
        ("betas", (0.9, 1.0)),
        ("decay", "none"),
        ("kl_estimator", "k4"),
        ("advantage", "mean"),
        ("loss_mean", "sum"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        TrainConfig(**{field: value})


def test_advantages_are_relative_to_the_group_and_given_ones_are_kept() -> None:
    groups = [
        group(samples=[sample([1])] * 4, rewards=[0.0, 0.0, 0.0, 1.0]),
        group(rewards=None, advantages=[7.0, -3.0]),
        group(rewards=[5.0, 5.0]),
    ]
    got = grpo.advantages(groups, "std", resolve(CPU), torch.float64).tolist()
    assert got[3] == pytest.approx(1.5, abs=1e-5)
    assert got[:3] == pytest.approx([-0.5] * 3, abs=1e-5)
    assert got[4:] == [7.0, -3.0, 0.0, 0.0]
    centered = grpo.advantages(groups, "center", resolve(CPU), torch.float64).tolist()
    assert centered[:4] == [-0.25, -0.25, -0.25, 0.75]


def test_a_group_without_samples_has_no_advantages() -> None:
    empty = group(samples=[], rewards=[])
    assert grpo.advantages([empty], "std", resolve(CPU), torch.float32).tolist() == []
    assert len(grpo.advantages([empty, GOOD], "std", resolve(CPU), torch.float32)) == len(GOOD.samples)


def test_degenerate_groups() -> None:
    assert grpo.is_degenerate(group(rewards=[0.5, 0.5]))
    assert grpo.is_degenerate(group(samples=[sample([1])], rewards=[1.0]))
    assert grpo.is_degenerate(group(rewards=None, advantages=[0.0, 0.0]))
    assert grpo.is_degenerate(group(samples=[], rewards=[]))
    assert not grpo.is_degenerate(GOOD)
    assert not grpo.is_degenerate(group(rewards=None, advantages=[0.5, 0.5]))


def test_token_weights_add_up_to_one() -> None:
    lengths = [4, 0, 1, 3]
    token = grpo.token_weights(lengths, "token", torch.float64)
    assert token.tolist() == [1 / 8] * 8
    sequence = grpo.token_weights(lengths, "sequence", torch.float64)
    assert sequence.tolist() == pytest.approx([1 / 12] * 4 + [1 / 3] + [1 / 9] * 3)
    assert sequence.sum().item() == pytest.approx(1.0)
    assert grpo.token_weights([0, 0], "sequence", torch.float32).tolist() == []
    assert grpo.token_weights([], "token", torch.float32).tolist() == []


def test_old_logprobs_are_of_the_distribution_that_is_scored() -> None:
    samples = [
        Sample([1, 2], "", [-1.0, -2.0], [-3.0, -4.0], "stop"),
        Sample([1], "", [-5.0], [-6.0], "length"),
    ]
    assert grpo.old_logprobs(samples, 1.0, torch.float32).tolist() == [-3.0, -4.0, -6.0]
    assert grpo.old_logprobs(samples, 0.7, torch.float32).tolist() == [-1.0, -2.0, -5.0]
