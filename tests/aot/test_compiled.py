# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel, compiled from its real call sites: no spills, within the limits, as good as it was."""

from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl
from budget import entries, faults, line, load
from calls import all_cases
from compiled import ARCHES, Compilations, Compiled, kernels_of_calls, read

GOOD = Compiled("f", 64, 0, 1024, 0, "HMMA", "load store", True)


@pytest.fixture(scope="session")
def compilations(request: pytest.FixtureRequest) -> Iterator[Compilations]:
    """Everything that the chosen tests ask for, started at once."""
    running = Compilations()
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_case":
            running.start(item.callspec.params["name"], item.callspec.params["arch"])
    yield running
    running.pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", all_cases())
def test_case(name: str, arch: int, compilations: Compilations) -> None:
    kernels = compilations.result(name, arch)
    assert kernels, "no kernel was launched"
    budget = load()
    found = [
        fault for key, kernel in entries(name, arch, kernels) for fault in faults(key, kernel, arch, budget)
    ]
    assert not found, "\n" + "\n".join(found)


def test_budget_has_no_cases_that_are_gone() -> None:
    assert {key.split(":")[0] for key in load()} <= set(all_cases())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack_bytes": 8}, "spills: 8 bytes"),
        ({"spills": 2}, "2 local loads and stores"),
        ({"shared_bytes": 164 * 1024}, "sm_80 has 166912"),
        ({"mma": ""}, "without tensor cores"),
        ({"mma": "HGMMA"}, "tensor-core instruction 'HGMMA', was 'HMMA'"),
        ({"registers": 65}, "65 registers, the budget is 64"),
        ({"shared_bytes": 1025}, "1025 shared_bytes, the budget is 1024"),
        ({"wide": "store"}, "no 128-bit load any more"),
    ],
)
def test_fault_is_named(change: dict[str, object], said: str) -> None:
    budget = {"key": line(GOOD)}
    assert not list(faults("key", GOOD, 80, budget))
    assert any(said in fault for fault in faults("key", GOOD._replace(**change), 80, budget))
    assert list(faults("other key", GOOD, 80, budget)) == ["other key is not in budget.json"]


@triton.jit
def _greedy(x_ptr, y_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    x = tl.load(x_ptr + n)
    total = tl.sum(x, 0)
    tl.store(y_ptr + n, x / total)


def test_spills_and_narrow_accesses_are_seen_in_the_machine_code() -> None:
    x = torch.empty(32769, dtype=torch.float32)
    with kernels_of_calls(90) as kernels:
        _greedy[(1,)](x, x, N=16384, num_warps=1)
        _greedy[(1,)](x, x, N=1024, num_warps=4)
        _greedy[(1,)](x[1:], x[1:], N=1024, num_warps=4)
    spilled, wide, narrow = (read(kernel) for kernel in kernels.values())
    assert spilled.stack_bytes and spilled.spills
    assert not wide.stack_bytes and not wide.spills and wide.wide == "load store"
    assert narrow.wide == ""
