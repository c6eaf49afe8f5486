# SPDX-License-Identifier: Apache-2.0
"""policy_loss and group_advantage in Triton: against float64 autograd, the native form and the references."""

from typing import Any

import pytest
import torch
from harness import native, needs_native
from test_policy_loss import CONFIGS, case, loss_and_grad
from torch import Tensor

from rzero.kernels.policy_loss import POLICY_LOSS, PolicyLossConfig, group_advantage_ref, policy_loss_ref
from rzero.kernels.policy_loss_triton import (
    BLOCK,
    GROUP_ROWS,
    group_advantage_triton,
    policy_loss_triton,
)


@needs_native
@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0, 30.0])
def test_three_implementations_agree(cfg: PolicyLossConfig, spread: float) -> None:
    args = case(2 * BLOCK + 17, spread)
    wanted, wanted_grad = loss_and_grad(policy_loss_ref, [a.double() for a in args], cfg)
    for function in (policy_loss_triton, native(POLICY_LOSS)):
        got, got_grad = loss_and_grad(function, args, cfg)
        for name, a, b in zip(got._fields, got, wanted, strict=True):
            torch.testing.assert_close(
                a.double(), b.double(), rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert a.ndim == 0 and (name == "loss") == a.requires_grad
        torch.testing.assert_close(got_grad.double(), wanted_grad, rtol=1e-6, atol=1e-9)


def test_more_programs_than_one_step_of_the_last_sum_takes() -> None:
    T = BLOCK * 3
    args = case(T, 0.2)
    whole = policy_loss_triton(*args, PolicyLossConfig())
    parts = [
        policy_loss_triton(*(a[i : i + 700] for a in args), PolicyLossConfig()) for i in range(0, T, 700)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    assert sum(int(part.tokens) for part in parts) == whole.tokens


def test_first_update_has_ratio_exactly_one() -> None:
    logp_T, _, _, advantage_T, weight_T = case(50, 1.0)
    args = [logp_T, logp_T, logp_T, advantage_T, weight_T]
    out, grad_T = loss_and_grad(policy_loss_triton, args, PolicyLossConfig())
    assert out.ratio_mean == out.ratio_max == 1 and out.clip_fraction == out.kl_mean == out.step_kl_mean == 0
    assert torch.equal(grad_T, -advantage_T * weight_T)


def test_ignored_tokens_may_hold_anything() -> None:
    args = case(20, 0.3)
    is_ignored_T = args[4] == 0
    assert is_ignored_T.any()
    clean, clean_grad = loss_and_grad(policy_loss_triton, args, PolicyLossConfig())
    dirty = [torch.where(is_ignored_T, torch.nan, a) for a in args[:4]] + args[4:]
    out, grad_T = loss_and_grad(policy_loss_triton, dirty, PolicyLossConfig())
    assert all(torch.equal(a, b) for a, b in zip(clean, out, strict=True))
    assert torch.equal(clean_grad, grad_T)


@pytest.mark.parametrize("place", range(4))
def test_a_counted_nan_reaches_the_loss(place: int) -> None:
    args = case(20, 0.3)
    args[place][4] = torch.nan
    out = policy_loss_triton(*args, PolicyLossConfig())
    assert out.loss.isnan() and out.ratio_max.isnan() == (place < 2)


def test_without_reference_and_without_tokens() -> None:
    logp_T, old_T, _, advantage_T, weight_T = case(10, 0.5)
    out = policy_loss_triton(logp_T, old_T, None, advantage_T, weight_T, PolicyLossConfig())
    wanted = policy_loss_ref(logp_T, old_T, None, advantage_T, weight_T, PolicyLossConfig())
    assert out.kl_mean is None
    torch.testing.assert_close(out.loss, wanted.loss)
    empty = torch.zeros(0)
    out = policy_loss_triton(empty.requires_grad_(), empty, empty, empty, empty, PolicyLossConfig())
    assert out.loss == 0 and out.tokens == 0 and out.ratio_mean == 0 and out.kl_mean == 0
    out.loss.backward()


def test_wrong_tensor_is_named() -> None:
    good = case(8, 0.1)
    for i, name in enumerate(("logp_T", "old_logp_T", "ref_logp_T", "advantage_T", "weight_T")):
        for wrong in (
            good[i].double(),
            good[i][:, None],
            torch.zeros(16)[::2],
            torch.zeros(8, device="meta"),
        ):
            if i == 0 and wrong.is_meta:
                continue  # then the others lie on the wrong device
            with pytest.raises(ValueError, match=f"policy_loss: {name}"):
                policy_loss_triton(*good[:i], wrong, *good[i + 1 :], PolicyLossConfig())


# ---- group_advantage


def answers(B: int, groups: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B)
    id_B = torch.randint(groups, (B,), generator=generator) * 3_000_000_000 - 5
    return torch.randint(5, (B,), generator=generator) / 4, id_B


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("mode", ["std", "center", "loo"])
def test_advantage_is_that_of_the_reference(mode: str, unbiased: bool, dtype: torch.dtype) -> None:
    for B, groups in ((1, 1), (7, 2), (4 * GROUP_ROWS + 3, 40)):
        reward_B, id_B = answers(B, groups)
        wanted = group_advantage_ref(reward_B.to(dtype), id_B, mode, unbiased=unbiased)
        got = group_advantage_triton(reward_B.to(dtype), id_B, mode, unbiased=unbiased)
        torch.testing.assert_close(got, wanted, rtol=1e-6 if dtype != torch.float16 else 1e-3, atol=1e-12)
        assert torch.equal(got == 0, wanted == 0)


def test_one_winner_in_four_and_strided_inputs() -> None:
    reward_B, id_B = torch.tensor([0, 9, 0, 9, 0, 9, 1.0, 9]), torch.arange(8) % 2
    got = group_advantage_triton(reward_B[::2], id_B[::2])
    torch.testing.assert_close(got, torch.tensor([-0.5, -0.5, -0.5, 1.5]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["std", "center", "loo"])
def test_groups_that_teach_nothing_have_advantage_zero(mode: str) -> None:
    got = group_advantage_triton(
        torch.tensor([0.1, 0.1, 0.1, 7.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1, 2, 2]), mode
    )
    assert (got[:4] == 0).all() and (got[4:] != 0).all()
    assert group_advantage_triton(torch.zeros(0), torch.zeros(0, dtype=torch.int64), mode).shape == (0,)


@pytest.mark.parametrize("mode", ["std", "center", "loo"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_spoils_its_group_alone(bad: float, mode: str) -> None:
    reward_B, id_B = torch.tensor([1.0, bad, 1.0, 0.0, 1.0, bad]), torch.tensor([0, 0, 0, 1, 1, 2])
    got = group_advantage_triton(reward_B, id_B, mode)
    assert got.isnan().tolist() == [True, True, True, False, False, True]


def test_wrong_arguments_of_group_advantage_are_named() -> None:
    for args, name in (
        ((torch.zeros(3), torch.zeros(2, dtype=torch.int64)), "group_B"),
        ((torch.zeros(3), torch.zeros(3)), "group_B"),
        ((torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)), "reward_B"),
        ((torch.zeros(3), torch.zeros(3, dtype=torch.int64), "mean"), "mode"),
    ):
        wrong: Any = args
        with pytest.raises(ValueError, match=f"group_advantage: {name}"):
            group_advantage_triton(*wrong)
