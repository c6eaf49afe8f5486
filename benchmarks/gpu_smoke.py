# SPDX-License-Identifier: Apache-2.0
"""Runs every op on every backend of a GPU against the reference in float64: the first thing to do on a GPU.

    python benchmarks/gpu_smoke.py --out smoke.json     # exits 0 if all passed, 1 if not, 2 without a GPU
    python benchmarks/gpu_smoke.py --device cpu         # the same checks of what runs on the CPU

An op's error is judged beside the error of plain torch in the same type, in Frobenius and in peak norm; two
runs must give the same bits; `sample` must draw the reference's tokens and pass a chi-square test. Backends
are compared with each other, too. Checks run in a process of their own; where a kernel takes it down, or the
whole device with it, the next ops are checked in another. The last line is one JSON object: device, driver,
versions, commit, counts; --out writes it with every result, anew after each op.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conditions import conditions
from smoke_cases import CASES, LARGE, Case, placed, randn
from torch import Tensor

from rzero.kernels import OPS
from rzero.kernels.dispatch import Op, choose
from rzero.kernels.sample import SAMPLE, support_ref

DTYPES = ("float32", "bfloat16", "float16")
PEAK = 2.5  # slack at the peak, in times that of the Frobenius norm
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
        for name, slack in (("frobenius", case.slack), ("peak", PEAK * case.slack)):
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
            print(f"{op.name:<16} {impl.backend:<8} left out: {reason}", file=sys.stderr)
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


def failures() -> tuple[type[Exception], ...]:
    """What a kernel that does not compile, launch or run raises."""
    if find_spec("triton") is None:
        return RuntimeError, ValueError, TypeError, AssertionError
    from triton.errors import TritonError

    return RuntimeError, ValueError, TypeError, AssertionError, TritonError


def failed(op: Op, backend: str, kind: str, case: str, failure: Exception) -> Result:
    words = (str(failure).strip().splitlines() or [""])[0]
    return Result(op.name, backend, kind, case, torch.inf, 0.0, (f"{type(failure).__name__}: {words}",))


def require_alive(device: torch.device) -> None:
    """Ends the process where no call to the device succeeds any more, as after an access out of bounds."""
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as failure:
        sys.exit(f"gpu_smoke: the device answers no more: {failure}")


def check_case(
    op: Op, functions: Functions, case: Case, dtype: torch.dtype, device: torch.device, is_timed: bool
) -> Iterator[Result]:
    truth, base = (evaluate(op.reference, case, device, d) for d in (torch.float64, None))
    wait(device)
    seen: dict[str, list[Tensor]] = {}
    for backend, function in functions.items():
        kind = str(dtype).removeprefix("torch.")
        try:
            got = evaluate(function, case, device, None)
            again = evaluate(function, case, device, None)
            wait(device)
        except failures() as failure:
            yield failed(op, backend, kind, case.name, failure)
            require_alive(device)
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
    for backend, function in functions.items():
        checks = {
            name: partial(drawn, backend, function, name, args) for name, args in sample_inputs(dtype, device)
        }
        checks["chi-square"] = partial(chi_square, backend, function, dtype, device)
        for name, check in checks.items():
            try:
                yield check()
            except failures() as failure:
                yield failed(SAMPLE, backend, str(dtype).removeprefix("torch."), name, failure)
                require_alive(device)


def drawn(backend: str, function: Function, name: str, args: tuple[Tensor, ...]) -> Result:
    """Tokens and log-probs of one row of settings, beside the reference's."""
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
    if not error <= PEAK * torchs + 2e-6:
        faults.append(f"log-probs err by {error:.2e}, torch's by {torchs:.2e}")
    return Result(
        "sample", backend, str(args[0].dtype).removeprefix("torch."), name, error, torchs, tuple(faults)
    )


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


def results_here(
    device: torch.device, names: Sequence[str], dtypes: Sequence[torch.dtype], is_timed: bool
) -> Iterator[Result]:
    """The checks of these ops, in this process."""
    makers = {make.__name__: make for make in CASES}
    for op in OPS:
        if op.name not in names:
            continue
        functions = dict(backends(op, device))
        for dtype in dtypes:
            if op is SAMPLE:
                yield from check_sample(functions, dtype, device)
                continue
            large = LARGE[op.name](dtype) if op.name in LARGE and device.type == "cuda" else ()
            for case in chain(makers[op.name](dtype), large):
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


def results_apart(args: argparse.Namespace, names: Sequence[str]) -> Iterator[Result]:
    """The same from a process that may die of a check; the ops after the one that killed it have the next."""
    left = list(names)
    while left:
        options = ["--device", args.device, "--dtypes", *args.dtypes, *(["--time"] if args.time else [])]
        command = [sys.executable, __file__, "--here", "--ops", *left, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            at = left[0]
            for line in child.stdout:
                result = Result(**json.loads(line))
                at = result.op
                yield result._replace(faults=tuple(result.faults))
        if child.returncode == 0:
            return
        fault = (
            f"the process ended with {child.returncode}; what it had not checked of this op is not checked"
        )
        yield Result(at, "", "", "the process", torch.inf, 0.0, (fault,))
        left = left[left.index(at) + 1 :]


def shown(result: Result) -> str:
    time_us = "" if result.time_us is None else f"{result.time_us:9.1f} us"
    verdict = "; ".join(result.faults) or "ok"
    return (
        f"{result.op:<16} {result.backend:<8} {result.dtype:<9} {result.case:<42} "
        f"{result.error:8.1e} torch {result.torchs:8.1e}{time_us}  {verdict}"
    )


def report(device: str, results: Sequence[Result], is_whole: bool) -> dict[str, Any]:
    bad = [result for result in results if result.faults]
    return {
        **conditions(device), "driver": driver(), "triton": triton_version(), "cuda": torch.version.cuda,
        "passed": is_whole and not bad, "whole": is_whole, "checks": len(results), "failed": len(bad),
        "results": [result._asdict() for result in results],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [op.name for op in OPS if op.name not in HOST_ONLY]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ops", nargs="*", choices=names, default=names, help="these only")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=[*DTYPES], help="these only")
    parser.add_argument("--time", action="store_true", help="also time each call")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.add_argument(
        "--here", action="store_true", help="in this process; prints a line of JSON for each check"
    )
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu_smoke: torch finds no GPU here; --device cpu runs the same checks on the CPU's backends")
        return 2
    if args.here:
        dtypes = [getattr(torch, name) for name in args.dtypes]
        for result in results_here(torch.device(args.device), args.ops, dtypes, args.time):
            print(json.dumps(result._asdict()), flush=True)
        return 0
    results: list[Result] = []
    for result in results_apart(args, [name for name in names if name in args.ops]):
        is_next_op = results and results[-1].op != result.op
        if args.out is not None and is_next_op:
            write(args.out, report(args.device, results, is_whole=False))
        results.append(result)
        print(shown(result), flush=True)
    whole = report(args.device, results, is_whole=True)
    if args.out is not None:
        write(args.out, whole)
    print(json.dumps(whole | {"results": len(results)}))
    return 0 if whole["passed"] else 1


def write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
