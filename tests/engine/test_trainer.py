# SPDX-License-Identifier: Apache-2.0
"""Training: gradients against plain float64 and transformers, roles kept apart, exact restoring."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain import (
    new_trainer,
    nudged,
    plain_logprobs,
    plain_loss,
    random_groups,
    random_weights,
    sample,
    small_config,
)
from torch import Tensor

from rzero.engine.checkpoint import hf_tensors
from rzero.engine.engine import Engine, Model
from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.lora import LoraConfig
from rzero.engine.sampling import SamplingParams
from rzero.engine.trainer import Trainer
from rzero.engine.weights import Weights, base_tensors, merge_lora, substitute

LENGTHS = ((5, 1, 7), (3, 0, 4), (6, 2))
BASE = TrainConfig(learning_rate=1e-3, kl_coef=0.05, grad_clip=0.0)
VARIANTS = {
    "std": {},
    "center": {"advantage": "center"},
    "loo": {"advantage": "loo"},
    "symmetric": {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": None},
    "dual": {"clip_low": 0.1, "clip_high": 0.4, "clip_dual": 1.2},
    "k1": {"kl_estimator": "k1"},
    "k2": {"kl_estimator": "k2"},
    "token mean": {"loss_mean": "token"},
    "temperature": {"temperature": 0.7},
    "no kl": {"kl_coef": 0.0},
}


def with_reference(trainer_and_roles: tuple[Trainer, Weights]) -> tuple[Trainer, Weights]:
    trainer, roles = trainer_and_roles
    roles.replace("reference", nudged(roles.role("base")))
    return trainer, roles


def leaves(roles: Weights, name: str = "base") -> tuple[dict[str, Tensor], object]:
    weights = roles.role(name)
    new = {label: tensor.detach().clone().requires_grad_() for label, tensor in base_tensors(weights)}
    swap = {id(tensor): new[label] for label, tensor in base_tensors(weights)}
    return new, substitute(weights, swap)


def apart(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value wanted."""
    assert want.abs().max() > 0, "a comparison with zeros says nothing"
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_a_plain_float64_implementation(variant: str) -> None:
    cfg = replace(BASE, **VARIANTS[variant])
    config = small_config("qwen3", tied=True)
    trainer, roles = with_reference(new_trainer(config, random_weights(config, torch.float64)))
    groups = random_groups(1, LENGTHS)
    new, record = leaves(roles)
    reference = roles.role("reference") if cfg.kl_coef else None
    loss = plain_loss(config, record, reference, groups, cfg)
    wanted = dict(zip(new, torch.autograd.grad(loss, list(new.values())), strict=True))
    result = trainer.gradients("base", groups, cfg, "reference" if cfg.kl_coef else None)
    assert result is not None
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-8)
    assert result.grads.keys() == wanted.keys()
    assert max(apart(result.grads[name], wanted[name]) for name in wanted) <= 1e-8


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gradients_equal_autograd_through_transformers(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = small_config(model_type)
    trainer, roles = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    groups = scored_groups(trainer, ((1.0, 0.0, 0.5), (0.0, 2.0), (1.0, 1.0, 0.0)))
    cfg = replace(BASE, kl_coef=0.0)
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    model = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").float()
    model.load_state_dict(hf_tensors(config, roles.role("base")))
    loss = torch.zeros(())
    answers = [(g, s) for g in groups for s in g.samples]
    for group, answer in answers:
        rewards = torch.tensor(group.rewards)
        advantage = (group.rewards[group.samples.index(answer)] - rewards.mean()) / (rewards.std() + 1e-6)
        logits = model(torch.tensor([[*group.prompt_ids, *answer.token_ids]])).logits[
            0, len(group.prompt_ids) - 1 : -1
        ]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        ratio = (logp - torch.tensor(answer.full_logprobs)).exp()
        loss = loss - (ratio * advantage).mean() / len(answers)
    loss.backward()
    result = trainer.gradients("base", groups, cfg)
    assert result is not None
    weights = roles.role("base")
    record = substitute(weights, {id(t): result.grads[name] for name, t in base_tensors(weights)})
    got = hf_tensors(config, record)
    wanted = {name: p.grad for name, p in model.named_parameters()}
    assert got.keys() == wanted.keys()
    assert max(apart(got[name], wanted[name]) for name in wanted) <= 1e-4


def test_the_budget_of_a_micro_batch_changes_no_gradient() -> None:
    config = small_config("qwen2")
    trainer, _ = with_reference(new_trainer(config, random_weights(config, torch.float64)))
    groups = random_groups(3, LENGTHS)
    results = [
        trainer.gradients("base", groups, replace(BASE, micro_batch_tokens=budget), "reference")
        for budget in (1, 9, 14, 1000)
    ]
    whole = results[-1]
    assert whole is not None
    for result in results:
        assert result is not None
        assert max(apart(result.grads[name], whole.grads[name]) for name in whole.grads) <= 1e-12
        for name in ("loss", "sums", "mismatch_max"):
            torch.testing.assert_close(getattr(result, name), getattr(whole, name), rtol=1e-12, atol=0)
    assert results[0].tokens_computed > whole.tokens_computed


def test_recomputing_layers_changes_no_bit() -> None:
    config = small_config("qwen3")
    trainer, _ = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    groups, cfg = random_groups(3, LENGTHS), replace(BASE, kl_coef=0.0)
    kept = trainer.gradients("base", groups, cfg)
    again = trainer.gradients("base", groups, replace(cfg, recompute_layers=True))
    assert kept is not None and again is not None
    assert all(torch.equal(kept.grads[name], again.grads[name]) for name in kept.grads)


def three_steps(trainer: Trainer, role: str, first: int = 0) -> list[dict[str, float]]:
    cfg = replace(BASE, warmup_steps=4, grad_clip=0.5)
    return [trainer.train_step(role, random_groups(first + i, LENGTHS), cfg, "reference") for i in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_training_one_role_leaves_the_others_untouched(dtype: torch.dtype, lora: bool) -> None:
    config = small_config("qwen2", tied=True)
    trainer, roles = new_trainer(config, random_weights(config, dtype), backend="auto")
    roles.fork("reference", of="base")
    roles.fork("challenger", of="base")
    roles.fork("solver", of="base")
    if lora:
        roles.add_lora("challenger", LoraConfig(rank=3, alpha=6.0))
    before = {name: roles.hash(name) for name in roles.roles}
    three_steps(trainer, "challenger")
    after = {name: roles.hash(name) for name in roles.roles}
    assert after.pop("challenger") != before.pop("challenger")
    assert after == before
    assert not any(tensor.requires_grad for name in roles.roles for _, tensor in roles.named_tensors(name))
    if lora:
        mine, theirs = roles.role("challenger"), roles.role("base")
        assert mine.embed is theirs.embed and mine.layers[0].qkv is theirs.layers[0].qkv


def test_an_update_writes_into_the_tensors_the_sampler_reads() -> None:
    config = small_config("llama")
    trainer, roles = with_reference(
        new_trainer(config, random_weights(config, torch.float32), backend="auto")
    )
    qkv = roles.role("base").layers[0].qkv
    before = qkv.clone()
    three_steps(trainer, "base")
    assert roles.role("base").layers[0].qkv is qkv
    assert not torch.equal(qkv, before)


def test_training_twice_from_one_state_gives_the_same_bits() -> None:
    config = small_config("qwen2")
    hashes = []
    for _ in range(2):
        trainer, roles = with_reference(
            new_trainer(config, random_weights(config, torch.float32), backend="auto")
        )
        three_steps(trainer, "base")
        hashes.append(roles.hash("base"))
    assert hashes[0] == hashes[1]


def test_lora_trains_adapters_alone_with_the_base_as_reference() -> None:
    config = small_config("qwen3")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    roles.fork("solver", of="base")
    roles.add_lora("solver", LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "v_proj", "down_proj")))
    groups = random_groups(5, LENGTHS)
    result = trainer.gradients("solver", groups, BASE, "base")
    assert result is not None
    assert result.grads.keys() == dict(roles.trainable_tensors("solver")).keys()
    assert len(result.grads) == 2 * 3 * 2
    first = trainer.train_step("solver", groups, BASE, "base")
    assert first["kl"] == 0.0, "adapters start without effect"
    assert trainer.train_step("solver", groups, BASE, "base")["kl"] > 0.0


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_scored_logprobs_equal_plain_ones(model_type: str) -> None:
    config = small_config(model_type)
    trainer, roles = new_trainer(config, random_weights(config, torch.float64))
    groups = random_groups(6, LENGTHS)
    pairs = [(g.prompt_ids, s.token_ids) for g in groups for s in g.samples]
    got = trainer.logprobs("base", pairs, temperature=0.8, budget_tokens=17)
    tensors = hf_tensors(config, roles.role("base"))
    for (prompt, answer), values in zip(pairs, got, strict=True):
        assert len(values) == len(answer)
        if answer:
            wanted = plain_logprobs(config, tensors, prompt, answer, 0.8).tolist()
            assert values == pytest.approx(wanted, abs=1e-12)


