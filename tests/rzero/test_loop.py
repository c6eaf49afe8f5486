# SPDX-License-Identifier: Apache-2.0
"""The loop on the embedded model: what it writes, that it learns from nothing held out, how it ends early."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_run import Crash, CrashAfter, Keep, small

from rzero import loop, rollout, solver
from rzero.engine.engine import Engine
from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainGroup
from rzero.run_folder import read_journal
from rzero.tasks.arithmetic import Arithmetic
from rzero.tasks.base import Invalid, Problem, Question


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(read_journal(folder / f"{name}.jsonl"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Keep]:
    folder, observer = tmp_path_factory.mktemp("loop") / "run", Keep()
    loop.run(small("ablation=true", "iterations=2", "solver.updates_per_step=2"), folder, observer)
    return folder, observer


def test_the_order_of_work(finished: tuple[Path, Keep]) -> None:
    folder, observer = finished
    phases = [(row["iteration"], row["phase"], row["step"]) for row in rows(folder, "metrics")]
    iteration = ["challenger", "challenger", "pool", "solver", "solver", "evaluation"]
    assert [(i, phase) for i, phase, _ in phases] == [
        (0, "evaluation"),
        *((i, phase) for i in (1, 2) for phase in iteration),
    ]
    assert observer.runs == [("main", 13, 0), ("ablation", 9, 0)]
    assert len(observer.steps) == 22 and not observer.messages


def test_metrics_have_their_names(finished: tuple[Path, Keep]) -> None:
    for row in rows(finished[0], "metrics"):
        assert row["seconds"] >= 0 and row["tokens_sampled"] > 0
        if row["phase"] == "challenger":
            assert sum(row["challenger/agreement_counts"]) == round(24 * row["challenger/format_share"])
            assert row["challenger/updates"] == 1
        if row["phase"] == "solver":
            assert row["solver/updates"] == 2 and row["solver/grad_norm"] > 0
        if row["phase"] == "pool":
            lost = row["pool/invalid"] + row["pool/held_out"] + row["pool/duplicates"]
            assert row["pool/questions"] + lost == row["pool/candidates"] == 40
            assert (row["pool/similarity_to_earlier"] is None) == (row["iteration"] == 1)
        # Sampler and trainer compute the same numbers from the same tensors.
        if row["phase"] in ("challenger", "solver"):
            assert row[f"{row['phase']}/mismatch_max"] == 0.0


def test_questions_say_why_they_were_dropped(finished: tuple[Path, Keep]) -> None:
    questions = rows(finished[0], "questions")
    assert questions
    for row in questions:
        assert row["kept"] == (row["reason"] is None)
        assert len(row["answers"]) == 4
        top = max((vote["count"] for vote in row["votes"]), default=0)
        assert row["agreement"] == top / 4
        if row["kept"]:
            assert row["label"] == next(v["answer"] for v in row["votes"] if v["count"] == top)
        assert sum(vote["count"] for vote in row["votes"]) == sum(
            a["answer"] is not None for a in row["answers"]
        )


def boxed(text: str) -> int | None:
    found = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return int(found[-1]) if found else None


def test_accuracies_are_those_of_plain_arithmetic(finished: tuple[Path, Keep]) -> None:
    """Every verdict and mean again, from the raw texts and Python's own arithmetic."""
    folder = finished[0]
    answers = rows(folder, "evaluation_answers")
    assert any(row["greedy"]["correct"] for row in answers)
    assert not all(given["correct"] for row in answers for given in row["samples"])
    for row in answers:
        for given in (row["greedy"], *row["samples"]):
            assert given["correct"] == (boxed(given["text"]) == eval(row["question"])), row
    for measured in rows(folder, "evaluations"):
        part = [row for row in answers if all(row[key] == measured[key] for key in ("iteration", "set"))]
        assert len(part) == measured["problems"]
        right = [row["greedy"]["correct"] for row in part]
        assert measured["greedy"] == pytest.approx(sum(right) / len(part))
        shares = [sum(given["correct"] for given in row["samples"]) / measured["k"] for row in part]
        assert measured["mean_at_k"] == pytest.approx(sum(shares) / len(part))
        votes = [[boxed(given["text"]) for given in row["samples"]] for row in part]
        winners = [max(vote, key=lambda one: (one is not None, vote.count(one))) for vote in votes]
        won = [winner == eval(row["question"]) for winner, row in zip(winners, part, strict=True)]
        assert measured["majority_at_k"] == pytest.approx(sum(won) / len(part))


