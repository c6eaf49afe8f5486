# SPDX-License-Identifier: Apache-2.0
"""A whole run in seconds, on the embedded model: settings, observers and comparisons for tests.

As a program: python small_run.py run|resume FOLDER KEY=VALUE..., which a test can kill.
"""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rzero import loop
from rzero.config import load_config
from rzero.gauges import GAUGES
from rzero.observer import Observer
from rzero.run_folder import read_journal
from rzero.settings import Settings

SMALL = (
    "iterations=1",
    "ablation=false",
    "engine.threads=1",
    "challenger.steps=2",
    "challenger.questions_per_step=24",
    "challenger.votes=4",
    "pool.candidates=40",
    "pool.votes=4",
    "pool.keep_low=1",
    "pool.keep_high=4",
    "solver.steps=2",
    "solver.questions_per_step=6",
    "solver.samples=4",
    "evaluation.problems=4",
    "evaluation.samples=2",
    # On so few questions and problems every gauge would warn at random.
    *(f"gauges.{gauge.name}.warn=null" for gauge in GAUGES),
)


def small(*overrides: str) -> Settings:
    """The settings of a run of seven units."""
    return load_config("tiny", overrides=[*SMALL, *overrides])


class Crash(Exception):
    """What a test raises in the middle of a run."""


class CrashAfter(Observer):
    """Ends a run with a Crash once `units` units are finished, and keeps what was said."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.messages: list[str] = []

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        self.units -= 1
        if self.units == 0:
            raise Crash

    def on_message(self, text: str) -> None:
        self.messages.append(text)


class Keep(Observer):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Any]] = []
        self.runs: list[tuple[str, int, int]] = []
        self.messages: list[str] = []

    def on_run(self, name: str, units: int, finished: Sequence[Mapping[str, Any]]) -> None:
        self.runs.append((name, units, len(finished)))

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        self.steps.append(metrics)

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights, optimizer states and journals, the times left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if "state" not in path.parts or f'"{path.name}"' in (path.parent / "state.json").read_text():
            # The number in a state's name is the step at which it was saved, which checkpoint_every decides.
            name = re.sub(r"-\d+(?=\.safetensors)", "", str(path.relative_to(folder)))
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*.jsonl")):
        rows = list(read_journal(path))
        found[str(path.relative_to(folder))] = [{**row, "seconds": 0} for row in rows]
    return found


def main() -> None:
    action, folder, *overrides = sys.argv[1:]
    if action == "run":
        loop.run(small(*overrides), folder)
    else:
        loop.resume(folder)


if __name__ == "__main__":
    main()
