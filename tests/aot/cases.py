# SPDX-License-Identifier: Apache-2.0
"""Calls of the Triton kernels as a model makes them: shapes, strides and types decide what is compiled.

One function per op yields the name of a case and the call. Tensors are made inside the call and hold nothing:
no kernel runs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]
Cases = Iterator[tuple[str, Call]]

BF16 = torch.bfloat16
TOKENS = 4096


class Model(NamedTuple):
    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    has_head_norms: bool


MODELS = (
    Model("Qwen2.5-0.5B", 896, 4864, 14, 2, 64, 151936, False),
    Model("Qwen3-4B", 2560, 9728, 32, 8, 128, 151936, True),
)


def empty(*shape: int, dtype: torch.dtype = BF16, needs_grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=needs_grad)


def with_gradient(function: Callable[..., Tensor | tuple[Tensor, ...]], *leaves: Tensor) -> None:
    """Calls the function and its backward for the gradients of all leaves."""
    inputs = [leaf.requires_grad_() for leaf in leaves]
    out = function(*inputs)
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    torch.autograd.grad(outs, inputs, [torch.empty_like(y) for y in outs])


def rmsnorm() -> Cases:
    from rzero.kernels.rmsnorm_triton import add_rmsnorm_triton, rmsnorm_triton

    def call(D: int, dtype: torch.dtype) -> None:
        x, residual, w = empty(TOKENS, D, dtype=dtype), empty(TOKENS, D, dtype=dtype), empty(D, dtype=dtype)
        with_gradient(lambda x, w: rmsnorm_triton(x, w, 1e-6), x, w)
        with_gradient(lambda x, r, w: add_rmsnorm_triton(x, r, w, 1e-6), x, residual, w)

    for model in MODELS:
        yield f"rmsnorm {model.name}", partial(call, model.hidden, BF16)
    yield "rmsnorm float32", partial(call, MODELS[0].hidden, torch.float32)


OPS = (rmsnorm,)


def all_cases() -> dict[str, Call]:
    cases = [case for op in OPS for case in op()]
    assert len({name for name, _ in cases}) == len(cases), "a name is used twice"
    return dict(cases)
