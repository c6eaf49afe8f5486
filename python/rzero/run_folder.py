# SPDX-License-Identifier: Apache-2.0
"""The run folder: journals that only grow, and a state that is replaced as a whole.

    config.yaml  run.json  result.json  and the journals (see journals.py)
    state/state.json, state/<role>-<number>.safetensors    models/iteration-<i>/{solver,challenger}/

`state.json` is the commit point: it names the last finished unit of work, the tensor files that belong to it,
and the length in bytes of every journal at that moment. What lies behind those lengths was written by a unit
that never finished, and is cut off on resume. The state before is kept as `previous.json` in case of damage.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
import yaml

from rzero.config import FREE_KEYS, absolute, differences, fingerprint, from_dict, to_yaml
from rzero.engine.errors import InputError
from rzero.engine.tensor_file import fill_file, read_tensors, recover_folder
from rzero.journals import JOURNALS, Damaged, Journals
from rzero.journals import read_journal as read_journal
from rzero.settings import Settings

STATE_FORMAT = 2
# What a full disk or quota looks like (EFBIG: a limit on the size of one file).
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class State(NamedTuple):
    """The last finished unit: how many are finished, its name, tensors by role, and small facts."""

    units: int
    unit: str
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    facts: Mapping[str, Any]


class RunFolder:
    """One run on disk. Use `create` or `open`; both hold a lock until `close`."""

    def __init__(self, path: Path, config: Settings) -> None:
        self.path = path
        self.config = config
        self._lock: IO[str] | None = None
        # The record of the last state saved or loaded: what is known to be good.
        self._record: dict[str, Any] | None = None
        self._journals = Journals(path)

    # life

    @classmethod
    def create(cls, path: str | Path, config: Settings, facts: Mapping[str, Any]) -> "RunFolder":
        """A new run folder with `facts` as its run.json; raises InputError when it holds a run already."""
        folder = cls(Path(path), absolute(config))
        if (folder.path / "config.yaml").exists():
            raise InputError(f"{path} already holds a run; go on with --resume {path} or name another")
        with explained(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._take_lock()
            for name in JOURNALS:
                (folder.path / name).touch()
            write_atomic(folder.path / "run.json", json.dumps(dict(facts), indent=1) + "\n")
            # Last, because it is what makes the folder a run.
            write_atomic(folder.path / "config.yaml", to_yaml(folder.config, texts=True))
        return folder

    @classmethod
    def open(cls, path: str | Path, config: Settings | None = None) -> "RunFolder":
        """An existing run, to go on with it; `config`, where given, must compute the same run.

        What of `config` may differ (config.FREE_KEYS) is written down and holds from now on.
        Raises InputError when the folder holds no run, or one with other settings (it names them).
        """
        before = read_config(path)
        config = before if config is None else absolute(config)
        folder = cls(Path(path), config)
        if fingerprint(config) != fingerprint(before):
            changed = differences(before, config).items()
            text = "; ".join(
                f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed if name not in FREE_KEYS
            )
            raise InputError(f"{path} belongs to a run with other settings ({text})")
        with explained(folder.path):
            folder._take_lock()
            if config != before:
                write_atomic(folder.path / "config.yaml", to_yaml(config, texts=True))
            # A kill between two renames leaves a model's old contents beside its place.
            for old in folder.path.glob("models/iteration-*/.*.old"):
                recover_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
        return folder

    def close(self) -> None:
        """Let others open the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(f"{self.path} is in use by another rzero process") from None

    # journals

    def append(self, journal: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows at the end of a journal; they count once the next state is saved."""
        with explained(self.path / journal):
            self._journals.append(journal, rows)

    def read(self, journal: str) -> Iterator[dict[str, Any]]:
        """The rows of a journal in order."""
        return read_journal(self.path / journal)

    # state

    def save_state(self, state: State, changed: Sequence[str]) -> None:
        """Make `state` the one to resume from; only the tensors of roles in `changed` are written."""
        folder = self.path / "state"
        with explained(folder):
            folder.mkdir(exist_ok=True)
            before, files = self._record, {}
            saved = before["files"] if before is not None else {}
            for role, tensors in state.tensors.items():
                if role in changed or role not in saved:
                    files[role] = _write_tensors(folder / f"{role}-{state.units:06d}.safetensors", tensors)
                else:
                    files[role] = saved[role]
            record = {
                "format": STATE_FORMAT,
                "fingerprint": fingerprint(self.config),
                "units": state.units,
                "unit": state.unit,
                "facts": dict(state.facts),
                "files": files,
                "journals": self._journals.commit(),
            }
            # Not what state.json holds now: that may be the damaged one which the run did not go on from.
            if before is not None:
                write_atomic(folder / "previous.json", json.dumps(before, indent=1) + "\n")
            write_atomic(folder / "state.json", json.dumps(record, indent=1) + "\n")
            self._record = record
            used = {entry["file"] for one in (saved, files) for entry in one.values()}
            for path in folder.iterdir():
                if path.is_file() and path.suffix != ".json" and path.name not in used:
                    path.unlink()

    def load_state(self, warn: Callable[[str], None] = print) -> State | None:
        """The state to go on from, with the journals cut back to it; None when nothing was finished yet.

        A damaged last state is explained through `warn` and the one before is used; InputError when both are.
        """
        folder = self.path / "state"
        damage = []
        for name in ("state.json", "previous.json"):
            if not (folder / name).exists():
                continue
            try:
                state = self._read_state(folder / name, warn)
            except Damaged as error:
                damage.append(str(error))
                continue
            for text in damage:
                warn(f"{text}; going on from the state before it")
            return state
        if damage:
            raise InputError(f"no usable state in {folder}: {'; '.join(damage)}; start the run anew")
        with explained(self.path):
            self._journals.clear()
        return None

    def _read_state(self, path: Path, warn: Callable[[str], None]) -> State:
        try:
            record = json.loads(path.read_text())
            files, journals = record["files"], record["journals"]
            unit = State(record["units"], record["unit"], {}, record["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{path} is damaged ({error})") from None
        if record["format"] != STATE_FORMAT or record["fingerprint"] != fingerprint(self.config):
            raise Damaged(f"{path} was saved with other settings than config.yaml or by another version")
        tensors = {role: _read_tensors(path.parent / entry["file"], entry) for role, entry in files.items()}
        with explained(self.path):
            self._journals.go_back(journals, warn)
        self._record = record
        return unit._replace(tensors=tensors)

    def check_model(self, sha256: str) -> None:
        """Raises InputError when the run began with other weights than those of this hash."""
        began_with = self._facts("model_sha256")["model_sha256"]
        if began_with != sha256:
            raise InputError(
                f"model {self.config.model}: its weights are not those that {self.path} began with "
                f"(SHA-256 {began_with[:12]} then, {sha256[:12]} now)"
            )

    def check_held_out(self, now: Mapping[str, str]) -> None:
        """Raises InputError when the run began with other held-out sets than those of these hashes."""
        # Runs of earlier versions did not write them down.
        then: Mapping[str, str] = self._facts().get("held_out_sha256", now)
        for name in dict.fromkeys([*then, *now]):
            if then.get(name) != now.get(name):
                before, after = ((hashes.get(name) or "none")[:12] for hashes in (then, now))
                raise InputError(
                    f"held-out set {name}: it is not the one that {self.path} began with "
                    f"(SHA-256 {before} then, {after} now)"
                )

    def _facts(self, *needed: str) -> dict[str, Any]:
        path = self.path / "run.json"
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            missing = [name for name in needed if name not in facts]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from None
        if missing:
            raise InputError(f"{path} is damaged: it has no {missing[0]}")
        return facts

    def models_of(self, iteration: int) -> Path:
        """Where the checkpoints of an iteration belong."""
        return self.path / "models" / f"iteration-{iteration}"

    def model_folder(self, iteration: int, role: str) -> Path:
        """Where the checkpoint of a role after an iteration belongs; its parents exist afterwards."""
        folder = self.models_of(iteration)
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / role


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a disk can do to us, full or not writable, into an InputError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free_mib = shutil.disk_usage(_existing(path)).free >> 20
            raise InputError(
                f"the disk is full: {path} could not be written ({free_mib} MiB free); "
                "nothing finished is lost, make room and go on with --resume"
            ) from error
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file so that a reader, or a crash, sees the old or the new text."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def read_config(path: str | Path) -> Settings:
    """The settings of a run folder; raises InputError when it is none."""
    file = Path(path) / "config.yaml"
    if not file.exists():
        raise InputError(f"{path} is not a run folder: it has no config.yaml")
    try:
        return from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())}") from None


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    partial = path.with_name(path.name + ".partial")
    fill_file(partial, tensors)
    digest = _sha256(partial)
    partial.replace(path)
    _sync_folder(path.parent)
    return {"file": path.name, "sha256": digest}


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise Damaged(f"{path} is missing")
    if _sha256(path) != entry["sha256"]:
        raise Damaged(f"{path} is damaged: its SHA-256 is not the recorded one")
    return read_tensors(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
