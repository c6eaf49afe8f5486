# SPDX-License-Identifier: Apache-2.0
"""No GPU kernel is left out: by the tests that need processes of their own, or by the documentation."""

import re
from pathlib import Path

import pytest

from rzero.kernels import OPS, Impl, Op

ROOT = Path(__file__).resolve().parents[2]
GPU = [(op, impl) for op in OPS for impl in op.impls if impl.backend in ("triton", "triton_exact", "cuda")]
each = pytest.mark.parametrize(("op", "impl"), GPU, ids=[f"{op.name} {impl.backend}" for op, impl in GPU])


def texts(folder: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py"))


@each
def test_it_is_called_by_the_tests_of_its_kind(op: Op, impl: Impl) -> None:
    assert isinstance(impl.function, str), "a GPU implementation is imported only where it is chosen"
    name = impl.function.partition(":")[2]
    for folder in ("tests/triton", "tests/aot") if "triton" in impl.backend else ("tests/cuda",):
        assert re.search(rf"\b{name}\(|\b{name}\b[,)]", texts(folder)), f"{folder} does not call {name}"


@each
def test_documentation_says_whether_it_has_run_on_hardware(op: Op, impl: Impl) -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert (
        len(re.findall(rf"^\| {op.name} \| {impl.backend} \|.*\| (never run|.*sm_.*) \|$", text, re.M)) == 1
    )


def test_documentation_names_every_op_and_implementation() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w, ]+) \| \w+\.py \|.*\| ([\w, ]+) \|$", text, re.M)
    listed = {op: tuple(backends.split(", ")) for ops, backends in rows for op in ops.split(", ")}
    assert listed == {op.name: op.backends[:-1] for op in OPS}
