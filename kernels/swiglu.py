# SPDX-License-Identifier: Apache-2.0
"""swiglu: y = silu(gate) * up, silu(x) = x / (1 + exp(-x)) (Shazeer, 2002.05202).

gate_up_T2F [T, 2F] a float type, gate first, last stride 1 -> y_TF. Float32 inside, one rounding at
the store. Elements do not depend on each other. T = 0 is legal. Differentiable. Elements moved: 3 T F.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rzero.kernels.dispatch import Impl, Op, up
from rzero.kernels.gpu import triton_why_not
from rzero.kernels.native import float_code, lib, native_why_not, needs_grad, reject


def swiglu_ref(gate_up_T2F: Tensor) -> Tensor:
    gate, linear = up(gate_up_T2F).chunk(2, dim=-1)
    return (functional.silu(gate) * linear).to(gate_up_T2F.dtype)


def _forward(gate_up_T2F: Tensor) -> Tensor:
    code = float_code("swiglu", "gate_up_T2F", gate_up_T2F, 2)
    T, columns = gate_up_T2F.shape
    if columns % 2:
        reject("swiglu", "gate_up_T2F", gate_up_T2F, "[T, 2F]")
    y_TF = torch.empty((T, columns // 2), dtype=gate_up_T2F.dtype)
    lib.swiglu_forward(code, T, columns // 2, gate_up_T2F.data_ptr(), gate_up_T2F.stride(0), y_TF.data_ptr())
    return y_TF


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_T2F)
        return _forward(gate_up_T2F)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TF: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_y_TF = grad_y_TF.contiguous()
        grad_x = torch.empty(x.shape, dtype=x.dtype)
        code = float_code("swiglu", "gate_up_T2F", x, 2)
        lib.swiglu_backward(
            code, *grad_y_TF.shape, x.data_ptr(), x.stride(0), grad_y_TF.data_ptr(), grad_x.data_ptr()
        )
        return grad_x


def _swiglu_native(gate_up_T2F: Tensor) -> Tensor:
    if needs_grad(gate_up_T2F):
        y_TF: Tensor = _Swiglu.apply(gate_up_T2F)
        return y_TF
    return _forward(gate_up_T2F)


SWIGLU = Op(
    "swiglu",
    swiglu_ref,
    (
        Impl("native", _swiglu_native, native_why_not),
        Impl("triton", "rzero.kernels.swiglu_triton:swiglu_triton", triton_why_not),
    ),
)
