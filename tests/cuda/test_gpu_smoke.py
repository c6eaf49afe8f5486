# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_smoke.py: its checks, run on what a CPU can run, and its words where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_smoke.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)


def test_every_check_passes_on_the_cpu(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--dtypes", "float32", "--out", str(tmp_path / "smoke.json"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "smoke.json").read_text())
    last = json.loads(done.stdout.splitlines()[-1])
    assert report["passed"] and last["passed"] and report["commit"]
    assert len(report["results"]) == report["checks"] > 60
    from rzero.kernels import OPS

    assert {op.name for op in OPS} - {result["op"] for result in report["results"]} == {"bleu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = run()
    assert done.returncode == 2 and done.stdout.startswith("gpu_smoke: torch finds no GPU here")
    assert len(done.stdout.splitlines()) == 1 and not done.stderr
