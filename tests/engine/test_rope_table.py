# SPDX-License-Identifier: Apache-2.0
"""Rotary tables against those that transformers computes."""

import pytest
import torch
from hf_models import CPU, SHAPES, random_hf

from rzero.engine.config import ModelConfig
from rzero.engine.rope_table import rope_tables


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_are_those_of_transformers(shape: str) -> None:
    hf = random_hf(shape)
    config = ModelConfig.from_hf(hf.config.to_dict())
    cos_RE, sin_RE = rope_tables(config, 5000, CPU)
    truth_cos, truth_sin = hf.model.rotary_emb(torch.zeros(1), torch.arange(5000)[None])
    half = config.head_size // 2
    assert cos_RE.dtype == torch.float32 and cos_RE.shape == (5000, half)
    # One rounding of an angle near 5000 is 5e-4 / 2; the same float32 products leave no difference at all.
    assert torch.equal(cos_RE, truth_cos[0, :, :half]) and torch.equal(sin_RE, truth_sin[0, :, :half])


def test_scaling_changes_the_angles() -> None:
    tables = [
        rope_tables(ModelConfig.from_hf(random_hf(shape).config.to_dict()), 9, CPU)[1] for shape in SHAPES
    ]
    assert len({float(sin_RE[8, -1]) for sin_RE in tables}) == len(tables)
