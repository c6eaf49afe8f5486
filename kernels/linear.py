# SPDX-License-Identifier: Apache-2.0
"""linear: y = x w^T + b, by torch's matrix product, in a form whose rows do not depend on how many rows there
are.

x_TK [T, K] float32 or bfloat16, w_NK [N, K], bias_N [N] or None, all of one type -> y_TN. Differentiable.
"""

import torch
from torch import Tensor
from torch.nn import functional

from rzero.kernels.dispatch import Impl, Op

# MKL takes other routines, with another order of summation, for small float32 products. Measured on Zen 3:
# rows of 1, 2, 3, 5, 6, 7, 9, 10 and 11 differ in the last bits from the same rows in a larger batch, 12 and
# more never; with up to 10 outputs (adapters of low rank) rows differ whatever their number, with 12 never.
EXACT_ROWS = 16
EXACT_OUTPUTS = 16


def linear_ref(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return functional.linear(x_TK, w_NK, bias_N)


def linear_exact(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    rows, outputs = x_TK.shape[0], w_NK.shape[0]
    few_rows, few_outputs = EXACT_ROWS - rows, EXACT_OUTPUTS - outputs
    if x_TK.dtype != torch.float32 or rows == 0 or (few_rows <= 0 and few_outputs <= 0):
        return functional.linear(x_TK, w_NK, bias_N)
    if few_rows > 0:
        x_TK = functional.pad(x_TK, (0, 0, 0, few_rows))
    if few_outputs > 0:
        w_NK = functional.pad(w_NK, (0, 0, 0, few_outputs))
        bias_N = None if bias_N is None else functional.pad(bias_N, (0, few_outputs))
    return functional.linear(x_TK, w_NK, bias_N)[:rows, :outputs].contiguous()


def _torch_why_not(device: torch.device) -> str | None:
    return (
        None if device.type == "cpu" else f"mends the CPU's products of few rows, not those of {device.type}"
    )


LINEAR = Op("linear", linear_ref, (Impl("torch", linear_exact, _torch_why_not),))
