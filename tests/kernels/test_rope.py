# SPDX-License-Identifier: Apache-2.0
"""rope, with and without norms per head, against float64 and against the definition."""

from typing import Any

import pytest
import torch
from cases import POSITIONS, positions, tables
from harness import DTYPES, apart, assert_same_bits, native, needs_native, randn
from torch import Tensor

from rzero.kernels.rope import ROPE, rope_ref

EPS = 1e-6


def bound(f: Any, T: int, H: int, G: int, E: int) -> Any:
    """f of qkv and the norms alone."""
    return lambda qkv, *norms: f(qkv, positions(T), *tables(E), H, G, *(norms or (None, None)), eps=EPS)


def test_reference_turns_each_pair_by_its_angle() -> None:
    E, angle = 4, torch.tensor([[0.3, 1.1]])
    qkv_TX = torch.arange(1.0, 13.0)[None]
    out = rope_ref(qkv_TX, torch.tensor([0]), angle.cos(), angle.sin(), 1, 1, None, None, eps=EPS)
    pairs = [complex(1, 3), complex(2, 4)]
    wanted = [p * complex(torch.cos(a), torch.sin(a)) for p, a in zip(pairs, angle[0], strict=True)]
    turned = [*(p.real for p in wanted), *(p.imag for p in wanted)]
    torch.testing.assert_close(out.q_THE.flatten(), torch.tensor(turned))
    assert out.v_TGE.flatten().tolist() == [9, 10, 11, 12] and out.k_TGE.shape == (1, 1, E)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_with_gradient(
    instruction_set: str, dtype: torch.dtype, restored_threads: None
) -> None:
    T, H, G, E = 150, 4, 2, 32
    qkv, w, pos = randn(T, (H + 2 * G) * E, dtype=dtype), randn(E, dtype=dtype, seed=1), positions(T)

    def f(x: Tensor, p: Tensor) -> Any:
        return native(ROPE)(x, p, *tables(E), H, G, w, w, eps=EPS)

    rows = [f(x, p) for x, p in zip(qkv.split(1), pos.split(1), strict=True)]
    wanted = tuple(torch.cat(part) for part in zip(*rows, strict=True))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_bits(f(qkv, pos), wanted)
        assert_same_bits(f(apart(qkv), pos), wanted)
        assert_same_bits(f(qkv.clone().requires_grad_(), pos), wanted)


@needs_native
def test_gradient_has_the_same_bits_with_any_number_of_threads(restored_threads: None) -> None:
    shape, grads = (200, 4, 2, 32), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [x.requires_grad_() for x in (randn(200, 256), randn(32, seed=1), randn(32, seed=2))]
        out = bound(native(ROPE), *shape)(*leaves)
        grads.append(torch.autograd.grad(sum(x.square().sum() for x in out), leaves))
    assert_same_bits(*grads)


@needs_native
@pytest.mark.parametrize("position", [-1, POSITIONS])
def test_position_outside_the_tables_is_named(position: int) -> None:
    with pytest.raises(ValueError, match=rf"pos_T\[1\] is {position}, the tables have the positions 0..89"):
        native(ROPE)(randn(2, 16), torch.tensor([0, position]), *tables(4), 2, 1, None, None, eps=EPS)


@needs_native
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv_TX", {0: randn(2, 17)}),
        ("qkv_TX", {0: randn(2, 16).double()}),
        ("pos_T", {1: torch.tensor([0, 1], dtype=torch.int32)}),
        ("pos_T", {1: torch.tensor([0])}),
        ("sin_RE", {3: torch.zeros(POSITIONS, 3)}),
        ("cos_RE", {2: torch.zeros(2, POSITIONS).t()}),
        ("q_norm_E and k_norm_E", {6: randn(4)}),
        ("k_norm_E", {6: randn(4), 7: randn(5)}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [randn(2, 16), torch.tensor([0, 1]), *tables(4), 2, 1, None, None]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"rope: {name} must"):
        native(ROPE)(*args, eps=EPS)
