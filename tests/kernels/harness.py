# SPDX-License-Identifier: Apache-2.0
"""Judging a kernel: its error against float64 beside the error of plain torch on the same rounded inputs.

A fixed tolerance either lets a wrong factor of 1% pass in bfloat16 or fails a right float32 kernel; torch's
own error is the measure. Two norms, because one wrong element is invisible to the first and a small bias to
the second (the idea: apple/ml-cross-entropy, tests/test_cce_loss_forward.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rzero.kernels.dispatch import Op, choose
from rzero.kernels.native import lib

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
needs_native = pytest.mark.skipif(lib is None, reason="rzero._native is not built")
BACKENDS = ("ref", pytest.param("native", marks=needs_native))

Function = Callable[..., Any]


def native(op: Op) -> Function:
    return choose(op, CPU, "native")[0]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def apart(x: Tensor) -> Tensor:
    """A view equal to x whose rows lie apart with NaN between them; the last stride stays 1."""
    wide = torch.full((2 * x.shape[0], *x.shape[1:-1], x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    view = wide[::2, ..., : x.shape[-1]]
    view.copy_(x)
    return view


def as_tuple(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def results(
    function: Function,
    inputs: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    differentiable: int | None = None,
) -> list[Tensor]:
    """The outputs of `function(*inputs)`, and the gradients of all (or the first `differentiable`) inputs for
    fixed gradients of the outputs.
    """
    leaves = [x.detach().clone().to(dtype or x.dtype) for x in inputs]
    trained = [leaf.requires_grad_() for leaf in leaves[:differentiable]]
    out = as_tuple(function(*leaves))
    carrying = [y for y in out if y.requires_grad]
    incoming = [randn(*y.shape, dtype=inputs[0].dtype, seed=i).to(y.dtype) for i, y in enumerate(carrying)]
    grads = torch.autograd.grad(carrying, trained, incoming) if trained else ()
    return [*(y.detach() for y in out), *grads]


def frobenius(x: Tensor) -> float:
    return float(x.norm())


def peak(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def check_error(
    reference: Function,
    fast: Function,
    inputs: Sequence[Tensor],
    slack: float = 1.25,
    differentiable: int | None = None,
) -> None:
    """`fast` may err `slack` times what the reference errs in the working type, in the peak 2.5 times that.

    Outputs and gradients, each relative to the float64 truth. The floor is a few float32 roundings.
    """
    truth = [x.double() for x in results(reference, inputs, torch.float64, differentiable)]
    base, got = (results(f, inputs, None, differentiable) for f in (reference, fast))
    assert len(truth) == len(base) == len(got)
    for i, (t, b, x) in enumerate(zip(truth, base, got, strict=True)):
        assert x.shape == t.shape and x.dtype == b.dtype, f"result {i}: {x.dtype} {list(x.shape)}"
        assert inputs[0].numel() == 0 or t.norm() > 0, f"result {i} is all zeros, which would test nothing"
        for norm, allowed in ((frobenius, slack), (peak, 2.5 * slack)):
            size = norm(t) + 1e-30
            error, torchs = norm(x.double() - t) / size, norm(b.double() - t) / size
            assert error <= allowed * torchs + 4e-7, (
                f"result {i} of {list(t.shape)}: {norm.__name__} error {error:.2e}, torch's is {torchs:.2e}"
            )


def assert_same_bits(got: Any, wanted: Any) -> None:
    for x, y in zip(as_tuple(got), as_tuple(wanted), strict=True):
        assert torch.equal(x, y), f"{int((x != y).sum())} of {x.numel()} elements differ"
