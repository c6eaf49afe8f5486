# SPDX-License-Identifier: Apache-2.0
"""The roles of a run in the engine: how they begin, what a phase changes, what is saved of them and restored.

"base" is never trained. A role that was not trained yet shares the base's tensors and has nothing to save.
"""

from collections.abc import Mapping

import torch

from rzero.engine.engine import Engine
from rzero.engine.lora import LoraConfig
from rzero.rollout import Run, Unit
from rzero.run_folder import State
from rzero.seeds import derive
from rzero.settings import Settings, Training

BASE, CHALLENGER, SOLVER, REFERENCE = "base", "challenger", "solver", "reference"
# Names of a saved role's tensors begin with where they belong.
WEIGHT, OPTIMIZER = "weight.", "optimizer."


def adopt_roles(engine: Engine, settings: Settings) -> tuple[str, str]:
    """Fork the roles from the base; returns the names of Challenger and Solver, equal for "single"."""
    drop_roles(engine)
    names = (SOLVER, SOLVER) if settings.roles == "single" else (CHALLENGER, SOLVER)
    for name in dict.fromkeys(names):
        engine.fork(name, BASE)
        if settings.roles == "lora":
            adapter = LoraConfig(rank=settings.lora.rank, alpha=settings.lora.alpha)
            engine.weights.add_lora(name, adapter, seed=derive(settings.seed, "lora", name))
    return names


def drop_roles(engine: Engine) -> None:
    """Forget every role but the base, with its optimizer."""
    for name in engine.weights.roles:
        if name != BASE:
            engine.drop(name)


def begin_phase(run: Run, unit: Unit) -> set[str]:
    """Prepare the role that a phase trains; returns the roles whose saved tensors this changes."""
    trained: dict[str, tuple[Training, str]] = {
        "challenger": (run.config.challenger, run.challenger),
        "solver": (run.config.solver, run.solver),
    }
    if unit.phase not in trained:
        return set()
    settings, role = trained[unit.phase]
    changed = {role}
    for how, name in trained.values():
        # A state that is not kept is of no use while the other role is trained, and as large as two roles.
        if (name != role or how is settings) and not how.keep_optimizer:
            if run.engine.training_state(name)["step"]:
                changed.add(name)
            run.engine.reset_optimizer(name)
    if REFERENCE in run.engine.weights.roles:
        run.engine.drop(REFERENCE)
    if settings.kl_coef == 0 or settings.kl_reference == "base":
        return changed
    run.engine.fork(REFERENCE, role)
    return {*changed, REFERENCE}


def saved_state(run: Run, units: int, unit: str) -> State:
    """What a resumed run needs: tensors of roles that differ from the base, and optimizer states."""
    weights = run.engine.weights
    base = {id(tensor) for _, tensor in weights.named_tensors(BASE)}
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    steps: dict[str, int] = {}
    for role in weights.roles:
        if role == BASE:
            continue
        own = {name: tensor for name, tensor in weights.trainable_tensors(role) if id(tensor) not in base}
        tensors[role] = {WEIGHT + name: tensor for name, tensor in own.items()}
        if role != REFERENCE:
            state = dict(run.engine.training_state(role))
            steps[role] = int(state.pop("step"))
            tensors[role] |= {OPTIMIZER + name: t for name, t in state.items() if isinstance(t, torch.Tensor)}
    return State(units, unit, tensors, {"optimizer_steps": steps})


def restore(run: Run, state: State) -> None:
    """Put saved tensors and optimizers back in place; the roles were adopted before."""
    engine = run.engine
    if REFERENCE in state.tensors:
        # It is a copy of the role it was forked from, whose kind (full or adapter) all trained roles share.
        engine.fork(REFERENCE, run.solver)
    for role, saved in state.tensors.items():
        weights = _part(saved, WEIGHT)
        if weights:
            engine.weights.own(role)
            with torch.no_grad():
                for name, tensor in engine.weights.trainable_tensors(role):
                    tensor.copy_(weights[name])
        if role != REFERENCE:
            step = state.facts["optimizer_steps"][role]
            engine.load_training_state(role, {"step": step, **_part(saved, OPTIMIZER)})


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
