# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA sources for the CPU, with the shim of cuda_host.h in place of the CUDA runtime."""

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, ModuleType

import pybind11

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CACHE = CSRC.parent / "build" / "cuda-host"
HEADERS = (CSRC / "cuda.h", CSRC / "cuda.cuh", HERE / "cuda_host.h")
KERNELS = ("cuda_device", "kv_write", "paged_attention", "sample")
FLAGS = (
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    '-DRZERO_CUDA_HOST="cuda_host.h"',
    f"-I{HERE}",
)
SANITIZERS = MappingProxyType(
    {
        "none": (),
        "address": ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "thread": ("-g1", "-fsanitize=thread"),
    }
)


def cuda_headers() -> Path | None:
    """The folder with CUDA's headers: beside nvcc, or where it is usually installed."""
    nvcc = shutil.which("nvcc")
    homes = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])]
    return next((home / "include" for home in homes if (home / "include/cuda_bf16.h").exists()), None)


def why_not() -> str | None:
    """Why the shim cannot be compiled here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the shim switches stacks in x86-64 assembler, this is {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    return None if cuda_headers() else "CUDA's headers are not installed"


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stderr[-4000:]}"


def compile_one(source: Path, sanitizer: str, flags: Sequence[str | Path] = ()) -> Path:
    """`source` as an object file, kept in build/ under a name that depends on all that goes into it."""
    language = ("-x", "c++") if source.suffix == ".cu" else ()
    command = (
        "g++",
        *FLAGS,
        *SANITIZERS[sanitizer],
        *flags,
        f"-I{CSRC}",
        "-isystem",
        str(cuda_headers()),
        *language,
    )
    texts = [path.read_bytes() for path in (*HEADERS, source)]
    key = hashlib.sha256(b"\0".join([repr(command).encode(), *texts])).hexdigest()[:20]
    target = CACHE / f"{source.stem}-{sanitizer}-{key}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            fresh = Path(folder) / "fresh.o"
            run(*command, "-c", source, "-o", fresh)
            fresh.replace(target)
    return target


def kernel_sources() -> list[Path]:
    return [CSRC / f"{name}.cu" for name in KERNELS]


def compile_all(sources: Sequence[Path], sanitizer: str) -> dict[str, Path]:
    """Object files by the name of their source."""
    with ThreadPoolExecutor(2) as pool:
        objects = pool.map(lambda source: compile_one(source, sanitizer), sources)
        return {source.stem: built for source, built in zip(sources, objects, strict=True)}


def link(objects: Iterable[Path], target: Path, sanitizer: str) -> Path:
    run("g++", *SANITIZERS[sanitizer], *objects, "-o", target)
    return target


def build_library(folder: Path) -> ModuleType:
    """The bindings over the shim, as a Python module: the kernels of `rzero._cuda` on CPU tensors."""
    paths = {pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    include = [word for path in sorted(paths) for word in ("-isystem", path)]
    with ThreadPoolExecutor(1) as pool:
        flags = ("-O0", "-fvisibility=hidden", *include)
        module = pool.submit(compile_one, CSRC / "cuda_module.cpp", "none", flags)
        objects = compile_all(kernel_sources(), "none")
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    run("g++", "-shared", *objects.values(), module.result(), "-o", library)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
