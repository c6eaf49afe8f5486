# SPDX-License-Identifier: Apache-2.0
"""Interrupted anywhere and resumed, a run ends in the bits of one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_run import Crash, CrashAfter, Keep, outcome, small

from rzero import loop
from rzero.cli import app
from rzero.engine.errors import InputError
from rzero.run_folder import read_config

UNITS, ABLATION_UNITS = 7, 5
FULL = ("challenger.kl_reference=phase", "solver.keep_optimizer=true", "ablation=true")
LORA = ("roles=lora", "lora.rank=4", "challenger.kl_reference=phase")


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    loop.run(small(*FULL), folder)
    return folder


def test_a_crash_after_every_unit(tmp_path: Path, left_alone: Path) -> None:
    """One unit at a time, each in an engine of its own, the ablation's too."""
    with pytest.raises(Crash):
        loop.run(small(*FULL), tmp_path / "run", CrashAfter(1))
    for _ in range(UNITS + ABLATION_UNITS - 1):
        with pytest.raises(Crash):
            loop.resume(tmp_path / "run", observer=CrashAfter(1))
    observer = Keep()
    loop.resume(tmp_path / "run", observer=observer)
    assert observer.runs == [("main", UNITS, UNITS), ("ablation", ABLATION_UNITS, ABLATION_UNITS)]
    assert not observer.steps
    assert outcome(tmp_path / "run") == outcome(left_alone)


def test_crashes_with_adapters_and_rare_checkpoints(tmp_path: Path) -> None:
    """Three crashes in one run; with checkpoint_every = 2 some steps have to be done again."""
    loop.run(small(*LORA), tmp_path / "alone")
    with pytest.raises(Crash):
        loop.run(small(*LORA, "checkpoint_every=2"), tmp_path / "run", CrashAfter(3))
    for units in (2, 1):
        with pytest.raises(Crash):
            loop.resume(tmp_path / "run", observer=CrashAfter(units))
    loop.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")


def test_a_damaged_state_falls_back_and_still_ends_in_the_same_bits(tmp_path: Path, left_alone: Path) -> None:
    with pytest.raises(Crash):
        loop.run(small(*FULL), tmp_path / "run", CrashAfter(3))
    [newest] = (tmp_path / "run" / "state").glob("challenger-000003.safetensors")
    newest.write_bytes(newest.read_bytes()[:-7])
    observer = Keep()
    loop.resume(tmp_path / "run", observer=observer)
    assert observer.runs[0] == ("main", UNITS, 2)
    assert len(observer.messages) == 1 and "damaged" in observer.messages[0]
    assert outcome(tmp_path / "run") == outcome(left_alone)


def test_resuming_a_finished_run_does_nothing(left_alone: Path) -> None:
    before = outcome(left_alone)
    observer = Keep()
    loop.resume(left_alone, observer=observer)
    assert not observer.steps and outcome(left_alone) == before


def test_resuming_with_other_settings_is_refused(left_alone: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.steps: 2 there, 3 now"):
        loop.resume(left_alone, small(*FULL, "solver.steps=3"))


@pytest.mark.parametrize("given", [["--preset", "tiny"], ["--output", "elsewhere"]])
def test_resuming_with_a_preset_or_another_folder_is_refused(left_alone: Path, given: list[str]) -> None:
    result = CliRunner().invoke(app, ["run", "--resume", str(left_alone), *given])
    assert isinstance(result.exception, InputError) and given[0] in str(result.exception)


def test_resuming_takes_what_may_differ(tmp_path: Path) -> None:
    """The comparison run can be asked for once the main one is there; what is computed stays the same."""
    settings = ("challenger.steps=1", "solver.steps=1", "checkpoint_every=2")
    loop.run(small(*settings, "ablation=true"), tmp_path / "both")
    loop.run(small(*settings), tmp_path / "run")
    main = outcome(tmp_path / "run")
    changed = small(*settings[:2], "checkpoint_every=1", "ablation=true")
    with pytest.raises(Crash):
        loop.resume(tmp_path / "run", changed, CrashAfter(1))
    assert read_config(tmp_path / "run").checkpoint_every == 1
    # Written down: a resume without options goes on with it.
    loop.resume(tmp_path / "run")
    both = outcome(tmp_path / "run")
    assert both == outcome(tmp_path / "both")
    assert main.items() <= both.items() and len(both) > len(main)


def started(action: str, folder: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    program = Path(__file__).with_name("small_run.py")
    command = [sys.executable, str(program), action, str(folder), *overrides]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_killed_at_odd_moments(tmp_path: Path, left_alone: Path) -> None:
    """kill -9 once a journal has grown, in the middle of what comes next; again; then left to end."""
    folder = tmp_path / "run"
    process = started("run", folder, *FULL)
    for journal, length in (("metrics.jsonl", 2), ("questions.jsonl", 1)):
        until = time.monotonic() + 300
        path = folder / journal
        while not (path.exists() and path.read_bytes().count(b"\n") >= length) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process = started("resume", folder)
    assert process.wait() == 0
    assert outcome(folder) == outcome(left_alone)
