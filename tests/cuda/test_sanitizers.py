# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels under AddressSanitizer, UBSan and ThreadSanitizer; planted bugs must be found."""

import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import host_shim
import pytest

Objects = Mapping[str, Mapping[str, Path]]
OPS = ("sample", "kv_write", "copy_pages", "paged_attention")


def run(program: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(sanitized: Objects, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sanitizers")
    return {
        kind: host_shim.link(objects.values(), folder / kind, kind) for kind, objects in sanitized.items()
    }


@pytest.mark.parametrize("order", [(), ("reversed",)], ids=["", "reversed"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_nothing_is_found(kind: str, op: str, order: tuple[str, ...], programs: dict[str, Path]) -> None:
    status, output = run(programs[kind], op, *order)
    assert (status, output) == (0, "fine\n"), output[:3000]


class Bug(NamedTuple):
    """A change to a kernel's source, and what must find it: any of `signs` in the output of `kind`."""

    source: str
    old: str
    new: str
    op: str
    kind: str
    signs: tuple[str, ...]


BUGS = {
    "no barrier before the histogram is cleared": Bug(
        "sample",
        "    __syncthreads();  // before the next digit clears the histogram\n",
        "",
        "sample",
        "thread",
        ("data race",),
    ),
    "no barrier before the parts are merged": Bug(
        "paged_attention",
        "  __syncthreads();\n  for (int i = threadIdx.x; i < heads",
        "  for (int i = threadIdx.x; i < heads",
        "paged_attention",
        "thread",
        ("data race",),
    ),
    "two blocks write one output": Bug(
        "paged_attention",
        "T* o = static_cast<T*>(a.o) + row * a.o_row + int64_t(group * a.heads + first_head)",
        "T* o = static_cast<T*>(a.o) + row * a.o_row + int64_t(first_head)",
        "paged_attention",
        "thread",
        ("data race",),
    ),
    "an index past an array in shared memory": Bug(
        "sample",
        "s.group[g] = sum",
        "s.group[g + 1] = sum",
        "sample",
        "address",
        ("out of bounds", "overflow"),
    ),
    "one element past a buffer": Bug(
        "kv_write",
        "if (i >= a.units) return;",
        "if (i > a.units) return;",
        "kv_write",
        "address",
        ("heap-buffer-overflow",),
    ),
    "a barrier in a branch that not all threads take": Bug(
        "sample",
        "  if (threadIdx.x == 0) s.token = row.V;\n  __syncthreads();\n",
        "  if (threadIdx.x == 0) {\n    s.token = row.V;\n    __syncthreads();\n  }\n",
        "sample",
        "address",
        ("divergent __syncthreads", "deadlock"),
    ),
    "a lane that leaves before a shuffle": Bug(
        "sample",
        "  const Weight mine = s.group",
        "  if (threadIdx.x == 5) return 0.f;\n  const Weight mine = s.group",
        "sample",
        "address",
        ("divergent __syncthreads", "deadlock"),
    ),
}


@pytest.fixture(scope="module")
def planted(sanitized: Objects, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The changed kernels as object files, by the name of the bug."""
    folder = tmp_path_factory.mktemp("planted")

    def plant(number: int, bug: Bug) -> Path:
        text = (host_shim.CSRC / f"{bug.source}.cu").read_text()
        assert bug.old in text, f"the source has changed: plant anew {bug.old!r}"
        changed = folder / f"{bug.source}_{number}.cu"
        changed.write_text(text.replace(bug.old, bug.new))
        return host_shim.compile_one(changed, bug.kind)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BUGS, pool.map(plant, range(len(BUGS)), BUGS.values()), strict=True))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(
    name: str, planted: dict[str, Path], sanitized: Objects, tmp_path: Path
) -> None:
    bug = BUGS[name]
    objects = {**sanitized[bug.kind], bug.source: planted[name]}
    program = host_shim.link(objects.values(), tmp_path / "run_ops", bug.kind)
    status, output = run(program, bug.op)
    assert status != 0 and any(sign in output for sign in bug.signs), output[:3000]
