# SPDX-License-Identifier: Apache-2.0
"""The memory that a run will need, from its settings: for `rzero doctor`, and before a run begins."""

from typing import Literal

import torch

from rzero.config import model_path
from rzero.engine import checkpoint
from rzero.engine.config import ModelConfig
from rzero.engine.device import torch_device
from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError
from rzero.engine.kv_cache import free_bytes
from rzero.engine.lora import LoraConfig
from rzero.engine.memory import MemoryPlan, MemoryRequest, Part, RolePlan, plan_memory
from rzero.settings import Settings, Training

# Parts of a plan that each of several devices holds a share of.
SHARDED = ("weights: ", "optimizer: ", "gradients")


def require_memory(config: Settings, *, trains: bool = True) -> None:
    """Raises InputError, with the numbers and what to change, where a run needs more than is free now.

    A page pool of no set size takes what is left, so that it is not counted. trains: False for a base that
    only answers, as in an evaluation.
    """
    if not config.engine.check_memory:
        return
    device = torch_device(config.engine.device)
    sized = config.engine.num_pages is not None or config.engine.kv_cache_gib is not None
    plan = run_plan(config, planned_dtype(config, "auto", device), trains=trains)
    if not sized:
        plan = MemoryPlan(tuple(part for part in plan.parts if part.name != "kv pages"))
    try:
        plan.require(free_bytes(device))
    except InputError as error:
        if not trains:
            raise InputError(f"{error}; fewer engine.max_seqs (--max-seqs) need less") from None
        raise InputError(
            f"{error}; roles: lora, fewer micro_batch_tokens (challenger and solver) and fewer "
            "engine.max_seqs need less; `rzero doctor --config FILE` shows the whole plan, and "
            "engine.check_memory: false runs all the same"
        ) from None


def planned_dtype(config: Settings, dtype: str, device: torch.device | None) -> torch.dtype:
    """The number type of a planned run: as asked for, else the settings', else what the device is good at.

    device: None for one that is not here, which is taken to multiply bfloat16.
    """
    name = config.engine.dtype if dtype == "auto" else dtype
    if device is None:
        return torch.bfloat16 if name == "auto" else choose_dtype(name, torch.device("cpu"))[0]
    return choose_dtype(name, device)[0]


def run_plan(config: Settings, dtype: torch.dtype, devices: int = 1, *, trains: bool = True) -> MemoryPlan:
    """The memory plan of a run on `config.model`, of which only config.json is read, or downloaded.

    devices: where more than one, what FSDP2 would shard (each role's own weights, optimizer and gradients) is
    counted by the part that one device holds; one full set of weights stays on each for sampling. trains:
    False for the base alone, which is sampled from.
    """
    folder = checkpoint.resolve_model(model_path(config.model), only_config=True)
    model = checkpoint.load_config(folder)
    held: Literal["lora", "full"] = "lora" if config.roles == "lora" else "full"
    names = ("solver",) if config.roles == "single" else ("challenger", "solver")
    roles = [RolePlan(name, held) for name in names]
    if held == "full" and any(how.kl_coef and how.kl_reference == "phase" for how in phases_of(config)):
        # From the second phase of a role on its reference holds what the role began the phase with.
        roles.append(RolePlan("reference", "apart"))
    plan = plan_memory(
        model,
        MemoryRequest(
            dtype=dtype,
            roles=roles if trains else [],
            lora=LoraConfig(rank=config.lora.rank, alpha=config.lora.alpha) if held == "lora" else None,
            pages=planned_pages(config, model, dtype),
            page_size=config.engine.page_size,
            max_seqs=config.engine.max_seqs,
            micro_batch_tokens=max(how.micro_batch_tokens for how in phases_of(config)),
            optimizer=config.engine.optimizer,
            keep_optimizers=any(how.keep_optimizer for how in phases_of(config)),
        ),
    )
    return MemoryPlan(tuple(_on_one_device(part, devices) for part in plan.parts))


def phases_of(config: Settings) -> tuple[Training, ...]:
    """The settings of the phases that train; the Solver's always does."""
    return tuple(how for how in (config.challenger, config.solver) if how.steps)


def planned_pages(config: Settings, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages of the pool: as set, else what the cache's memory holds, else every sequence at its longest."""
    how = config.engine
    if how.num_pages is not None:
        return how.num_pages
    if how.kv_cache_gib is not None:
        return int(how.kv_cache_gib * 2**30) // (how.page_size * model.kv_bytes_per_token(dtype.itemsize))
    length = how.max_model_len or config.max_question_tokens + config.solver.sampling.max_tokens
    return how.max_seqs * -(-min(length, model.max_positions) // how.page_size)


def _on_one_device(part: Part, devices: int) -> Part:
    if devices == 1 or part.name == "weights: base" or not part.name.startswith(SHARDED):
        return part
    return part._replace(name=f"{part.name}, 1/{devices}", bytes=-(-part.bytes // devices))
