# SPDX-License-Identifier: Apache-2.0
"""Models and data sets from a hub, downloaded by huggingface_hub from one on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import COMMIT, hub
from small_engine import byte_model, small_model

from rzero.config import model_path
from rzero.engine import Engine
from rzero.suites import BENCHMARKS

ROWS = [{"problem": "What is 1 + 1?", "answer": "2"}, {"problem": "What is 2 + 3?", "answer": "5"}]
MATH_500 = BENCHMARKS["math500"].hub


def rzero(address: str, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # huggingface_hub reads its address when it is imported.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "rzero", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache)


def files_of_a_model(folder: Path) -> dict[str, bytes]:
    """A small model with a tokenizer of bytes, which can read the prompts."""
    tokenizer = byte_model().tokenizer
    assert tokenizer is not None
    with Engine(small_model(vocab_size=264)) as engine:
        engine.save("base", folder)
    tokenizer.hf.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_and_a_set_come_from_the_hub_and_then_from_its_cache(tmp_path: Path) -> None:
    asked: list[str] = []
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    repositories = {
        "models/people/small": {**files_of_a_model(tmp_path / "small"), "pytorch_model.bin": b"unwanted"},
        f"datasets/{MATH_500.repository}": {"test.jsonl": lines, "train.jsonl": b"unwanted"},
    }
    with hub(repositories, asked) as address:
        command = (
            "eval",
            "people/small",
            "--set",
            f"math500@{COMMIT}",
            "--samples",
            "0",
            "--max-tokens",
            "4",
        )
        done = rzero(address, tmp_path, *command, "--output", "first")
        assert done.returncode == 0, done.stderr
        fetched = [path for path in asked if "/resolve/" in path]
        assert any("model.safetensors" in path for path in fetched)
        assert not any("pytorch_model.bin" in path or "train.jsonl" in path for path in fetched)
        [source] = [json.loads(path.read_text()) for path in tmp_path.glob("first/result.json")]
        assert COMMIT in json.dumps(source) and MATH_500.repository in json.dumps(source)
        asked.clear()
        done = rzero(address, tmp_path, *command, "--output", "second")
        assert done.returncode == 0, done.stderr
        assert not [path for path in asked if "/resolve/" in path], (
            "a commit that the cache has is not fetched"
        )


def test_a_plan_downloads_no_weights(tmp_path: Path) -> None:
    asked: list[str] = []
    with hub({"models/people/small": files_of_a_model(tmp_path / "small")}, asked) as address:
        done = rzero(address, tmp_path, "doctor", "--model", "people/small", "--device-memory", "80GB")
    assert done.returncode == 0, done.stderr
    fetched = [path for path in asked if "/resolve/" in path]
    assert any("config.json" in path for path in fetched)
    assert not any("safetensors" in path or "tokenizer" in path for path in fetched)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "people/absent", "1 + 1 ="), "model 'people/absent': there is no such folder"),
        (
            ("eval", model_path("tiny"), "--set", "math500"),
            f"does not give the data set {MATH_500.repository}",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    with hub({}, []) as address:
        done = rzero(address, tmp_path, *arguments)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
