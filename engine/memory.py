# SPDX-License-Identifier: Apache-2.0
"""What a model, its roles, its page pool and a training step need in memory, computed beforehand.

Sizes of weights come from the function that allocates them, run on the meta device; sizes of optimizer state
from the number types the optimizer uses. Activations are counted tensor by tensor, as autograd keeps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.lora import LoraConfig, projection_shape
from rzero.engine.optimizer import OptimizerName, moments_dtype, needs_master
from rzero.engine.optimizer_8bit import BLOCK
from rzero.engine.weights import base_tensors, empty_weights
from rzero.kernels.linear_logprob import CHUNK_BYTES


class RolePlan(NamedTuple):
    """How a role is held.

    "shared": the tensors of another role. "apart": its own, not trained, such as a reference that stays while
    its origin is trained. "full": its own and trained. "lora": shared ones with adapters that are trained.
    """

    name: str
    held: Literal["shared", "apart", "full", "lora"]


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What is to be held at the same time. The base weights come in addition to the roles."""

    dtype: torch.dtype
    roles: Sequence[RolePlan] = ()
    lora: LoraConfig | None = None
    """The adapters of every "lora" role."""
    pages: int = 0
    page_size: int = 16
    max_seqs: int = 0
    """Sequences that are sampled in one step; their logits are float32."""
    micro_batch_tokens: int = 0
    """Tokens of one training pass; 0 = no training."""
    optimizer: OptimizerName = "adamw"
    recompute_layers: bool = False
    keep_optimizers: bool = False
    """Keep a role's optimizer state while another role is trained; else there is one state at a time."""


class Part(NamedTuple):
    name: str
    bytes: int
    when: Literal["always", "sampling", "training"] = "always"
    """Pages are given back before training, and what training needs is freed after it."""

    @property
    def title(self) -> str:
        return self.name if self.when == "always" else f"{self.name}, while {self.when}"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose; `str` is the table that is shown to the user."""

    parts: tuple[Part, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that is held at a time: what is always there, and the larger of sampling and training."""
        held = {"always": 0, "sampling": 0, "training": 0}
        for part in self.parts:
            held[part.when] += part.bytes
        return held["always"] + max(held["sampling"], held["training"])

    def rows(self) -> list[tuple[str, str]]:
        """Every part and the peak, for people."""
        parts = [(part.title, gib(part.bytes)) for part in self.parts]
        return [*parts, ("at most at a time", gib(self.peak_bytes))]

    def bytes_of(self, name: str) -> int:
        """Bytes of one part; 0 where the plan has none of that name."""
        return sum(part.bytes for part in self.parts if part.name == name)

    def require(self, available_bytes: int) -> None:
        """Raises InputError, with the numbers, where the plan needs more than there is."""
        if self.peak_bytes > available_bytes:
            largest = max(self.parts, key=lambda part: part.bytes)
            raise InputError(
                f"memory: {gib(self.peak_bytes)} are needed and {gib(available_bytes)} are available; "
                f"the largest part is {largest.name} with {gib(largest.bytes)}"
            )

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {size:>12}" for name, size in rows)


def gib(count: int) -> str:
    """Bytes for people: "1.25 GiB", below a GiB in MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def plan_memory(config: ModelConfig, request: MemoryRequest) -> MemoryPlan:
    """The plan of a request; nothing is allocated."""
    item = request.dtype.itemsize
    weights = weight_bytes(config, request.dtype)
    adapters = 0 if request.lora is None else adapter_elements(config, request.lora) * item
    parts = [Part("weights: base", weights)]
    trained: list[int] = []
    for role in request.roles:
        if role.held == "lora" and request.lora is None:
            raise InputError(
                f"memory: role {role.name!r} is held as lora, but the request has no lora settings"
            )
        if role.held == "lora":
            parts.append(Part(f"adapters: {role.name}", adapters))
            trained.append(adapters // item)
        elif role.held != "shared":
            parts.append(Part(f"weights: {role.name}", weights))
        if role.held == "full":
            trained.append(weights // item)
    if trained and request.micro_batch_tokens:
        states = sum(trained) if request.keep_optimizers else max(trained)
        wide = moments_dtype(request.dtype).itemsize
        parts.append(Part("optimizer: moments", moments_bytes(request, states)))
        if needs_master(request.dtype):
            parts.append(Part("optimizer: masters", states * wide))
        # Autograd hands over gradients in the weights' type; they are added up in the moments' type.
        passing = max(trained) * item
        parts.append(Part("gradients", max(trained) * wide + passing, "training"))
        parts.append(Part("activations", activation_bytes(config, request), "training"))
        parts.append(Part("workspace", workspace_bytes(config, request), "training"))
    if request.pages:
        kv = request.pages * request.page_size * config.kv_bytes_per_token(item)
        parts.append(Part("kv pages", kv, "sampling"))
    if request.max_seqs:
        parts.append(Part("logits", request.max_seqs * config.vocab_size * 4, "sampling"))
    return MemoryPlan(tuple(parts))


def moments_bytes(request: MemoryRequest, states: int) -> int:
    """Both moments of so many weights. The 8-bit optimizer keeps a byte and a 256th of a float32 for each,
    and the few small tensors in float32, which the plan leaves out.
    """
    if request.optimizer == "adamw_8bit":
        return 2 * (states + 4 * -(-states // BLOCK))
    return 2 * states * moments_dtype(request.dtype).itemsize


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one full set of weights."""
    return sum(
        tensor.nbytes for _, tensor in base_tensors(empty_weights(config, dtype, torch.device("meta")))
    )


def adapter_elements(config: ModelConfig, lora: LoraConfig) -> int:
    """Weights in the adapters of one role: rank times (rows + columns) of every adapted projection."""
    return config.layers * lora.rank * sum(sum(projection_shape(config, target)) for target in lora.targets)


def activation_bytes(config: ModelConfig, request: MemoryRequest) -> int:
    """What autograd keeps for one training pass until its backward, with the native kernels."""
    row, kept = config.hidden_size * request.dtype.itemsize, layer_bytes_per_token(config, request.dtype)
    if request.recompute_layers:
        # Only the inputs of each layer stay, two but for the first; one layer at a time is computed again.
        layers = (2 * config.layers - 1) * row + kept
    else:
        layers = config.layers * kept
    # The last norm's input; the head's, or, where that is not trained, its gradient in float32; ids,
    # positions, rows, targets and statistics of the log-probs.
    ends = row + 4 * config.hidden_size + 64
    return request.micro_batch_tokens * (layers + ends)


def workspace_bytes(config: ModelConfig, request: MemoryRequest) -> int:
    """Gradients of one layer's activations, which live only for a moment, and the chunk of logits."""
    widest = 3 * config.intermediate_size + config.qkv_size + 2 * config.hidden_size
    logits = min(CHUNK_BYTES, request.micro_batch_tokens * config.vocab_size * request.dtype.itemsize)
    return request.micro_batch_tokens * widest * request.dtype.itemsize + logits


def layer_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """What one layer keeps per token: the inputs of its products and norms, queries, keys and values before
    and after rotation, the attended values, and float32 statistics of two norms and the softmax.
    """
    normed = 4 * config.hidden_size
    rotated = 2 * config.qkv_size
    attended = config.heads * config.head_size
    gated = 3 * config.intermediate_size
    statistics = 4 * (2 + 2 * config.heads)
    return dtype.itemsize * (normed + rotated + attended + gated) + statistics
