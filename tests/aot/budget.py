# SPDX-License-Identifier: Apache-2.0
"""What each kernel may use, and the command that writes it down anew after a look at the difference:

.venv/bin/python tests/aot/budget.py            # all cases
.venv/bin/python tests/aot/budget.py rmsnorm    # the cases whose name starts so
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calls import all_cases
from compiled import ARCHES, SHARED_LIMIT_BYTES, Compilations, Compiled
from triton.compiler.errors import CompilationError

FILE = Path(__file__).with_name("budget.json")
Budget = Mapping[str, Mapping[str, Any]]


def load() -> Budget:
    return dict(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.exists() else {}


def entries(case: str, arch: int, kernels: Sequence[Compiled]) -> Iterator[tuple[str, Compiled]]:
    """The key of each kernel of a case in the file; a second variant of a kernel gets a number."""
    seen: dict[str, int] = {}
    for kernel in kernels:
        seen[kernel.name] = count = seen.get(kernel.name, 0) + 1
        variant = f" {count}" if count > 1 else ""
        yield f"{case}: {kernel.name}{variant}, sm_{arch}", kernel


def line(kernel: Compiled) -> dict[str, Any]:
    return {
        "registers": kernel.registers,
        "shared_bytes": kernel.shared_bytes,
        "mma": kernel.mma,
        "wide": kernel.wide,
    }


def faults(key: str, kernel: Compiled, arch: int, budget: Budget) -> Iterator[str]:
    """What is wrong with a kernel for any user, and what is worse than the budget says."""
    if kernel.stack_bytes or kernel.spills:
        yield f"{key} spills: {kernel.stack_bytes} bytes of stack, {kernel.spills} local loads and stores"
    if kernel.shared_bytes > SHARED_LIMIT_BYTES[arch]:
        limit = SHARED_LIMIT_BYTES[arch]
        yield f"{key} needs {kernel.shared_bytes} bytes of shared memory, sm_{arch} has {limit}"
    if kernel.has_dot_16 and not kernel.mma:
        yield f"{key} multiplies 16-bit matrices without tensor cores"
    allowed = budget.get(key)
    if allowed is None:
        yield f"{key} is not in {FILE.name}"
        return
    for what in ("registers", "shared_bytes"):
        if getattr(kernel, what) > allowed[what]:
            yield f"{key}: {getattr(kernel, what)} {what}, the budget is {allowed[what]}"
    if kernel.mma != allowed["mma"]:
        yield f"{key}: tensor-core instruction {kernel.mma!r}, was {allowed['mma']!r}"
    for access in set(allowed["wide"].split()) - set(kernel.wide.split()):
        yield f"{key}: no 128-bit {access} any more"


def main(prefixes: Sequence[str]) -> int:
    """The number of cases that do not compile; they keep what the file says of them."""
    names = [name for name in all_cases() if not prefixes or name.startswith(tuple(prefixes))]
    compilations = Compilations()
    for name in names:
        for arch in ARCHES:
            compilations.start(name, arch)
    new: dict[str, Any] = {}
    broken = set()
    for name in names:
        for arch in ARCHES:
            try:
                kernels = compilations.result(name, arch)
            except CompilationError as error:
                broken.add(name)
                print(f"{name}, sm_{arch}: {error}")
                continue
            for key, kernel in entries(name, arch, kernels):
                new[key] = line(kernel)
                print(key, kernel, flush=True)
    done = set(names) - broken
    kept = {key: value for key, value in load().items() if key.split(":")[0] not in done}
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted({**kept, **new}.items())]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    return len(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
