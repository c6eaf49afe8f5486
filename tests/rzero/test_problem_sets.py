# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: rows with the sets' own field names, local files, the hub's cache, and every mistake named."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rzero.engine.errors import InputError
from rzero.problem_sets import Item, ProblemSet, hub_files, load_sets, read_item
from rzero.suites import BENCHMARKS, SUITES, Hub, set_names

OPTIONS = ["12", "15", "18"]
ROWS: tuple[tuple[Mapping[str, Any], Item], ...] = (
    ({"problem": "1+1?", "answer": 2}, Item("1+1?", "2")),
    ({"question": "Eggs?", "answer": "16 - 7 = <<16-7=9>>9\n#### 1,018"}, Item("Eggs?", "1018")),
    ({"problem": "Why?", "solution": "...", "answer": r"\frac{1}{2}"}, Item("Why?", r"\frac{1}{2}")),
    ({"question": "Find all.", "final_answer": ["$2$", "3"]}, Item("Find all.", "2, 3")),
    ({"input": "(A) yes (B) no", "target": "(A)", "task": "x", "mini": 1}, Item("(A) yes (B) no", "(A)")),
    (
        {"Question": "N_00 cups and N_01 more?", "Numbers": "8.0 2.5", "Answer": 10.5},
        Item("8 cups and 2.5 more?", "10.5"),
    ),
    (
        {"question": "Which?", "options": OPTIONS, "answer": "C", "answer_index": 2},
        Item("Which?", "C", tuple(OPTIONS)),
    ),
    (
        {"question": "Which?", "options": OPTIONS, "answer": "15", "answer_letter": "B"},
        Item("Which?", "B", tuple(OPTIONS)),
    ),
    ({"question": "Which?", "options": OPTIONS, "answer": "15"}, Item("Which?", "B", tuple(OPTIONS))),
)


@pytest.mark.parametrize(("row", "item"), ROWS)
def test_rows_are_read_with_their_own_field_names(row: Mapping[str, Any], item: Item) -> None:
    assert read_item(row, "here") == item


def write(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_local_files_carry_their_hash_and_are_found_by_any_spelling(tmp_path: Path) -> None:
    write(tmp_path / "MATH-500.jsonl", [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}])
    write(tmp_path / "mmlu_pro.jsonl", [{"question": "c", "options": OPTIONS, "answer": "A"}])
    write(tmp_path / "mine.jsonl", [{"problem": "d", "answer": "4"}])
    [found] = load_sets(["math500"], str(tmp_path))
    digest = hashlib.sha256((tmp_path / "MATH-500.jsonl").read_bytes()).hexdigest()
    assert (found.name, found.form, len(found.items)) == ("math500", "math", 2)
    assert found.source["sha256"] == {"MATH-500.jsonl": digest}
    assert found.first(1).sha256() != found.sha256()
    everything = load_sets([], str(tmp_path))
    assert {each.name: each.form for each in everything} == {
        "math500": "math",
        "mmlu_pro": "choice",
        "mine": "math",
    }
    assert [each.name for each in load_sets(["mine", "mine"], str(tmp_path))] == ["mine"]


def test_a_shuffled_set_holds_the_same_problems_and_names_its_order() -> None:
    plain = ProblemSet("mine", "math", tuple(Item(str(n), str(n)) for n in range(100)), {"file": "f"})
    orders = {seed: plain.first(None, seed) for seed in (0, 1)}
    for seed, found in orders.items():
        assert found.source == {"file": "f", "shuffle": seed}
        assert sorted(found.items, key=lambda item: int(item.question)) == list(plain.items)
        # The first 20 are from every quarter of the file.
        assert len({int(item.question) // 25 for item in found.first(20).items}) == 4
        assert found.first(20).items == plain.first(20, seed).items
    assert orders[0].items != orders[1].items
    assert plain.first(None) == plain


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        load_sets([], str(tmp_path))
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(InputError, match=r"gsm8k\.jsonl, line 1: no question or no answer"):
        load_sets(["gsm8k"], str(tmp_path))
    with pytest.raises(InputError, match=r"there is no math500\.jsonl"):
        load_sets(["math"], str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        load_sets(["gsm9k"], str(tmp_path))
    (tmp_path / "gsm8k.jsonl").write_text("not json\n")
    with pytest.raises(InputError, match="line 1: no JSON"):
        load_sets(["gsm8k"], str(tmp_path))
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "x", "options": ["a"], "answer": "Z"}\n')
    with pytest.raises(InputError, match="neither a letter nor one of the options"):
        load_sets(["gsm8k"], str(tmp_path))


def test_suites_name_known_sets_and_revisions_are_whole_commits() -> None:
    assert set_names("math") == SUITES["math"]
    assert set_names("MATH-500") == ("math500",)
    for names in SUITES.values():
        assert all(name in BENCHMARKS for name in names)
    pinned = {each.name: each.hub.revision for each in BENCHMARKS.values() if each.hub.revision}
    assert set(BENCHMARKS) - set(pinned) == {"minerva", "olympiadbench", "bbeh", "bbeh_mini"}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned.values())


def test_the_hubs_cache_gives_files_and_the_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "datasets--someone--sums"
    snapshot = folder / "snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    write(snapshot / "data" / "test-00000.jsonl", [{"problem": "1+1?", "answer": "2"}])
    hub = Hub("someone/sums", ("*test*.parquet", "data/test-*.jsonl"))
    root, paths = hub_files(hub, cache=tmp_path, is_offline=True)
    assert root.name == commit
    assert [path.name for path in paths] == ["test-00000.jsonl"]
    with pytest.raises(InputError, match="has no file"):
        hub_files(Hub("someone/sums", ("nothing.parquet",)), cache=tmp_path, is_offline=True)
    with pytest.raises(InputError, match="give local files with --data"):
        hub_files(Hub("someone/else", ("*",)), cache=tmp_path, is_offline=True)
