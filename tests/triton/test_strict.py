# SPDX-License-Identifier: Apache-2.0
"""The strict interpreter is on, and finds bugs that are planted on purpose."""

import importlib.util
from pathlib import Path
from typing import Any

import planted
import pytest
import strict
import torch
import triton
import triton.language as tl
from harness import apart, randn
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from rzero.kernels.paged_attention import paged_attention_ref

FAULTS = (InterpreterError, strict.AccessError)
NOWHERE = 2**30


# ---- bfloat16


@triton.jit
def _product(x_ptr, y_ptr, z_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    n = tl.arange(0, N)
    at = n[:, None] * N + n[None, :]
    tl.store(z_ptr + at, tl.dot(tl.load(x_ptr + at), tl.load(y_ptr + at), input_precision=PRECISION))


@triton.jit
def _arithmetic(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    x, y = tl.load(x_ptr + n), tl.load(y_ptr + n)
    tl.store(out_ptr + n, x * y)
    tl.store(out_ptr + N + n, x - y)
    tl.store(out_ptr + 2 * N + n, tl.where(x < y, x, y))
    tl.store(out_ptr + 3 * N + n, tl.maximum(x, y))
    tl.store(out_ptr + 4 * N + n, (x.to(tl.float32) / 3.0).to(tl.bfloat16))


def product_error() -> float:
    x, y, z = (
        randn(16, 16, dtype=torch.bfloat16),
        randn(16, 16, dtype=torch.bfloat16, seed=1),
        torch.empty(16, 16),
    )
    _product[(1,)](x, y, z, N=16, PRECISION="ieee")
    truth = x.double() @ y.double()
    return float((z.double() - truth).norm() / truth.norm())


def test_product_of_bfloat16_is_right_only_in_strict_mode() -> None:
    """The canary: should the patch ever be off, wrong results must not pass as tolerable."""
    assert product_error() < 1e-2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", ORIGINAL_DOT)
        assert not product_error() < 1e-2


def _original_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """What triton 3.7.1 does: it multiplies the bit patterns."""
    return strict.TensorHandle(a.data.astype("f4") @ b.data.astype("f4") + d.data, d.dtype.scalar)


ORIGINAL_DOT = _original_dot


def test_arithmetic_in_bfloat16_is_that_of_torch() -> None:
    x, y = randn(256, dtype=torch.bfloat16), randn(256, dtype=torch.bfloat16, seed=1)
    out = torch.empty(5, 256, dtype=torch.bfloat16)
    _arithmetic[(1,)](x, y, out, N=256)
    assert torch.equal(
        out, torch.stack((x * y, x - y, x.minimum(y), x.maximum(y), (x.float() / 3).bfloat16()))
    )


# ---- bugs planted in a kernel: the line, what it becomes, and what is said about it

BUGS = {
    "one position too many": ("n < length\n", "n <= length\n", "load outside"),
    "no mask on the page table": ("n // S, mask=is_live, other=0)", "n // S)", "load outside"),
    "no mask on the columns": (
        "row, mask=is_live[:, None] & is_col, other=0.0)\n        v",
        "row, mask=is_live[:, None], other=0.0)\n        v",
        "k_ptr.*load outside",
    ),
    "stride of another axis": ("g * kv_g", "g * kv_s", "load outside"),
    "store beside the row": ("tl.store(o_ptr + ", "tl.store(o_ptr - 1 + ", "program .0, 0, 0.*store outside"),
    "no mask on the store": (
        "o, mask=is_mine)",
        "o, mask=(heads < 2 * GROUP)[:, None] & is_col)",
        r"o_ptr.*: write by program \(0, 0, 0\) and write by program",
    ),
    "heads on top of each other": (
        "heads)[:, None] * o_h",
        "heads)[:, None] * 0",
        "o_ptr.*hit twice by one store",
    ),
    "every head group writes the first": (
        "(g * GROUP + heads)[:, None] * o_h",
        "heads[:, None] * o_h",
        "write by",
    ),
    "no cast before the product": ("p.to(v.dtype)", "p", "same dtype|same type"),
    "sum in bfloat16": ("tl.sum(p, 1)", "tl.sum(p.to(v.dtype), 1)", "reduction in a 16-bit type"),
    "no value for masked lanes": (
        "tl.load(v_ptr + row, mask=is_live[:, None] & is_col, other=0.0)",
        "tl.load(v_ptr + row, mask=is_live[:, None] & is_col)",
        "numbers",
    ),
    "no mask on the scores": ("tl.where(is_live[None, :], score, ", "tl.where(True, score, ", "numbers"),
    "no rescaling of the sum": ("sum_ * keep[:, None]", "sum_", "numbers"),
    "output that no one writes": ("o, mask=is_mine)", "o, mask=is_mine & (g == 0))", "numbers"),
}


def inputs() -> tuple[Tensor, ...]:
    """Views with NaN between their rows; unused slots of the page table lead nowhere; one length fills its
    pages."""
    lengths, (P, S, G, E) = (25, 8, 1), (11, 4, 2, 24)
    table_BM = torch.full((3, 9), NOWHERE, dtype=torch.int32)[:, :7]
    pages = iter(torch.randperm(P, generator=torch.Generator().manual_seed(0)).tolist())
    kv = [torch.full((P, S, G, E), torch.nan, dtype=torch.bfloat16) for _ in range(2)]
    for b, length in enumerate(lengths):
        for start in range(0, length, S):
            table_BM[b, start // S] = page = next(pages)
            for i, x in enumerate(kv):
                x[page, : length - start] = randn(S, G, E, dtype=torch.bfloat16, seed=2 * page + i)[
                    : length - start
                ]
    q_BHE = apart(4 * randn(3, 6, E, dtype=torch.bfloat16, seed=99))
    return q_BHE, apart(kv[0]), apart(kv[1]), table_BM, torch.tensor(lengths, dtype=torch.int32)


def check_numbers(kernel: Any) -> None:
    q_BHE, k, v, table_BM, length_B = inputs()
    starts = torch.arange(4, dtype=torch.int32)
    wanted = paged_attention_ref(q_BHE.double(), k.double(), v.double(), table_BM, starts, length_B, 24**-0.5)
    error = (kernel.launch(q_BHE, k, v, table_BM, length_B).double() - wanted).norm() / wanted.norm()
    assert float(error) < 1e-2, "numbers"


def test_the_kernel_without_a_bug_passes() -> None:
    check_numbers(planted)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    line, wrong, said = BUGS[bug]
    source = Path(planted.__file__).read_text(encoding="utf-8")
    assert source.count(line) == 1, "the bug has one place"
    (tmp_path / "mutant.py").write_text(source.replace(line, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", tmp_path / "mutant.py")
    assert spec is not None and spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    with pytest.raises(AssertionError if said == "numbers" else FAULTS, match=said):
        check_numbers(mutant)


# ---- what takes a kernel of its own


@triton.jit
def _far(x_ptr, stride, WIDE: tl.constexpr):
    row = tl.program_id(0) + 3
    offset = (row.to(tl.int64) if WIDE else row) * stride
    tl.store(x_ptr + offset, 1.0, mask=offset < 0)


def test_overflow_of_an_offset_is_caught() -> None:
    _far[(1,)](torch.zeros(1), 2**30, WIDE=True)
    with pytest.raises(InterpreterError, match="int32 overflow"):
        _far[(1,)](torch.zeros(1), 2**30, WIDE=False)


@triton.jit
def _echo(x_ptr, BARRIER: tl.constexpr):
    n = tl.arange(0, 16)
    tl.store(x_ptr + n, 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + n, tl.load(x_ptr + 15 - n) + 1.0)


def test_reading_back_without_a_barrier_is_caught() -> None:
    x = torch.zeros(16)
    _echo[(1,)](x, BARRIER=True)
    assert (x == 2).all()
    with pytest.raises(InterpreterError, match="read back without a barrier"):
        _echo[(1,)](x, BARRIER=False)


@triton.jit
def _shift(x_ptr, y_ptr):
    i = tl.program_id(0)
    tl.store(y_ptr + i, tl.load(x_ptr + i + 1))


def test_reading_what_another_program_writes_is_caught() -> None:
    x = torch.arange(5.0)
    _shift[(4,)](x, torch.empty(4))
    with pytest.raises(
        strict.AccessError, match=r"write by program \(1, 0, 0\) and read by program \(0, 0, 0\)"
    ):
        _shift[(4,)](x, x)


@triton.jit
def _count(x_ptr, i_ptr):
    tl.device_assert(tl.load(i_ptr) < 2, "number out of range")
    tl.atomic_add(x_ptr, tl.load(i_ptr).to(x_ptr.dtype.element_ty))


def test_assertions_are_on_and_float_atomics_are_refused() -> None:
    total = torch.zeros(1, dtype=torch.int32)
    _count[(3,)](total, torch.ones(1, dtype=torch.int32))
    assert total.item() == 3
    with pytest.raises(InterpreterError, match="number out of range"):
        _count[(1,)](total, torch.tensor([2], dtype=torch.int32))
    with pytest.raises(InterpreterError, match="float atomic add"):
        _count[(1,)](torch.zeros(1), torch.ones(1, dtype=torch.int32))


def test_float32_product_in_tf32_is_refused() -> None:
    x = randn(16, 16)
    z = torch.empty(16, 16)
    _product[(1,)](x, x, z, N=16, PRECISION="ieee")
    torch.testing.assert_close(z, x @ x)
    with pytest.raises(InterpreterError, match="TF32"):
        _product[(1,)](x, x, z, N=16, PRECISION="tf32")
