# SPDX-License-Identifier: Apache-2.0
"""Whether the sampler's log-probs are the trainer's, to the bit.

They are where the bits of a row depend on nothing but the row, in every op on the way from a token to its
log-prob, and where sampler and trainer compute the op by the same sums. The native kernels of the CPU promise
both. The Triton kernels promise the first; that the log-probs of `sample` and of `linear_logprob` are equal
there has not been shown.
"""

from typing import Literal, get_args

import torch

from rzero.engine.errors import InputError
from rzero.kernels import Kernels
from rzero.kernels.linear import MULTIPLIES_BF16

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
    "sample",
)


def why_not_exact(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why sampler and trainer may differ with these kernels, or None where they cannot."""
    others = [choice for choice in kernels.report if choice.op in ON_THE_WAY and choice.backend != "native"]
    if device.type != "cpu":
        return f"the kernels on {device.type} have not been shown to be exact"
    if others:
        return f"{others[0].op} runs on the backend {others[0].backend}, whose rows may depend on the batch"
    if dtype == torch.bfloat16 and MULTIPLIES_BF16:
        return (
            "this CPU multiplies bfloat16 in hardware by torch's product, whose rows may depend on the batch"
        )
    return None


def is_exact(numerics: Numerics, reason: str | None) -> bool:
    """Whether equality is to be relied on; raises InputError where it is asked for and cannot be had."""
    if numerics not in get_args(Numerics):
        raise InputError(f"numerics is {numerics!r}; it must be one of {', '.join(get_args(Numerics))}")
    if numerics == "exact" and reason is not None:
        raise InputError(f"numerics is exact, but {reason}; use auto or fast")
    return numerics != "fast" and reason is None
