# SPDX-License-Identifier: Apache-2.0
"""Every op, every implementation that runs on this CPU, every number type, every case: judged by float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import MAKERS, Case, cases
from harness import CPU, check_error

from rzero.kernels import OPS, Op
from rzero.kernels.dispatch import REFERENCE, choose
from rzero.kernels.native import lib

SETS = lib.instruction_sets() if lib is not None else ()


def trials() -> Iterator[Any]:
    """Op, implementation, instruction set, case, type; the reference is tried in every type, too."""
    for op in OPS:
        names = [impl.backend for impl in op.impls if impl.why_not(CPU) is None]
        backends = [(name, isa) for name in names for isa in (SETS if name == "native" else [""])]
        for backend, isa in [*backends, (REFERENCE, "")]:
            for case in cases(op.name):
                for dtype in case.dtypes:
                    name = f"{op.name}-{backend}{isa and ' ' + isa}-{case.name}-{str(dtype)[6:]}"
                    yield pytest.param(op, backend, isa, case, dtype, id=name)


def smallest() -> Iterator[Any]:
    for op in OPS:
        for case in cases(op.name):
            if case.is_small and case.differentiable != 0:
                yield pytest.param(op, case, id=f"{op.name}-{case.name}")


@pytest.fixture
def any_instruction_set() -> Iterator[None]:
    before = lib.instruction_set() if lib is not None else ""
    yield
    if lib is not None:
        lib.use_instruction_set(before)


@pytest.mark.parametrize(("op", "backend", "isa", "case", "dtype"), [*trials()])
@pytest.mark.usefixtures("any_instruction_set")
def test_error_is_that_of_torch(op: Op, backend: str, isa: str, case: Case, dtype: torch.dtype) -> None:
    if isa:
        lib.use_instruction_set(isa)
    function, _ = choose(op, CPU, backend)
    check_error(
        case.bind(op.reference), case.bind(function), case.inputs(dtype), case.slack, case.differentiable
    )


@pytest.mark.parametrize(("op", "case"), [*smallest()])
def test_gradient_of_the_reference_is_that_of_finite_differences(op: Op, case: Case) -> None:
    inputs = [x.double() for x in case.inputs(torch.float32)]
    for leaf in inputs[: case.differentiable]:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(case.bind(op.reference), inputs)


def test_every_op_has_cases_and_gradients_are_tried_where_there_are_some() -> None:
    assert sorted(op.name for op in OPS) == sorted(make.__name__ for make in MAKERS)
    for op in OPS:
        tried = cases(op.name)
        assert tried, f"{op.name} has no cases"
        has_gradient = any(case.differentiable != 0 for case in tried)
        assert has_gradient == any(case.is_small for case in tried), op.name
