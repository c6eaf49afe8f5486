# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_smoke.py: its checks, run on what a CPU can run, and its words where there is no GPU."""

import argparse
import importlib
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


# A stand-in for the checks, which the op swiglu takes down.
KILLED = """
import json, os, sys
for op in sys.argv[sys.argv.index("--ops") + 1 : sys.argv.index("--device")]:
    print(json.dumps(dict(zip({fields}, [op, "native", "float32", "a case", 0.0, 0.0, []]))), flush=True)
    if op == "swiglu":
        os.abort()
"""


def test_a_check_that_takes_its_process_down_costs_its_op_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    smoke = importlib.import_module("gpu_smoke")
    (tmp_path / "killed.py").write_text(KILLED.format(fields=smoke.Result._fields))
    monkeypatch.setattr(smoke, "__file__", str(tmp_path / "killed.py"))
    args = argparse.Namespace(device="cpu", dtypes=["float32"], time=False)
    results = list(smoke.results_apart(args, ["rope", "swiglu", "adamw", "lora"]))
    assert [(r.op, bool(r.faults)) for r in results] == [
        ("rope", False), ("swiglu", False), ("swiglu", True), ("adamw", False), ("lora", False),
    ]  # fmt: skip
    assert not smoke.report("cpu", results, is_whole=True)["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = run()
    assert done.returncode == 2 and done.stdout.startswith("gpu_smoke: torch finds no GPU here")
    assert len(done.stdout.splitlines()) == 1 and not done.stderr
