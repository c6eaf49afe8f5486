# SPDX-License-Identifier: Apache-2.0
"""attention over packed segments: values and gradients against float64, rows that see what they should."""

import pytest
import torch
from attention_inputs import Rows, count, segments, tensors
from cases import PACKED, SMALL
from harness import DTYPES, apart, assert_same_bits, native, needs_native, randn
from torch import Tensor

from rzero.kernels.attention import ATTENTION, Segments, attention_ref

HEADS = ((4, 2, 32), (14, 2, 64), (3, 1, 6), (6, 3, 10), (2, 2, 128))


@needs_native
def test_scores_of_hundreds_neither_overflow_nor_leave_the_largest(instruction_set: str) -> None:
    inputs = tensors(SMALL, 4, 2, 32, torch.float32)
    got = native(ATTENTION)(*inputs, segments(SMALL), 50.0)
    torch.testing.assert_close(got, attention_ref(*inputs, segments(SMALL), 50.0), rtol=1e-3, atol=1e-3)
    assert got.isfinite().all()


def test_reference_sees_the_prefix_and_the_past_and_nothing_else() -> None:
    """Values are one-hot by row and scores equal, so the output shows the weights."""
    T = count(SMALL)
    q, k, v = torch.zeros(T, 1, T), torch.zeros(T, 1, T), torch.eye(T)[:, None]
    o = attention_ref(q, k, v, segments(SMALL), 1.0)[:, 0]
    seen = [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [6],
        [6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
    ]
    for row, rows in zip(o, seen, strict=True):
        assert row.nonzero().flatten().tolist() == rows
        torch.testing.assert_close(row[rows], torch.full((len(rows),), 1 / len(rows)))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_row_has_the_same_bits_alone_in_any_company_and_strided(
    instruction_set: str, heads: tuple[int, int, int], dtype: torch.dtype, restored_threads: None
) -> None:
    f, inputs, scale = native(ATTENTION), tensors(PACKED, *heads, dtype), 0.2
    packed = f(*inputs, segments(PACKED), scale)
    torch.set_num_threads(2)
    assert_same_bits(f(*inputs, segments(PACKED), scale), packed)
    assert_same_bits(f(*(apart(x) for x in inputs), segments(PACKED), scale), packed)
    assert_same_bits(f(*inputs, segments(PACKED[::-1]), scale), packed)
    assert_same_bits(f(inputs[0].clone().requires_grad_(), *inputs[1:], segments(PACKED), scale), packed)
    for start, length, prefix_start, prefix_length in PACKED:
        prefix, own = slice(prefix_start, prefix_start + prefix_length), slice(start, start + length)
        alone = [torch.cat((x[prefix], x[own])) for x in inputs]
        got = f(*alone, segments(((0, prefix_length + length, 0, 0),)), scale)
        assert_same_bits(got[prefix_length:], packed[own])


@needs_native
def test_later_row_with_nan_leaves_earlier_rows_alone(instruction_set: str) -> None:
    """Rows are computed in blocks; a weight of zero times NaN would still be NaN."""
    rows, scale = ((0, 40, 0, 0),), 0.2
    inputs = tensors(rows, 4, 2, 32, torch.float32)
    wanted = native(ATTENTION)(*inputs, segments(rows), scale)
    for x in inputs:
        x[21] = float("nan")
    got = native(ATTENTION)(*inputs, segments(rows), scale)
    assert_same_bits(got[:21], wanted[:21])
    assert got[21:].isnan().all()


@needs_native
def test_gradients_have_the_same_bits_with_any_number_of_threads(restored_threads: None) -> None:
    grads = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        leaves = [x.requires_grad_() for x in tensors(PACKED, 4, 2, 32, torch.float32)]
        o_THE = native(ATTENTION)(*leaves, segments(PACKED), 0.2)
        grads.append(torch.autograd.grad(o_THE.square().sum(), leaves))
    assert_same_bits(grads[0], grads[1])
    assert_same_bits(grads[0], grads[2])


@needs_native
def test_no_rows(instruction_set: str) -> None:
    leaves = [torch.zeros(0, n, 8, requires_grad=True) for n in (4, 2, 2)]
    o_THE = native(ATTENTION)(*leaves, Segments(*torch.zeros(4, 0, dtype=torch.int32)), 1.0)
    assert o_THE.shape == (0, 4, 8)
    o_THE.sum().backward()


@needs_native
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (((0, 3, 0, 0), (4, 6, 0, 0)), "segment 1 has start_B 4"),
        (((0, 6, 0, 0), (5, 5, 0, 0)), "segment 1 has start_B 5"),
        (((0, 9, 0, 0),), "cover 9 rows of 10"),
        (((0, 11, 0, 0),), "cover 11 rows of 10"),
        (((0, 5, 0, 0), (5, 5, 0, 11)), "segment 1 has the prefix rows 0..11, there are 10 rows"),
        (((0, 5, 0, 0), (5, 5, -1, 2)), "segment 1 has the prefix rows"),
        (((0, 10, 0, -1),), "segment 0 has the prefix rows"),
    ],
)
def test_segments_that_do_not_share_out_the_rows_are_refused(rows: tuple[Rows, ...], message: str) -> None:
    inputs = tensors(((0, 10, 0, 0),), 4, 2, 8, torch.float32)
    with pytest.raises(ValueError, match=message):
        native(ATTENTION)(*inputs, segments(rows), 1.0)


@needs_native
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q_THE", {0: randn(10, 4, 8).double()}),
        ("q_THE", {0: randn(10, 8, 4).transpose(1, 2)}),
        ("k_TGE", {1: randn(10, 3, 8)}),
        ("k_TGE", {1: randn(9, 2, 8)}),
        ("v_TGE", {2: randn(10, 2, 8, dtype=torch.bfloat16)}),
        ("v_TGE", {2: randn(10, 2, 9)}),
        ("start_B", {3: segments(SMALL)._replace(start_B=torch.zeros(4, dtype=torch.int64))}),
        ("length_B", {3: segments(SMALL)._replace(length_B=torch.zeros(3, dtype=torch.int32))}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [*tensors(SMALL, 4, 2, 8, torch.float32), segments(SMALL)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"attention: {name} must be"):
        native(ATTENTION)(*args, 1.0)
