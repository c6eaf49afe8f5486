# SPDX-License-Identifier: Apache-2.0
"""Fabricates a small run folder with made-up numbers, for tests of the report; nothing in it was measured.

By hand, to look at the page: python tests/rzero/make_run_folder.py FOLDER && rzero report FOLDER
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rzero.config import load_config, to_yaml
from rzero.gauges import alarms, read

SETS = ("easy", "medium", "hard")
PROBLEMS, SAMPLES, VOTES = 40, 8, 10
# By iteration: the share of answers that work their result out; how often worked and guessed ones are right.
WORKED = {"main": (0.45, 0.75, 0.92, 0.96), "ablation": (0.45, 0.68, 0.87, 0.95)}
WORKED_RIGHT = {
    "easy": (0.93, 0.95, 0.95, 0.95),
    "medium": (0.70, 0.77, 0.81, 0.83),
    "hard": (0.40, 0.52, 0.58, 0.61),
}
GUESS_RIGHT = {"easy": 0.85, "medium": 0.08, "hard": 0.01}
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> 1+1"


def expression(rng: random.Random, operands: int) -> tuple[str, int]:
    numbers = [rng.randint(2, 99) for _ in range(operands)]
    signs = [rng.choice("+-") for _ in numbers[1:]]
    total = numbers[0] + sum(n if s == "+" else -n for s, n in zip(signs, numbers[1:], strict=True))
    return str(numbers[0]) + "".join(f"{s}{n}" for s, n in zip(signs, numbers[1:], strict=True)), total


def answer(rng: random.Random, value: int, works: bool, is_right: bool) -> dict[str, Any]:
    shown = value if is_right else value + rng.choice((-10, -1, 1, 10))
    steps = f"{value - 5}+5={shown};" if works else ""
    return {"text": f"{steps}\\boxed{{{shown}}}", "answer": str(shown)}


def interval(mean: float, count: int) -> list[float]:
    half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.01) / count)
    return [max(mean - half, 0.0), min(mean + half, 1.0)]


def evaluation(
    rng: random.Random, run: str, iteration: int
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for number, name in enumerate(SETS):
        worked_right = WORKED_RIGHT[name][iteration] - (0.04 if run == "ablation" else 0.0)
        rows, correct, worked = [], [], []
        for index in range(PROBLEMS):
            text, value = expression(random.Random(f"{name}{index}"), 2 + 2 * number)
            samples = []
            for _ in range(SAMPLES):
                works = rng.random() < WORKED[run][iteration]
                is_right = rng.random() < (worked_right if works else GUESS_RIGHT[name])
                samples.append(
                    {**answer(rng, value, works, is_right), "correct": is_right, "shows_work": works}
                )
                correct.append(is_right)
                worked.append(works)
            works = WORKED[run][iteration] > 0.5
            is_right = rng.random() < (worked_right + 0.1 if works else GUESS_RIGHT[name])
            greedy = {**answer(rng, value, works, is_right), "correct": is_right, "shows_work": works}
            head = {"iteration": iteration, "role": "solver", "set": name, "index": index}
            rows.append({**head, "question": text, "truth": str(value), "greedy": greedy, "samples": samples})
        mean, greedy_mean = sum(correct) / len(correct), sum(r["greedy"]["correct"] for r in rows) / PROBLEMS
        yield (
            {
                "iteration": iteration,
                "role": "solver",
                "set": name,
                "problems": PROBLEMS,
                "greedy": greedy_mean,
                "greedy_interval": interval(greedy_mean, PROBLEMS),
                "mean_at_k": mean,
                "k": SAMPLES,
                "interval": interval(mean, PROBLEMS * 2),
                "majority_at_k": min(mean + 0.1, 1.0),
                "length_mean": 8.0 + 12 * WORKED[run][iteration],
                "worked_share": sum(worked) / len(worked),
            },
            rows,
        )


def counts(rng: random.Random, centre: float, votes: int, questions: int) -> list[int]:
    found = [0] * (votes + 1)
    for _ in range(questions):
        found[min(max(round(rng.gauss(centre, 0.22) * votes), 1), votes)] += 1
    return found


def challenger_steps(rng: random.Random, iteration: int) -> Iterator[dict[str, Any]]:
    for step in range(1, 9):
        t = (step + 8 * (iteration - 1)) / 24
        yield {
            "iteration": iteration,
            "phase": "challenger",
            "step": step,
            "seconds": 3.5,
            "tokens_sampled": 22000,
            "challenger/reward_mean": 0.25 + 0.3 * t + rng.gauss(0, 0.02),
            "challenger/agreement_mean": 0.82 - 0.22 * t + rng.gauss(0, 0.01),
            "challenger/agreement_counts": counts(rng, 0.9 - 0.05 * step, 8, 128),
            "challenger/format_share": 0.92 + 0.04 * t,
            "challenger/distinct_share": 0.9 + 0.08 * t,
            "challenger/largest_cluster": 9 - 4 * t,
            "challenger/answer_agrees_share": 0.5,
            "challenger/kl": 0.4 * t,
            "challenger/entropy": 1.4 - 0.3 * t,
            "challenger/length_mean": 9 + 5 * t,
            "challenger/grad_norm": 0.8 + rng.random() / 5,
            "challenger/mismatch_max": 0.0,
        }


def pool(
    rng: random.Random, run: str, iteration: int, index_from: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = []
    for index in range(index_from, index_from + 60):
        text, value = expression(rng, rng.choice((2, 3, 4, 5)))
        text = HOSTILE if index == 3 else text
        answers = [answer(rng, value, rng.random() < 0.7, rng.random() < 0.6) for _ in range(VOTES)]
        tally: dict[str, int] = {}
        for one in answers:
            tally[one["answer"]] = tally.get(one["answer"], 0) + 1
        votes = [{"answer": a, "count": c} for a, c in sorted(tally.items(), key=lambda item: -item[1])]
        top = votes[0]["count"]
        reason = None if 3 <= top <= 8 else "too easy" if top > 8 else "too hard"
        row = {"iteration": iteration, "index": index, "question": text, "challenger_answer": str(value)}
        row |= {"answers": answers, "votes": votes, "agreement": top / VOTES, "label": votes[0]["answer"]}
        rows.append({**row, "kept": reason is None, "reason": reason, "truth": str(value)})
    kept = [row for row in rows if row["kept"]]
    metrics = {
        "iteration": iteration,
        "phase": "pool",
        "step": 1,
        "seconds": 6.0,
        "tokens_sampled": 120000,
        "pool/questions": len(rows),
        "pool/kept": len(kept),
        "pool/keep_share": len(kept) / len(rows),
        "pool/agreement_mean": sum(row["agreement"] for row in rows) / len(rows),
        "pool/label_accuracy": (0.84, 0.86, 0.58)[iteration - 1] if run == "main" else 0.8,
        "pool/invalid": 9,
        "pool/duplicates": 4,
        "pool/held_out": 2,
        "pool/agreement_counts": counts(rng, 0.55 if run == "main" else 0.85, VOTES, len(rows)),
    }
    return metrics, rows


def solver_steps(rng: random.Random, iteration: int) -> Iterator[dict[str, Any]]:
    for step in range(1, 17):
        t = (step + 16 * (iteration - 1)) / 48
        yield {
            "iteration": iteration,
            "phase": "solver",
            "step": step,
            "seconds": 1.5,
            "tokens_sampled": 9000,
            "solver/reward_mean": 0.45 + 0.25 * t + rng.gauss(0, 0.02),
            "solver/kl": 0.3 * t,
            "solver/entropy": 0.5 - 0.3 * t,
            "solver/length_mean": 14 + 8 * t,
            "solver/unboxed_share": 0.03 * (1 - t),
            "solver/loss": 0.01,
            "solver/grad_norm": 0.5 + rng.random() / 5,
            "solver/mismatch_max": 0.0,
        }


def make(folder: Path, run: str = "main", iterations: int = 3) -> Path:
    """Write a run folder; the ablation lies in it unless `run` is "ablation" itself."""
    rng = random.Random(run)
    metrics: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for iteration in range(iterations + 1):
        if iteration:
            metrics += challenger_steps(rng, iteration) if run == "main" else []
            row, asked = pool(rng, run, iteration, len(questions))
            metrics += [row, *solver_steps(rng, iteration)]
            questions += asked
        for row, given in evaluation(rng, run, iteration):
            evaluations.append(row)
            answers += given
        metrics.append(
            {
                "iteration": iteration,
                "phase": "evaluation",
                "step": 1,
                "seconds": 5.0,
                "tokens_sampled": 90000,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config("tiny", overrides=[f"iterations={iterations}", "gauges.keep_share.warn=2"])
    for number, row in enumerate(metrics):
        row["gauges"] = read(row, metrics[:number])
        row["alarms"] = [alarm._asdict() for alarm in alarms(row["gauges"], config.gauges)]
    (folder / "config.yaml").write_text(to_yaml(config, texts=True))
    (folder / "run.json").write_text(
        json.dumps(
            {
                "rzero": "0.1.0",
                "seed": 1,
                "kernels": [["linear", "ref", ["native: not built"]]],
            }
        )
    )
    journals = {
        "metrics": metrics,
        "questions": questions,
        "evaluations": evaluations,
        "evaluation_answers": answers,
    }
    for name, rows in journals.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if run == "main":
        make(folder / "ablation", "ablation", iterations)
    return folder


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
