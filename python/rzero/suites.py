# SPDX-License-Identifier: Apache-2.0
"""The public benchmarks of R-Zero's paper in one table: where they lie on the hub and how a row is read.

Not tried against the hub itself. The pinned revisions are those that other public projects pin
for the same files; Minerva, OlympiadBench and BBEH, for which none was found, are taken at their newest
commit. The result of an evaluation records the commit and the hash of the problems; `name@REVISION` asks for
another.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from rzero.config import nearest
from rzero.engine.errors import InputError

Form = Literal["math", "choice", "words"]


class Hub(NamedTuple):
    """Files of a dataset repository on the Hugging Face hub."""

    repository: str
    patterns: tuple[str, ...]
    """which files, as shell patterns; JSON lines or parquet; the first that fits any file"""
    revision: str | None = None
    """a commit hash; None: the newest commit, which the result records"""


class Benchmark(NamedTuple):
    """One set of problems."""

    name: str
    title: str
    form: Form
    """math: an expression in a box; choice: a letter in a box; words: a short text"""
    hub: Hub
    samples: int = 0
    """k of mean@k where the user gives none; small sets need many samples"""
    only_mini: bool = False
    """only rows whose field `mini` is set"""


_BENCHMARKS = (
    Benchmark(
        "math500",
        "MATH-500",
        "math",
        Hub("HuggingFaceH4/MATH-500", ("test.jsonl",), "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    ),
    Benchmark(
        "gsm8k",
        "GSM8K",
        "math",
        Hub("openai/gsm8k", ("main/test-*.parquet",), "740312add88f781978c0658806c59bc2815b9866"),
    ),
    Benchmark(
        "amc23",
        "AMC 2023",
        "math",
        Hub("math-ai/amc23", ("*test*.parquet",), "80815d37005feb82cd7f8fbc6901d5d3eff43057"),
        samples=32,
    ),
    Benchmark("minerva", "Minerva", "math", Hub("math-ai/minervamath", ("*test*.parquet", "*test*.jsonl"))),
    Benchmark(
        "olympiadbench", "OlympiadBench", "math", Hub("math-ai/olympiadbench", ("*test*.parquet", "*.jsonl"))
    ),
    Benchmark(
        "aime24",
        "AIME 2024",
        "math",
        Hub("HuggingFaceH4/aime_2024", ("data/train-*.parquet",), "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
        samples=32,
    ),
    Benchmark(
        "aime25",
        "AIME 2025",
        "math",
        Hub("math-ai/aime25", ("test.jsonl",), "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
        samples=32,
    ),
    Benchmark(
        "mmlu_pro",
        "MMLU-Pro",
        "choice",
        Hub("TIGER-Lab/MMLU-Pro", ("data/test-*.parquet",), "b189ec765aa7ed75c8acfea42df31fdae71f97be"),
    ),
    Benchmark(
        "supergpqa",
        "SuperGPQA",
        "choice",
        Hub("m-a-p/SuperGPQA", ("SuperGPQA-all.jsonl",), "4430d4458112c7d4497fdcf94d7cc223313d6acf"),
    ),
    Benchmark("bbeh", "BBEH", "words", Hub("BBEH/bbeh", ("*.parquet", "*.jsonl"))),
    Benchmark("bbeh_mini", "BBEH mini", "words", Hub("BBEH/bbeh", ("*.parquet", "*.jsonl")), only_mini=True),
    Benchmark(
        "mawps",
        "MAWPS",
        "math",
        Hub(
            "mwpt5/MAWPS",
            ("data/test-*.parquet", "data/train-*.parquet"),
            "5769dc9a31ea36eaeaab1f1e0aa1a54b6c08d804",
        ),
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({each.name: each for each in _BENCHMARKS})
SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "math": ("math500", "gsm8k", "amc23", "minerva", "olympiadbench", "aime24", "aime25"),
        "general": ("mmlu_pro", "supergpqa", "bbeh"),
    }
)


def plain_name(name: str) -> str:
    """A name without what people write differently: MATH-500, math_500 and math500 are one."""
    return "".join(char for char in name.casefold() if char.isalnum())


def set_names(asked: str, local: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The sets behind a suite's or a set's name; `local` are the names of files in the user's folder.

    Raises InputError for a name that nothing has, with the nearest one.
    """
    if asked in SUITES and asked not in local:
        return SUITES[asked]
    known = {plain_name(name): name for name in (*BENCHMARKS, *local)}
    if plain_name(asked) not in known:
        names = [*SUITES, *BENCHMARKS, *local]
        raise InputError(f"unknown suite or set {asked!r}; {nearest(asked, names)}")
    return (known[plain_name(asked)],)
