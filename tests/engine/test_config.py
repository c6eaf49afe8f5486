# SPDX-License-Identifier: Apache-2.0
"""config.json: both generations of it are read and written, the rest is refused by name."""

from typing import Any

import pytest
import transformers
from hf_models import COMMON, LLAMA3, SHAPES, hf_config

from rzero.engine.config import ModelConfig, RopeConfig
from rzero.engine.errors import InputError

BASE = {**COMMON, "model_type": "llama", "hidden_size": 40, "num_attention_heads": 4}
QWEN = {**BASE, "model_type": "qwen2"}
SCALING = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}


def test_rope_is_read_from_both_generations_of_transformers() -> None:
    old = ModelConfig.from_hf({**BASE, "rope_theta": 500000.0, "rope_scaling": SCALING})
    older = {"type": "linear", "factor": 2.0}
    new = ModelConfig.from_hf({**BASE, "rope_parameters": dict(LLAMA3)})
    assert old == new
    assert new.rope == RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 64)
    assert ModelConfig.from_hf({**BASE, "rope_scaling": older}).rope == RopeConfig("linear", 10000.0, 2.0)
    assert ModelConfig.from_hf(BASE).rope == RopeConfig("default", 10000.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_reads_back_the_same_here_and_in_transformers(shape: str) -> None:
    theirs = hf_config(shape)
    config = ModelConfig.from_hf(theirs.to_dict())
    assert ModelConfig.from_hf(config.to_hf()) == config
    back = transformers.AutoConfig.for_model(**config.to_hf())
    assert ModelConfig.from_hf(back.to_dict()) == config
    shared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    for name in (*shared, "intermediate_size", "rms_norm_eps", "tie_word_embeddings", "rope_parameters"):
        assert getattr(back, name) == getattr(theirs, name), name


def test_rope_scaling_is_written_for_old_readers_too() -> None:
    fields = ModelConfig.from_hf({**BASE, "rope_parameters": dict(LLAMA3)}).to_hf()
    assert fields["rope_theta"] == 500000.0 and fields["rope_scaling"] == SCALING


def test_derived_numbers_match_the_tensors_of_transformers() -> None:
    for shape in SHAPES:
        theirs = hf_config(shape)
        model = transformers.AutoModelForCausalLM.from_config(theirs)
        assert ModelConfig.from_hf(theirs.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_ends_of_sequence_of_both_files_count() -> None:
    config = ModelConfig.from_hf({**BASE, "eos_token_id": 2}, {"eos_token_id": [5, 2]})
    assert config.eos_token_ids == (2, 5)
    assert ModelConfig.from_hf(config.to_hf()).eos_token_ids == (2, 5)
    assert ModelConfig.from_hf({**BASE, "eos_token_id": None}).eos_token_ids == ()


def test_equal_means_that_the_same_weights_compute_the_same() -> None:
    base = ModelConfig.from_hf(BASE)
    assert ModelConfig.from_hf({**BASE, "dtype": "bfloat16", "eos_token_id": 3, "pad_token_id": 4}) == base
    for change in (
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 1e6},
        {"tie_word_embeddings": True},
        {"model_type": "qwen3"},
    ):
        assert ModelConfig.from_hf({**BASE, **change}) != base


@pytest.mark.parametrize(
    ("fields", "change", "named"),
    [
        (BASE, {"model_type": "mixtral"}, "model_type 'mixtral'"),
        (BASE, {"model_type": None}, "model_type None"),
        (BASE, {"model_type": ["llama"]}, "model_type ['llama']"),
        (BASE, {"layer_types": 3}, "layer_types is 3"),
        (BASE, {"auto_map": 7}, "auto_map is 7"),
        (BASE, {"rope_scaling": {"rope_type": ["linear"]}}, "rope_type"),
        (BASE, {"rope_theta": 0}, "rope_theta"),
        (BASE, {"use_moe": True}, "use_moe True"),
        (BASE, {"alibi": True}, "alibi True"),
        (BASE, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (BASE, {"attention_bias": True}, "attention_bias True"),
        (BASE, {"mlp_bias": True}, "mlp_bias True"),
        (BASE, {"attention_dropout": 0.1}, "attention_dropout 0.1"),
        (BASE, {"sliding_window": 4096}, "sliding_window 4096"),
        (QWEN, {"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window True"),
        (
            QWEN,
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types contains 'sliding_attention'",
        ),
        (QWEN, {"use_mrope": True}, "use_mrope True"),
        (BASE, {"num_local_experts": 8}, "num_local_experts 8"),
        (BASE, {"num_experts_per_tok": 2}, "num_experts_per_tok 2"),
        (BASE, {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        (BASE, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        (BASE, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (BASE, {"logits_scaling": 8.0}, "logits_scaling 8.0"),
        (BASE, {"embedding_multiplier": 12.0}, "embedding_multiplier 12.0"),
        (BASE, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (BASE, {"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "auto_map"),
        (BASE, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        (BASE, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        (BASE, {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "field full_attention"),
        (
            BASE,
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (BASE, {"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        (BASE, {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        (BASE, {"hidden_size": None}, "hidden_size is missing"),
        (BASE, {"hidden_size": "40"}, "hidden_size is '40'"),
        (BASE, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (BASE, {"num_key_value_heads": 3}, "num_key_value_heads 3"),
        (BASE, {"head_dim": 7}, "head_dim 7"),
        (BASE, {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        (BASE, {"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    fields: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError) as error:
        ModelConfig.from_hf({**fields, **change})
    assert named in str(error.value)


@pytest.mark.parametrize(
    "harmless",
    [
        {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28},
        {"num_experts": None, "quantization_config": None, "initializer_range": 0.02, "pretraining_tp": 2},
        {"layer_types": ["full_attention", "full_attention"], "transformers.js_config": {"dtype": "q4"}},
        {"rope_scaling": None, "unsloth_version": "2025.1"},
    ],
)
def test_fields_without_effect_are_accepted(harmless: dict[str, Any]) -> None:
    assert ModelConfig.from_hf({**QWEN, **harmless}) == ModelConfig.from_hf(QWEN)
