# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: `create("math")`; entry points of group "rzero.tasks" add those of other packages."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType

from rzero.config import nearest
from rzero.engine.errors import InputError
from rzero.tasks.base import Task

# Name -> "module:factory"; a factory takes the folder of held-out data (or None) and returns a Task.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"arithmetic": "rzero.tasks.arithmetic:create", "math": "rzero.tasks.math:create"}
)


def task_names() -> list[str]:
    """The names that `create` knows, besides the form module:factory."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="rzero.tasks"))})


def create(name: str, data: str | None = None) -> Task:
    """The task of that name: built in, of an installed package, or "module:factory".

    Raises InputError when nothing has that name, naming the nearest one.
    """
    others = {point.name: point.value for point in entry_points(group="rzero.tasks")}
    target = BUILT_IN.get(name) or others.get(name) or name
    module_name, colon, factory_name = target.partition(":")
    if not colon:
        raise InputError(f"unknown task {name!r}; {nearest(name, task_names())}")
    try:
        factory: Callable[[str | None], Task] = vars(import_module(module_name))[factory_name]
    except (ImportError, KeyError) as error:
        raise InputError(f"task {name!r}: cannot load {target}: {error}") from None
    return factory(data)
