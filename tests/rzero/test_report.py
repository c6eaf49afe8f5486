# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers and words, that model output stays text, and that a browser shows it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rzero.config import load_config
from rzero.report import as_script, build
from rzero.report.collect import MAX_TEXT_CHARS, by_iteration, collect, cut, histograms, kept_rule
from rzero.report.findings import (
    Estimate,
    Style,
    average,
    comparison_sentence,
    explain,
    learning_sentence,
    mean_style,
    style_of,
)
from rzero.run_folder import read_journal
from rzero.settings import PoolSettings
from tests.rzero.make_run_folder import HOSTILE, make

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run") / "made-up")


def sample(works: bool, correct: bool) -> dict[str, bool]:
    return {"shows_work": works, "correct": correct}


def test_average_of_sets_has_the_error_of_independent_parts() -> None:
    rows = [
        {"greedy": 0.2, "greedy_interval": [0.17, 0.23]},
        {"greedy": 0.6, "greedy_interval": [0.56, 0.64]},
    ]
    found = average(rows, "greedy")
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.half == pytest.approx(0.05 / 2)
    assert average(rows, "mean_at_k") is None


def test_style_counts_worked_and_guessed_answers_apart() -> None:
    answers = [sample(True, True), sample(True, False), sample(False, False), sample(True, True)]
    assert style_of(answers) == Style(0.75, 2 / 3, 0.0)
    assert style_of([{"shows_work": None, "correct": True}]) is None
    assert style_of([]) is None


def test_mean_style_keeps_the_mean_accuracy() -> None:
    parts = [Style(0.2, 0.9, 0.5), Style(0.8, 0.4, 0.1), Style(0.5, 1.0, 0.0)]
    assert mean_style(parts).accuracy == pytest.approx(sum(part.accuracy for part in parts) / 3)


def test_parts_of_a_gain_add_up_to_it() -> None:
    before, after = Style(0.4, 0.6, 0.1), Style(0.9, 0.8, 0.05)
    gain = explain(before, after)
    assert gain.total == pytest.approx(after.accuracy - before.accuracy)
    assert explain(before, Style(0.9, 0.6, 0.1)).steps == 0
    assert explain(before, Style(0.4, 0.8, 0.1)).switching == 0


def test_words_follow_the_numbers() -> None:
    assert "Most of it is a habit" in learning_sentence(Style(0.3, 0.8, 0.1), Style(0.9, 0.8, 0.1))
    assert "habit" not in learning_sentence(Style(0.9, 0.5, 0.1), Style(0.9, 0.8, 0.1))
    assert "habit" not in learning_sentence(Style(0.9, 0.8, 0.1), Style(0.3, 0.8, 0.1))


def test_comparison_claims_no_more_than_the_intervals_allow() -> None:
    control = Estimate(0.70, 0.02)
    ahead, behind = (comparison_sentence(Estimate(value, 0.02), control) for value in (0.75, 0.65))
    assert ahead.startswith("+5.0 ± 2.8 points") and "more than the choice of problems" in ahead
    assert behind.startswith("-5.0 ± 2.8 points") and "more than the choice of problems" in behind
    assert "too close" in comparison_sentence(Estimate(0.72, 0.02), control)


def test_numbers_of_the_page_are_those_of_the_journals(folder: Path) -> None:
    data = collect(folder)
    rows = by_iteration(read_journal(folder / "evaluations.jsonl"))
    shown = data["headline"]["metrics"]["mean_at_k"]
    assert shown["base"]["value"] == pytest.approx(sum(row["mean_at_k"] for row in rows[0]) / 3)
    assert shown["final"]["value"] == pytest.approx(sum(row["mean_at_k"] for row in rows[3]) / 3)
    assert data["sets"] == ["easy", "medium", "hard"]
    assert len(data["histograms"]) == 3
    whole = data["learning"]["rows"][0]
    assert whole["final"] == pytest.approx(shown["final"]["value"])
    assert len(data["questions"]) == sum(data["question_totals"].values())


def test_page_says_what_the_run_was_given(folder: Path, tmp_path: Path) -> None:
    assert collect(folder)["head"]["given"] == "It was given no questions and no answers"
    grounded = shutil.copytree(folder, tmp_path / "grounded")
    config = (grounded / "config.yaml").read_text()
    (grounded / "config.yaml").write_text(config.replace("anchors: null", "anchors: mine.jsonl"))
    (grounded / "anchors.jsonl").write_text('{"question": "1+1", "answer": "2"}\n' * 3)
    given = "It was given 3 example questions with their answers, which its Challenger was shown"
    assert collect(grounded)["head"]["given"] == given


