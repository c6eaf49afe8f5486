# SPDX-License-Identifier: Apache-2.0
"""Runs every op on every backend of a GPU against the reference in float64: the first thing to do on a GPU.

    python benchmarks/gpu_smoke.py --out smoke.json     # exits 0 if all passed, 1 if not, 2 without a GPU
    python benchmarks/gpu_smoke.py --device cpu         # the same checks of what runs on the CPU

An op's error is judged beside the error of plain torch in the same type, in Frobenius and in peak norm; two
runs must give the same bits; `sample` must draw the reference's tokens and pass a chi-square test. Backends
are compared with each other, too. The last line is one JSON object: device, driver, versions, commit, counts;
--out writes it with every result.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conditions import conditions
from smoke_cases import CASES, Case, placed, randn
from torch import Tensor

from rzero.kernels import OPS
from rzero.kernels.dispatch import Op, choose
from rzero.kernels.sample import SAMPLE, support_ref

DTYPES = ("float32", "bfloat16", "float16")
SLACK = {"frobenius": 1.25, "peak": 2.5}
FLOOR = 4e-7  # a few float32 roundings
HOST_ONLY = ("bleu",)
TOO_FEW_DRAWS = 5

Function = Callable[..., Any]
Functions = Mapping[str, Function]


class Result(NamedTuple):
    """One op, backend, type and case: its largest error and torch's, both relative, and what is wrong."""

    op: str
    backend: str
    dtype: str
    case: str
    error: float
    torchs: float
    faults: tuple[str, ...]
    time_us: float | None = None


