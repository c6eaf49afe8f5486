# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: `create("math")`; entry points of group "rzero.tasks" add those of other packages, and
"my_task.py:MyTask" is a class (or a function) in a file."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType, ModuleType

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
    """The task of that name: built in, of an installed package, "module:factory" or "file.py:factory".

    A factory takes the folder of held-out data (or None) and returns a Task; a class can be one. Raises
    InputError when nothing has that name, naming the nearest one, or when it makes no Task.
    """
    others = {point.name: point.value for point in entry_points(group="rzero.tasks")}
    target = BUILT_IN.get(name) or others.get(name) or name
    module_name, colon, factory_name = target.rpartition(":")
    if not colon:
        raise InputError(f"unknown task {name!r}; {nearest(name, task_names())}")
    try:
        module = _from_file(Path(module_name)) if module_name.endswith(".py") else import_module(module_name)
        factory: Callable[[str | None], Task] = vars(module)[factory_name]
    except (ImportError, OSError, SyntaxError, KeyError) as error:
        raise InputError(f"task {name!r}: cannot load {target}: {error}") from None
    try:
        task = factory(data)
    except TypeError as error:
        raise InputError(f"task {name!r}: {factory_name} cannot be made: {error}") from error
    if not isinstance(task, Task):
        raise InputError(f"task {name!r}: {factory_name} gives {type(task).__name__}, not a rzero Task")
    return task


def _from_file(path: Path) -> ModuleType:
    """The module in a file, run once for each path, so that it may lie anywhere."""
    name = f"rzero_task_{path.resolve().stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
