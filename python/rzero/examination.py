# SPDX-License-Identifier: Apache-2.0
"""An evaluation that can be stopped and goes on: problems are asked, raw answers kept, then graded.

    eval.json       what is asked of which model, the source and hash of every set, versions
    answers.jsonl   every raw answer, a line per problem and kind, in the order in which they came
    verdicts.jsonl  what was extracted and whether it is right, in the order of the problems
    result.json     accuracies with intervals, averages, and the comparison with another result

An answer is a function of weights, prompt and seed, so a run that was killed ends with the same answers. What
is there already is not asked again: grading anew costs no sampling.
"""

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rzero.engine.engine import Engine
from rzero.engine.errors import InputError
from rzero.engine.outputs import RequestOutput
from rzero.engine.sampling import SamplingParams
from rzero.evaluate import accuracy
from rzero.forms import AnswerForm
from rzero.intervals import Paired, paired, wilson
from rzero.problem_sets import Item, ProblemSet
from rzero.rollout import mean
from rzero.run_folder import explained, read_journal, write_atomic
from rzero.seeds import derive

FORMAT = 1
Kind = Literal["greedy", "sampled"]
Key = tuple[str, int, str]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How answers are drawn. A comparison must share it, but for the seed and k."""

    samples: int | None = None
    """k of mean@k; None: each set's own (`ProblemSet.samples`); 0: greedy only"""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4096
    seed: int = 1


class Asked(NamedTuple):
    """A set with the form that grades it."""

    problems: ProblemSet
    form: AnswerForm


