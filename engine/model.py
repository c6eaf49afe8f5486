# SPDX-License-Identifier: Apache-2.0
"""The decoder: one forward pass over packed tokens, for sampling and for training.

`forward` is a plain function over a role's tensors. Where a token's keys and values live is the business of
the `Step`, and only attention looks inside: `PagedStep` reads and writes the paged cache, `PackedStep`
attends within the batch and takes part in autograd. Everything else is the same code, so both passes compute
the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rzero.engine.config import ModelConfig
from rzero.engine.lora import Adapter
from rzero.engine.weights import LayerWeights, ModelWeights
from rzero.kernels import Kernels, Segments


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Sampling: keys and values go to pages, and each sequence attends to its own pages."""

    k_pages_LPSGE: Sequence[Tensor]
    """Per layer, [P, S, G, E]."""
    v_pages_LPSGE: Sequence[Tensor]
    slot_T: Tensor
    """int64: page times page size plus place, where the token's key and value are written."""
    page_table_BM: Tensor
    """int32: pages of each sequence, in order."""
    q_start_B1: Tensor
    """int32 [B + 1]: rows q_start[b] to q_start[b + 1] belong to sequence b."""
    kv_len_B: Tensor
    """int32: positions of each sequence after this step."""


@dataclass(frozen=True, slots=True)
class PackedStep:
    """Training and scoring: sequences packed without padding, shared prompts stored once."""

    segments: Segments


@dataclass(frozen=True, slots=True)
class Step:
    """The tokens of one forward pass and where their keys and values live."""

    ids_T: Tensor
    """int64 token ids."""
    pos_T: Tensor
    """int64 position of each token in its sequence."""
    attend: PagedStep | PackedStep


def forward(
    config: ModelConfig,
    weights: ModelWeights,
    step: Step,
    kernels: Kernels,
    cos_RE: Tensor,
    sin_RE: Tensor,
    recompute_layers: bool = False,
) -> Tensor:
    """Hidden states h_TD after the final norm, in the weights' number type.

    cos_RE and sin_RE are the float32 tables [positions, E / 2] of `rope_tables`. Under autograd the role's
    tensors are the leaves; with `recompute_layers` each layer's activations are computed again in the
    backward pass instead of kept. Logits are `kernels.linear(h, weights.head)`; training uses
    `kernels.linear_logprob`, which never stores them.
    """
    pass_ = _Pass(config, step, kernels, cos_RE, sin_RE)
    delta_TD, residual_TD = F.embedding(step.ids_T, weights.embed), None
    for index, layer in enumerate(weights.layers):
        if recompute_layers:
            run = partial(_layer, pass_, layer, index)
            delta_TD, residual_TD = checkpoint(
                run, delta_TD, residual_TD, use_reentrant=False, preserve_rng_state=False
            )
        else:
            delta_TD, residual_TD = _layer(pass_, layer, index, delta_TD, residual_TD)
    assert residual_TD is not None, "a model has at least one layer"
    return kernels.add_rmsnorm(delta_TD, residual_TD, weights.final_norm, config.rms_norm_eps)[0]


@dataclass(frozen=True, slots=True)
class _Pass:
    config: ModelConfig
    step: Step
    kernels: Kernels
    cos_RE: Tensor
    sin_RE: Tensor


def _layer(
    run: _Pass, w: LayerWeights, index: int, delta_TD: Tensor, residual_TD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One layer. What the layer before added comes apart from the residual stream: the norm adds it."""
    k, config, lora, eps = run.kernels, run.config, w.lora, run.config.rms_norm_eps
    if residual_TD is None:
        residual_TD, x_TD = delta_TD, k.rmsnorm(delta_TD, w.input_norm, eps)
    else:
        x_TD, residual_TD = k.add_rmsnorm(delta_TD, residual_TD, w.input_norm, eps)
    qkv_TX = k.linear(x_TD, w.qkv, w.qkv_bias)
    if lora is not None:
        qkv_TX = _adapt(k, qkv_TX, x_TD, (lora.q_proj, lora.k_proj, lora.v_proj), config.qkv_sizes)
    o_TX = _attend(run, w, index, qkv_TX).flatten(1)
    delta_TD = k.linear(o_TX, w.o)
    if lora is not None:
        delta_TD = _adapt(k, delta_TD, o_TX, (lora.o_proj,), (config.hidden_size,))
    x_TD, residual_TD = k.add_rmsnorm(delta_TD, residual_TD, w.post_norm, eps)
    gate_up_T2F = k.linear(x_TD, w.gate_up)
    if lora is not None:
        inner = config.intermediate_size
        gate_up_T2F = _adapt(k, gate_up_T2F, x_TD, (lora.gate_proj, lora.up_proj), (inner, inner))
    x_TF = k.swiglu(gate_up_T2F)
    delta_TD = k.linear(x_TF, w.down)
    if lora is not None:
        delta_TD = _adapt(k, delta_TD, x_TF, (lora.down_proj,), (config.hidden_size,))
    return delta_TD, residual_TD


def _attend(run: _Pass, w: LayerWeights, index: int, qkv_TX: Tensor) -> Tensor:
    k, config, step = run.kernels, run.config, run.step
    q_THE, k_TGE, v_TGE = k.rope(
        qkv_TX,
        step.pos_T,
        run.cos_RE,
        run.sin_RE,
        config.heads,
        config.kv_heads,
        w.q_norm,
        w.k_norm,
        eps=config.rms_norm_eps,
    )
    attend = step.attend
    if isinstance(attend, PackedStep):
        return k.attention(q_THE, k_TGE, v_TGE, attend.segments, config.scale)
    k_pages_PSGE, v_pages_PSGE = attend.k_pages_LPSGE[index], attend.v_pages_LPSGE[index]
    k.kv_write(k_TGE, v_TGE, attend.slot_T, k_pages_PSGE, v_pages_PSGE)
    return k.paged_attention(
        q_THE,
        k_pages_PSGE,
        v_pages_PSGE,
        attend.page_table_BM,
        attend.q_start_B1,
        attend.kv_len_B,
        config.scale,
    )


def _adapt(
    k: Kernels, y_TN: Tensor, x_TK: Tensor, adapters: tuple[Adapter | None, ...], sizes: tuple[int, ...]
) -> Tensor:
    """y plus the adapters' products, each in the columns of its own projection."""
    if not any(adapters):
        return y_TN
    parts = [
        x_TK.new_zeros(len(x_TK), size)
        if adapter is None
        else k.linear(k.linear(x_TK, adapter.a) * adapter.scale, adapter.b)
        for adapter, size in zip(adapters, sizes, strict=True)
    ]
    return y_TN + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
