# SPDX-License-Identifier: Apache-2.0
"""Cosine and sine tables of rotary position embedding, equal to those of transformers."""

import math

import torch
from torch import Tensor

from rzero.engine.config import ModelConfig, RopeConfig


def rope_tables(config: ModelConfig, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency: two float32 tensors [positions, E / 2].

    Angles are float32 products, as in transformers: at large positions a float64 angle would differ from what
    the model was trained with. The tables are computed on the CPU, so that every device uses the same bits.
    """
    frequency = _frequencies(config.rope, config.head_size)
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency[None, :]
    return angle.cos().to(device), angle.sin().to(device)


def _frequencies(rope: RopeConfig, head_size: int) -> Tensor:
    inverse = 1.0 / (rope.theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size))
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, inverse)
    return inverse


def _llama3(rope: RopeConfig, inverse: Tensor) -> Tensor:
    """Long waves are stretched by `factor`, short ones are left, those between are blended (Llama 3.1)."""
    wavelength = 2 * math.pi / inverse
    longest = rope.original_max_positions / rope.low_freq_factor
    shortest = rope.original_max_positions / rope.high_freq_factor
    stretched = torch.where(wavelength > longest, inverse / rope.factor, inverse)
    blend = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * stretched / rope.factor + blend * stretched
    between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(between, blended, stretched)