def test_page_says_which_questions_were_kept(folder: Path) -> None:
    assert collect(folder)["head"]["kept_rule"] == "3 to 8 of 10 votes agree"
    confirmed = PoolSettings(keep_low=4, keep_high=6, votes=6, only_confirmed=True)
    assert kept_rule(confirmed) == "4 to 6 of 6 votes agree, and the Challenger's answer is the same"
    shares = PoolSettings(keep_shares=(0.3, 0.85))
    assert kept_rule(shares) == "the majority holds 0.3 to 0.85 of the answers with a box"
    both = PoolSettings(keep_shares=(0.3, 0.85), only_confirmed=True)
    assert kept_rule(both) == kept_rule(shares) + ", and the Challenger's answer is the same"


def test_no_band_of_votes_is_drawn_where_shares_decide(folder: Path) -> None:
    rows = [{"phase": "pool", "iteration": 1, "pool/agreement_counts": [0, 1, 2]}]
    [shown] = histograms(load_config("tiny", overrides=["pool.keep_shares=[0.3,0.8]", "pool.votes=6"]), rows)
    assert "low" not in shown and "high" not in shown
    [shown] = histograms(load_config("tiny"), rows)
    assert (shown["low"], shown["high"]) == (3, 8)


def test_gauges_are_shown_with_their_thresholds(folder: Path) -> None:
    gauges = {one["name"]: one for one in collect(folder)["gauges"]}
    rows = [row for row in read_journal(folder / "metrics.jsonl") if row["phase"] == "pool"]
    shares = [row["pool/keep_share"] for row in rows]
    keep = gauges["keep_share"]
    assert (keep["first"], keep["last"], keep["worst"]) == (shares[0], shares[-1], min(shares))
    assert keep["limits"] == {"warn": 2.0} and keep["side"] == "below"
    assert keep["beyond"] == [f"iteration {i}, pool step 1: warn" for i in (1, 2, 3)]
    assert gauges["length_grows"]["first"] == 1.0 and not gauges["length_grows"]["beyond"]


def test_a_pair_is_a_problem_whose_verdict_changed(folder: Path) -> None:
    found = collect(folder)["pairs"]
    assert found
    assert all(pair["before"] != pair["after"] for pair in found)


def test_model_output_cannot_leave_its_place(folder: Path) -> None:
    page = build(folder).read_text()
    assert HOSTILE not in page
    assert page.count("</script>") == 2
    inside = page.split('id="data">')[1].split("</script>")[0]
    assert HOSTILE in [row["question"] for row in json.loads(inside)["questions"]]
    assert json.loads(as_script({"a": "<!--\u2028\ud800"})) == {"a": "<!--\u2028\ud800"}


def test_page_asks_for_nothing_from_elsewhere(folder: Path) -> None:
    page = build(folder).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page.split('id="data">')[0])
    assert "default-src 'none'" in page
    assert "innerHTML" not in page


def test_long_texts_are_cut() -> None:
    assert len(cut("9" * 100_000)) < MAX_TEXT_CHARS + 20
    assert cut("short") == "short"


@pytest.mark.parametrize("journals", [(), ("metrics",), ("metrics", "questions"), ("evaluations",)])
def test_an_unfinished_run_has_a_page_too(folder: Path, tmp_path: Path, journals: tuple[str, ...]) -> None:
    for name in ("config.yaml", *(f"{journal}.jsonl" for journal in journals)):
        shutil.copy(folder / name, tmp_path / name)
    assert build(tmp_path).exists()


def browse(page: Path, profile: Path, width: int = 1280) -> tuple[str, str]:
    """The page after its scripts have run, and what the browser logged."""
    assert CHROMIUM is not None
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-component-update"
    options += f" --disable-background-networking --window-size={width},2000"
    command = [
        CHROMIUM,
        *options.split(),
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [500, 1400])
def test_a_browser_shows_every_section(folder: Path, tmp_path: Path, width: int) -> None:
    dom, console = browse(build(folder), tmp_path, width)
    assert console == ""
    assert 'data-ready="yes"' in dom
    assert "owned" not in dom.split("<title>")[1].split("</title>")[0]
    for section in ("accuracy", "learning", "challenger", "solver", "gauges", "questions", "made"):
        assert f'<section id="{section}"' in dom
    # 2 gains, 6 accuracy curves, 2 of learning, 3 histograms, 9 and 6 training curves
    assert dom.count('<svg viewBox="0 0') == 28
    assert "NaN" not in dom.split('id="data"')[0]
    assert dom.count('<details class="question"') == 40


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_a_run_that_has_only_begun(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.yaml", tmp_path / "config.yaml")
    dom, console = browse(build(tmp_path), tmp_path / "profile")
    assert console == ""
    assert 'data-ready="yes"' in dom
    assert "Still on its way" in dom
