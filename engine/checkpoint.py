# SPDX-License-Identifier: Apache-2.0
"""Models as Hugging Face folders: found, read straight into the fused tensors, and written so that
transformers loads them.

Reading maps the files and copies tensor by tensor, so that no second copy of the model is ever held. Writing
fills a sibling folder and renames it: a full disk or an interrupt leaves the old contents as they were.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.tensor_file import fill_file, new_folder, reading
from rzero.engine.weights import ModelWeights, empty_weights, merge_lora

READABLE_DTYPES = ("F64", "F32", "BF16", "F16")
SHARD_BYTES = 5_000_000_000
# What a folder holds beside the weights and a new checkpoint inherits.
INHERITED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
)
CONFIG_FILES = ("config.json", "generation_config.json")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*")


def resolve_model(name_or_path: str | Path, *, only_config: bool = False) -> Path:
    """The folder of a model: a local one, or that of a hub name such as `Qwen/Qwen3-0.6B`, downloaded where
    necessary.

    only_config: what `load_config` reads is enough, so that no weights are downloaded for it. Raises
    InputError where neither exists.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(
            f"model {str(name_or_path)!r} is a file, expected a Hugging Face folder or a hub name"
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(name_or_path)):
        raise InputError(
            f"model {str(name_or_path)!r}: there is no such folder, and a hub name looks like owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = CONFIG_FILES if only_config else MODEL_FILES
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {str(name_or_path)!r}: there is no such folder, and the hub does not give it: {reason}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; InputError where it is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_config(folder: Path) -> ModelConfig:
    """The model's shape from `config.json`, its ends of sequence also from `generation_config.json`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    generation = folder / "generation_config.json"
    return ModelConfig.from_hf(
        read_json(folder / "config.json"), read_json(generation) if generation.is_file() else None
    )


def hf_tensors(config: ModelConfig, weights: ModelWeights) -> dict[str, Tensor]:
    """The names that transformers uses, each with its part (a view) of the fused tensors; no adapters."""
    tensors = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.final_norm}
    if not config.tied:
        tensors["lm_head.weight"] = weights.head
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        parts = {
            "input_layernorm.weight": layer.input_norm,
            "post_attention_layernorm.weight": layer.post_norm,
            "self_attn.o_proj.weight": layer.o,
            "mlp.down_proj.weight": layer.down,
            "mlp.gate_proj.weight": layer.gate_up[: config.intermediate_size],
            "mlp.up_proj.weight": layer.gate_up[config.intermediate_size :],
            "self_attn.q_norm.weight": layer.q_norm,
            "self_attn.k_norm.weight": layer.k_norm,
        }
        names = ("q_proj", "k_proj", "v_proj")
        for name, part in zip(names, torch.split(layer.qkv, list(config.qkv_sizes)), strict=True):
            parts[f"self_attn.{name}.weight"] = part
        if layer.qkv_bias is not None:
            for name, part in zip(names, torch.split(layer.qkv_bias, list(config.qkv_sizes)), strict=True):
                parts[f"self_attn.{name}.bias"] = part
        tensors |= {prefix + name: part for name, part in parts.items() if part is not None}
    return tensors


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Read a folder's safetensors into new fused tensors of the given number type and device.

    Raises InputError for a tensor that is missing, has another shape, is no floating-point tensor or would
    have changed the result had it been left out, and for a file that is missing or truncated.
    """
    files = _files(folder)
    if config.layers > len(files):
        raise InputError(
            f"{folder}: config.json gives num_hidden_layers {config.layers}, the files {len(files)} tensors"
        )
    # transformers saves a bare decoder, without the head, under names without the prefix.
    strip = "" if "model.embed_tokens.weight" in files else "model."

    def wanted(weights: ModelWeights) -> dict[str, Tensor]:
        return {name.removeprefix(strip): part for name, part in hf_tensors(config, weights).items()}

    # Names and shapes are compared before memory is taken for what config.json says.
    try:
        nowhere = empty_weights(config, dtype, torch.device("meta"))
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"{folder}: config.json describes tensors that no memory holds: {error}") from error
    shapes = {name: tuple(part.shape) for name, part in wanted(nowhere).items()}
    _check_names(folder, config, set(files), set(shapes))
    by_file: dict[Path, list[str]] = {}
    for name in shapes:
        by_file.setdefault(files[name], []).append(name)
    for path, names in by_file.items():
        with reading(path) as file:
            for name in names:
                check_part(path, file, name, shapes[name])
    weights = empty_weights(config, dtype, device)
    targets = wanted(weights)
    for path, names in by_file.items():
        with reading(path) as file:
            for name in names:
                targets[name].copy_(file.get_tensor(name))
    if config.tied and "lm_head.weight" in files:
        _check_tied(files["lm_head.weight"], weights.embed)
    return weights


