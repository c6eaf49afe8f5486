# SPDX-License-Identifier: Apache-2.0
"""The ops of rzero, one file each: contract, plain-torch reference, native call, declaration.

One legend of shape suffixes (`x_TD` is [T, D]): T packed tokens, B sequences, D hidden size, F feed-forward
size, H query heads, G key/value heads, E head size, V vocabulary, P pages, S tokens per page, M pages per
sequence. A float type is float32, bfloat16 or float16; the references take float64, too.

    kernels = resolve(torch.device("cpu"))       # or {"default": "ref", "attention": "native"}
    y_TD = kernels.rmsnorm(x_TD, w_D, 1e-6)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rzero.kernels.adamw import ADAMW, AdamwStep
from rzero.kernels.attention import ATTENTION, Segments
from rzero.kernels.bleu import BLEU
from rzero.kernels.checks import checked
from rzero.kernels.dispatch import REFERENCE, Choice, Impl, Op, choose, wanted_backends
from rzero.kernels.kv_write import COPY_PAGES, KV_WRITE
from rzero.kernels.linear import LINEAR
from rzero.kernels.linear_logprob import LINEAR_LOGPROB
from rzero.kernels.lora import LORA, LoraPart
from rzero.kernels.paged_attention import PAGED_ATTENTION
from rzero.kernels.policy_loss import GROUP_ADVANTAGE, POLICY_LOSS, PolicyLossConfig, PolicyLossOut
from rzero.kernels.rmsnorm import ADD_RMSNORM, RMSNORM
from rzero.kernels.rope import ROPE, Qkv
from rzero.kernels.rope_write import ROPE_WRITE
from rzero.kernels.sample import SAMPLE
from rzero.kernels.swiglu import SWIGLU

__all__ = [
    "OPS",
    "AdamwStep",
    "Choice",
    "Impl",
    "Kernels",
    "LoraPart",
    "Op",
    "PolicyLossConfig",
    "PolicyLossOut",
    "Qkv",
    "Segments",
    "resolve",
]

OPS = (
    LINEAR,
    LORA,
    RMSNORM,
    ADD_RMSNORM,
    ROPE,
    ROPE_WRITE,
    SWIGLU,
    KV_WRITE,
    COPY_PAGES,
    PAGED_ATTENTION,
    ATTENTION,
    LINEAR_LOGPROB,
    SAMPLE,
    POLICY_LOSS,
    GROUP_ADVANTAGE,
    ADAMW,
    BLEU,
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The chosen function of every op, and the report that says why. Each op's file holds its contract."""

    report: tuple[Choice, ...]
    linear: Callable[..., Tensor]
    lora: Callable[[Tensor, Tensor, Sequence[LoraPart]], Tensor]
    rmsnorm: Callable[[Tensor, Tensor, float], Tensor]
    add_rmsnorm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rope: Callable[..., Qkv]
    rope_write: Callable[..., Tensor]
    swiglu: Callable[[Tensor], Tensor]
    kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    copy_pages: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    paged_attention: Callable[..., Tensor]
    attention: Callable[[Tensor, Tensor, Tensor, Segments, float], Tensor]
    linear_logprob: Callable[..., tuple[Tensor, Tensor]]
    sample: Callable[..., tuple[Tensor, Tensor, Tensor]]
    policy_loss: Callable[..., PolicyLossOut]
    group_advantage: Callable[..., Tensor]
    adamw: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, AdamwStep], None]
    bleu: Callable[[Sequence[Sequence[int]]], npt.NDArray[np.float64]]


def resolve(
    device: torch.device, overrides: Mapping[str, str] = MappingProxyType({}), debug: bool = False
) -> Kernels:
    """Chooses an implementation of every op for `device`.

    `overrides` maps an op's name, or "default", to a backend's name or "auto". With `debug` every
    call is checked first, numbers that point somewhere included (checks.py); references always are. Raises
    ValueError for an unknown op or backend and for a backend that cannot run here.
    """
    wanted = wanted_backends(OPS, overrides)
    chosen = {op.name: choose(op, device, wanted[op.name]) for op in OPS}
    report = tuple(choice for _, choice in chosen.values())
    functions = {
        name: checked(name, function) if debug or choice.backend == REFERENCE else function
        for name, (function, choice) in chosen.items()
    }
    return Kernels(report=report, **functions)
