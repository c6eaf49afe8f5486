# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face folder of the embedded model: weights, configuration, tokenizer, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny.corpus import VOCABULARY
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3ForCausalLM

_SPECIAL = ("<pad>", "<eos>", "<C>", "<S>")
_WHOLE = ("<question>", "</question>", "\\boxed{")


def build_tokenizer() -> Tokenizer:
    """One token per character, except for the tags and the opening of a box; no unknown token.

    A character outside of the vocabulary makes `encode` raise instead of being dropped in silence."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _WHOLE])
    return tokenizer


def model_config() -> dict[str, object]:
    """config.json, in the spelling that every transformers release since 4.51 reads."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def write_folder(folder: Path, model: Qwen3ForCausalLM, card: str) -> None:
    """Write the folder beside `folder` and swap it in, so that a reader never sees half of it."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)
    build_tokenizer().save(str(fresh / "tokenizer.json"))
    _write_json(fresh / "config.json", model_config())
    sampling = {"do_sample": True, "temperature": 1.0, "eos_token_id": 1, "pad_token_id": 0}
    _write_json(fresh / "generation_config.json", sampling)
    _write_json(
        fresh / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "additional_special_tokens": ["<C>", "<S>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
            "padding_side": "left",
        },
    )
    (fresh / "README.md").write_text(card, encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
