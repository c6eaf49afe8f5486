# SPDX-License-Identifier: Apache-2.0
"""Times the ops against their ceilings, measured in the same run, and against how others do it.

    python benchmarks/kernels.py                      # everything, under 5 minutes on 2 idle cores
    python benchmarks/kernels.py --ops sample,bleu --dtype float32 --threads 1 --rounds 15

A round times the copy (or the matrix product), our op and its peers one after the other; figures are medians
over the rounds, shares of a ceiling medians of the rounds' own shares. The last line is JSON.
"""

import json
import statistics
import sys
from collections.abc import Mapping
from functools import partial

import click
import torch
from conditions import conditions
from kernel_cases import CASES, Setup, name_of
from rich.console import Console
from rich.table import Table
from timing import Budget, Case, copy_case, in_turn, kept_memory, product_case

from rzero.kernels import resolve

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CEILINGS = ("GB/s", "GFLOP/s")
Row = dict[str, object]


def measure(case: Case, setup: Setup, budget: Budget) -> Row:
    """One row of the table: rates, the share of the ceiling, seconds and speed-ups."""
    copy = copy_case(setup.size(256, 1), setup.device)
    product = product_case(setup.size(1536, 64), setup.device)
    ceiling = dict(zip(CEILINGS, (copy, product), strict=True)).get(case.unit)
    functions = {**case.functions, **({} if ceiling is None else {"ceiling": ceiling[1]})}
    is_whole_process = case.shown is not None  # its memory is measured, too: as an ordinary process has it
    with kept_memory(not is_whole_process):
        taken = in_turn(functions, budget, setup.device)
        shown: Mapping[str, object] = case.shown() if case.shown is not None else {}
    ours = taken["rzero"]
    row: Row = {
        "op": case.op,
        "size": case.size,
        "dtype": case.dtype,
        "ms": round(1e3 * statistics.median(ours), 4),
        case.unit: round(case.work / statistics.median(ours) / (1e9 if ceiling else 1), 2),
        "rounds": len(ours),
    }
    if ceiling is not None:
        row[f"ceiling {case.unit}"] = round(ceiling[0] / statistics.median(taken["ceiling"]) / 1e9, 2)
        shares = [case.work / x / (ceiling[0] / c) for x, c in zip(ours, taken["ceiling"], strict=True)]
        row["share of ceiling"] = round(statistics.median(shares), 3)
    for name in case.functions:
        if name != "rzero":
            scale = (case.scale or {}).get(name, 1)
            row[f"x {name}"] = round(
                statistics.median(scale * y / x for x, y in zip(ours, taken[name], strict=True)), 3
            )
    return {**row, **shown, "targets": list(case.targets)}


def table_of(rows: list[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("op", "size", "dtype", "ms", "rate", "of the ceiling", "times as fast as", "target"):
        table.add_column(name, overflow="fold")
    for row in rows:
        [unit] = [key for key in row if key in (*CEILINGS, "pairs/s")]
        share = row.get("share of ceiling")
        others = [f"{key[2:]}: {value}" for key, value in row.items() if key.startswith("x ")]
        more = [f"{key}: {value}" for key, value in row.items() if key.startswith(("extra", "largest"))]
        table.add_row(
            str(row["op"]),
            str(row["size"]),
            str(row["dtype"]),
            f"{row['ms']:.3f}",
            f"{row[unit]} {unit}",
            "" if share is None else f"{100 * float(str(share)):.0f} % of {row[f'ceiling {unit}']}",
            "\n".join((*others, *more)),
            "\n".join(str(x) for x in row["targets"]) if isinstance(row["targets"], list) else "",
        )
    return table


def chosen_ops(text: str) -> list[str]:
    names = [case.__name__ for case in CASES]
    ops = names if text == "all" else text.split(",")
    for op in ops:
        if op not in names:
            raise click.BadParameter(f"no op is called {op!r}, use one of {', '.join(names)}")
    return ops


@click.command(help=__doc__)
@click.option("--ops", default="all", show_default=True, help="Names, divided by commas.")
@click.option("--dtype", default="float32,bfloat16", show_default=True, help="Types of the tensors.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Threads of the CPU [default: all].")
@click.option("--rounds", default=9, show_default=True, help="Rounds of an op.")
@click.option("--seconds", default=8.0, show_default=True, help="Begin no new round of an op after this.")
@click.option("--cpu-time", is_flag=True, help="Count CPU time, with one thread: for a busy machine.")
@click.option("--smoke", is_flag=True, help="Tiny sizes: shows that the script works, times nothing of use.")
def main(
    ops: str,
    dtype: str,
    device: str,
    threads: int | None,
    rounds: int,
    seconds: float,
    cpu_time: bool,
    smoke: bool,
) -> None:
    torch.set_num_threads(1 if cpu_time else threads or torch.get_num_threads())
    wanted = [x for x in DTYPES if name_of(x) in dtype.split(",")]
    setup = Setup(resolve(torch.device(device)), torch.device(device), smoke)
    under = conditions(device)
    budget = Budget(rounds, seconds, cpu_time)
    names, rows = chosen_ops(ops), []
    console = Console() if sys.stdout.isatty() else Console(width=150)
    for make in CASES:
        if make.__name__ in names:
            for kind in wanted:
                rows += map(partial(measure, setup=setup, budget=budget), make(setup, kind))
                if console.is_terminal:
                    console.print(f"{make.__name__} {name_of(kind)} done", style="dim")
    title = ", ".join(str(under[name]) for name in ("device", "instruction_set", "torch", "commit"))
    title += f", {under['threads']} threads, load {under['load_average_1min']}"
    console.print(table_of(rows, title))
    clock = "cpu" if cpu_time else "wall"
    print(json.dumps({"benchmark": "kernels", "clock": clock, "conditions": under, "rows": rows}))


if __name__ == "__main__":
    main()
