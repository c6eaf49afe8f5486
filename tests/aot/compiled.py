# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels behind a call for a GPU that is not there, and reads the machine code.

The launchers run as they are, on CPU tensors: only `JITFunction.run` is replaced, and compiles instead of
launching, so that every kernel is specialised exactly as a user's call would have it.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

ARCHES = (80, 90, 100)
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CACHE = Path(__file__).resolve().parents[2] / "build" / "triton-cache"
OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
DOT_16 = re.compile(r"tt\.dot .*: tensor<[0-9x]+x(?:bf16|f16)>")


class Compiled(NamedTuple):
    """One kernel for one architecture."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    spills: int
    """Loads and stores of local memory."""
    mma: str
    """The tensor-core instruction, as HMMA; empty where there is none."""
    wide: str
    """Where 128-bit accesses of global memory are: "load", "store", both, or empty."""
    has_dot_16: bool
    """The source multiplies matrices of a 16-bit type."""


class Stub(DriverBase):
    """As much of a driver as compiling asks for. The device number is the architecture: triton keeps what it
    has compiled per device."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing can be timed here: give one configuration, not several")


@contextmanager
def kernels_of_calls(arch: int) -> Iterator[dict[str, Any]]:
    """Inside, launching a kernel compiles it for `arch`; the kernels come in the order of first calls."""
    run, kernels = JITFunction.run, {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        assert all(size > 0 for size in grid), (
            f"{self.fn.__name__}: a launch of no programs is an error on a GPU"
        )
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        kernels.setdefault(kernel.hash, kernel)
        return kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", Stub(arch))
        patch.setattr(JITFunction, "run", compile_only)
        yield kernels


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def read(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = RESOURCES.search(tool("cuobjdump", "--dump-resource-usage", file.name))
        opcodes = OPCODE.findall(tool("nvdisasm", "-c", file.name))
    assert resources is not None and opcodes, "the disassembler's output has another form"
    registers, stack_bytes = (int(number) for number in resources.groups())
    mma = {found[0] for op in opcodes if (found := re.match(r"HG?MMA|UTC\w*MMA", op))}
    loads = [op for op in opcodes if op.startswith(("LDG", "UTMALDG", "UBLKCP")) and is_wide(op)]
    stores = [op for op in opcodes if op.startswith(("STG", "UTMASTG")) and is_wide(op)]
    return Compiled(
        name=kernel.metadata.name,
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=kernel.metadata.shared,
        spills=sum(op.startswith(("LDL", "STL")) for op in opcodes),
        mma=" ".join(sorted(mma)),
        wide=" ".join([*["load"][: len(loads)], *["store"][: len(stores)]]),
        has_dot_16=DOT_16.search(kernel.asm["ttir"]) is not None,
    )


def is_wide(opcode: str) -> bool:
    return "128" in opcode or opcode.startswith("U")


def compile_case(name: str, arch: int) -> list[Compiled]:
    """The kernels behind the case called `name`. Runs in a process of the pool."""
    from calls import all_cases

    os.environ["TRITON_CACHE_DIR"] = str(CACHE)
    torch.set_num_threads(1)
    with kernels_of_calls(arch) as kernels:
        all_cases()[name]()
    return [read(kernel) for kernel in kernels.values()]


class Compilations:
    """All compilations of a run, two at a time; a result is waited for where it is asked for."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
        self.futures: dict[tuple[str, int], Future[list[Compiled]]] = {}

    def start(self, name: str, arch: int) -> None:
        self.futures[name, arch] = self.pool.submit(compile_case, name, arch)

    def result(self, name: str, arch: int) -> list[Compiled]:
        return self.futures[name, arch].result()
