# SPDX-License-Identifier: Apache-2.0
"""Problems of the public benchmarks, from the user's folder of JSON lines or from the Hugging Face hub.

A row is {"problem", "answer"}, or has the set's own field names. Every set carries where it came from, with
the hash of each file and of the problems as they were read.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rzero.engine.errors import InputError
from rzero.seeds import shuffled
from rzero.suites import BENCHMARKS, Benchmark, Hub, plain_name, set_names

QUESTION_FIELDS = ("problem", "question", "Question", "input", "prompt")
# answer_letter before answer: SuperGPQA has the text of the right option as its answer.
ANSWER_FIELDS = ("answer_letter", "final_answer", "answer", "Answer", "target", "ground_truth")
MOST_OPTIONS = 26


class Item(NamedTuple):
    """One problem."""

    question: str
    answer: str
    options: tuple[str, ...] = ()
    """what a multiple-choice question offers; the answer is a letter, A for the first"""


@dataclass(frozen=True)
class ProblemSet:
    """A set of problems, how they are asked, and where they came from."""

    name: str
    form: str
    """math, choice, words, or the name of a task"""
    items: tuple[Item, ...]
    source: Mapping[str, Any]
    """file or repository and revision, with sha256 of each file"""
    samples: int = 0

    def first(self, count: int | None, shuffle: int | None = None) -> "ProblemSet":
        """The first so many problems (None: all), in the random order of a seed, which the source names."""
        source = self.source if shuffle is None else {**self.source, "shuffle": shuffle}
        return replace(self, items=tuple(shuffled(self.items, shuffle)[:count]), source=source)

    def sha256(self) -> str:
        """A hash of the problems as they are asked and graded."""
        return hashlib.sha256(json.dumps(self.items).encode()).hexdigest()


def load_sets(asked: Sequence[str], data: str | None) -> list[ProblemSet]:
    """The sets of these names, each once: suites, benchmarks, `name@revision`, or files of folder `data`.

    With `data` nothing is downloaded; without names all files of the folder are taken. Raises InputError for
    an unknown name, a missing file, a row that cannot be read, and a hub that does not answer.
    """
    if data is None:
        names = [(name, at) for text in asked for name, at in _with_revision(text)]
        return [_from_hub(BENCHMARKS[name], at) for name, at in dict.fromkeys(names)]
    files = {plain_name(path.stem): path for path in sorted(Path(data).glob("*.jsonl"))}
    if not files:
        raise InputError(f"--data {data}: expected a folder with <name>.jsonl files")
    local = tuple(path.stem for path in files.values())
    chosen = [name for text in asked for name in set_names(text, local)] if asked else local
    missing = [name for name in chosen if plain_name(name) not in files]
    if missing:
        raise InputError(
            f"--data {data}: there is no {missing[0]}.jsonl; the folder has {', '.join(sorted(local))}"
        )
    return [_from_file(name, files[plain_name(name)]) for name in dict.fromkeys(chosen)]


def _with_revision(text: str) -> Iterator[tuple[str, str | None]]:
    name, at, revision = text.partition("@")
    for each in set_names(name):
        yield each, revision if at else None


def _from_file(name: str, path: Path) -> ProblemSet:
    known = {plain_name(each.name): each for each in BENCHMARKS.values()}
    benchmark = known.get(plain_name(name))
    items = read_items(path)
    form = "choice" if items and items[0].options else "math"
    source = {"file": str(path), "sha256": {path.name: _sha256(path)}}
    if benchmark is None:
        return ProblemSet(name, form, items, source)
    # A choice whose file has no options is graded by the box, as any other answer.
    form = form if benchmark.form == "choice" else benchmark.form
    return ProblemSet(benchmark.name, form, items, source, benchmark.samples)


def _from_hub(benchmark: Benchmark, revision: str | None) -> ProblemSet:
    hub = benchmark.hub._replace(revision=revision or benchmark.hub.revision)
    folder, paths = hub_files(hub)
    items = tuple(item for path in paths for item in read_items(path, benchmark.only_mini))
    source = {
        "repository": hub.repository,
        "revision": folder.name,
        "sha256": {str(path.relative_to(folder)): _sha256(path) for path in paths},
    }
    return ProblemSet(benchmark.name, benchmark.form, items, source, benchmark.samples)


def hub_files(hub: Hub, cache: Path | None = None, is_offline: bool = False) -> tuple[Path, list[Path]]:
    """The folder of one revision, named by its commit, and its files that match, downloaded where necessary.

    cache: the hub's own cache folder when None. is_offline: take what the cache has. Raises InputError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(
            snapshot_download(
                hub.repository,
                repo_type="dataset",
                revision=hub.revision,
                allow_patterns=list(hub.patterns),
                cache_dir=cache,
                local_files_only=is_offline,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the hub does not give the data set {hub.repository}: {reason}; give local files with --data DIR"
        ) from error
    for pattern in hub.patterns:
        if paths := sorted(path for path in folder.rglob("*") if path.match(pattern) and path.is_file()):
            return folder, paths
    raise InputError(f"data set {hub.repository} at {folder.name} has no file {' or '.join(hub.patterns)}")


def read_items(path: Path, only_mini: bool = False) -> tuple[Item, ...]:
    """The problems of a file of JSON lines or Parquet rows; only_mini: those whose row says "mini".

    Raises InputError, with the line's number, for what cannot be read, and for a file without a problem.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    items = tuple(read_item(row, where) for where, row in rows if row.get("mini") or not only_mini)
    if not items:
        raise InputError(f"{path}: there is no problem in it")
    return items


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error}): {line[:80]!r}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, not {line[:80]!r}")
        yield where, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"reading {path.name} needs pyarrow: pip install pyarrow") from None
    for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1):
        yield f"{path}, row {number}", row


def read_item(row: Mapping[str, Any], where: str) -> Item:
    """A problem from a row with the set's own field names; raises InputError that names `where`."""
    question = next((str(row[name]) for name in QUESTION_FIELDS if row.get(name)), None)
    answer = next((row[name] for name in ANSWER_FIELDS if row.get(name) not in (None, "", [])), None)
    if question is None or answer is None:
        raise InputError(f"{where}: no question or no answer among the fields {', '.join(map(str, row))}")
    if isinstance(answer, list):
        answer = ", ".join(str(part).strip("$ ") for part in answer)
    text = _gsm8k_answer(str(answer))
    options = tuple(str(option) for option in row.get("options") or ())
    if options:
        text = _letter(text, options, where)
    return Item(_with_numbers(question, row), text, options)


def _gsm8k_answer(text: str) -> str:
    """What stands after the last ####, where GSM8K puts the number behind its explanation."""
    _, mark, last = text.rpartition("####")
    return last.strip().replace(",", "") if mark else text


def _with_numbers(question: str, row: Mapping[str, Any]) -> str:
    """MAWPS on the hub writes N_00 for the first of the row's Numbers, and so on."""
    numbers = str(row.get("Numbers") or "").split()
    for index, number in enumerate(numbers):
        question = question.replace(f"N_{index:02}", re.sub(r"\.0+$", "", number))
    return question


def _letter(answer: str, options: Sequence[str], where: str) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    if len(options) > MOST_OPTIONS:
        raise InputError(f"{where}: {len(options)} options, at most {MOST_OPTIONS} have a letter")
    if answer.strip("() .") in list(letters):
        return answer.strip("() .")
    if answer in options:
        return letters[options.index(answer)]
    raise InputError(f"{where}: the answer {answer[:80]!r} is neither a letter nor one of the options")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
