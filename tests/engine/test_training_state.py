# SPDX-License-Identifier: Apache-2.0
"""Optimizer state: saved, restored, begun anew, refused where it does not belong."""

import pytest
import torch
from plain import new_trainer, random_groups, random_weights, small_config
from test_trainer import BASE, LENGTHS, three_steps, with_reference
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.lora import LoraConfig
from rzero.engine.weights import base_tensors, substitute


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_from_a_restored_state_with_the_same_bits(dtype: torch.dtype) -> None:
    config = small_config("qwen3")
    trainer, roles = with_reference(new_trainer(config, random_weights(config, dtype), backend="auto"))
    three_steps(trainer, "base")
    state = {name: x.clone() if isinstance(x, Tensor) else x for name, x in trainer.state("base").items()}
    held = substitute(roles.role("base"), {id(t): t.clone() for _, t in base_tensors(roles.role("base"))})
    metrics = three_steps(trainer, "base", first=10)

    other, other_roles = new_trainer(config, held, backend="auto")
    other_roles.replace("reference", roles.role("reference"))
    other.load_state("base", state)
    assert three_steps(other, "base", first=10) == metrics
    assert other_roles.hash("base") == roles.hash("base")
    final, other_final = trainer.state("base"), other.state("base")
    assert final.pop("step") == other_final.pop("step") == 6
    assert all(torch.equal(final[name], other_final[name]) for name in final)


def test_a_state_of_another_shape_is_refused() -> None:
    config = small_config("llama")
    trainer, _ = with_reference(new_trainer(config, random_weights(config, torch.float32)))
    three_steps(trainer, "base")
    state = trainer.state("base")
    for bad, words in (
        ({**state, "exp_avg.embed": torch.zeros(2)}, "exp_avg.embed"),
        ({**state, "exp_avg.other": torch.zeros(2)}, "exp_avg.other"),
        ({**state, "step": -1}, "step"),
        ({name: x for name, x in state.items() if name != "exp_avg_sq.head"}, "exp_avg_sq.head"),
        ({"step": 3}, "is missing"),
    ):
        with pytest.raises(InputError, match=words):
            trainer.load_state("base", bad)
    with pytest.raises(InputError, match="slover"):
        trainer.state("slover")


def test_a_state_of_other_weights_is_refused() -> None:
    """Its masters would put the weights back to where they were in the first update."""
    config = small_config("llama")
    trainer, _ = with_reference(new_trainer(config, random_weights(config, torch.bfloat16)))
    three_steps(trainer, "base")
    state = {name: x.clone() if isinstance(x, Tensor) else x for name, x in trainer.state("base").items()}
    three_steps(trainer, "base", first=10)
    with pytest.raises(InputError, match="is not of the role's weights"):
        trainer.load_state("base", state)


def test_adapters_on_a_trained_role_begin_their_moments_anew() -> None:
    config = small_config("llama")
    trainer, roles = with_reference(new_trainer(config, random_weights(config, torch.float32)))
    three_steps(trainer, "base")
    roles.add_lora("base", LoraConfig(rank=2))
    metrics = trainer.train_step("base", random_groups(1, LENGTHS), BASE, "reference")
    assert metrics["updates"] == 1
    state = trainer.state("base")
    adapters = set(dict(roles.trainable_tensors("base")))
    assert {name.partition(".")[2] for name in state if name != "step"} == adapters
    trainer.load_state("base", {name: x.clone() if isinstance(x, Tensor) else x for name, x in state.items()})


def test_reset_forgets_the_moments() -> None:
    config = small_config("llama")
    trainer, _ = with_reference(new_trainer(config, random_weights(config, torch.float32)))
    three_steps(trainer, "base")
    trainer.reset("base")
    assert trainer.state("base") == {"step": 0}
