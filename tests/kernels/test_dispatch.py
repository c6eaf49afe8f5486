# SPDX-License-Identifier: Apache-2.0
"""The choice of kernels: automatic, forced, refused with a reason; the extension in the process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import CPU, needs_native

from rzero.kernels import OPS, Impl, Op, resolve
from rzero.kernels.bleu import BLEU
from rzero.kernels.dispatch import choose, wanted_backends


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_report_has_one_line_per_op() -> None:
    report = resolve(CPU).report
    assert [choice.op for choice in report] == [op.name for op in OPS]
    assert len({op.name for op in OPS}) == len(OPS)


@needs_native
def test_native_is_taken_where_there_is_one() -> None:
    backends = {choice.op: choice.backend for choice in resolve(CPU).report}
    assert backends == {op.name: op.backends_by_default[0] for op in OPS}


@needs_native
def test_default_and_single_overrides() -> None:
    kernels = resolve(CPU, {"default": "ref", "linear": "native"})
    assert {choice.op: choice.backend for choice in kernels.report} == {
        op.name: "native" if op.name == "linear" else "ref" for op in OPS
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"atention": "ref"}, "no op is called 'atention', use 'default' or one of linear"),
        ({"attention": "fast"}, "attention has no backend 'fast', use one of auto, native"),
        ({"default": "fast"}, "no backend is called 'fast'"),
    ],
)
def test_misspelt_override_is_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(CPU, overrides)


def test_forced_backend_never_falls_back() -> None:
    with pytest.raises(
        ValueError, match="attention cannot use 'native' on meta: runs on the CPU, not on meta"
    ):
        resolve(torch.device("meta"), {"attention": "native"})


def test_reasons_of_the_implementations_passed_over_are_kept() -> None:
    op = Op(
        "op",
        lambda: "ref",
        (
            Impl("a", lambda: "a", lambda device: "a is broken"),
            Impl("b", lambda: "b", lambda device: None),
            Impl("c", lambda: "c", lambda device: None),
        ),
    )
    function, choice = choose(op, CPU, "auto")
    assert function() == "b" and str(choice).split() == ["op", "b", "(a:", "a", "is", "broken)"]
    with pytest.raises(ValueError, match="op cannot use 'a' on cpu: a is broken"):
        choose(op, CPU, "a")


@needs_native
def test_bleu_is_native_beside_any_device() -> None:
    """Its lists lie on the host; on a GPU the reference would take minutes a step."""
    assert choose(BLEU, torch.device("meta"), "auto")[1].backend == "native"


def test_what_is_only_taken_when_asked_for() -> None:
    op = Op("op", lambda: "ref", (Impl("a", lambda: "a", lambda device: None, only_asked="a is slow"),))
    function, choice = choose(op, CPU, "auto")
    assert function() == "ref" and choice.reasons == ("a: a is slow",)
    assert choose(op, CPU, "a")[0]() == "a"
    assert wanted_backends((op,), {}) == {"op": "auto"}
    assert wanted_backends((op,), {"op": "a"}) == {"op": "a"}
    assert wanted_backends((op,), {"default": "a"}) == {"op": "auto"}


def test_without_the_extension_the_references_are_used_and_the_reason_is_given() -> None:
    out = python(
        "import sys; sys.modules['rzero._native'] = None\n"
        "import torch; from rzero.kernels import resolve\n"
        "report = resolve(torch.device('cpu')).report\n"
        "print({c.backend for c in report if c.op != 'linear'}, report[2])\n"
    )
    assert out.startswith("{'ref'} rmsnorm") and "native: rzero._native is not built" in out


@needs_native
@pytest.mark.parametrize("first", ["torch", "rzero._native"])
def test_one_openmp_runtime_whatever_is_imported_first(first: str) -> None:
    """Two of them spin against each other: measured 24 times slower."""
    second = "rzero._native" if first == "torch" else "torch"
    out = python(
        f"import {first}, {second}, rzero.kernels, re, pathlib\n"
        "maps = pathlib.Path('/proc/self/maps').read_text()\n"
        "print(len(set(re.findall(r'\\S*lib[gi]omp\\S*', maps))))\n"
    )
    assert out == "1"


def test_kernels_do_not_import_transformers() -> None:
    assert python("import sys, rzero.kernels; print('transformers' in sys.modules)") == "False"


def test_build_without_a_compiler_ends_well_and_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    environment = {"PATH": "/usr/bin:/bin", "CC": "no-compiler", "CXX": "no-compiler"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("rzero:")]
    assert len(said) == 1 and "torch reference kernels will be used" in said[0]
    assert not list(tmp_path.rglob("_native*"))
