# SPDX-License-Identifier: Apache-2.0
"""A role's adapters as a PEFT folder (https://github.com/huggingface/peft): written so that PEFT loads it,
read where it holds nothing but plain low-rank adapters.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from rzero.engine.checkpoint import check_part, read_json, write_json
from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.lora import MODULES, Adapter, LayerLora, LoraConfig, projection_shape
from rzero.engine.tensor_file import fill_file, new_folder, reading
from rzero.engine.weights import ModelWeights

ADAPTER_CONFIG = "adapter_config.json"
# Fields of adapter_config.json whose listed values leave the plain product b a; any other value is refused.
ADAPTER_FIXED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "lora_bias": (False, None),
        "fan_in_fan_out": (False, None),
        "modules_to_save": (None, []),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "layer_replication": (None, []),
        "target_parameters": (None, []),
        "trainable_token_indices": (None, []),
        "alora_invocation_tokens": (None, []),
    }
)
ADAPTER_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)


def save_adapter(folder: Path, weights: ModelWeights, base: str) -> None:
    """Write a role's adapters as a folder that PEFT loads over the model named `base`, in a single step."""
    lora = weights.lora
    assert lora is not None, "a role without adapters is saved by save_hf"
    tensors = {}
    places = []
    for index, layer in enumerate(weights.layers):
        for target, module in MODULES.items():
            adapter: Adapter | None = getattr(layer.lora, target) if layer.lora else None
            if adapter is not None:
                places.append(f"layers.{index}.{module}")
                prefix = f"base_model.model.model.layers.{index}.{module}"
                tensors[f"{prefix}.lora_A.weight"] = adapter.a
                tensors[f"{prefix}.lora_B.weight"] = adapter.b
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        # Adapters in some of the layers alone are told by a pattern.
        "target_modules": list(lora.targets)
        if len(places) == len(weights.layers) * len(lora.targets)
        else rf".*\.({'|'.join(map(re.escape, places))})",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as new:
        write_json(new / ADAPTER_CONFIG, fields)
        fill_file(new / "adapter_model.safetensors", tensors)


def _check_complete(
    path: Path, fields: Mapping[str, Any], config: ModelConfig, given: Collection[tuple[int, str, str]]
) -> None:
    """Raises InputError for a matrix that the PEFT configuration promises and the file does not hold.

    Which layers a pattern means, or a list with exceptions, only PEFT itself can tell.
    """
    targets = fields.get("target_modules")
    exceptions = (fields.get(name) for name in ("layers_to_transform", "exclude_modules"))
    if not isinstance(targets, list) or any(given not in (None, []) for given in exceptions):
        return
    for index in range(config.layers):
        for target in targets:
            for half in "AB":
                if target in MODULES and (index, target, half) not in given:
                    name = f"base_model.model.model.layers.{index}.{MODULES[target]}.lora_{half}.weight"
                    raise InputError(f"{path}: tensor {name} is missing, which target_modules asks for")


def load_adapter(folder: Path, config: ModelConfig, base: ModelWeights) -> ModelWeights:
    """`base` with the adapters of a PEFT folder, in base's number type and device; the base tensors are
    shared.

    Dropout in the folder's configuration is for PEFT's own training and has no effect here. Raises InputError
    for another kind of adapter and for tensors that do not fit the model.
    """
    fields = read_json(folder / ADAPTER_CONFIG)
    for name, allowed in ADAPTER_FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(
                f"adapter_config.json: {name} {fields[name]!r} is not supported (allowed: {allowed[0]!r})"
            )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if (
        not isinstance(rank, int)
        or not isinstance(alpha, int | float)
        or rank < 1
        or not 0 < alpha < math.inf
    ):
        raise InputError(
            f"{folder / ADAPTER_CONFIG}: r must be a whole number and lora_alpha a number, both above 0; "
            f"found {rank!r}, {alpha!r}"
        )
    # Rank-stabilised adapters divide by the root of the rank; as a plain adapter that is a larger alpha.
    alpha = alpha * math.sqrt(rank) if fields.get("use_rslora") else alpha
    path = folder / "adapter_model.safetensors"
    halves: dict[tuple[int, str, str], Tensor] = {}
    with reading(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            found = ADAPTER_NAME.fullmatch(name)
            if not found or found[2] not in MODULES or int(found[1]) >= config.layers:
                raise InputError(f"{path}: tensor {name} fits no projection of this model")
            rows, columns = projection_shape(config, found[2])
            shape = (rank, columns) if found[3] == "A" else (rows, rank)
            check_part(path, file, name, shape)
            # A copy, since what the file gives is a view of the file itself.
            halves[int(found[1]), found[2], found[3]] = file.get_tensor(name).to(base.embed, copy=True)
    targets = tuple(target for target in MODULES if any(key[1] == target for key in halves))
    lora = LoraConfig(rank=rank, alpha=float(alpha), targets=targets)

    def adapter(index: int, target: str) -> Adapter | None:
        a, b = halves.get((index, target, "A")), halves.get((index, target, "B"))
        if (a is None) != (b is None):
            raise InputError(f"{path}: layer {index} has only one of the two matrices of {target}")
        return Adapter(a, b, lora.scale) if a is not None and b is not None else None

    layers = tuple(
        replace(layer, lora=LayerLora(**{target: adapter(index, target) for target in targets}))
        for index, layer in enumerate(base.layers)
    )
    _check_complete(path, fields, config, halves.keys())
    return replace(base, layers=layers, lora=lora)