def test_label_accuracy_is_that_of_plain_arithmetic(finished: tuple[Path, Keep]) -> None:
    questions = rows(finished[0], "questions")
    for pool in (row for row in rows(finished[0], "metrics") if row["phase"] == "pool"):
        kept = [row for row in questions if row["iteration"] == pool["iteration"] and row["kept"]]
        right = [int(row["label"]) == eval(row["question"]) for row in kept]
        assert 0 < sum(right) < len(right)
        assert pool["pool/label_accuracy"] == pytest.approx(sum(right) / len(right))


def test_checkpoints_load_and_differ_from_the_base(finished: tuple[Path, Keep]) -> None:
    folder = finished[0]
    with loop.engine_of(small()) as base:
        untouched = base.weights.hash("base")
    hashes = {untouched}
    for path in (
        "iteration-1/solver",
        "iteration-1/challenger",
        "iteration-2/solver",
        "iteration-2/challenger",
    ):
        with Engine(folder / "models" / path, dtype="fp32") as engine:
            hashes.add(engine.weights.hash("base"))
    assert len(hashes) == 5
    assert not (folder / "ablation" / "models" / "iteration-1" / "challenger").exists()


def test_the_ablation_shares_the_measure_of_the_base(finished: tuple[Path, Keep]) -> None:
    folder = finished[0]
    main, ablation = rows(folder, "evaluations"), rows(folder / "ablation", "evaluations")
    assert [row for row in main if row["iteration"] == 0] == [
        row for row in ablation if row["iteration"] == 0
    ]
    assert [row["iteration"] for row in ablation] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for row in main:
        low, high = row["interval"]
        assert row["problems"] == 4 and low <= row["mean_at_k"] <= high


def test_run_json_says_where_it_came_from(finished: tuple[Path, Keep]) -> None:
    facts = json.loads((finished[0] / "run.json").read_text())
    assert facts["seed"] == 1 and facts["versions"]["torch"] and len(facts["model_sha256"]) == 64
    assert {"linear", "sample"} <= {name for name, _, _ in facts["kernels"]}


def test_an_existing_run_is_not_overwritten(finished: tuple[Path, Keep]) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        loop.run(small(), finished[0])


class EverythingHeldOut(Arithmetic):
    """Counts every question with an even number of characters as held out."""

    def is_held_out(self, question: str) -> bool:
        return len(self.canonical(question)) % 2 == 0


def held_out_task(data: str | None) -> Arithmetic:
    return EverythingHeldOut(data)