class Examination:
    """One evaluation in one folder; use as a context, it holds the folder's lock."""

    def __init__(self, folder: Path, model: str, asked: Sequence[Asked], protocol: Protocol) -> None:
        """Begin or go on. Raises InputError where the folder holds an evaluation of something else."""
        self.folder, self.asked, self.protocol = folder, asked, protocol
        self._answers: dict[Key, dict[str, Any]] = {}
        about = {
            "format": FORMAT,
            "model": model,
            "protocol": asdict(protocol),
            "sets": {
                problems.name: {
                    "problems": len(problems.items),
                    "form": problems.form,
                    # Before the hash: a refusal names the first difference, and this is the cause.
                    "source": dict(problems.source),
                    "problems_sha256": problems.sha256(),
                }
                for problems, _ in asked
            },
        }
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{folder} is in use by another rzero process") from None
        try:
            self._begin(about)
        except BaseException:
            self._lock.close()
            raise
        self.about = about

    def __enter__(self) -> "Examination":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _begin(self, about: Mapping[str, Any]) -> None:
        path = self.folder / "eval.json"
        if path.exists():
            there = _read_json(path)
            for name, value in about.items():
                if there.get(name) != value:
                    raise InputError(
                        f"{self.folder} holds an evaluation with another {name} "
                        f"({_first_difference(there.get(name), value)}); name another --output"
                    )
        else:
            with explained(path):
                write_atomic(path, json.dumps(about, indent=1) + "\n")
        journal = self.folder / "answers.jsonl"
        for row in read_journal(journal):
            self._answers[row["set"], row["index"], row["kind"]] = row
        if journal.exists():
            _cut_torn_line(journal)

    # ---- asking

    def note_facts(self, facts: Mapping[str, Any]) -> None:
        """Write down where the answers come from, once; raises InputError when the weights are not those of
        the answers that are there.
        """
        path = self.folder / "eval.json"
        there = _read_json(path)
        known = there.get("facts")
        if known is None:
            with explained(path):
                write_atomic(path, json.dumps({**there, "facts": dict(facts)}, indent=1) + "\n")
        elif (known["model_sha256"], known["dtype"]) != (facts["model_sha256"], facts["dtype"]):
            raise InputError(
                f"{self.folder} holds answers of other weights than those of {self.about['model']} now; "
                "name another --output"
            )

    def wanted(self) -> Iterator[tuple[Key, Asked, Item, int]]:
        """What is asked: key, set, problem and number of answers."""
        for asked in self.asked:
            for index, item in enumerate(asked.problems.items):
                yield (asked.problems.name, index, "greedy"), asked, item, 1
                if k := self.samples_of(asked.problems):
                    yield (asked.problems.name, index, "sampled"), asked, item, k

    def samples_of(self, problems: ProblemSet) -> int:
        """k of mean@k on a set."""
        return problems.samples if self.protocol.samples is None else self.protocol.samples

    @property
    def is_complete(self) -> bool:
        """Whether every raw answer is there."""
        return all(key in self._answers for key, *_ in self.wanted())

    def ask(self, engine: Engine, on_progress: Callable[[int, int, int], None]) -> None:
        """Draw what is missing; on_progress gets answers done, answers in all, and tokens since the start."""
        assert engine.tokenizer is not None, "a model folder without a tokenizer was refused"
        total = sum(n for *_, n in self.wanted())
        done = sum(len(row["samples"]) for row in self._answers.values())
        sampled = 0
        with explained(self.folder):
            journal = (self.folder / "answers.jsonl").open("ab")

        def keep(key: Key, item: Item, prompt_tokens: int, samples: list[dict[str, Any]]) -> None:
            nonlocal done, sampled
            row = {"set": key[0], "index": key[1], "kind": key[2], "problem": _digest(item)}
            row |= {"question": item.question, "truth": item.answer, "prompt_tokens": prompt_tokens}
            row |= {"samples": samples}
            with explained(self.folder):
                # Escapes only: a lone surrogate is legal in JSON's escapes but not in UTF-8.
                journal.write(json.dumps(row).encode() + b"\n")
                journal.flush()
            self._answers[key] = row
            done += len(samples)
            sampled += sum(sample["tokens"] for sample in samples)
            on_progress(done, total, sampled)

        with journal:
            for key, asked, item, n in self.wanted():
                if key in self._answers:
                    continue
                prompt = asked.form.prompt(engine.tokenizer, item)
                if len(prompt) >= engine.max_model_len:
                    # Nothing is cut from a problem: one that leaves no room for an answer is not answered.
                    nothing = {"text": "", "tokens": 0, "finish_reason": "prompt too long"}
                    keep(key, item, len(prompt), [nothing] * n)
                    continue
                params = self._params(key, n, asked.form.stop(engine.tokenizer))

                def taken(
                    output: RequestOutput, key: Key = key, item: Item = item, length: int = len(prompt)
                ) -> None:
                    keep(key, item, length, [_raw(sample) for sample in output.samples])

                engine.submit(prompt, params, callback=taken)
            while engine.has_work:
                engine.step()

    def _params(self, key: Key, n: int, stop: tuple[str, ...]) -> SamplingParams:
        name, index, kind = key
        how = self.protocol
        is_greedy = kind == "greedy"
        return SamplingParams(
            n=n,
            temperature=0.0 if is_greedy else how.temperature,
            top_p=1.0 if is_greedy else how.top_p,
            max_tokens=how.max_tokens,
            stop=stop,
            seed=derive(how.seed, "eval", name, index),
            logprobs=False,
        )

    # ---- grading

    def grade(self) -> dict[str, Any]:
        """Grade every answer; writes verdicts.jsonl and result.json and returns the latter."""
        verdicts = [row for asked in self.asked for row in self._graded(asked)]
        rows = [self._row(asked.problems, verdicts) for asked in self.asked]
        judge: dict[str, float] = {}
        for form in {id(asked.form): asked.form for asked in self.asked}.values():
            judge |= form.counters()
        result = {**self.about, "rows": rows, "average": _average(rows), "judge": judge}
        with explained(self.folder):
            lines = "".join(json.dumps(row) + "\n" for row in verdicts)
            write_atomic(self.folder / "verdicts.jsonl", lines)
            write_atomic(self.folder / "result.json", json.dumps(result, indent=1) + "\n")
        return result

    def _graded(self, asked: Asked) -> list[dict[str, Any]]:
        problems, form = asked
        keys = [key for key, each, *_ in self.wanted() if each is asked]
        raw = [self._answers[key] for key in keys]
        given = [
            [form.extract(sample["text"], problems.items[key[1]]) for sample in row["samples"]]
            for key, row in zip(keys, raw, strict=True)
        ]
        truths = [problems.items[key[1]].answer for key in keys]
        pairs = [(a, truth) for part, truth in zip(given, truths, strict=True) for a in part if a is not None]
        said = iter(form.same_many(pairs))
        graded = []
        for key, row, part in zip(keys, raw, given, strict=True):
            verdict = [None if a is None else next(said) for a in part]
            graded.append(
                {
                    "set": key[0],
                    "index": key[1],
                    "kind": key[2],
                    "problem": row["problem"],
                    "truth": row["truth"],
                    "answers": part,
                    "correct": [bool(each) for each in verdict],
                    "undecided": sum(a is not None and v is None for a, v in zip(part, verdict, strict=True)),
                }
            )
        return graded

    def _row(self, problems: ProblemSet, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        own = [row for row in verdicts if row["set"] == problems.name]
        by_kind: dict[str, list[list[dict[str, Any]]]] = {"greedy": [], "sampled": []}
        for row in own:
            by_kind[row["kind"]].append([{"correct": right} for right in row["correct"]])
        raw = [self._answers[row["set"], row["index"], row["kind"]] for row in own]
        samples = [sample for row in raw for sample in row["samples"]]
        given = [answer for row in own for answer in row["answers"]]
        found = {"set": problems.name, "problems": len(problems.items)}
        found |= accuracy(by_kind["greedy"], by_kind["sampled"], self.protocol.seed)
        return found | {
            "unanswered_share": mean([answer is None for answer in given]),
            "cut_share": mean([sample["finish_reason"] == "length" for sample in samples]),
            "too_long_share": mean([sample["finish_reason"] == "prompt too long" for sample in samples]),
            "length_mean": mean([sample["tokens"] for sample in samples]),
            "undecided": sum(row["undecided"] for row in own),
        }

    def compare(self, other: Path) -> list[dict[str, Any]]:
        """Paired tests against the result in folder `other`, set by set, added to result.json.

        Problems are paired by what they say. Raises InputError where the two share none, or drew their
        answers in another way.
        """
        self._require_same_drawing(other)
        rows = compared(self.folder, other, self.protocol.seed)
        if not rows:
            raise InputError(f"{other} has no problem in common with {self.folder}")
        result = _read_json(self.folder / "result.json")
        result["against"] = {"folder": str(other), "model": _read_json(other / "eval.json").get("model")}
        result["against"]["rows"] = rows
        with explained(self.folder):
            write_atomic(self.folder / "result.json", json.dumps(result, indent=1) + "\n")
        return rows

    def _require_same_drawing(self, other: Path) -> None:
        theirs = _read_json(other / "eval.json").get("protocol", {})
        both_sampled = all(any(key[1] == "sampled" for key in _shares(path)) for path in (self.folder, other))
        for name in ("max_tokens", *(("temperature", "top_p") if both_sampled else ())):
            ours = asdict(self.protocol)[name]
            if theirs.get(name) != ours:
                raise InputError(
                    f"--against {other}: its {name} is {theirs.get(name)}, here it is {ours}; "
                    "only answers drawn in the same way can be compared"
                )


def compared(one: Path, other: Path, seed: int) -> list[dict[str, Any]]:
    """One paired test for each set and kind that both folders have."""
    ours, theirs = _shares(one), _shares(other)
    rows = []
    for name, kind in dict.fromkeys((key[0], key[1]) for key in ours):
        keys = [key for key in ours if key[:2] == (name, kind) and key in theirs]
        if keys:
            test: Paired = paired([ours[key] for key in keys], [theirs[key] for key in keys], seed)
            rows.append({"set": name, "kind": kind, **test._asdict()})
    return rows


def is_result(folder: Path) -> bool:
    """Whether a folder holds a finished evaluation."""
    return (folder / "eval.json").is_file() and (folder / "verdicts.jsonl").is_file()


def _shares(folder: Path) -> dict[tuple[str, str, str, int], float]:
    """The share of right answers by set, kind, problem, and the count of equal problems before it."""
    found: dict[tuple[str, str, str, int], float] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    for row in read_journal(folder / "verdicts.jsonl"):
        key = (row["set"], row["kind"], row["problem"])
        found[key[0], key[1], key[2], seen[key]] = mean(row["correct"])
        seen[key] += 1
    return found


def _average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plain mean over sets, which is what papers report; no interval, the sets are not a sample."""
    sampled = [row["mean_at_k"] if row["mean_at_k"] is not None else row["greedy"] for row in rows]
    right = sum(round(row["greedy"] * row["problems"]) for row in rows)
    problems = sum(row["problems"] for row in rows)
    return {
        "greedy": mean([row["greedy"] for row in rows]),
        "mean_at_k_or_greedy": mean(sampled),
        "greedy_over_problems": right / max(problems, 1),
        "greedy_over_problems_interval": wilson(right, problems),
    }


def _raw(sample: Any) -> dict[str, Any]:
    return {
        "text": sample.text,
        "tokens": len(sample.token_ids),
        "finish_reason": sample.finish_reason,
    }


def _digest(item: Item) -> str:
    return hashlib.sha256(json.dumps(item).encode()).hexdigest()[:16]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None


def _first_difference(there: Any, now: Any) -> str:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for name in {**there, **now}:
            if there.get(name) != now.get(name):
                return f"{name}: {_first_difference(there.get(name), now.get(name))}"
    return f"{str(there)[:80]!r} there, {str(now)[:80]!r} now"


def _cut_torn_line(journal: Path) -> None:
    """Take away a last line that a kill cut off, so that the next one begins on its own."""
    with journal.open("rb+") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)


@contextmanager
def closing_forms(asked: Sequence[Asked]) -> Iterator[None]:
    """End the graders at the end."""
    try:
        yield
    finally:
        for each in asked:
            each.form.close()
