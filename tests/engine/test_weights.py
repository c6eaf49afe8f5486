# SPDX-License-Identifier: Apache-2.0
"""Roles: shared until trained, copied tensor by tensor, apart for ever after."""

import gc
import weakref

import pytest
import torch
from hf_models import CPU, IDS, packed_logits, random_config

from rzero.engine.errors import InputError
from rzero.engine.lora import LoraConfig
from rzero.engine.weights import Weights, base_tensors, empty_weights
from rzero.kernels import resolve


def new_weights(shape: str = "qwen3") -> Weights:
    config = random_config(shape)
    weights = empty_weights(config, torch.float32, CPU)
    generator = torch.Generator().manual_seed(0)
    for _, tensor in base_tensors(weights):
        tensor.normal_(0, 0.3, generator=generator)
    return Weights(config, weights)


def pointers(weights: Weights, role: str) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in weights.named_tensors(role)}


def train(weights: Weights, role: str) -> None:
    """One plain gradient step on a role's trainable tensors, in place."""
    weights.own(role)
    leaves = [tensor.requires_grad_(True) for _, tensor in weights.trainable_tensors(role)]
    logits_TV = packed_logits(weights.config, weights.role(role), resolve(CPU), IDS[:20])
    torch.nn.functional.cross_entropy(logits_TV, IDS[1:21]).backward()
    with torch.no_grad():
        for leaf in leaves:
            assert leaf.grad is not None
            leaf -= 0.1 * leaf.grad
            leaf.requires_grad_(False)
            leaf.grad = None


def test_a_fork_costs_no_memory() -> None:
    weights = new_weights()
    total_bytes = weights.total_bytes()
    for role in ("challenger", "solver", "reference"):
        weights.fork(role, of="base")
        assert pointers(weights, role) == pointers(weights, "base")
    assert weights.total_bytes() == total_bytes and weights.shared_bytes() == 3 * total_bytes


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=3, alpha=6.0)])
def test_training_one_role_leaves_every_other_role_as_it_was(lora: LoraConfig | None) -> None:
    weights = new_weights()
    for role in ("challenger", "solver"):
        weights.fork(role, of="base")
        if lora:
            weights.add_lora(role, lora)
    weights.fork("reference", of="solver")
    before = {role: weights.hash(role) for role in weights.roles}
    for trained in ("solver", "challenger", "solver"):
        untouched = {role: weights.hash(role) for role in weights.roles if role != trained}
        train(weights, trained)
        assert {role: weights.hash(role) for role in weights.roles if role != trained} == untouched
    changed = {role for role in weights.roles if weights.hash(role) != before[role]}
    assert changed == {"solver", "challenger"}


def test_own_copies_only_what_is_shared_and_trained() -> None:
    weights = new_weights()
    weights.fork("solver", of="base")
    base = pointers(weights, "base")
    weights.own("solver")
    own = pointers(weights, "solver")
    assert not set(own.values()) & set(base.values()) and pointers(weights, "base") == base
    assert weights.hash("solver") == weights.hash("base")
    weights.own("solver")
    assert pointers(weights, "solver") == own, "tensors that nobody shares are not copied again"
    assert weights.shared_bytes() == 0


def test_an_adapter_role_shares_the_base_for_ever() -> None:
    weights = new_weights("qwen2")
    weights.fork("solver", of="base")
    weights.add_lora("solver", LoraConfig(rank=2, targets=("v_proj", "down_proj")))
    weights.own("solver")
    base, solver = pointers(weights, "base"), pointers(weights, "solver")
    assert base.items() <= solver.items()
    trainable = dict(weights.trainable_tensors("solver"))
    assert set(trainable) == set(solver) - set(base)
    assert sorted(trainable)[:4] == [f"layers.0.{n}.{h}" for n in ("down_proj", "v_proj") for h in ("a", "b")]


def test_tied_embeddings_are_one_tensor_before_and_after_copying() -> None:
    weights = new_weights("qwen2")
    weights.fork("solver", of="base")
    solver = weights.own("solver")
    assert solver.head is solver.embed
    assert "head" not in dict(weights.named_tensors("solver"))
    assert "head" in dict(new_weights("qwen3").named_tensors("base"))


def test_dropping_a_role_frees_what_only_it_had() -> None:
    weights = new_weights()
    weights.fork("solver", of="base")
    watch = weakref.ref(weights.own("solver").layers[0].qkv)
    weights.drop("solver")
    gc.collect()
    assert watch() is None and weights.roles == ("base",)


def test_rename_replaces() -> None:
    weights = new_weights()
    weights.fork("solver", of="base")
    train(weights, "solver")
    trained = weights.hash("solver")
    weights.fork("reference", of="base")
    weights.rename("solver", "reference")
    assert set(weights.roles) == {"base", "reference"} and weights.hash("reference") == trained


def test_hash_sees_every_tensor() -> None:
    weights = new_weights("qwen2")
    weights.add_lora("base", LoraConfig(rank=1, targets=("q_proj",)))
    seen = {weights.hash("base")}
    for _, tensor in weights.named_tensors("base"):
        tensor.view(-1)[-1] += 1
        seen.add(weights.hash("base"))
    assert len(seen) == 1 + len(list(weights.named_tensors("base")))


def test_mistaken_names_are_errors() -> None:
    weights = new_weights()
    with pytest.raises(InputError, match="'solver' does not exist"):
        weights.role("solver")
    with pytest.raises(InputError, match="'solver' does not exist"):
        weights.drop("solver")
    with pytest.raises(InputError, match="'base' exists already"):
        weights.fork("base", of="base")
    weights.add_lora("base", LoraConfig())
    with pytest.raises(InputError, match="adapters already"):
        weights.add_lora("base", LoraConfig())