def test_no_held_out_question_reaches_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task calls half of what the Challenger writes held out; all that is trained on is looked at."""
    prompts: list[str] = []
    paid: list[tuple[str, str, float]] = []
    train = rollout.train

    def watched(
        run: rollout.Run, role: str, scored: Sequence[rollout.Scored], *rest: Any
    ) -> dict[str, float]:
        for part in scored:
            prompts.append(run.tokenizer.decode(part.drawn.prompt_ids, False))
            texts = [sample.text for sample in part.drawn.samples]
            paid.extend((prompts[-1], *pair) for pair in zip(texts, part.rewards, strict=True))
        return train(run, role, scored, *rest)

    monkeypatch.setattr(solver, "train", watched)
    loop.run(small("task=test_loop:held_out_task"), tmp_path / "run")
    task = EverythingHeldOut()
    asked = [row["question"] for row in rows(tmp_path / "run", "questions")]
    trained = {prompt.rpartition("<S>")[2].rstrip("=") for prompt in prompts}
    assert trained and trained <= set(asked)
    # The Solver is paid for the label, right or wrong.
    labels = {
        row["question"]: int(row["label"]) for row in rows(tmp_path / "run", "questions") if row["kept"]
    }
    assert {reward > 0.5 for _, _, reward in paid} == {True, False}
    for prompt, text, reward in paid:
        assert (reward > 0.5) == (boxed(text) == labels[prompt.rpartition("<S>")[2].rstrip("=")])
    assert not any(task.is_held_out(question) for question in asked)
    [pool] = [row for row in rows(tmp_path / "run", "metrics") if row["phase"] == "pool"]
    assert pool["pool/held_out"] > 0
    challenger_rows = [row for row in rows(tmp_path / "run", "metrics") if row["phase"] == "challenger"]
    assert all(row["challenger/invalid"]["held out"] > 0 for row in challenger_rows)


def test_an_empty_pool_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    observer = Keep()
    impossible = small("pool.candidates=2", "pool.votes=40", "pool.keep_low=1", "pool.keep_high=1")
    loop.run(impossible, tmp_path / "run", observer)
    assert [step["phase"] for step in observer.steps][-1] == "pool"
    [message] = observer.messages
    assert "no question of the pool" in message and "pool.keep_low" in message
    again = Keep()
    loop.resume(tmp_path / "run", observer=again)
    assert again.messages == [message] and not again.steps


def test_a_pool_smaller_than_a_step_gives_short_epochs(finished: tuple[Path, Keep]) -> None:
    with loop.engine_of(small()) as engine:
        run = rollout.Run(engine, Arithmetic(), small(), None, Keep(), "c", "s")  # type: ignore[arg-type]
        for step in (1, 2, 3):
            assert sorted(solver.batch_indices(run, rollout.Unit(1, "solver", step), 4)) == [0, 1, 2, 3]
        orders = [solver.batch_indices(run, rollout.Unit(1, "solver", step), 12) for step in (1, 2, 3, 4)]
        assert sorted(orders[0] + orders[1]) == sorted(orders[2] + orders[3]) == list(range(12))
        assert orders[0] + orders[1] != orders[2] + orders[3]


def test_updates_split_groups_and_samples() -> None:
    one = TrainGroup([1], list("abcde"), advantages=[1, 2, 3, 4, 5])  # type: ignore[arg-type]
    parts = rollout.split([one], 2)
    assert [[group.samples for group in part] for part in parts] == [[["a"], ["b"]], [["c"], ["d"], ["e"]]]
    assert rollout.split([one], 1) == [[one]]
    assert rollout.split([one, one, one], 8) == [[one], [one], [one]]


@pytest.mark.parametrize("roles", ["lora", "single"])
def test_other_kinds_of_roles(tmp_path: Path, roles: str) -> None:
    observer = Keep()
    loop.run(
        small(f"roles={roles}", "lora.rank=4", "challenger.kl_reference=phase"), tmp_path / "run", observer
    )
    assert len(observer.steps) == 7
    assert (tmp_path / "run" / "models" / "iteration-1" / "solver" / "model.safetensors").exists()


class OneLong(Arithmetic):
    """One of its held-out problems fills the context."""

    def held_out(self) -> dict[str, Sequence[Problem]]:
        return {"long": [Problem("1+" * 30 + "1", "31")]}


def one_long(data: str | None) -> Arithmetic:
    return OneLong(data)


def test_a_held_out_problem_that_does_not_fit_the_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"held-out set long: the problem '1.*max_model_len = 40"):
        loop.run(small("task=test_loop:one_long", "engine.max_model_len=40"), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "reason"), [("1+2", None), ("1<S>+2", "control token"), ("1+" * 20 + "1", "too many tokens")]
)
def test_what_would_break_the_solvers_prompt_is_no_question(
    monkeypatch: pytest.MonkeyPatch, text: str, reason: str | None
) -> None:
    """A control token would end its turn and write the next one; the context may be less than is allowed."""
    with loop.engine_of(small("engine.max_model_len=24")) as engine:
        task = Arithmetic()
        run = rollout.Run(engine, task, small(), None, Keep(), "c", "s")  # type: ignore[arg-type]
        monkeypatch.setattr(task, "parse_question", lambda text: Question(text, None))
        found = rollout.usable(run, text)
    assert found == (Question(text, None) if reason is None else Invalid(reason))


class Grown(Arithmetic):
    """Held-out sets that another run finds changed."""

    def __init__(self, data: str | None) -> None:
        super().__init__(None)
        self.more = Path(str(data)).exists()

    def held_out(self) -> dict[str, Sequence[Problem]]:
        sets = dict(super().held_out())
        return {**sets, "easy": [*sets["easy"], Problem("1+1+1+1", "4")]} if self.more else sets


def grown(data: str | None) -> Arithmetic:
    return Grown(data)


def test_a_run_does_not_go_on_with_other_held_out_sets(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        loop.run(small("task=test_loop:grown", f"data={tmp_path / 'more'}"), tmp_path / "run", CrashAfter(2))
    (tmp_path / "more").touch()
    with pytest.raises(InputError, match="held-out set easy: it is not the one that"):
        loop.resume(tmp_path / "run")


def test_a_run_may_be_called_ablation(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    loop.run(small("iterations=1"), tmp_path / "ablation")
    assert [row["iteration"] for row in rows(tmp_path / "ablation", "evaluations")] == [0, 0, 0, 1, 1, 1]
