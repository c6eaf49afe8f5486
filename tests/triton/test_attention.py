# SPDX-License-Identifier: Apache-2.0
"""attention in Triton: values and gradients against float64, and bit for bit in other company."""

from collections.abc import Iterator

import ordered
import pytest
import torch
from attention_inputs import Rows, segments, tensors
from harness import DTYPES, apart, assert_same_bits, check_error, randn
from torch import Tensor

from rzero.kernels.attention import Segments, attention_ref
from rzero.kernels.attention_triton import attention_triton

# Prompts, answers, an answer to a part of a prompt, no rows, more rows than a tile, two prompts as a prefix.
PACKED: tuple[Rows, ...] = (
    (0, 5, 0, 0), (5, 1, 0, 5), (6, 3, 0, 5), (9, 2, 1, 3), (11, 0, 0, 5), (11, 68, 0, 0), (79, 4, 11, 68),
    (83, 1, 3, 20),
)  # fmt: skip
SMALL: tuple[Rows, ...] = ((0, 3, 0, 0), (3, 2, 0, 3), (5, 1, 0, 3), (6, 4, 0, 0))


@pytest.fixture
def ordered_dot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ordered.install(monkeypatch)
    yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "rows"), [((4, 2, 32), PACKED), ((7, 1, 20), PACKED), ((3, 3, 10), SMALL), ((2, 1, 80), SMALL)]
)
def test_error_is_that_of_torch(
    heads: tuple[int, int, int], rows: tuple[Rows, ...], dtype: torch.dtype
) -> None:
    """Weights and their gradients are rounded before the next product: roundings that torch does not have."""
    scale = heads[2] ** -0.5
    check_error(
        lambda *x: attention_ref(*x, segments(rows), scale),
        lambda *x: attention_triton(*x, segments(rows), scale),
        tensors(rows, *heads, dtype),
        slack=1.5 if dtype == torch.float32 else 2.0,
    )


def test_row_has_the_same_bits_strided_in_any_order_and_with_gradient(ordered_dot: None) -> None:
    inputs = tensors(PACKED, 4, 2, 20, torch.float32)
    wanted = attention_triton(*inputs, segments(PACKED), 0.2)
    assert_same_bits(attention_triton(*(apart(x) for x in inputs), segments(PACKED), 0.2), wanted)
    assert_same_bits(attention_triton(*inputs, segments(PACKED[::-1]), 0.2), wanted)
    leaf = inputs[0].clone().requires_grad_()
    assert_same_bits(attention_triton(leaf, *inputs[1:], segments(PACKED), 0.2), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone(dtype: torch.dtype, ordered_dot: None) -> None:
    inputs = tensors(PACKED, 4, 2, 20, dtype)
    packed = attention_triton(*inputs, segments(PACKED), 0.2)
    for start, length, prefix_start, prefix_length in PACKED:
        prefix, own = slice(prefix_start, prefix_start + prefix_length), slice(start, start + length)
        alone = [torch.cat((x[prefix], x[own])) for x in inputs]
        got = attention_triton(*alone, segments(((0, prefix_length + length, 0, 0),)), 0.2)
        assert_same_bits(got[prefix_length:], packed[own])


def test_gradients_of_strided_tensors_are_the_same_bits(ordered_dot: None) -> None:
    inputs, grads = tensors(SMALL, 4, 2, 20, torch.float32), []
    for make in (lambda x: x, apart):
        leaves = [make(x).requires_grad_() for x in inputs]
        o_THE = attention_triton(*leaves, segments(SMALL), 0.2)
        grads.append(torch.autograd.grad(o_THE, leaves, apart(randn(10, 4, 20, seed=9))))
    assert_same_bits(grads[0], grads[1])


def test_scores_of_hundreds_neither_overflow_nor_leave_the_largest() -> None:
    inputs = tensors(SMALL, 4, 2, 32, torch.float32)
    got = attention_triton(*inputs, segments(SMALL), 50.0)
    torch.testing.assert_close(got, attention_ref(*inputs, segments(SMALL), 50.0), rtol=1e-3, atol=1e-3)


def test_no_rows() -> None:
    leaves = [torch.zeros(0, n, 8, requires_grad=True) for n in (4, 2, 2)]
    o_THE = attention_triton(*leaves, Segments(*torch.zeros(4, 0, dtype=torch.int32)), 1.0)
    assert o_THE.shape == (0, 4, 8)
    o_THE.sum().backward()


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
        attention_triton(*inputs, segments(rows), 1.0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q_THE", {0: randn(10, 4, 8).double()}),
        ("q_THE", {0: randn(10, 32)}),
        ("q_THE", {0: randn(10, 8, 4).transpose(1, 2)}),
        ("k_TGE", {1: randn(10, 3, 8)}),
        ("k_TGE", {1: randn(9, 2, 8)}),
        ("k_TGE", {1: torch.empty(10, 2, 8, device="meta")}),
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
        attention_triton(*args, 1.0)