def _files(folder: Path) -> dict[str, Path]:
    """Every tensor's name with the file that holds it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file() and not single.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise InputError(f"{index}: weight_map is missing or is no map from tensors to files")
        return {name: folder / file for name, file in weight_map.items()}
    if not single.is_file():
        raise InputError(f"{folder}: there is neither model.safetensors nor model.safetensors.index.json")
    with reading(single) as file:
        return dict.fromkeys(file.keys(), single)


def _check_names(folder: Path, config: ModelConfig, given: set[str], wanted: set[str]) -> None:
    missing = sorted(wanted - given)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{folder}: tensor {missing[0]} is missing{more}")
    # Rotary frequencies follow from config.json; a tied head is compared with the embedding.
    inert = {"lm_head.weight"} if config.tied else set()
    extra = sorted(name for name in given - wanted - inert if not name.endswith("rotary_emb.inv_freq"))
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(
            f"{folder}: tensor {extra[0]} does not belong to a {config.model_type} of this config{more}"
        )


def check_part(path: Path, file: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raises InputError where a tensor of an open safetensors file has another shape or no float type."""
    part = file.get_slice(name)
    if tuple(part.get_shape()) != shape:
        raise InputError(f"{path}: tensor {name} has shape {list(part.get_shape())}, expected {list(shape)}")
    if part.get_dtype() not in READABLE_DTYPES:
        raise InputError(
            f"{path}: tensor {name} is stored as {part.get_dtype()} (allowed: {', '.join(READABLE_DTYPES)})"
        )


def _check_tied(path: Path, embed_VD: Tensor) -> None:
    with reading(path) as file:
        head_VD = file.get_tensor("lm_head.weight")
        same = head_VD.shape == embed_VD.shape and torch.equal(head_VD.to(embed_VD), embed_VD)
    if not same:
        raise InputError(
            f"{path}: lm_head.weight differs from the embedding, but config.json has tie_word_embeddings true"
        )


def save_hf(
    folder: Path,
    config: ModelConfig,
    weights: ModelWeights,
    source: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that transformers loads, replacing one of that name in a single step.

    weights may carry adapters: they are merged. The number type is that of the weights. `source` is the
    folder whose tokenizer, chat template and generation settings come along. Raises InputError where the disk
    is full.
    """
    tensors = hf_tensors(config, merge_lora(config, weights))
    dtype = str(weights.embed.dtype).removeprefix("torch.")
    inherited = [source / name for name in INHERITED if (source / name).is_file()] if source else []
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    with new_folder(folder, total_bytes + sum(path.stat().st_size for path in inherited)) as new:
        for path in inherited:
            shutil.copyfile(path, new / path.name)
        write_json(new / "config.json", config.to_hf() | {"torch_dtype": dtype, "dtype": dtype})
        shards = _shards(tensors, shard_bytes)
        if len(shards) == 1:
            fill_file(new / "model.safetensors", tensors)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            fill_file(new / name, shard)
            weight_map |= dict.fromkeys(shard, name)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(new / "model.safetensors.index.json", index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file for people to read: indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], limit_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    filled_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled_bytes + tensor.nbytes > limit_bytes:
            shards.append({})
            filled_bytes = 0
        shards[-1][name] = tensor
        filled_bytes += tensor.nbytes
    return shards
