# SPDX-License-Identifier: Apache-2.0
"""CUDA sources through nvcc, and on the CPU through the host shim, which is compiled once per sanitizer."""

from pathlib import Path
from types import ModuleType

import host_shim
import pytest


@pytest.fixture(scope="session")
def needs_shim() -> None:
    if reason := host_shim.why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def host_library(needs_shim: None, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return host_shim.build_library(tmp_path_factory.mktemp("host"))


@pytest.fixture
def on_host(host_library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchers of kernels/<op>_cuda.py run on CPU tensors, with small blocks: a thread is a fiber."""
    for name in ("sample_cuda", "kv_write_cuda", "paged_attention_cuda"):
        monkeypatch.setattr(f"rzero.kernels.{name}.lib", host_library)
    monkeypatch.setattr("rzero.kernels.sample_cuda.THREADS", 32)


@pytest.fixture(scope="session")
def sanitized(needs_shim: None) -> dict[str, dict[str, Path]]:
    """Per sanitizer the object files of all kernels and of run_ops.cpp, by the name of their source."""
    sources = [*host_shim.kernel_sources(), host_shim.HERE / "run_ops.cpp"]
    return {kind: host_shim.compile_all(sources, kind) for kind in ("address", "thread")}
