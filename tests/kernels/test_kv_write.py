# SPDX-License-Identifier: Apache-2.0
"""kv_write and copy_pages: exactly the named slots change, by exactly the given bits."""

import pytest
import torch
from harness import BACKENDS, CPU, DTYPES, apart, native, needs_native, randn
from torch import Tensor

from rzero.kernels.dispatch import choose
from rzero.kernels.kv_write import COPY_PAGES, KV_WRITE

P, S, G, E = 7, 4, 2, 6


def pages(dtype: torch.dtype, is_dense: bool) -> tuple[Tensor, Tensor]:
    k, v = (randn(P, S, G, E, dtype=dtype, seed=seed) for seed in (1, 2))
    return (k, v) if is_dense else (apart(k), apart(v))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("T", [0, 1, 9])
def test_only_the_named_slots_change(backend: str, dtype: torch.dtype, is_dense: bool, T: int) -> None:
    k_pages, v_pages = pages(dtype, is_dense)
    slot_T = torch.randperm(P * S, generator=torch.Generator().manual_seed(0))[:T]
    k_TGE, v_TGE = (randn(T, G, E, dtype=dtype, seed=seed) for seed in (3, 4))
    wanted = [k_pages.clone(), v_pages.clone()]
    for x, new in zip(wanted, (k_TGE, v_TGE), strict=True):
        for i, slot in enumerate(slot_T.tolist()):
            x[slot // S, slot % S] = new[i]
    given = (k_TGE, v_TGE) if is_dense or T == 0 else (apart(k_TGE), apart(v_TGE))
    choose(KV_WRITE, CPU, backend)[0](*given, slot_T, k_pages, v_pages)
    assert torch.equal(k_pages, wanted[0]) and torch.equal(v_pages, wanted[1])


@needs_native
def test_many_tokens_at_once(restored_threads: None) -> None:
    torch.set_num_threads(2)
    k_pages, v_pages = torch.zeros(2, 300, 16, 4, 32)
    k_TGE, v_TGE = randn(2, 4800, 4, 32)
    native(KV_WRITE)(k_TGE, v_TGE, torch.arange(4800).flip(0), k_pages, v_pages)
    assert torch.equal(k_pages.flatten(0, 1).flip(0), k_TGE)
    assert torch.equal(v_pages.flatten(0, 1).flip(0), v_TGE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize(("src", "dst"), [([], []), ([2], [5]), ([1, 1, 3], [0, 4, 6])])
def test_pages_are_copied_whole(backend: str, is_dense: bool, src: list[int], dst: list[int]) -> None:
    k_pages, v_pages = pages(torch.float32, is_dense)
    wanted = [k_pages.clone(), v_pages.clone()]
    for x in wanted:
        for a, b in zip(src, dst, strict=True):
            x[b] = x[a]
    numbers = (torch.tensor(n, dtype=torch.int64) for n in (src, dst))
    choose(COPY_PAGES, CPU, backend)[0](k_pages, v_pages, *numbers)
    assert torch.equal(k_pages, wanted[0]) and torch.equal(v_pages, wanted[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, P * S])
def test_slot_outside_the_pages_is_refused(backend: str, bad: int) -> None:
    k_pages, v_pages = pages(torch.float32, is_dense=True)
    before = k_pages.clone()
    with pytest.raises(ValueError, match="kv_write: slot_T"):
        choose(KV_WRITE, CPU, backend)[0](
            randn(2, G, E), randn(2, G, E), torch.tensor([0, bad]), k_pages, v_pages
        )
    assert torch.equal(k_pages, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("src", "dst", "name"), [(P, 0, "src"), (0, -1, "dst")])
def test_page_that_is_not_there_is_refused(backend: str, src: int, dst: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"copy_pages: {name}"):
        choose(COPY_PAGES, CPU, backend)[0](
            *pages(torch.float32, is_dense=True), torch.tensor([src]), torch.tensor([dst])
        )


@needs_native
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("k_TGE", {0: randn(2, G, E + 1)}),
        ("v_TGE", {1: randn(2, G, E).double()}),
        ("v_TGE", {1: randn(3, G, E)}),
        ("slot_T", {2: torch.tensor([0, 1], dtype=torch.int32)}),
        ("v_pages_PSGE", {4: randn(P, S, E, G).transpose(2, 3)}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [randn(2, G, E), randn(2, G, E), torch.tensor([0, 1]), *pages(torch.float32, is_dense=True)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"kv_write: {name} must be"):
        native(KV_WRITE)(*args)
