# SPDX-License-Identifier: Apache-2.0
"""policy_loss against autograd, finite differences and numbers worked out by hand; group_advantage."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.native import lib
from rzero.kernels.policy_loss import (
    POLICY_LOSS,
    PolicyLossConfig,
    PolicyLossOut,
    group_advantage_ref,
    policy_loss_ref,
)

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(lib is None, reason="rzero._native is not built")
CONFIGS = (
    PolicyLossConfig(),
    PolicyLossConfig(clip_dual=None, kl_coef=0.5),
    PolicyLossConfig(clip_low=0.0, clip_high=0.0, clip_dual=1.5, kl_coef=1.0),
    PolicyLossConfig(kl_estimator="k1", kl_coef=0.3),
    PolicyLossConfig(kl_estimator="k2", kl_coef=0.3),
)


@pytest.fixture(params=["ref", pytest.param("native", marks=needs_native)])
def policy_loss(request: pytest.FixtureRequest) -> Any:
    return choose(POLICY_LOSS, CPU, request.param)[0]


def case(T: int, spread: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """logp, old, ref, advantage, weight; some advantages and weights are 0."""
    generator = torch.Generator().manual_seed(T)
    old_T, new_T, ref_T, advantage_T = torch.randn(4, T, generator=generator, dtype=torch.float64).to(dtype)
    advantage_T = torch.where(torch.arange(T) % 7 == 3, 0, advantage_T)
    weight_T = (torch.arange(T) % 5 / T).to(dtype)
    return [old_T + spread * new_T, old_T, old_T + spread * ref_T, advantage_T, weight_T]


def loss_and_grad(function: Any, args: list[Tensor], cfg: PolicyLossConfig) -> tuple[PolicyLossOut, Tensor]:
    logp_T = args[0].detach().clone().requires_grad_()
    out = function(logp_T, *args[1:], cfg)
    (2 * out.loss).backward()  # the upstream gradient must be used
    assert logp_T.grad is not None
    return out, logp_T.grad / 2


@needs_native
@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0, 30.0])
def test_native_equals_float64_autograd(cfg: PolicyLossConfig, spread: float) -> None:
    args = case(500, spread)
    got, got_grad = loss_and_grad(choose(POLICY_LOSS, CPU, "native")[0], args, cfg)
    wanted, wanted_grad = loss_and_grad(policy_loss_ref, [a.double() for a in args], cfg)
    for name, a, b in zip(got._fields, got, wanted, strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert a.ndim == 0 and (name == "loss") == a.requires_grad
    torch.testing.assert_close(got_grad.double(), wanted_grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_gradient_of_the_reference_is_that_of_finite_differences(cfg: PolicyLossConfig) -> None:
    logp_T, *rest = case(40, 0.5, torch.float64)
    assert torch.autograd.gradcheck(lambda x: policy_loss_ref(x, *rest, cfg).loss, (logp_T.requires_grad_(),))


def test_surrogate_is_the_pessimistic_bound_written_with_min_and_max() -> None:
    logp_T, old_T, _, A_T, weight_T = case(300, 1.0, torch.float64)
    cfg = PolicyLossConfig(clip_low=0.2, clip_high=0.28, clip_dual=3.0)
    ratio_T = (logp_T - old_T).exp()
    pessimistic_T = torch.maximum(-A_T * ratio_T, -A_T * ratio_T.clamp(0.8, 1.28))
    bounded_T = torch.where(A_T < 0, torch.minimum(pessimistic_T, -3.0 * A_T), pessimistic_T)
    got = policy_loss_ref(logp_T, old_T, None, A_T, weight_T, cfg)
    torch.testing.assert_close(got.loss, (weight_T * bounded_T).sum())


def test_numbers_worked_out_by_hand(policy_loss: Any) -> None:
    ratio = torch.tensor([1.0, 2.0, 0.5, 5.0, 0.5])
    logp_T = ratio.log().requires_grad_()
    zero_T, advantage_T = torch.zeros(5), torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    cfg = PolicyLossConfig(clip_low=0.2, clip_high=0.3, clip_dual=3.0, kl_coef=0.0)
    out = policy_loss(logp_T, zero_T, zero_T, advantage_T, torch.ones(5), cfg)
    out.loss.backward()
    # inside; above 1.3; below 0.8; above 3; below 1 with a good answer is not clipped
    assert out.loss.item() == pytest.approx(-1 - 1.3 + 0.8 + 3 - 1)
    assert logp_T.grad is not None
    torch.testing.assert_close(logp_T.grad, torch.tensor([-1.0, 0, 0, 0, -1.0]))
    assert out.clip_fraction.item() == pytest.approx(3 / 5)
    assert out.ratio_mean.item() == pytest.approx(9 / 5) and out.ratio_max.item() == pytest.approx(5)
    assert out.tokens.item() == 5


def test_first_update_has_ratio_exactly_one(policy_loss: Any) -> None:
    logp_T, _, _, advantage_T, weight_T = case(50, 1.0)
    out, grad_T = loss_and_grad(
        policy_loss, [logp_T, logp_T, logp_T, advantage_T, weight_T], PolicyLossConfig()
    )
    assert out.ratio_mean == out.ratio_max == 1 and out.clip_fraction == out.kl_mean == out.step_kl_mean == 0
    assert torch.equal(grad_T, -advantage_T * weight_T)


def test_k3_is_held_and_has_no_gradient_where_it_is(policy_loss: Any) -> None:
    logp_T = torch.tensor([-5.0, 25.0, -25.0, 1.0])
    cfg = PolicyLossConfig(kl_coef=1.0)
    args = [logp_T, logp_T, torch.zeros(4), torch.zeros(4), torch.ones(4)]
    out, grad_T = loss_and_grad(policy_loss, args, cfg)
    d = torch.tensor(1.0)
    wanted = (
        10 + 10 + 10 + ((-d).exp() + d - 1)
    )  # exp(5) - 6, 25 held at 20 and then at 10, exp(20), and inside
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(grad_T, torch.tensor([0, 0, 0, 1 - (-d).exp()]))


def test_ignored_tokens_may_hold_anything(policy_loss: Any) -> None:
    args = case(20, 0.3)
    is_ignored_T = args[4] == 0
    assert is_ignored_T.any()
    clean, clean_grad = loss_and_grad(policy_loss, args, PolicyLossConfig())
    dirty = [torch.where(is_ignored_T, torch.nan, a) for a in args[:4]] + args[4:]
    out, grad_T = loss_and_grad(policy_loss, dirty, PolicyLossConfig())
    assert all(torch.equal(a, b) for a, b in zip(clean, out, strict=True))
    assert torch.equal(clean_grad, grad_T)


def test_a_counted_nan_reaches_the_loss(policy_loss: Any) -> None:
    for place in range(4):
        args = case(20, 0.3)
        args[place][4] = torch.nan
        assert policy_loss(*args, PolicyLossConfig()).loss.isnan(), place


def test_micro_batches_add_up(policy_loss: Any) -> None:
    args = case(60, 0.5)
    whole, whole_grad = loss_and_grad(policy_loss, args, PolicyLossConfig())
    parts = [
        loss_and_grad(policy_loss, [a[i : i + 17] for a in args], PolicyLossConfig())
        for i in range(0, 60, 17)
    ]
    torch.testing.assert_close(sum(out.loss for out, _ in parts), whole.loss)
    assert torch.equal(torch.cat([grad for _, grad in parts]), whole_grad)


def test_without_reference_and_without_tokens(policy_loss: Any) -> None:
    logp_T, old_T, _, advantage_T, weight_T = case(10, 0.5)
    assert policy_loss(logp_T, old_T, None, advantage_T, weight_T, PolicyLossConfig()).kl_mean is None
    empty = torch.zeros(0)
    out = policy_loss(empty.requires_grad_(), empty, empty, empty, empty, PolicyLossConfig())
    assert out.loss == 0 and out.tokens == 0 and out.ratio_mean == 0
    out.loss.backward()


@needs_native
def test_wrong_tensor_is_named() -> None:
    native = choose(POLICY_LOSS, CPU, "native")[0]
    good = case(8, 0.1)
    for i, name in enumerate(("logp_T", "old_logp_T", "ref_logp_T", "advantage_T", "weight_T")):
        for wrong in (good[i].double(), good[i][:, None], good[i][:5]):
            if i == 0 and wrong.ndim == 1 and wrong.dtype == torch.float32:
                continue  # a shorter logp_T makes the others too long
            with pytest.raises(ValueError, match=name):
                native(*good[:i], wrong, *good[i + 1 :], PolicyLossConfig())


def test_setting_out_of_range_is_refused() -> None:
    for bad in ({"clip_low": 1.1}, {"clip_high": -0.1}, {"clip_dual": 1.0}, {"kl_estimator": "k4"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PolicyLossConfig(**bad)  # type: ignore[arg-type]


# ---- group_advantage


def advantage(rewards: list[float], groups: list[int], mode: str, **given: Any) -> list[float]:
    return group_advantage_ref(torch.tensor(rewards), torch.tensor(groups), mode, **given).tolist()


def test_one_winner_in_four_is_worth_three_halves() -> None:
    assert advantage([0, 0, 0, 1.0], [0] * 4, "std") == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-5)
    assert advantage([0, 0, 0, 1.0], [0] * 4, "std", unbiased=False)[3] == pytest.approx(3**0.5, abs=1e-5)
    assert advantage([0, 0, 0, 1.0], [0] * 4, "center") == pytest.approx([-0.25, -0.25, -0.25, 0.75])
    assert advantage([0, 0, 0, 1.0], [0] * 4, "loo") == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 1.0])


@pytest.mark.parametrize("mode", ["std", "center", "loo"])
def test_groups_do_not_meet(mode: str) -> None:
    rewards, groups = [0.3, 1.0, -2.0, 0.5, 0.9, 4.0, 0.1], [9, -4, 9, 7, -4, 9, 7]
    together = advantage(rewards, groups, mode)
    for g in set(groups):
        mine = [i for i, other in enumerate(groups) if other == g]
        assert [together[i] for i in mine] == advantage([rewards[i] for i in mine], [0] * len(mine), mode)


@pytest.mark.parametrize("mode", ["std", "center", "loo"])
def test_groups_that_teach_nothing_have_advantage_zero(mode: str) -> None:
    # The mean of 0.1 three times is not quite 0.1: (r - mean) / eps must not turn that into a signal.
    assert advantage([0.1, 0.1, 0.1, 7.0, 0.0, 1.0], [0, 0, 0, 1, 2, 2], mode)[:4] == [0, 0, 0, 0]
    assert group_advantage_ref(torch.zeros(0), torch.zeros(0, dtype=torch.int64), mode).shape == (0,)


def test_rewards_that_are_no_numbers_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"reward_B\[1\]"):
            advantage([0.0, bad], [0, 0], "std")
    with pytest.raises(ValueError, match="mode"):
        advantage([0.0, 1.0], [0, 0], "mean")
    with pytest.raises(ValueError, match="group_B"):
        group_advantage_ref(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="reward_B"):
        group_advantage_ref(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
