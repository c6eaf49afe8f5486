# SPDX-License-Identifier: Apache-2.0
"""A task of one's own: the example in docs/tasks.md runs as it stands, and mistakes are named."""

import re
from pathlib import Path

import pytest
from small_run import small

from rzero import loop
from rzero.engine.errors import InputError
from rzero.journals import read_journal
from rzero.tasks import create

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The example of the page, in a file of its own."""
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "last_digit.py"
    path.write_text(code)
    return path


def test_the_example_of_the_page_runs(tmp_path: Path, file: Path) -> None:
    loop.run(small(f"task={file}:LastDigit"), tmp_path / "run")
    rows = list(read_journal(tmp_path / "run" / "questions.jsonl"))
    task = create(f"{file}:LastDigit")
    assert rows and all(task.truth(row["question"]) == row["truth"] for row in rows)
    assert all(len({vote["answer"][-1] for vote in row["votes"]}) == len(row["votes"]) for row in rows)
    sets = {row["set"] for row in read_journal(tmp_path / "run" / "evaluations.jsonl")}
    assert sets == {"squares"}


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("missing.py:Task", None, "cannot load"),
        ("broken.py:Task", "class", "cannot load"),
        ("other.py:Missing", "x = 1", "'Missing'"),
        ("none.py:make", "def make(data): return 7", "gives int, not a rzero Task"),
        ("few.py:make", "def make(): return 7", "cannot be made"),
        (
            "half.py:Half",
            "from rzero.tasks.base import Task\nclass Half(Task):\n def __init__(self, data): pass",
            "abstract",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_named(tmp_path: Path, name: str, code: str | None, part: str) -> None:
    if code is not None:
        (tmp_path / name.partition(":")[0]).write_text(code)
    with pytest.raises(InputError, match=part):
        create(str(tmp_path / name))


def test_two_files_of_one_name_are_two_tasks(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text(file.read_text().replace('name = "last-digit"', 'name = "other"'))
    names = [create(f"{path}:LastDigit").name for path in (file, other, file)]
    assert names == ["last-digit", "other", "last-digit"]
