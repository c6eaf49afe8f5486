# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op is used: declared per op, chosen once, reported with reasons.

An op is a plain-torch reference, which is its specification, and any number of faster implementations.
`choose` takes the first implementation that this machine can run, else the reference. Nothing is decided at
import or per call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

REFERENCE = "ref"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Impl:
    """One implementation of an op: `why_not(device)` is None where it can run, else the reason in a few
    words.

    `function` may be a name, "rzero.kernels.rmsnorm_triton:rmsnorm_triton", that is imported when the
    implementation is chosen: whoever runs on a CPU never imports triton.
    """

    backend: str
    function: Callable[..., Any] | str
    why_not: Callable[[torch.device], str | None]
    only_asked: str | None = None
    """Why it is taken only where the op itself is told to, neither by "auto" nor by a default; else None."""

    def load(self) -> Callable[..., Any]:
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


@dataclass(frozen=True, slots=True)
class Op:
    """An op: `reference` is the specification in plain torch, `impls` are tried in this order."""

    name: str
    reference: Callable[..., Any]
    impls: tuple[Impl, ...] = ()

    @property
    def backends(self) -> tuple[str, ...]:
        return (*(impl.backend for impl in self.impls), REFERENCE)

    @property
    def backends_by_default(self) -> tuple[str, ...]:
        return (*(impl.backend for impl in self.impls if impl.only_asked is None), REFERENCE)


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome for one op; `reasons` says why each implementation before it was not taken."""

    op: str
    backend: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f"  ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.op:<16} {self.backend}{why}"


def choose(op: Op, device: torch.device, wanted: str) -> tuple[Callable[..., Any], Choice]:
    """The implementation of `op` for `device`; `wanted` is a backend's name or "auto".

    Raises ValueError when `wanted` is unknown to the op or cannot run here: a forced choice never falls back.
    """
    if wanted not in (AUTO, *op.backends):
        raise ValueError(
            f"kernels: {op.name} has no backend {wanted!r}, use one of {', '.join((AUTO, *op.backends))}"
        )
    reasons: list[str] = []
    for impl in op.impls:
        if wanted not in (AUTO, impl.backend):
            continue
        reason = impl.why_not(device)
        if wanted == AUTO:
            reason = reason or impl.only_asked
        if reason is None:
            return impl.load(), Choice(op.name, impl.backend, tuple(reasons))
        if wanted == impl.backend:
            raise ValueError(f"kernels: {op.name} cannot use {wanted!r} on {device}: {reason}")
        reasons.append(f"{impl.backend}: {reason}")
    return op.reference, Choice(op.name, REFERENCE, tuple(reasons))


def wanted_backends(ops: tuple[Op, ...], overrides: Mapping[str, str]) -> dict[str, str]:
    """The backend wanted for each op. "default" applies to every op that has the backend, the others stay
    "auto".

    Raises ValueError for an op that does not exist or a default that no op has.
    """
    names = [op.name for op in ops]
    for name in overrides:
        if name != "default" and name not in names:
            raise ValueError(f"kernels: no op is called {name!r}, use 'default' or one of {', '.join(names)}")
    default = overrides.get("default", AUTO)
    known = {AUTO, *(backend for op in ops for backend in op.backends)}
    if default not in known:
        raise ValueError(f"kernels: no backend is called {default!r}, use one of {', '.join(sorted(known))}")
    usable = {op.name: default if default in op.backends_by_default else AUTO for op in ops}
    return {name: overrides.get(name, usable[name]) for name in names}


def up(x: torch.Tensor) -> torch.Tensor:
    """float32 of a smaller float type; float64 stays, so that a reference is also its own oracle."""
    return x if x.dtype == torch.float64 else x.float()
