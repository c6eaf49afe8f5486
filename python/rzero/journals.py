# SPDX-License-Identifier: Apache-2.0
"""The journals of a run: JSON lines that only grow, and are cut back to what a saved state counts on.

When a state is saved, what is new of each journal also goes into a copy below state/journals, and the state
records the journal's length and SHA-256. A journal that is no longer what was saved is put right by its copy.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rzero.engine.errors import InputError

JOURNALS = (
    "metrics.jsonl",
    "questions.jsonl",
    "votes.jsonl",
    "evaluations.jsonl",
    "evaluation_answers.jsonl",
)


class Damaged(Exception):
    """What was saved cannot be used."""


class Journals:
    """The journals in one run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies = folder / "state" / "journals"
        self._saved_bytes = dict.fromkeys(JOURNALS, 0)
        self._digests = {name: hashlib.sha256() for name in JOURNALS}

    def append(self, journal: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows at the end of a journal; they count once they are committed."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with (self._folder / journal).open("ab") as file:
            # A lone surrogate is legal in JSON's escapes but not in UTF-8.
            file.write(lines.encode("utf-8", errors="backslashreplace"))

    def commit(self) -> dict[str, dict[str, Any]]:
        """Make what was appended durable, twice; returns the length and SHA-256 of every journal."""
        self._copies.mkdir(parents=True, exist_ok=True)
        record = {}
        for name in JOURNALS:
            with (self._folder / name).open("rb") as file:
                os.fsync(file.fileno())
                file.seek(self._saved_bytes[name])
                new = file.read()
            if new:
                with (self._copies / name).open("ab") as file:
                    file.write(new)
                    file.flush()
                    os.fsync(file.fileno())
            self._digests[name].update(new)
            self._saved_bytes[name] += len(new)
            record[name] = {"bytes": self._saved_bytes[name], "sha256": self._digests[name].hexdigest()}
        return record

    def clear(self) -> None:
        """Begin anew."""
        shutil.rmtree(self._copies, ignore_errors=True)
        for name in JOURNALS:
            with (self._folder / name).open("wb"):
                pass

    def go_back(self, record: Mapping[str, Mapping[str, Any]], warn: Callable[[str], None]) -> None:
        """Cut every journal and its copy to what `record` says; of the two, one that is damaged is replaced.

        Raises Damaged, and touches nothing, where a journal and its copy both are.
        """
        state = {name: [_digest(path, record[name]) for path in self._both(name)] for name in JOURNALS}
        for name, digests in state.items():
            if digests == [None, None]:
                raise Damaged(f"{self._folder / name} is damaged, and so is its copy")
        self._copies.mkdir(parents=True, exist_ok=True)
        for name, digests in state.items():
            journal, copy = self._both(name)
            size = int(record[name]["bytes"])
            if digests[0] is None:
                warn(f"{journal} is not what was saved; its copy {copy} takes its place")
                _replace(journal, copy)
            elif digests[1] is None:
                _replace(copy, journal)
            # A journal without lines has no copy.
            for path in (journal, copy) if copy.exists() else (journal,):
                with path.open("ab") as file:
                    file.truncate(size)
            self._saved_bytes[name] = size
            [self._digests[name], *_] = [digest for digest in digests if digest is not None]

    def _both(self, name: str) -> tuple[Path, Path]:
        return self._folder / name, self._copies / name


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line without its end (a write cut off) is left out.

    Raises InputError that names the line when any other line is damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is damaged: {error}") from None


def _digest(path: Path, entry: Mapping[str, Any]) -> Any:
    """The running SHA-256 of a file's beginning where that is what `entry` says, else None."""
    digest = hashlib.sha256()
    left = int(entry["bytes"])
    if not path.exists():
        return None if left else digest
    with path.open("rb") as file:
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return digest if not left and digest.hexdigest() == entry["sha256"] else None


def _replace(path: Path, source: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(path)
