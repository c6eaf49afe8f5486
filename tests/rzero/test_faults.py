# SPDX-License-Identifier: Apache-2.0
"""What a run survives: kill -9 anywhere, a full disk, damage on disk. `--kills N` asks for more kills."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import Crash, CrashAfter, Keep, outcome, small

from rzero import loop

SEED = 1


def program(folder: Path, what: str) -> dict[str, Any]:
    """Run kill_run.py and return what it found."""
    script = Path(__file__).with_name("kill_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), what, str(SEED)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_at_random_moments(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kills = int(pytestconfig.getoption("--kills"))
    found = program(tmp_path, str(kills))
    assert sum(found["phases"].values()) == kills
    assert found["ended"] >= 1


def test_a_full_disk_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """A limit on the size of a file refuses writes as a full disk does."""
    assert program(tmp_path, "full")["refusals"] == 3


@pytest.mark.parametrize("damage", ["metrics.jsonl", "questions.jsonl", "state/state.json"])
def test_damage_between_two_attempts_is_explained_and_mended(tmp_path: Path, damage: str) -> None:
    """A journal is put right by its copy; a state gives way to the one before."""
    loop.run(small(), tmp_path / "alone")
    with pytest.raises(Crash):
        loop.run(small(), tmp_path / "run", CrashAfter(5))
    path = tmp_path / "run" / damage
    middle = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:middle] + b"\x00" + path.read_bytes()[middle + 1 :])
    observer = Keep()
    loop.resume(tmp_path / "run", observer=observer)
    [message] = observer.messages
    assert str(path) in message
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
