# SPDX-License-Identifier: Apache-2.0
"""`rzero._cuda` built by setup.py with nvcc, as RZERO_CUDA=1 does: no spills, no warnings, registers within
budget, 16-byte accesses where they belong; and imported on a machine without a driver."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import tool

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("registers.json")
ARCHES = ("sm_80", "sm_90", "sm_100")
# nvcc itself reads this variable: warnings and spills end the build.
STRICT = "-Xptxas=-warn-spills,-warn-lmem-usage --Werror=all-warnings"
# Builds one extension of setup.py into a folder.
BUILD = """
import sys
from setuptools import Distribution
import distutils.core
found = distutils.core.run_setup("setup.py", stop_after="init")
found.ext_modules = [ext for ext in found.ext_modules if ext.name == "rzero._cuda"]
command = found.get_command_obj("build_ext")
command.build_lib, command.build_temp = sys.argv[1], sys.argv[2]
found.run_command("build_ext")
"""
IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.device_type, module.why_not() or "ready")
"""


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "lib"), str(folder / "temp")],
        cwd=ROOT,
        env={**os.environ, "RZERO_CUDA": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_an_nvcc_that_does_not_know_blackwell_builds_for_the_others(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        f"""#!/bin/sh
case "$*" in
    --list-gpu-code) echo sm_80; echo sm_90; exit;;
    *sm_100*) echo "unsupported gpu architecture 'compute_100'" >&2; exit 1;;
esac
echo "$*" >> {tmp_path}/calls
while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done
"""
    )
    nvcc.chmod(0o755)
    done = setup(tmp_path, CUDA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [line for line in (tmp_path / "calls").read_text().splitlines() if " -c " in line]
    assert compiled and all("sm_80" in line and "sm_90" in line for line in compiled)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("nvcc")
    done = setup(folder, NVCC_APPEND_FLAGS=STRICT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    [built] = (folder / "lib").rglob("_cuda*.so")
    return built


def kernels(library: Path) -> dict[str, dict[str, int]]:
    """Registers of every kernel by architecture; no kernel may use local memory."""
    found: dict[str, dict[str, int]] = {}
    arch = ""
    lines = subprocess.run(
        ["c++filt"],
        input=tool("cuobjdump", "--dump-resource-usage", str(library)),
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for i, line in enumerate(lines):
        if match := re.match(r"arch = (sm_\d+)", line):
            arch = match[1]
        elif match := re.match(r" *Function (.*):$", line):
            name = re.sub(r"\(anonymous namespace\)::|rzero::cuda::|^void |\([^<]*\)$", "", match[1])
            usage = dict(re.findall(r"(\w+):(\d+)", lines[i + 1]))
            assert usage["STACK"] == "0" and usage["LOCAL"] == "0", f"{name} on {arch}: {usage}"
            found.setdefault(name, {})[arch] = int(usage["REG"])
    return found


def test_registers_stay_within_the_budget(library: Path) -> None:
    """The budget is a ratchet, not a claim of speed; the hardware hands out registers by eights."""
    used = kernels(library)
    budget = json.loads(BUDGET.read_text())
    assert set(used) == set(budget), json.dumps(used, indent=2)
    over = {
        (name, arch): count
        for name, by_arch in used.items()
        for arch, count in by_arch.items()
        if count > budget[name][arch]
    }
    assert not over, json.dumps(used, indent=2)
    assert {arch for by_arch in used.values() for arch in by_arch} == set(ARCHES)


WIDE_LOADS = ("sample_rows<", "attend<", "write_tokens<uint4>", "copy_units<uint4>")
WIDE_STORES = ("write_tokens<uint4>", "copy_units<uint4>")


@pytest.mark.parametrize("arch", ARCHES)
def test_memory_is_read_and_written_16_bytes_at_a_time(library: Path, arch: str) -> None:
    code = tool("cuobjdump", "-sass", "-arch", arch, str(library))
    code = subprocess.run(["c++filt"], input=code, capture_output=True, text=True).stdout
    bodies = dict(re.findall(r"Function : (.*?)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert len(bodies) >= 12
    for name, body in bodies.items():
        assert not re.search(r"\b(LDL|STL)\b", body), f"{name} keeps variables in memory"
        if any(kernel in name for kernel in WIDE_LOADS):
            assert re.search(r"LDG\S*\.128", body), f"{name} has no 128-bit load"
        if any(kernel in name for kernel in WIDE_STORES):
            assert re.search(r"STG\S*\.128", body), f"{name} has no 128-bit store"


def test_import_without_a_driver_gives_the_reason(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(library)], capture_output=True, text=True, check=True
    )
    kind, reason = done.stdout.strip().split(" ", 1)
    assert kind == "cuda"
    if not Path("/proc/driver/nvidia").exists():
        assert "driver" in reason.lower() or "device" in reason.lower(), reason


def test_forced_build_without_nvcc_fails_with_the_reason(tmp_path: Path) -> None:
    done = setup(tmp_path, CUDA_HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert done.returncode != 0
    assert "rzero._cuda was asked for and cannot be built: nvcc is neither" in done.stdout + done.stderr
