# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/results.md on Qwen2.5-Coder-0.5B-Instruct, from each verdict, and a picture.

    python docs/real-model/tables.py                                     # prints both tables
    python docs/real-model/tables.py --draw docs/images/real-model.png   # draws them (pip install matplotlib)

A line of verdicts.jsonl is one model on one set: `greedy` has 0 or 1 for each problem, `sampled` how many of
four answers were right (null: not measured), in the order of the set, whose SHA-256 stands beside them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rzero.intervals import bootstrap, paired, wilson

VERDICTS = Path(__file__).with_name("verdicts.jsonl")
SETS = {"mawps": "MAWPS", "gsm8k": "GSM8K", "math500": "MATH-500"}
SAMPLES = 4
SEED = 1  # of the bootstrap
COLOURS = {"R-Zero": "#0a7f86", "untrained": "#8a8f98"}
Row = Mapping[str, Any]
Key = tuple[str, int, int]
Models = Mapping[Key, Mapping[str, Row]]


def load(path: Path = VERDICTS) -> dict[Key, dict[str, Row]]:
    """(run, seed, iteration) -> set -> line, in the order of the file; the base is ("base", 0, 0)."""
    models: dict[Key, dict[str, Row]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        models.setdefault((row["run"], row["seed"], row["iteration"]), {})[row["set"]] = row
    return models


def shares(row: Row | None, kind: str) -> list[float]:
    """The share of right answers of each problem; empty where nothing was measured."""
    return [int(one) / (1 if kind == "greedy" else SAMPLES) for one in (row or {}).get(kind) or ""]


def mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else ""


def name(key: Key) -> str:
    run, seed, iteration = key
    return "base" if run == "base" else f"{run}, seed {seed}, iteration {iteration}"


def accuracies(models: Models) -> list[str]:
    """One line a model: greedy and mean@4 in per cent on each set."""
    heads = [f"{one}, {kind}" for one in SETS.values() for kind in ("greedy", f"mean@{SAMPLES}")]
    lines = [f"| % | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for key, rows in models.items():
        cells = [mean(shares(rows.get(one), kind)) for one in SETS for kind in ("greedy", "sampled")]
        lines.append(f"| {name(key)} | {' | '.join(cells)} |")
    return lines


def comparisons(models: Models) -> list[str]:
    """The last iteration of each run, and of R-Zero's seeds together, against the base; R-Zero against its
    untrained Challenger."""
    last = {key[:2]: key for key in models if key[0] != "base"}
    base = [("base", 0, 0)]
    ours = [key for key in last.values() if key[0] == "R-Zero"]
    pairs = [([key], base) for key in last.values()]
    pairs += [(ours, base)] if len(ours) > 1 else []
    pairs += [([key], [last["untrained", key[1]]]) for key in ours if ("untrained", key[1]) in last]
    lines = [f"| points | set | greedy | mean@{SAMPLES} |", "|---|---|---|---|"]
    for first, second in pairs:
        for one in SETS:
            if all(one in models[key] for key in [*first, *second]):
                cells = [difference(models, first, second, one, kind) for kind in ("greedy", "sampled")]
                lines.append(f"| {both(first)}, against {both(second)} | {SETS[one]} | {' | '.join(cells)} |")
    return lines


def both(keys: Sequence[Key]) -> str:
    seeds = " and ".join(str(seed) for _, seed, _ in keys)
    return name(keys[0]) if len(keys) == 1 else f"{keys[0][0]}, mean of seeds {seeds}, iteration {keys[0][2]}"


def difference(models: Models, first: Sequence[Key], second: Sequence[Key], one: str, kind: str) -> str:
    """Points between the means of two groups of models over the same problems."""
    assert len({models[key][one]["problems_sha256"] for key in [*first, *second]}) == 1
    means = []
    for keys in (first, second):
        columns = zip(*(shares(models[key][one], kind) for key in keys), strict=True)
        means.append([sum(column) / len(column) for column in columns])
    found = paired(*means, SEED)
    low, high = (100 * end for end in found.interval)
    return f"{100 * found.difference:+.1f} ({low:+.1f} to {high:+.1f}), p = {found.p:.2g}"


def points(models: Models, run: tuple[str, int], one: str, kind: str) -> list[tuple[int, list[float]]]:
    """(iteration, shares) of the base and of a run, where they were measured."""
    keys = [("base", 0, 0), *(key for key in models if key[:2] == run)]
    found = [(key[2], shares(models[key].get(one), kind)) for key in keys]
    return [(iteration, values) for iteration, values in found if values]


def draw(models: Models, file: Path) -> None:
    """mean@4 and greedy over the iterations with their intervals, one column a set."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(SETS), figsize=(10, 5.6), sharex=True, layout="constrained")
    for column, (one, title) in enumerate(SETS.items()):
        for row, kind in enumerate(("sampled", "greedy")):
            panel = panels[row, column]
            for place, run in enumerate(dict.fromkeys(key[:2] for key in models if key[0] != "base")):
                measured = points(models, run, one, kind)
                if len(measured) > 1:
                    draw_run(panel, run, place, measured, kind)
            panel.set_xticks(range(4), ["base", "1", "2", "3"])
            panel.grid(axis="y", color="#e4e6ea")
            panel.spines[["top", "right"]].set_visible(False)
        panels[0, column].set_title(title)
        panels[1, column].set_xlabel("iteration")
    panels[0, 0].set_ylabel(f"mean@{SAMPLES}, %")
    panels[1, 0].set_ylabel("greedy, %")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=150)


def draw_run(
    panel: Any, run: tuple[str, int], place: int, measured: Sequence[tuple[int, list[float]]], kind: str
) -> None:
    name, seed = run
    heights = [100 * sum(values) / len(values) for _, values in measured]
    ends = [
        wilson(sum(values), len(values)) if kind == "greedy" else bootstrap(values, SEED)
        for _, values in measured
    ]
    panel.errorbar(
        [iteration + 0.06 * place for iteration, _ in measured],
        heights,
        [
            [height - 100 * low for height, (low, _) in zip(heights, ends, strict=True)],
            [100 * high - height for height, (_, high) in zip(heights, ends, strict=True)],
        ],
        color=COLOURS[name],
        linestyle="-" if seed == 1 else "--",
        label=f"{'R-Zero' if name == 'R-Zero' else 'untrained Challenger'}, seed {seed}",
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.6,
        elinewidth=0.8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", type=Path, metavar="FILE")
    options = parser.parse_args()
    models = load()
    print("\n".join([*accuracies(models), "", *comparisons(models)]))
    if options.draw is not None:
        draw(models, options.draw)


if __name__ == "__main__":
    main()
