# SPDX-License-Identifier: Apache-2.0
"""benchmarks/kernels.py on tiny sizes: every op is there, and the last line is JSON. No figure is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rzero.kernels import OPS
from rzero.kernels.native import lib

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels.py"
# rope_write is rope and kv_write in one; whole pages are copied, and advantages computed, once a step.
NOT_TIMED = {"rope_write", "copy_pages", "group_advantage"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--smoke", "--rounds", "1", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(lib is None, reason="rzero._native is not built")
def test_the_ops_are_timed_and_the_last_line_is_json() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    timed = {row["op"] for row in result["rows"]}
    assert timed == {op.name for op in OPS} - NOT_TIMED
    assert {"device", "instruction_set", "threads", "torch", "commit"} <= result["conditions"].keys()
    for row in result["rows"]:
        assert row["ms"] > 0 and any(key.startswith("x ") for key in row), row
        assert row.get("largest difference", 0) <= 1e-12, row


def test_unknown_op_is_named() -> None:
    done = run("--ops", "sort")
    assert done.returncode == 2 and "no op is called 'sort'" in done.stderr