def evaluate(function: Function, case: Case, device: torch.device, dtype: torch.dtype | None) -> list[Tensor]:
    """The outputs, then the gradients for fixed gradients of the outputs."""
    inputs = [placed(x, device, dtype) for x in case.inputs]
    leaves = [x for x in inputs if case.has_gradient and x.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    out = case.call(function, *inputs)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    kept = [y for y in outputs if y.requires_grad]
    grads: Sequence[Tensor | None] = ()
    if leaves:
        incoming = [randn(*y.shape, dtype=case.inputs[0].dtype, seed=i).to(y) for i, y in enumerate(kept)]
        grads = torch.autograd.grad(kept, leaves, incoming, allow_unused=True)
    return [*(y.detach() for y in outputs), *(g for g in grads if g is not None)]


def norms(x: Tensor) -> dict[str, float]:
    return {"frobenius": float(x.norm()), "peak": float(x.abs().max()) if x.numel() else 0.0}


def judge(
    case: Case, truth: list[Tensor], base: list[Tensor], got: list[Tensor]
) -> tuple[float, float, list[str]]:
    """The largest relative error, torch's, and what is wrong."""
    worst, torchs, faults = 0.0, 0.0, []
    if len(truth) != len(got):
        return torch.inf, 0.0, [f"{len(got)} results instead of {len(truth)}"]
    for i, (t, b, x) in enumerate(zip(truth, base, got, strict=True)):
        if case.is_exact:
            if not torch.equal(b.nan_to_num(7), x.nan_to_num(7)):
                faults.append(f"result {i} differs")
            continue
        if x.shape != t.shape or x.dtype != b.dtype:
            faults.append(f"result {i} is {x.dtype} {list(x.shape)}")
            continue
        t = t.double()
        size, mine, plain = norms(t), norms(x.double() - t), norms(b.double() - t)
        for name, slack in SLACK.items():
            error, allowed = mine[name] / (size[name] + 1e-30), plain[name] / (size[name] + 1e-30)
            worst, torchs = max(worst, error), max(torchs, allowed)
            if not error <= slack * allowed + FLOOR:
                faults.append(f"result {i}: {name} error {error:.2e}, torch's {allowed:.2e}")
    return worst, torchs, faults


def backends(op: Op, device: torch.device) -> Iterator[tuple[str, Function]]:
    for impl in op.impls:
        reason = impl.why_not(device)
        if reason is None:
            yield impl.backend, choose(op, device, impl.backend)[0]
        else:
            print(f"{op.name:<16} {impl.backend:<8} left out: {reason}")
    yield "ref", op.reference


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The best of a few runs."""
    best = torch.inf
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        for _ in range(10):
            call()
        wait(device)
        best = min(best, (time.perf_counter() - start) / 10)
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_case(
    op: Op, functions: Functions, case: Case, dtype: torch.dtype, device: torch.device, is_timed: bool
) -> Iterator[Result]:
    truth, base = (evaluate(op.reference, case, device, d) for d in (torch.float64, None))
    seen: dict[str, list[Tensor]] = {}
    for backend, function in functions.items():
        kind = str(dtype).removeprefix("torch.")
        try:
            got = evaluate(function, case, device, None)
            again = evaluate(function, case, device, None)
            wait(device)
        except (RuntimeError, ValueError) as failure:
            yield Result(op.name, backend, kind, case.name, torch.inf, 0.0, (str(failure).splitlines()[0],))
            continue
        error, torchs, faults = judge(case, truth, base, got)
        pairs = zip(got, again, strict=True)
        if backend != "ref" and not all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in pairs):
            faults.append("two runs differ")
        for other, theirs in seen.items():
            apart = max((relative(x, y) for x, y in zip(got, theirs, strict=False)), default=0.0)
            if not apart <= 4 * torchs + 4 * FLOOR:
                faults.append(f"differs from {other} by {apart:.2e}")
        seen[backend] = got
        time_us = None
        if is_timed:
            inputs = [placed(x, device) for x in case.inputs]
            time_us = seconds(lambda f=function, x=inputs: case.call(f, *x), device) * 1e6
        yield Result(op.name, backend, kind, case.name, error, torchs, tuple(faults), time_us)


def relative(x: Tensor, y: Tensor) -> float:
    if not x.is_floating_point():
        return 0.0
    x, y = x.double().nan_to_num(7), y.double().nan_to_num(7)
    return float((x - y).norm() / (y.norm() + 1e-30))


def sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    large = 151_936 if device.type == "cuda" else 20_011
    for name, V, (temperature, top_k, top_p, min_p) in (
        ("plain", 5003, (1.0, 0, 1.0, 0.0)), ("greedy", 5003, (0.0, 0, 1.0, 0.0)),
        ("top-k", 5003, (1.0, 7, 1.0, 0.0)), ("min-p", 5003, (1.0, 0, 1.0, 0.05)),
        ("top-p", large, (0.7, 0, 0.95, 0.0)),
        ("all", large, (0.8, 20, 0.9, 0.02)),
    ):  # fmt: skip
        B = 64 if V < 10_000 else 16
        generator = torch.Generator().manual_seed(V)
        settings = [torch.full((B,), x) for x in (temperature, top_p, min_p)]
        key_B, position_B = torch.randint(-(2**63), 2**63 - 1, (2, B), generator=generator)
        args = (
            (torch.randn(B, V, generator=generator) * 3).to(dtype), settings[0],
            torch.full((B,), top_k, dtype=torch.int32), *settings[1:], key_B, position_B.abs(),
        )  # fmt: skip
        yield name, tuple(x.to(device) for x in args)


def check_sample(functions: Functions, dtype: torch.dtype, device: torch.device) -> Iterator[Result]:
    kind = str(dtype).removeprefix("torch.")
    for backend, function in functions.items():
        for name, args in sample_inputs(dtype, device):
            wanted, got, again = SAMPLE.reference(*args), function(*args), function(*args)
            truth = SAMPLE.reference(args[0].double(), *args[1:])
            faults = []
            if other := int((wanted[0] != got[0]).sum()):
                faults.append(f"{other} of {len(got[0])} tokens differ from the reference's")
            if not all(torch.equal(x, y) for x, y in zip(got, again, strict=True)):
                faults.append("two runs differ")
            alone = function(*(x[3:4] for x in args))
            if backend != "ref" and not all(torch.equal(x[3:4], y) for x, y in zip(got, alone, strict=True)):
                faults.append("a row alone differs from the row in a batch")
            error, torchs = (
                max(float((x - y).abs().max()) for x, y in zip(out[1:], truth[1:], strict=True))
                for out in (got, wanted)
            )
            if not error <= SLACK["peak"] * torchs + 2e-6:
                faults.append(f"log-probs err by {error:.2e}, torch's by {torchs:.2e}")
            yield Result("sample", backend, kind, name, error, torchs, tuple(faults))
        yield chi_square(backend, function, dtype, device)


def chi_square(backend: str, function: Function, dtype: torch.dtype, device: torch.device) -> Result:
    """Many draws of one row under all settings; the bound is four sigmas."""
    V, draws = 40, 100_000 if device.type == "cuda" else 20_000
    row_V = randn(V, dtype=dtype, seed=5).to(device) * 1.5
    settings = [torch.tensor([x], device=device) for x in (0.8, 0.95, 0.01)]
    top_k = torch.tensor([25], dtype=torch.int32, device=device)
    temperature, top_p, min_p = (x.expand(draws).contiguous() for x in settings)
    key, position = torch.full((draws,), 1234567, device=device), torch.arange(draws, device=device)
    token, _, _ = function(
        row_V.expand(draws, V), temperature, top_k.expand(draws).contiguous(), top_p, min_p, key, position
    )
    y_1V = (row_V.float() - row_V.float().max())[None] / settings[0]
    p_V = torch.where(support_ref(row_V.float()[None], y_1V, top_k, *settings[1:]), y_1V.double().exp(), 0)[0]
    expected_V, seen_V = p_V / p_V.sum() * draws, torch.bincount(token, minlength=V).double()
    is_common_V = expected_V > TOO_FEW_DRAWS
    chi2 = float(((seen_V - expected_V).square() / expected_V)[is_common_V].sum())
    degrees = int(is_common_V.sum()) - 1
    faults = (
        [] if chi2 < degrees + 4 * (2 * degrees) ** 0.5 else [f"chi-square {chi2:.0f} for {degrees} degrees"]
    )
    if seen_V[p_V == 0].sum() > 0:
        faults.append("draws a token outside the support")
    return Result("sample", backend, str(dtype).removeprefix("torch."), "chi-square", 0.0, 0.0, tuple(faults))


def all_results(
    device: torch.device, names: Sequence[str], dtypes: Sequence[torch.dtype], is_timed: bool
) -> Iterator[Result]:
    makers = {make.__name__: make for make in CASES}
    for op in OPS:
        if op.name in HOST_ONLY or (names and op.name not in names):
            continue
        functions = dict(backends(op, device))
        for dtype in dtypes:
            if op is SAMPLE:
                yield from check_sample(functions, dtype, device)
                continue
            for case in makers[op.name](dtype):
                yield from check_case(op, functions, case, dtype, device, is_timed)


def driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ops", nargs="*", default=[], help="these only")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=[*DTYPES], help="these only")
    parser.add_argument("--time", action="store_true", help="also time each call")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu_smoke: torch finds no GPU here; --device cpu runs the same checks on the CPU's backends")
        return 2
    device = torch.device(args.device)
    results = []
    dtypes = [getattr(torch, name) for name in args.dtypes]
    for result in all_results(device, args.ops, dtypes, args.time):
        results.append(result)
        time_us = "" if result.time_us is None else f"{result.time_us:9.1f} us"
        verdict = "; ".join(result.faults) or "ok"
        print(
            f"{result.op:<16} {result.backend:<8} {result.dtype:<9} {result.case:<42} "
            f"{result.error:8.1e} torch {result.torchs:8.1e}{time_us}  {verdict}",
            flush=True,
        )
    failed = [result for result in results if result.faults]
    report = {
        **conditions(args.device), "driver": driver(), "triton": triton_version(), "cuda": torch.version.cuda,
        "passed": not failed, "checks": len(results), "failed": len(failed),
        "results": [result._asdict() for result in results],
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {key: value for key, value in report.items() if key != "results"} | {"results": len(results)}
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
