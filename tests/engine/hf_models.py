# SPDX-License-Identifier: Apache-2.0
"""What the model's tests compare with: small random transformers models, and a greedy loop over pages."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor

from rzero.engine.config import ModelConfig
from rzero.engine.model import PackedStep, PagedStep, Step, forward
from rzero.engine.rope_table import rope_tables
from rzero.engine.weights import ModelWeights
from rzero.kernels import Kernels, Segments

CPU = torch.device("cpu")
POSITIONS = 256
IDS = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(3))
LLAMA3 = MappingProxyType(
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
)
# Two layers, odd sizes: head size apart from hidden size, several query heads to a key head, tied and not.
SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14,
                  "rope_parameters": LLAMA3},
        "llama-linear": {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 1,
                         "head_dim": 10, "tie_word_embeddings": True,
                         "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}},
        "qwen2": {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 3,
                  "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default",
                  "rope_theta": 1e6}},
        "qwen3": {"hidden_size": 44, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 18,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    }
)  # fmt: skip
COMMON: Mapping[str, Any] = MappingProxyType(
    {"num_hidden_layers": 2, "intermediate_size": 53, "vocab_size": 97, "max_position_embeddings": POSITIONS,
     "rms_norm_eps": 1e-5}
)  # fmt: skip


def hf_config(shape: str) -> Any:
    """The transformers config of one of SHAPES."""
    fields = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in SHAPES[shape].items()
    }
    return transformers.AutoConfig.for_model(shape.split("-")[0], **COMMON, **fields)


def random_hf(shape: str, seed: int = 0) -> Any:
    """A transformers model of one of SHAPES; every tensor is random, biases and norms too."""
    model = transformers.AutoModelForCausalLM.from_config(hf_config(shape), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
    return model


def random_config(shape: str) -> ModelConfig:
    return ModelConfig.from_hf(hf_config(shape).to_dict())


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def one_segment(length: int) -> PackedStep:
    """One sequence of this length, without a prefix."""
    return PackedStep(Segments(*(torch.tensor([value], dtype=torch.int32) for value in (0, length, 0, 0))))


def packed_logits(
    config: ModelConfig, weights: ModelWeights, kernels: Kernels, ids_T: Tensor, **options: Any
) -> Tensor:
    """Logits [T, V] of one sequence by the training forward."""
    cos_RE, sin_RE = rope_tables(config, len(ids_T), CPU)
    step = Step(ids_T, torch.arange(len(ids_T)), one_segment(len(ids_T)))
    return kernels.linear(forward(config, weights, step, kernels, cos_RE, sin_RE, **options), weights.head)


class PagedSequence:
    """One sequence in a paged cache, pages in reverse order; `logits` feeds tokens, returns their logits."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, kernels: Kernels, positions: int = POSITIONS
    ) -> None:
        self.config, self.weights, self.kernels, self.length, self.page = config, weights, kernels, 0, 16
        self.tables = rope_tables(config, positions, CPU)
        count = -(-positions // self.page)
        shape = (config.layers, count, self.page, config.kv_heads, config.head_size)
        self.k = torch.full(shape, float("nan"), dtype=weights.embed.dtype)
        self.v = torch.full(shape, float("nan"), dtype=weights.embed.dtype)
        self.table = torch.arange(count - 1, -1, -1, dtype=torch.int32)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        position = torch.arange(self.length, self.length + len(ids))
        self.length += len(ids)
        slot = self.table[position // self.page].long() * self.page + position % self.page
        attend = PagedStep(
            list(self.k), list(self.v), slot, self.table[None],
            torch.tensor([0, len(ids)], dtype=torch.int32), torch.tensor([self.length], dtype=torch.int32),
        )  # fmt: skip
        step = Step(torch.tensor(ids), position, attend)
        return self.kernels.linear(
            forward(self.config, self.weights, step, self.kernels, *self.tables), self.weights.head
        )


def greedy(sequence: PagedSequence, prompt: list[int], count: int) -> list[int]:
    """The most likely `count` tokens after the prompt, one by one."""
    logits_TV, answer = sequence.logits(prompt), []
    for _ in range(count):
        answer.append(int(logits_TV[-1].argmax()))
        logits_TV = sequence.logits(answer[-1:])
    return answer
