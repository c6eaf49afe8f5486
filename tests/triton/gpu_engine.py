# SPDX-License-Identifier: Apache-2.0
"""Kernels of a GPU for an engine on the CPU: the launchers as they are, interpreted."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from rzero.kernels import OPS, Choice, Kernels, resolve


def interpreted(backends: Mapping[str, str]) -> Kernels:
    """The references, and these GPU backends, which `resolve` gives to nobody on a CPU."""
    chosen = ((op, impl) for op in OPS for impl in op.impls if backends.get(op.name) == impl.backend)
    functions = {op.name: impl.load() for op, impl in chosen}
    assert functions.keys() == backends.keys()
    report = tuple(Choice(op.name, backends.get(op.name, "ref")) for op in OPS)
    return replace(resolve(torch.device("cpu"), {"default": "ref"}), report=report, **functions)
