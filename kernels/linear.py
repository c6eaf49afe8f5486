# SPDX-License-Identifier: Apache-2.0
"""linear: y = x w^T + b, in a form whose rows do not depend on how many rows there are.

x_TK [T, K] float32, bfloat16 or float16, w_NK [N, K], bias_N [N] or None, all of one type -> y_TN. Sums are
float32, rounded once. T = 0 is legal. Gradients go to all three.

The native product adds every output's terms in one order, in chains of 256, so that its bits are the same
alone and in a batch, with any number of threads, and on every CPU that fuses multiply and add. A CPU that
multiplies bfloat16 in hardware (AVX512-BF16) does so, in pairs; bits of that type are its own. GFLOP/s with
2 threads for [M, 896] x [896, 9728]:
                              M =    1     8    64   256  1024
    Zen 4, bfloat16, native         24   157   349   386   404    oneDNN: 19, 116, 323, 411, 422
    Zen 3, float32, native          12    56    88   158   148
    Zen 3, float32, MKL              2    17    47    76   146    fewer than 16 rows are padded
    Zen 3, bfloat16, native         14    55   136   153   172    torch's own: 7 to 19

On a GPU the default is torch's product, the reference, whose rows do depend on how many there are; where they
must not, ask for "triton".
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rzero.kernels.dispatch import Impl, Op
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import address, check, float_code, lib, native_why_not, needs_grad


def linear_ref(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return functional.linear(x_TK, w_NK, bias_N)


def multiply(a_MK: Tensor, b_KN: Tensor, bias_N: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a b (+ bias) by the native product; transposed views are fine, `out` has dense rows.

    Used forward and backward; the caller has seen to the shapes.
    """
    (M, K), N = a_MK.shape, b_KN.shape[1]
    y_MN = torch.empty((M, N), dtype=a_MK.dtype) if out is None else out
    if 1 not in b_KN.stride():
        b_KN = b_KN.contiguous()
    code = float_code("linear", "y_MN", y_MN, 2)
    a, b = (a_MK.data_ptr(), *a_MK.stride()), (b_KN.data_ptr(), *b_KN.stride())
    lib.linear_product(code, (M, N, K), a, b, address(bias_N), y_MN.data_ptr(), y_MN.stride(0))
    return y_MN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TK, w_NK)
        return multiply(x_TK, w_NK.t(), bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> Any:
        x_TK, w_NK = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        return (
            multiply(grad_TN, w_NK) if needs_x else None,
            multiply(grad_TN.t(), x_TK) if needs_w else None,
            grad_TN.sum(0) if needs_bias else None,
        )


def linear_native(x_TK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    float_code("linear", "x_TK", x_TK, 2)
    N, K = w_NK.shape[0], x_TK.shape[1]
    check("linear", "w_NK", w_NK, x_TK.dtype, (N, K))
    if bias_N is not None:
        check("linear", "bias_N", bias_N, x_TK.dtype, (N,))
    if needs_grad(x_TK, w_NK, bias_N):
        y_TN: Tensor = _Linear.apply(x_TK, w_NK, bias_N)
        return y_TN
    return multiply(x_TK, w_NK.t(), bias_N)


LINEAR = Op(
    "linear",
    linear_ref,
    (
        Impl("native", linear_native, native_why_not),
        Impl(
            "triton",
            "rzero.kernels.linear_triton:linear_triton",
            triton_why_not,
            only_asked="for rows that stand alone, slower than torch",
        ),
    ),
)
