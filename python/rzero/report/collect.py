# SPDX-License-Identifier: Apache-2.0
"""The data of the page: read from a run folder's journals, reduced to what is shown."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rzero import __version__, anchors
from rzero.config import to_yaml
from rzero.gauges import GAUGES, row_alarms
from rzero.journals import read_journal
from rzero.report import findings
from rzero.run_folder import read_config
from rzero.settings import PoolSettings, Settings
from rzero.tasks import create

Row = Mapping[str, Any]

# The page holds at most this much of the questions and cuts longer texts; the journals hold everything.
MAX_QUESTION_BYTES = 6_000_000
MAX_TEXT_CHARS = 4_000
PAIRS_PER_SET = 2
CURVES = (
    *(
        f"challenger/{name}"
        for name in ("reward_mean", "agreement_mean", "distinct_share", "largest_cluster")
    ),
    *(
        f"challenger/{name}"
        for name in ("format_share", "length_mean", "kl", "entropy", "grad_norm", "mismatch_max")
    ),
    *(
        f"solver/{name}"
        for name in ("reward_mean", "unboxed_share", "length_mean", "kl", "entropy", "grad_norm")
    ),
    "solver/mismatch_max",
)


def collect(folder: Path) -> dict[str, Any]:
    """Everything the page shows, as JSON values. The run may be going on; missing parts are empty or None."""
    config = read_config(folder)
    runs = {"main": folder}
    if (folder / "ablation" / "metrics.jsonl").exists():
        runs["ablation"] = folder / "ablation"
    metrics = {name: list(read_journal(path / "metrics.jsonl")) for name, path in runs.items()}
    accuracy = {name: by_iteration(read_journal(path / "evaluations.jsonl")) for name, path in runs.items()}
    answers = {name: sampled_styles(path / "evaluation_answers.jsonl") for name, path in runs.items()}
    questions, totals = browse(folder / "questions.jsonl", config)
    run = read_json(folder / "run.json")
    examples = sum(1 for _ in read_journal(folder / anchors.COPY)) if config.anchors is not None else 0
    return {
        "head": head(config, run, metrics, accuracy["main"]) | {"given": findings.given_words(examples)},
        "sets": list(dict.fromkeys(row["set"] for rows in accuracy["main"].values() for row in rows)),
        "accuracy": {
            name: [row for rows in found.values() for row in rows] for name, found in accuracy.items()
        },
        "headline": headline(accuracy),
        "learning": learning(answers["main"]),
        "styles": {name: style_rows(found) for name, found in answers.items()},
        "pairs": pairs(folder / "evaluation_answers.jsonl"),
        "steps": {name: steps(rows) for name, rows in metrics.items()},
        "gauges": gauges(config, metrics["main"]),
        "result": read_json(folder / "result.json"),
        "pools": {name: [row for row in rows if row["phase"] == "pool"] for name, rows in metrics.items()},
        "histograms": histograms(config, metrics["main"]),
        "questions": questions,
        "question_totals": totals,
        "config": to_yaml(config),
        "run": facts(run),
        "kernels": run.get("kernels", []),
    }


def gauges(config: Settings, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What every gauge read over the run, its thresholds, and where it was beyond one."""
    found = []
    for gauge in GAUGES:
        values = [row["gauges"][gauge.name] for row in rows if gauge.name in row.get("gauges", {})]
        if not values:
            continue
        limits = config.gauges.model_dump()[gauge.name]
        beyond = [
            f"iteration {row['iteration']}, {row['phase']} step {row['step']}: {alarm.action}"
            for row in rows
            for alarm in row_alarms(row)
            if alarm.gauge == gauge.name
        ]
        found.append(
            {
                "name": gauge.name,
                "words": gauge.words,
                "side": "above" if gauge.is_bad_above else "below",
                "first": values[0],
                "last": values[-1],
                "worst": max(values) if gauge.is_bad_above else min(values),
                "limits": {action: limit for action, limit in limits.items() if limit is not None},
                "beyond": beyond,
            }
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the run, or nothing where it is not there."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return dict(found)


def by_iteration(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """The Solver's evaluations by iteration; a set measured twice counts once, as measured last."""
    found: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["role"] == "solver":
            found[row["iteration"]][row["set"]] = row
    return {iteration: list(found[iteration].values()) for iteration in sorted(found)}


def head(
    config: Settings, run: Row, metrics: Mapping[str, Sequence[Row]], accuracy: Mapping[int, Any]
) -> dict[str, Any]:
    """Facts of the first lines of the page."""
    pools = [row for row in metrics["main"] if row["phase"] == "pool"]
    seconds = {name: sum(row.get("seconds", 0.0) for row in rows) for name, rows in metrics.items()}
    return {
        "model": Path(config.model).name,
        "task": Path(config.task).name,
        "seed": config.seed,
        "iterations": config.iterations,
        "finished": config.iterations in accuracy,
        "seconds": seconds["main"],
        "seconds_ablation": seconds.get("ablation", 0.0),
        "tokens": sum(row.get("tokens_sampled", 0) for row in metrics["main"]),
        "questions": sum(row["pool/questions"] for row in pools),
        "kept": sum(row["pool/kept"] for row in pools),
        "votes": config.pool.votes,
        "kept_rule": kept_rule(config.pool),
        "version": run.get("versions", {}).get("rzero", __version__),
    }


def kept_rule(pool: PoolSettings) -> str:
    """On which votes a question is kept, in words."""
    confirmed = ", and the Challenger's answer is the same" if pool.only_confirmed else ""
    if pool.keep_shares is not None:
        low, high = (f"{share:.4g}" for share in pool.keep_shares)
        return f"the majority holds {low} to {high} of the answers with a box{confirmed}"
    return f"{pool.keep_low} to {pool.keep_high} of {pool.votes} votes agree{confirmed}"


def headline(accuracy: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[str, Any] | None:
    """Base, final and control for both metrics, averaged over sets; None before the base is measured."""
    main = accuracy["main"]
    if 0 not in main:
        return None
    last = max(main)
    control = accuracy.get("ablation", {})
    found: dict[str, Any] = {"k": max(row.get("k") or 0 for row in main[0]), "iteration": last, "metrics": {}}
    for metric in ("mean_at_k", "greedy"):
        base, final = findings.average(main[0], metric), findings.average(main[last], metric)
        if base is None or final is None:
            continue
        entry: dict[str, Any] = {"base": base._asdict(), "final": final._asdict()}
        other = findings.average(control[last], metric) if last in control and last else None
        if other is not None:
            entry |= {"control": other._asdict(), "comparison": findings.comparison_sentence(final, other)}
        else:
            entry |= {"control": None, "comparison": None}
        found["metrics"][metric] = entry
    return found


def sampled_styles(path: Path) -> dict[int, dict[str, findings.Style]]:
    """Iteration -> set -> style of the Solver's sampled answers, where the task can tell."""
    samples: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in read_journal(path):
        if row["role"] == "solver":
            samples[row["iteration"], row["set"]] += row["samples"]
    found: dict[int, dict[str, findings.Style]] = defaultdict(dict)
    for (iteration, name), answers in samples.items():
        style = findings.style_of(answers)
        if style is not None:
            found[iteration][name] = style
    return dict(found)


def style_rows(styles: Mapping[int, Mapping[str, findings.Style]]) -> list[dict[str, Any]]:
    """One row per iteration, sets together."""
    means = {
        iteration: findings.mean_style(list(found.values())) for iteration, found in sorted(styles.items())
    }
    return [{"iteration": iteration, **mean._asdict()} for iteration, mean in means.items()]


def learning(styles: Mapping[int, Mapping[str, findings.Style]]) -> dict[str, Any] | None:
    """The split of the gain over all sets and per set; None where it cannot be told."""
    if 0 not in styles or max(styles) == 0:
        return None
    first, last = styles[0], styles[max(styles)]
    whole = (findings.mean_style(list(first.values())), findings.mean_style(list(last.values())))
    rows = {"all sets": whole, **{name: (first[name], last[name]) for name in first if name in last}}
    return {
        "sentence": findings.learning_sentence(*whole),
        "rows": [
            {"set": name, "base": a.accuracy, "final": b.accuracy, **findings.explain(a, b)._asdict()}
            for name, (a, b) in rows.items()
        ],
    }


def pairs(path: Path) -> list[dict[str, Any]]:
    """Held-out problems with the greedy answer of the base and of the last Solver.

    Per set the first that went from wrong to right and, so that nothing is hidden, the first for the worse.
    """
    first: dict[tuple[str, int], Row] = {}
    last: dict[tuple[str, int], Row] = {}
    for row in read_journal(path):
        if row["role"] == "solver":
            (first if row["iteration"] == 0 else last)[row["set"], row["index"]] = row
    found, taken = [], Counter[tuple[str, bool]]()
    for key, after in last.items():
        before = first.get(key)
        if before is None or before["greedy"]["correct"] == after["greedy"]["correct"]:
            continue
        is_better = bool(after["greedy"]["correct"])
        if taken[key[0], is_better] < (PAIRS_PER_SET if is_better else 1):
            taken[key[0], is_better] += 1
            texts = {"before": cut(before["greedy"]["text"]), "after": cut(after["greedy"]["text"])}
            problem = {"set": key[0], "question": cut(after["question"]), "truth": after["truth"]}
            found.append({**problem, **texts, "better": is_better})
    return found


def steps(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Rows of both trainings with the metrics that are drawn, in order."""
    found: dict[str, list[dict[str, Any]]] = {"challenger": [], "solver": []}
    for row in rows:
        if row["phase"] in found:
            shown = {name.split("/")[1]: row[name] for name in CURVES if row.get(name) is not None}
            found[row["phase"]].append({"iteration": row["iteration"], **shown})
    return found


def histograms(config: Settings, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per iteration how many votes the majority had, at the Challenger's first step and in the pool."""
    before: dict[int, Sequence[int]] = {}
    found = []
    # Shares are of the answers with a box, whose number is another for each question.
    is_band = config.pool.keep_shares is None
    band = {"low": config.pool.keep_low, "high": config.pool.keep_high} if is_band else {}
    for row in rows:
        if "challenger/agreement_counts" in row:
            before.setdefault(row["iteration"], row["challenger/agreement_counts"])
        if "pool/agreement_counts" in row:
            counts = {"before": before.get(row["iteration"]), "after": row["pool/agreement_counts"]}
            found.append({"iteration": row["iteration"], **counts, **band})
    return found


def browse(path: Path, config: Settings) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Questions for the page, thinned evenly where all would be too much, and their number by iteration."""
    totals: Counter[int] = Counter()
    size = 0
    for row in read_journal(path):
        totals[row["iteration"]] += 1
        size += len(json.dumps(brief(row)))
    every = 1 + size // MAX_QUESTION_BYTES
    rows = [brief(row) for number, row in enumerate(read_journal(path)) if number % every == 0]
    known = [row for row in rows if row["truth"] is not None and row["label"] is not None]
    if known:
        verdicts = create(config.task, config.data).same_many([(row["label"], row["truth"]) for row in known])
        for row, verdict in zip(known, verdicts, strict=True):
            row["wrong"] = verdict is False
    return rows, dict(totals)


def brief(row: Row) -> dict[str, Any]:
    """One question with equal answers written once."""
    texts = Counter((cut(answer["text"]), answer["answer"]) for answer in row["answers"])
    return {
        **{name: row[name] for name in ("iteration", "index", "label", "kept", "reason", "truth")},
        "question": cut(row["question"]),
        "own": row["challenger_answer"],
        "votes": sorted(
            ([vote["answer"], vote["count"]] for vote in row["votes"]), key=lambda vote: -vote[1]
        ),
        "answers": [[text, answer, count] for (text, answer), count in texts.most_common()],
        "asked": len(row["answers"]),
    }


def facts(run: Row, prefix: str = "") -> list[tuple[str, str]]:
    """run.json as rows of name and text, without the kernels."""
    rows: list[tuple[str, str]] = []
    for name, value in run.items():
        if isinstance(value, dict):
            rows += facts(value, f"{prefix}{name} ")
        elif name != "kernels":
            text = " ".join(str(part) for part in value) if isinstance(value, list) else str(value)
            rows.append((prefix + name, text))
    return rows


def cut(text: str) -> str:
    """A text short enough for the page."""
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + " … (cut)"