def scored_groups(trainer: Trainer, rewards: tuple[tuple[float, ...], ...]) -> list[TrainGroup]:
    """Groups whose old log-probs are the trainer's own."""
    lengths = [[4 + j for j in range(len(row))] for row in rewards]
    groups = []
    for group, row in zip(random_groups(7, lengths), rewards, strict=True):
        scores = trainer.logprobs("base", [(group.prompt_ids, s.token_ids) for s in group.samples])
        samples = [sample(s.token_ids, values) for s, values in zip(group.samples, scores, strict=True)]
        groups.append(TrainGroup(group.prompt_ids, samples, rewards=list(row)))
    return groups


def test_metrics_of_a_first_update() -> None:
    config = small_config("qwen3")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    roles.fork("reference", of="base")
    groups = scored_groups(trainer, ((1.0, 0.0, 0.0), (1.0, 1.0), (0.5,)))
    metrics = trainer.train_step("base", groups, BASE, "reference")
    assert metrics["mismatch_max"] == metrics["mismatch_mean"] == metrics["kl"] == 0.0
    assert metrics["ratio_mean"] == 1.0 and metrics["clip_fraction"] == 0.0
    assert 0 < metrics["entropy"] <= math.log(31)
    assert metrics["tokens_trained"] == 4 + 5 + 6 + 4 + 5 + 4
    assert metrics["tokens_computed"] == (3 + 4 + 5) + (3 + 4 + 5 + 3 + 4 + 3)
    assert (metrics["groups"], metrics["degenerate_groups"]) == (3, 2)
    assert (metrics["updates"], metrics["skipped"], metrics["learning_rate"]) == (1, 0, 1e-3)
    assert metrics["grad_norm"] > 0
    assert all(isinstance(value, int | float) for value in metrics.values())
    second = trainer.train_step("base", groups, BASE, "reference")
    assert second["mismatch_max"] > 0 and second["kl"] > 0
    assert second["loss"] < metrics["loss"]


