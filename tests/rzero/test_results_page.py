# SPDX-License-Identifier: Apache-2.0
"""docs/results.md says of the real model what its verdicts say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_real_model_are_those_of_its_verdicts() -> None:
    script = ROOT / "docs" / "real-model" / "tables.py"
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in printed.splitlines() if line]
    assert len(rows) > 10
    assert [line for line in rows if line not in page] == []
