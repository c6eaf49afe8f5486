# SPDX-License-Identifier: Apache-2.0
"""The command line: light to start, exit statuses, options into settings, the way out on a signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rzero.cli import app
from rzero.cli.evaluate import table
from rzero.cli.run import Terminated, default_output, resolve, sigterm_as_interrupt
from rzero.engine.errors import InputError
from tests.rzero.make_run_folder import make

HEAVY = ("torch", "transformers", "pydantic", "numpy", "rich", "yaml")


def rzero(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rzero", *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, rzero.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["run", "eval", "generate", "report", "doctor"])
def test_every_command_explains_itself(command: str) -> None:
    assert command in CliRunner().invoke(app, ["--help"]).output
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


MISTAKES = (
    (("run", "--preset", "tyny"), "tiny"),
    (("run", "--set", "solver.learning_rat=1"), "learning_rate"),
    (("run", "--set", "solver.learning_rate"), "solver.learning_rate"),
    (("run", "--set", "iterations=0"), "iterations"),
    (("run", "--seed", "-1"), "seed"),
    (("run", "--resume", "no-such-folder"), "no-such-folder"),
    (("run", "--config", "no-such-file.yaml"), "no-such-file.yaml"),
    (("report", "no-such-folder"), "no-such-folder"),
    (("generate", "no-such-folder", "hello"), "no-such-folder"),
    (("generate", "tiny", "hello", "--top-p", "2"), "top_p"),
    (("doctor", "--device", "gpu"), "gpu"),
    (("run", "--device", "gpu"), "gpu"),
    (("run", "--device", "cuda:9"), "cuda:9"),
    (("generate", "tiny", "hello", "--device", "gpu"), "gpu"),
    (("run", "--set", "solver.sampling.temperature=0"), "solver.sampling.temperature"),
    (("run", "--set", "voting.temperature=0"), "voting.temperature"),
)


@pytest.mark.parametrize(("arguments", "named"), MISTAKES)
def test_a_mistake_is_one_sentence_that_names_it(arguments: tuple[str, ...], named: str) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, InputError)
    assert named in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_mistake_ends_with_status_2() -> None:
    done = rzero("report", "no-such-folder")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_options_the_tiny_preset_is_run() -> None:
    settings = resolve(None, None, (), None, {})
    assert (settings.model, settings.task, settings.iterations) == ("tiny", "arithmetic", 3)


def test_a_named_model_takes_the_recommended_settings() -> None:
    settings = resolve(None, None, (), None, {"model": "some/folder", "task": "math"})
    assert settings.model == "some/folder"
    assert settings.pool.candidates == 8000


def test_options_reach_their_settings() -> None:
    given = {"seed": 7, "iterations": 2, "threads": 1, "dtype": "fp32", "ablation": False, "model": None}
    settings = resolve("tiny", None, ("solver.learning_rate=1e-6",), None, given)
    assert (settings.seed, settings.iterations, settings.ablation) == (7, 2, False)
    assert (settings.engine.threads, settings.engine.dtype) == (1, "fp32")
    assert settings.solver.learning_rate == 1e-6


def test_printed_settings_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CliRunner().invoke(app, ["run", "--preset", "tiny", "--print-config"]).output)
    assert yaml.safe_load(file.read_text())["task"] == "arithmetic"
    assert resolve(None, file, (), None, {}) == resolve("tiny", None, (), None, {})


def test_resume_starts_from_the_settings_of_the_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", iterations=2)
    assert resolve(None, None, (), folder, {}).iterations == 2
    assert resolve(None, None, (), folder, {"seed": 9}).seed == 9


def test_output_folder_is_named_after_what_is_run() -> None:
    assert default_output("tiny").startswith("runs/")
    assert default_output("tiny").endswith("-tiny")
    assert default_output("my.module:task").endswith("-my.module-task")


def test_sigterm_ends_a_run_as_an_interrupt_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as stop, sigterm_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert type(stop.value).__name__ == "Terminated"
    assert signal.getsignal(signal.SIGTERM) == before


def test_eval_prints_every_accuracy_with_its_interval() -> None:
    row = {"set": "easy", "problems": 20, "greedy": 0.9, "greedy_interval": [0.7, 0.97], "k": 0}
    row |= {"unanswered_share": 0.05, "cut_share": 0.0}
    assert table([row])[1].split() == ["easy", "20", "90.0", "[70.0,", "97.0]", "5.0%", "0.0%"]
    sampled = {"k": 4, "mean_at_k": 0.5, "interval": [0.4, 0.6]}
    assert "50.0 [40.0, 60.0]   4" in table([row | sampled])[1]
    assert table([row, row], {"greedy": 0.9})[3].split() == ["average", "90.0"]


def test_eval_without_sets_says_where_they_come_from() -> None:
    result = CliRunner().invoke(app, ["eval", "tiny", "--task", "math", "--threads", "1"])
    assert isinstance(result.exception, InputError)
    assert "--data" in str(result.exception)


def test_eval_measures_the_model_in_the_package(tmp_path: Path) -> None:
    options = ["--set", "easy", "--limit", "2", "--samples", "0", "--max-tokens", "8", "--threads", "1"]
    result = CliRunner().invoke(app, ["eval", "tiny", *options, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["problems"] == 2


def test_generate_answers_each_prompt_with_its_log_probs() -> None:
    options = ["--n", "2", "--max-tokens", "4", "--json", "--threads", "1"]
    result = CliRunner().invoke(app, ["generate", "tiny", "1+1=", "2+2=", *options])
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [row["prompt"] for row in rows] == ["1+1=", "1+1=", "2+2=", "2+2="]
    assert all(len(row["logprobs"]) == len(row["token_ids"]) for row in rows)
    alone = CliRunner().invoke(app, ["generate", "tiny", "2+2=", *options])
    assert [json.loads(line) for line in alone.output.splitlines()] == rows[2:]


def test_generate_reads_prompts_from_stdin_and_prints_plain_text() -> None:
    options = ["--max-tokens", "4", "--temperature", "0", "--threads", "1"]
    result = CliRunner().invoke(app, ["generate", "tiny", *options], input="1+1=\n2+2=\n")
    given = CliRunner().invoke(app, ["generate", "tiny", "1+1=", "2+2=", *options])
    assert result.exit_code == 0 and result.output == given.output and result.output.strip()


def test_doctor_and_report_end_well(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0 and "linear" in result.output and "numerics" in result.output
    folder = make(tmp_path / "run", iterations=1)
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0 and (folder / "report.html").stat().st_size > 10_000
    for options, part in ((["--devices", "8"], "--device-memory"), (["--preset", "paper"], "--model")):
        refused = CliRunner().invoke(app, ["doctor", *options])
        assert isinstance(refused.exception, InputError) and part in str(refused.exception)


def test_an_interrupt_before_the_run_began_gives_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(settings: object, folder: Path, resumed: bool) -> None:
        if folder.name == "begun":
            folder.mkdir()
            (folder / "config.yaml").touch()
        raise Terminated if folder.name == "ended" else KeyboardInterrupt

    # rzero.cli.run is the command; its module is behind it.
    monkeypatch.setattr(sys.modules[default_output.__module__], "start", interrupted)
    ends = (
        ("early", "nothing was begun", 130),
        ("begun", "rzero run --resume", 130),
        ("ended", "nothing", 143),
    )
    for name, part, status in ends:
        result = CliRunner().invoke(app, ["run", "--output", str(tmp_path / name)])
        assert result.exit_code == status and part in result.output


def test_run_ends_with_a_table_and_a_report(tmp_path: Path) -> None:
    small = ("challenger.steps=1", "challenger.questions_per_step=8", "pool.candidates=24", "solver.steps=1")
    small += ("pool.keep_low=1", "pool.keep_high=10", "solver.questions_per_step=4", "evaluation.problems=2")
    options = [part for text in small for part in ("--set", text)]
    options += ["--iterations", "1", "--threads", "1", "--no-ablation", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["run", *options])
    assert result.exit_code == 0, result.output
    assert "iteration 1" in result.output
    assert (tmp_path / "run" / "report.html").exists()
    again = CliRunner().invoke(app, ["run", *options])
    assert "--resume" in str(again.exception)
