# SPDX-License-Identifier: Apache-2.0
"""linear: y = x w^T + b, by torch's matrix product, in a form whose rows do not depend on how many rows there
are.

x_TK [T, K] float32 or bfloat16, w_NK [N, K], bias_N [N] or None, all of one type -> y_TN. Differentiable.
"""

import torch
from torch import Tensor
from torch.nn import functional

from rzero.kernels.dispatch import Impl, Op

# MKL takes other routines, with another order of summation, for float32 products of few rows: measured on Zen
# 3, rows of 1, 2, 3, 5, 6, 7, 9, 10 and 11 differ in the last bits from the same rows in a larger batch, 12
# and more never.
EXACT_ROWS = 16


def linear_ref(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return functional.linear(x_TK, w_NK, bias_N)


def linear_exact(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    rows = x_TK.shape[0]
    if rows >= EXACT_ROWS or rows == 0 or x_TK.dtype != torch.float32:
        return functional.linear(x_TK, w_NK, bias_N)
    padded = functional.pad(x_TK, (0, 0, 0, EXACT_ROWS - rows))
    return functional.linear(padded, w_NK, bias_N)[:rows]


def _torch_why_not(device: torch.device) -> str | None:
    return (
        None if device.type == "cpu" else f"mends the CPU's products of few rows, not those of {device.type}"
    )


LINEAR = Op("linear", linear_ref, (Impl("torch", linear_exact, _torch_why_not),))
