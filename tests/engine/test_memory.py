# SPDX-License-Identifier: Apache-2.0
"""The memory plan against what is measured."""

from dataclasses import replace

import pytest
import torch
from plain import CPU, new_trainer, random_groups, random_weights, small_config
from torch import Tensor

from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig
from rzero.engine.lora import LoraConfig
from rzero.engine.memory import (
    MemoryRequest,
    RolePlan,
    activation_bytes,
    gib,
    layer_bytes_per_token,
    plan_memory,
)
from rzero.engine.weights import Weights
from rzero.kernels.native import native_why_not

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "o_proj", "down_proj"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_adapters_take_what_the_plan_says(
    model_type: str, dtype: torch.dtype, tied: bool
) -> None:
    config = small_config(model_type, tied)
    roles = Weights(config, random_weights(config, dtype))
    roles.fork("challenger", of="base")
    roles.fork("solver", of="base")
    roles.add_lora("solver", LORA)
    roles.own("challenger")
    request = MemoryRequest(
        dtype=dtype, lora=LORA, roles=[RolePlan("challenger", "full"), RolePlan("solver", "lora")]
    )
    assert plan_memory(config, request).peak_bytes == roles.total_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", ["full", "lora"])
def test_the_optimizer_takes_what_the_plan_says(dtype: torch.dtype, held: str) -> None:
    config = small_config("qwen2")
    trainer, roles = new_trainer(config, random_weights(config, dtype), backend="auto")
    roles.fork("solver", of="base")
    if held == "lora":
        roles.add_lora("solver", LORA)
    trainer.train_step("solver", random_groups(1, ((3, 4),)), TrainConfig(kl_coef=0.0))
    state = trainer.state("solver")
    measured = sum(value.nbytes for value in state.values() if isinstance(value, Tensor))
    role = RolePlan("solver", "full" if held == "full" else "lora")
    plan = plan_memory(config, MemoryRequest(dtype=dtype, lora=LORA, roles=[role], micro_batch_tokens=64))
    assert plan.bytes_of("optimizer: moments") + plan.bytes_of("optimizer: masters") == measured


def kept_bytes(model_type: str, recompute: bool) -> tuple[int, int]:
    """Bytes of distinct storages that autograd keeps for a pass, weights aside, and the rows of the pass."""
    config = small_config(model_type)
    trainer, roles = new_trainer(config, random_weights(config, torch.float32), backend="auto")
    own = {tensor.untyped_storage().data_ptr() for _, tensor in roles.named_tensors("base")}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    cfg = TrainConfig(kl_coef=0.0, recompute_layers=recompute)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = trainer.gradients("base", random_groups(1, ((40, 41, 39), (44, 38))), cfg)
    assert result is not None
    return sum(kept.values()), result.tokens_computed


@pytest.mark.skipif(native_why_not(CPU) is not None, reason="the plan counts what the native kernels keep")
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_activations_take_what_the_plan_says(model_type: str) -> None:
    config = small_config(model_type)
    measured, tokens = kept_bytes(model_type, recompute=False)
    request = MemoryRequest(dtype=torch.float32, micro_batch_tokens=tokens)
    assert measured == pytest.approx(activation_bytes(config, request), rel=0.02)

    less, _ = kept_bytes(model_type, recompute=True)
    planned = activation_bytes(config, replace(request, recompute_layers=True))
    one_layer = tokens * layer_bytes_per_token(config, torch.float32)
    assert less == pytest.approx(planned - one_layer, rel=0.05)


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    config = small_config("llama")
    request = MemoryRequest(dtype=torch.float32, pages=2**20, micro_batch_tokens=64)
    plan = plan_memory(config, request)
    plan.require(plan.peak_bytes)
    with pytest.raises(InputError, match=r"5\.00 GiB are needed and 2\.00 GiB.*largest part is kv pages"):
        plan.require(2 * 2**30)
    assert "kv pages, while sampling" in str(plan) and "at most at a time" in str(plan)


def test_a_lora_role_needs_lora_settings() -> None:
    request = MemoryRequest(dtype=torch.float32, roles=[RolePlan("solver", "lora")])
    with pytest.raises(InputError, match="role 'solver' is held as lora"):
        plan_memory(small_config("llama"), request)


def test_bytes_for_people() -> None:
    assert gib(2**20) == "1.00 MiB" and gib(5 * 2**29) == "2.50 GiB"
