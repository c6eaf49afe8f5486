# SPDX-License-Identifier: Apache-2.0
"""The weights of every role, shared until a role is trained.

A role is a name for a plain record of tensors. `fork` makes a second name for the same tensors and costs no
memory; `own` gives a role its own copy of those tensors it is about to train, one by one, and leaves every
other role as it was. Query, key and value projections are stored as one matrix, gate and up projections as
another: fewer, larger products.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.lora import Adapter, LayerLora, LoraConfig, merged_matrix, new_layer_lora


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; X = (H + 2 G) E rows hold the queries, then the keys, then the values."""

    input_norm: Tensor
    """[D]"""
    qkv: Tensor
    """[X, D]"""
    qkv_bias: Tensor | None
    """[X]"""
    q_norm: Tensor | None
    """[E]"""
    k_norm: Tensor | None
    """[E]"""
    o: Tensor
    """[D, H E]"""
    post_norm: Tensor
    """[D]"""
    gate_up: Tensor
    """[2 F, D]: gate first"""
    down: Tensor
    """[D, F]"""
    lora: LayerLora | None = None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All tensors of one role; `head` is `embed` itself where the embeddings are tied."""

    embed: Tensor
    """[V, D]"""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    """[D]"""
    head: Tensor
    """[V, D]"""
    lora: LoraConfig | None = None


def base_tensors(weights: ModelWeights) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors without adapters, in a fixed order; tied embeddings come once, as `embed`."""
    yield "embed", weights.embed
    for index, layer in enumerate(weights.layers):
        for name in LAYER_TENSORS:
            tensor = getattr(layer, name)
            if tensor is not None:
                yield f"layers.{index}.{name}", tensor
    yield "final_norm", weights.final_norm
    if weights.head is not weights.embed:
        yield "head", weights.head


