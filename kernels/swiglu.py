# SPDX-License-Identifier: Apache-2.0
"""swiglu: y = silu(gate) * up, silu(x) = x / (1 + exp(-x)) (Shazeer, 2002.05202).

gate_up_T2F [T, 2F] float32 or bfloat16, gate first, last stride 1 -> y_TF. Float32 inside, one rounding at
the store. Elements do not depend on each other. T = 0 is legal. Differentiable.
"""

from torch import Tensor
from torch.nn import functional

from rzero.kernels.dispatch import Op, up


def swiglu_ref(gate_up_T2F: Tensor) -> Tensor:
    gate, linear = up(gate_up_T2F).chunk(2, dim=-1)
    return (functional.silu(gate) * linear).to(gate_up_T2F.dtype)


SWIGLU = Op("swiglu", swiglu_ref)