def test_equal_rewards_and_single_samples_push_nowhere() -> None:
    config = small_config("llama")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32))
    before = roles.hash("base")
    cfg = replace(BASE, kl_coef=0.0, weight_decay=0.0)
    metrics = trainer.train_step("base", scored_groups(trainer, ((1.0, 1.0), (0.0,))), cfg)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
    assert (metrics["skipped"], metrics["updates"], metrics["tokens_computed"]) == (1, 0, 0)
    assert metrics["degenerate_groups"] == 2 and roles.hash("base") == before


def test_degenerate_groups_are_not_computed_and_change_no_gradient() -> None:
    config = small_config("qwen3")
    trainer, _ = with_reference(new_trainer(config, random_weights(config, torch.float64)))
    groups = scored_groups(trainer, ((1.0, 1.0), (1.0, 0.0, 0.0), (0.5,), (0.0, 1.0)))
    for cfg in (replace(BASE, kl_coef=0.0), replace(BASE, kl_coef=0.0, loss_mean="token")):
        whole = trainer.gradients("base", groups, cfg, "reference")
        taught = trainer.gradients("base", groups, cfg)
        assert whole is not None and taught is not None
        assert taught.tokens == whole.tokens - (4 + 5 + 4) and taught.tokens_computed < whole.tokens_computed
        for name, grad in whole.grads.items():
            assert torch.allclose(taught.grads[name], grad, rtol=1e-12, atol=1e-15), name