def adapter_tensors(weights: ModelWeights) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the adapters, in a fixed order."""
    for index, layer in enumerate(weights.layers):
        if layer.lora is not None:
            for field in fields(layer.lora):
                adapter: Adapter | None = getattr(layer.lora, field.name)
                if adapter is not None:
                    yield f"layers.{index}.{field.name}.a", adapter.a
                    yield f"layers.{index}.{field.name}.b", adapter.b


def empty_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Uninitialised tensors of the model's shapes."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    hidden, head_size = config.hidden_size, config.head_size
    layers = tuple(
        LayerWeights(
            input_norm=new(hidden),
            qkv=new(config.qkv_size, hidden),
            qkv_bias=new(config.qkv_size) if config.qkv_bias else None,
            q_norm=new(head_size) if config.qk_norm else None,
            k_norm=new(head_size) if config.qk_norm else None,
            o=new(hidden, config.heads * head_size),
            post_norm=new(hidden),
            gate_up=new(2 * config.intermediate_size, hidden),
            down=new(hidden, config.intermediate_size),
        )
        for _ in range(config.layers)
    )
    embed = new(config.vocab_size, hidden)
    head = embed if config.tied else new(config.vocab_size, hidden)
    return ModelWeights(embed=embed, layers=layers, final_norm=new(hidden), head=head)


class Weights:
    """A set of roles over one model; every role is a `ModelWeights` that may share tensors with others."""

    def __init__(self, config: ModelConfig, base: ModelWeights, role: str = "base") -> None:
        self.config = config
        self.version = 0
        """Grows whenever a role gets other tensors; values of tensors may change without it."""
        self._roles: dict[str, ModelWeights] = {}
        self._bases: dict[str, tuple[int, ...]] = {}
        self._set(role, base)

    def _set(self, name: str, weights: ModelWeights) -> None:
        self._roles[name] = weights
        self._bases[name] = tuple(id(tensor) for _, tensor in base_tensors(weights))
        self.version += 1

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles, oldest first."""
        return tuple(self._roles)

    def role(self, name: str) -> ModelWeights:
        """The tensors of a role; raises InputError for an unknown name."""
        try:
            return self._roles[name]
        except KeyError:
            raise InputError(f"role {name!r} does not exist (there are: {', '.join(self._roles)})") from None

    def base(self, name: str) -> tuple[int, ...]:
        """Equal for two roles exactly if they share all tensors but adapters: one batch can mix them."""
        self.role(name)
        return self._bases[name]

    def fork(self, name: str, of: str) -> None:
        """A new role with the same tensors as `of`: no copy is made until one of the two is trained."""
        if name in self._roles:
            raise InputError(f"role {name!r} exists already; drop it first")
        self._set(name, self.role(of))

    def drop(self, name: str) -> None:
        """Forget a role; tensors that no other role shares are freed."""
        self.role(name)
        del self._roles[name], self._bases[name]
        self.version += 1

    def rename(self, name: str, new: str) -> None:
        """Give a role another name, replacing a role of that name."""
        self._set(new, self.role(name))
        if new != name:
            self.drop(name)

    def replace(self, name: str, weights: ModelWeights) -> None:
        """Set the tensors of a role, new or old, for example those just loaded from a checkpoint."""
        self._set(name, weights)

    def own(self, name: str) -> ModelWeights:
        """Copy those trainable tensors of a role that another role shares, and return the role's record.

        Copies are new leaves; tensors that the role had to itself stay the very same objects.
        """
        weights = self.role(name)
        taken = {
            id(tensor) for other in self._roles if other != name for _, tensor in self.named_tensors(other)
        }
        copies = {
            id(tensor): tensor.detach().clone()
            for _, tensor in self.trainable_tensors(name)
            if id(tensor) in taken
        }
        if copies:
            weights = substitute(weights, copies)
            self._set(name, weights)
        return weights

    def add_lora(self, name: str, lora: LoraConfig, seed: int = 0) -> None:
        """Turn a role into its present tensors plus new low-rank adapters, which alone are then trainable.

        The adapters start at no effect (b = 0), so the role computes what it did before.
        """
        weights = self.role(name)
        if weights.lora is not None:
            raise InputError(f"role {name!r} has adapters already")
        generator = torch.Generator().manual_seed(seed)
        layers = tuple(
            replace(layer, lora=new_layer_lora(self.config, lora, layer.qkv, generator))
            for layer in weights.layers
        )
        self._set(name, replace(weights, layers=layers, lora=lora))

    def named_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """All tensors of a role with their names, adapters included, in a fixed order; tied come once."""
        weights = self.role(name)
        yield from base_tensors(weights)
        yield from adapter_tensors(weights)

    def trainable_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What training changes: the adapters of a role that has some, else every tensor."""
        weights = self.role(name)
        return base_tensors(weights) if weights.lora is None else adapter_tensors(weights)

    def hash(self, name: str) -> str:
        """SHA-256 over names, shapes, number types and bits of a role's tensors."""
        digest = hashlib.sha256()
        for label, tensor in self.named_tensors(name):
            digest.update(f"{label} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def total_bytes(self) -> int:
        """Bytes of all roles together, shared tensors counted once."""
        sizes = {id(tensor): tensor.nbytes for name in self._roles for _, tensor in self.named_tensors(name)}
        return sum(sizes.values())

    def shared_bytes(self) -> int:
        """Bytes that roles save by sharing: what all would need apart, less what they need together."""
        apart = sum(tensor.nbytes for name in self._roles for _, tensor in self.named_tensors(name))
        return apart - self.total_bytes()


LAYER_TENSORS = tuple(field.name for field in fields(LayerWeights) if field.name != "lora")


def substitute(weights: ModelWeights, new: dict[int, Tensor]) -> ModelWeights:
    """The same record with some tensors, named by the id of the old one, exchanged for others."""

    def swap(tensor: Tensor) -> Tensor:
        return new.get(id(tensor), tensor)

    def swap_adapter(adapter: Adapter | None) -> Adapter | None:
        return None if adapter is None else Adapter(swap(adapter.a), swap(adapter.b), adapter.scale)

    def swap_layer(layer: LayerWeights) -> LayerWeights:
        tensors = {
            name: swap(getattr(layer, name)) for name in LAYER_TENSORS if getattr(layer, name) is not None
        }
        lora = layer.lora and LayerLora(
            **{field.name: swap_adapter(getattr(layer.lora, field.name)) for field in fields(layer.lora)}
        )
        return replace(layer, **tensors, lora=lora)

    return ModelWeights(
        embed=swap(weights.embed),
        layers=tuple(swap_layer(layer) for layer in weights.layers),
        final_norm=swap(weights.final_norm),
        head=swap(weights.head),
        lora=weights.lora,
    )


def merge_lora(config: ModelConfig, weights: ModelWeights) -> ModelWeights:
    """The role without adapters: their products are added to copies of the matrices that they adapt."""
    if weights.lora is None:
        return weights
    inner, hidden = config.intermediate_size, config.hidden_size

    def merge(layer: LayerWeights) -> LayerWeights:
        lora = layer.lora or LayerLora()
        return replace(
            layer,
            qkv=merged_matrix(layer.qkv, (lora.q_proj, lora.k_proj, lora.v_proj), config.qkv_sizes),
            o=merged_matrix(layer.o, (lora.o_proj,), (hidden,)),
            gate_up=merged_matrix(layer.gate_up, (lora.gate_proj, lora.up_proj), (inner, inner)),
            down=merged_matrix(layer.down, (lora.down_proj,), (hidden,)),
            lora=None,
        )

    return replace(weights, layers=tuple(merge(layer) for layer in weights.layers), lora=None)
