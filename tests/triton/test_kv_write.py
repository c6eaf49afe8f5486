# SPDX-License-Identifier: Apache-2.0
"""kv_write in Triton: exactly the named slots change, by exactly the given bits."""

import pytest
import torch
from harness import DTYPES, apart, randn
from torch import Tensor
from triton.runtime.errors import InterpreterError

from rzero.kernels.kv_write import kv_write_ref
from rzero.kernels.kv_write_triton import kv_write_triton

P, S, G, E = 5, 4, 3, 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [0, 1, 9])
def test_only_the_named_slots_change(dtype: torch.dtype, T: int) -> None:
    slot_T = torch.randperm(P * S, generator=torch.Generator().manual_seed(0))[:T]
    k_TGE, v_TGE = (randn(T, G, E, dtype=dtype, seed=seed) for seed in (3, 4))
    got, wanted = ([apart(randn(P, S, G, E, dtype=dtype, seed=seed)) for seed in (1, 2)] for _ in range(2))
    kv_write_ref(k_TGE, v_TGE, slot_T, *wanted)
    kv_write_triton(*((apart(k_TGE), apart(v_TGE)) if T else (k_TGE, v_TGE)), slot_T, *got)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("bad", [-1, P * S])
def test_slot_outside_the_pages_is_refused_when_debugging(bad: int) -> None:
    pages = torch.zeros(2, P, S, G, E)
    with pytest.raises(InterpreterError, match="slot_T must lie inside the pages"):
        kv_write_triton(randn(1, G, E), randn(1, G, E), torch.tensor([bad]), *pages)
    assert not pages.any()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("k_TGE", {0: randn(2, G, E + 1)}),
        ("v_TGE", {1: randn(2, G, E).double()}),
        ("slot_T", {2: torch.tensor([0, 1], dtype=torch.int32)}),
        ("v_pages_PSGE", {4: randn(P, S, E, G).transpose(2, 3)}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [randn(2, G, E), randn(2, G, E), torch.tensor([0, 1]), *torch.zeros(2, P, S, G, E)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"kv_write: {name} must be"):
        kv_write_triton(*args)
