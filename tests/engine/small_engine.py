# SPDX-License-Identifier: Apache-2.0
"""Engines over small random models, for tests of sampling."""

from itertools import chain
from typing import Any

import numpy as np
import torch

from rzero.engine import Engine, Model, ModelConfig, RequestOutput, Sample, SamplingParams
from rzero.engine.config import RopeConfig
from rzero.engine.tokenizer import Tokenizer
from rzero.engine.weights import base_tensors, empty_weights

VOCABULARY = 61
POSITIONS = 96
EOS = 7


def small_model(vocab_size: int = VOCABULARY, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """Two layers, three query heads to a key head; logits are sharp enough that answers differ from noise."""
    config = ModelConfig(
        model_type="qwen2", hidden_size=36, layers=2, heads=6, kv_heads=2, head_size=8, intermediate_size=44,
        vocab_size=vocab_size, rms_norm_eps=1e-5, rope=RopeConfig(theta=1000.0), max_positions=POSITIONS,
        qkv_bias=True, tied=True, eos_token_ids=(EOS,),
    )  # fmt: skip
    weights = empty_weights(config, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in base_tensors(weights):
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1 + 0.1 * noise if "norm" in name else 0.3 * noise)
    return Model(config, weights)


def small_engine(model: Model | None = None, **options: Any) -> Engine:
    return Engine(small_model() if model is None else model, **{"page_size": 4, "num_pages": 256} | options)


def is_exact(engine: Engine) -> bool:
    """Whether rows do not depend on the batch; plain-torch attention promises that up to rounding only."""
    return all(choice.backend != "ref" for choice in engine.kernels.report if "attention" in choice.op)


def byte_model(seed: int = 0) -> Model:
    """A model over single bytes with a byte-level tokenizer: any text is possible, broken characters too."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*alphabet, "<end>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    model = small_model(vocab_size=257, seed=seed)
    return Model(model.config, model.weights, Tokenizer(hf, model.config))


def samples(outputs: list[RequestOutput]) -> list[list[Sample]]:
    return [output.samples for output in outputs]


def assert_same(got: list[list[Sample]], wanted: list[list[Sample]], exact: bool) -> None:
    if exact:
        assert got == wanted
        return
    for a, b in zip(chain(*got), chain(*wanted), strict=True):
        assert a.token_ids == b.token_ids
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-5)


def idle(engine: Engine) -> bool:
    engine._scheduler.check()
    return not engine.has_work and engine._scheduler.pool.free_count == engine._scheduler.pool.num_pages


PARAMS = SamplingParams(n=3, max_tokens=20, seed=5)
PROMPTS = ([1, 2, 3], [4] * 30, [1, 2, 3, 4], [50, 8, 9, 10, 11, 12, 13, 14], [60])
