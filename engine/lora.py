# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (Hu et al., 2021, arXiv:2106.09685): y = x W^T + (alpha / rank) (x a^T) b^T.

Adapters are per projection, under the names that PEFT uses, although the projections themselves are stored
fused: an adapter that PEFT wrote fits without change, and PEFT loads what is saved here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError

# Where PEFT finds each projection inside a layer.
MODULES: Mapping[str, str] = MappingProxyType(
    {
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.o_proj",
        "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
    }
)


@dataclass(frozen=True)
class LoraConfig:
    """How a role is adapted: rank, alpha (the product is scaled by alpha / rank), projections."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(MODULES)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora rank is {self.rank}, expected at least 1")
        if not self.alpha > 0:
            raise InputError(f"lora alpha is {self.alpha}, expected a positive number")
        unknown = [target for target in self.targets if target not in MODULES]
        if unknown or not self.targets:
            raise InputError(
                f"lora targets {list(self.targets)} are not all known (allowed: {', '.join(MODULES)})"
            )

    @property
    def scale(self) -> float:
        """The factor on the adapters' product."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Adapter:
    """One projection's low-rank pair: a [rank, in], b [out, rank] and the factor on their product."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class LayerLora:
    """The adapters of one decoder layer; None where a projection is not adapted."""

    q_proj: Adapter | None = None
    k_proj: Adapter | None = None
    v_proj: Adapter | None = None
    o_proj: Adapter | None = None
    gate_proj: Adapter | None = None
    up_proj: Adapter | None = None
    down_proj: Adapter | None = None


def projection_shape(config: ModelConfig, target: str) -> tuple[int, int]:
    """(out, in) of a projection's matrix."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_size, config.kv_heads * config.head_size
    shapes = {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    return shapes[target]


def new_layer_lora(
    config: ModelConfig, lora: LoraConfig, like: Tensor, generator: torch.Generator
) -> LayerLora:
    """Adapters without effect, in `like`'s number type and device: a uniform as PEFT draws it, b zero."""

    def new(target: str) -> Adapter:
        rows, columns = projection_shape(config, target)
        bound = 1 / math.sqrt(columns)
        a = torch.empty(lora.rank, columns).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(rows, lora.rank, dtype=like.dtype, device=like.device)
        return Adapter(a.to(dtype=like.dtype, device=like.device), b, lora.scale)

    return LayerLora(**{target: new(target) for target in MODULES if target in lora.targets})


def merged_matrix(matrix: Tensor, adapters: tuple[Adapter | None, ...], sizes: tuple[int, ...]) -> Tensor:
    """A copy of a fused matrix with the adapters' products added to the rows of each part (float32
    arithmetic).

    The matrix itself where no part is adapted.
    """
    if not any(adapters):
        return matrix
    result = matrix.detach().clone()
    for rows, adapter in zip(torch.split(result, list(sizes)), adapters, strict=True):
        if adapter is not None:
            product = adapter.b.detach().float() @ adapter.a.detach().float()
            rows.copy_(rows.float() + adapter.scale * product)
    return result
