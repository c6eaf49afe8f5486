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

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rzero.engine.config import ModelConfig
from rzero.engine.lora import Adapter
from rzero.engine.weights import LayerWeights, ModelWeights
from rzero.kernels import Kernels, LoraPart, Segments


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


@dataclass(frozen=True, slots=True)
class RoleRows:
    """Rows start..stop of a step, which are computed with a role's adapters."""

    start: int
    stop: int
    weights: ModelWeights


def forward(
    config: ModelConfig,
    weights: ModelWeights,
    step: Step,
    kernels: Kernels,
    cos_RE: Tensor,
    sin_RE: Tensor,
    recompute_layers: bool = False,
    *,
    mixed: Sequence[RoleRows] | None = None,
) -> Tensor:
    """Hidden states h_TD after the final norm, in the weights' number type.

    cos_RE and sin_RE are the float32 tables [positions, E / 2] of `rope_tables`. Under autograd the role's
    tensors are the leaves; with `recompute_layers` each layer's activations are computed again in the
    backward pass instead of kept. `mixed`, where given, says which rows take the adapters of which role; the
    roles share all other tensors with `weights`. A row's numbers are those of a pass of its role alone.
    Logits are `kernels.linear(h, weights.head)`; training uses
    `kernels.linear_logprob`, which never stores them.
    """
    roles = (RoleRows(0, len(step.ids_T), weights),) if mixed is None else mixed
    adapted = tuple(rows for rows in roles if rows.weights.lora is not None)
    pass_ = _Pass(config, step, kernels, cos_RE, sin_RE, adapted)
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
    adapted: Sequence[RoleRows]


def _layer(
    run: _Pass, w: LayerWeights, index: int, delta_TD: Tensor, residual_TD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One layer. What the layer before added comes apart from the residual stream: the norm adds it."""
    k, config, eps = run.kernels, run.config, run.config.rms_norm_eps
    hidden, inner = config.hidden_size, config.intermediate_size
    if residual_TD is None:
        residual_TD, x_TD = delta_TD, k.rmsnorm(delta_TD, w.input_norm, eps)
    else:
        x_TD, residual_TD = k.add_rmsnorm(delta_TD, residual_TD, w.input_norm, eps)
    qkv_TX = k.linear(x_TD, w.qkv, w.qkv_bias)
    qkv_TX = _adapt(run, index, qkv_TX, x_TD, ("q_proj", "k_proj", "v_proj"), config.qkv_sizes)
    o_TX = _attend(run, w, index, qkv_TX).flatten(1)
    delta_TD = _adapt(run, index, k.linear(o_TX, w.o), o_TX, ("o_proj",), (hidden,))
    x_TD, residual_TD = k.add_rmsnorm(delta_TD, residual_TD, w.post_norm, eps)
    gate_up_T2F = k.linear(x_TD, w.gate_up)
    gate_up_T2F = _adapt(run, index, gate_up_T2F, x_TD, ("gate_proj", "up_proj"), (inner, inner))
    x_TF = k.swiglu(gate_up_T2F)
    delta_TD = _adapt(run, index, k.linear(x_TF, w.down), x_TF, ("down_proj",), (hidden,))
    return delta_TD, residual_TD


def _attend(run: _Pass, w: LayerWeights, index: int, qkv_TX: Tensor) -> Tensor:
    k, config, attend = run.kernels, run.config, run.step.attend
    rotate = (run.step.pos_T, run.cos_RE, run.sin_RE, config.heads, config.kv_heads, w.q_norm, w.k_norm)
    eps = config.rms_norm_eps
    if isinstance(attend, PackedStep):
        qkv = k.rope(qkv_TX, *rotate, eps=eps)
        return k.attention(qkv.q_THE, qkv.k_TGE, qkv.v_TGE, attend.segments, config.scale)
    k_pages_PSGE, v_pages_PSGE = attend.k_pages_LPSGE[index], attend.v_pages_LPSGE[index]
    pages = {"slot_T": attend.slot_T, "k_pages_PSGE": k_pages_PSGE, "v_pages_PSGE": v_pages_PSGE}
    q_THE = k.rope_write(qkv_TX, *rotate, **pages, eps=eps)
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
    run: _Pass, index: int, y_TN: Tensor, x_TK: Tensor, targets: tuple[str, ...], sizes: tuple[int, ...]
) -> Tensor:
    """y plus the roles' adapters, each in the rows of its role and the columns of its projection."""
    parts = []
    for rows in run.adapted:
        lora, column = rows.weights.layers[index].lora, 0
        for target, size in zip(targets, sizes, strict=True):
            adapter: Adapter | None = None if lora is None else getattr(lora, target)
            if adapter is not None:
                parts.append(LoraPart(adapter.a, adapter.b, adapter.scale, column, rows.start, rows.stop))
            column += size
    return run.kernels.lora(y_TN, x_TK, parts) if parts else y_TN
