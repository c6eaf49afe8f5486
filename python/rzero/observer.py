# SPDX-License-Identifier: Apache-2.0
"""What a run tells whoever watches it; every method may be left as it is."""

from collections.abc import Mapping, Sequence
from typing import Any


class Observer:
    """Watches a run and says nothing. Subclass it to show progress; none of its methods changes the run."""

    def on_run(self, name: str, units: int, finished: Sequence[Mapping[str, Any]]) -> None:
        """A run begins: "main" or "ablation", its units of work, and the rows of those finished before."""

    def on_phase(self, iteration: int, phase: str, steps: int) -> None:
        """A phase begins: "challenger", "pool", "solver" or "evaluation", with its number of steps."""

    def on_progress(self, done: int, total: int, what: str) -> None:
        """Within a step: `done` of `total` samples ("questions", "answers", "votes") are there."""

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        """A unit of work is finished: its row of metrics.jsonl."""

    def on_questions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The pool's questions are answered: some rows in the form of questions.jsonl."""

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """An evaluation is finished: its rows of evaluations.jsonl, one per set."""

    def on_message(self, text: str) -> None:
        """A sentence for the user: a warning, or why a run stopped early."""
