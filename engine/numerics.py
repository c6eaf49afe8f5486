# SPDX-License-Identifier: Apache-2.0
"""Whether the sampler's log-probs are the trainer's, to the bit.

They are where the bits of a row depend on nothing but the row, in every op on the way from a token to its
log-prob, and where sampler and trainer compute the op by the same sums. The native kernels of the CPU promise
both. On a GPU it takes kernels that are slower than the default: our own matrix product, attention over pages
on the tiles of training, and log-probs of what was drawn from `linear_logprob`, a second pass over the head.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch

from rzero.engine.errors import InputError
from rzero.kernels import Kernels

Numerics = Literal["auto", "exact", "fast"]

ON_THE_WAY = (
    "linear",
    "lora",
    "rmsnorm",
    "add_rmsnorm",
    "rope",
    "rope_write",
    "swiglu",
    "paged_attention",
    "attention",
    "linear_logprob",
)
EXACT_ON_GPU = MappingProxyType(
    {op: "triton_exact" if op == "paged_attention" else "triton" for op in ON_THE_WAY}
)


def backends(numerics: Numerics, device: torch.device, asked: Mapping[str, str]) -> Mapping[str, str]:
    """The backends to resolve: what the caller asked for, and on a GPU what exact numerics need besides."""
    return {**EXACT_ON_GPU, **asked} if numerics == "exact" and device.type != "cpu" else asked


def must_score(kernels: Kernels) -> bool:
    """Whether exact log-probs of what is drawn take `linear_logprob`: the native `sample` shares its sums."""
    used = {choice.op: choice.backend for choice in kernels.report}
    return not used["sample"] == used["linear_logprob"] == "native"


def why_not_exact(kernels: Kernels, device: torch.device) -> str | None:
    """Why sampler and trainer may differ with these kernels, or None where they cannot."""
    is_cpu = device.type == "cpu"
    exact = dict.fromkeys(ON_THE_WAY, "native") if is_cpu else EXACT_ON_GPU
    for choice in kernels.report:
        if exact.get(choice.op, choice.backend) != choice.backend:
            return (
                f"{choice.op} runs on the backend {choice.backend}, whose rows may depend on the batch or"
                f" differ from training's; exact takes {exact[choice.op]}"
            )
    return None


def is_exact(numerics: Numerics, reason: str | None) -> bool:
    """Whether equality is to be relied on; raises InputError where it is asked for and cannot be had."""
    if numerics not in get_args(Numerics):
        raise InputError(f"numerics is {numerics!r}; it must be one of {', '.join(get_args(Numerics))}")
    if numerics == "exact" and reason is not None:
        raise InputError(f"numerics is exact, but {reason}; use auto or fast")
    return numerics != "fast" and reason is None


def described(is_exact: bool, reason: str | None, device: torch.device) -> str:
    """Which it is and why, for people."""
    if not is_exact:
        return f"fast: {reason or 'asked for'}"
    proof = "" if device.type == "cpu" else ", as the kernels are built; no GPU has shown it yet"
    return f"exact: the sampler's log-probs are the trainer's{proof}"