def test_a_step_of_empty_answers_changes_nothing_and_is_counted() -> None:
    config = small_config("llama")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32))
    before = roles.hash("base")
    metrics = trainer.train_step(
        "base", [TrainGroup([1], [sample([])] * 2, rewards=[0, 1])], replace(BASE, kl_coef=0.0)
    )
    assert (metrics["skipped"], metrics["tokens_trained"], metrics["updates"]) == (1, 0, 0)
    nothing = trainer.train_step("base", [TrainGroup([1], [], rewards=[])], replace(BASE, kl_coef=0.0))
    assert (nothing["skipped"], nothing["groups"]) == (1, 1)
    assert roles.hash("base") == before


def test_a_non_finite_step_is_skipped_and_counted() -> None:
    config = small_config("llama")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32))
    cfg = replace(BASE, kl_coef=0.0)
    trainer.train_step("base", random_groups(1, LENGTHS), cfg)
    before = roles.hash("base")
    state = {name: x.clone() if isinstance(x, Tensor) else x for name, x in trainer.state("base").items()}
    broken = random_groups(2, LENGTHS)
    broken[0].samples[0].full_logprobs[0] = math.nan
    metrics = trainer.train_step("base", broken, cfg)
    assert metrics["skipped"] == 1 and metrics["updates"] == 1 and not math.isfinite(metrics["loss"])
    assert roles.hash("base") == before
    for name, value in trainer.state("base").items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[name]))
    assert trainer.train_step("base", random_groups(2, LENGTHS), cfg)["updates"] == 2


def test_kl_without_a_reference_is_refused() -> None:
    config = small_config("llama")
    trainer, _ = new_trainer(config, random_weights(config, torch.float32))
    with pytest.raises(InputError, match="no reference role is given"):
        trainer.train_step("base", random_groups(1, LENGTHS), BASE)
    with pytest.raises(InputError, match="nobody"):
        trainer.train_step("base", random_groups(1, LENGTHS), BASE, "nobody")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.7}, {"top_p": 0.9, "top_k": 12}])
def test_the_trainer_sees_the_log_probs_that_the_sampler_reported(dtype: torch.dtype, drawn: Any) -> None:
    config = small_config("qwen3")
    params = SamplingParams(n=5, max_tokens=20, seed=3, **drawn)
    cfg = replace(BASE, kl_coef=0.0, temperature=params.temperature)
    with Engine(Model(config, random_weights(config, dtype)), page_size=4, max_batch_tokens=16) as engine:
        for _ in range(3):
            outputs = engine.generate([[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [3]], params)
            groups = [
                TrainGroup(o.prompt_token_ids, o.samples, rewards=[float(s.token_ids[0]) for s in o.samples])
                for o in outputs
            ]
            metrics = engine.train_step("base", groups, cfg)
            assert metrics["grad_norm"] > 0
            assert (metrics["mismatch_max"], metrics["ratio_mean"]) == (0.0, 1.0)


def test_gradients_of_adapters_are_those_of_the_merged_matrices() -> None:
    config = small_config("qwen2")
    trainer, roles = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    roles.fork("solver", of="base")
    roles.add_lora("solver", LoraConfig(rank=4, alpha=6.0))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in roles.trainable_tensors("solver"):
        if name.endswith(".b"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    roles.replace("merged", merge_lora(config, roles.role("solver")))
    cfg = replace(BASE, kl_coef=0.0)
    groups = random_groups(8, LENGTHS)
    mine, whole = (trainer.gradients(role, groups, cfg) for role in ("solver", "merged"))
    assert mine is not None and whole is not None
    adapters, scale = dict(roles.trainable_tensors("solver")), 6.0 / 4
    query, inner = config.heads * config.head_size, config.intermediate_size
    parts = {
        "q_proj": whole.grads["layers.1.qkv"][:query],
        "o_proj": whole.grads["layers.1.o"],
        "up_proj": whole.grads["layers.1.gate_up"][inner:],
        "down_proj": whole.grads["layers.1.down"],
    }
    for target, grad in parts.items():
        a, b = (adapters[f"layers.1.{target}.{x}"] for x in "ab")
        assert apart(mine.grads[f"layers.1.{target}.a"], scale * b.T @ grad) <= 1e-4
        assert apart(mine.grads[f"layers.1.{target}.b"], scale * grad @ a.T) <= 1e-4
