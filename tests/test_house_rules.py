# SPDX-License-Identifier: Apache-2.0
"""The house rules of CONTRIBUTING.md, checked over the syntax trees; every rule is seen to fail."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (("python/rzero", "rzero"), ("engine", "rzero.engine"), ("kernels", "rzero.kernels"))
RANK = MappingProxyType({"rzero": 0, "rzero.engine": 1, "rzero.kernels": 2, "rzero._native": 3})
TORCH_FREE = ("rzero.engine.pages", "rzero.engine.scheduler")
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
OTHER_WORDS = re.compile(r"(?<![a-z])(resp" + r"onse|compl" + r"etion)s?(?![a-z])", re.IGNORECASE)


class Module(NamedTuple):
    """One source file: its path below the repository, its import name, its text and its syntax tree."""

    path: str
    name: str
    text: str
    tree: ast.Module

    @property
    def is_package_code(self) -> bool:
        return self.name.startswith("rzero")


def parse(path: str, text: str) -> Module:
    name = ""
    for folder, package in ROOMS:
        if path.startswith(folder + "/"):
            inner = path[len(folder) + 1 :].removesuffix(".py").replace("/", ".")
            name = f"{package}.{inner}".removesuffix(".__init__")
    return Module(path, name, text, ast.parse(text))


def python_files() -> Iterator[Path]:
    yield ROOT / "setup.py"
    for folder in ("python", "engine", "kernels", "tests", "benchmarks", "tools"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def all_modules() -> tuple[Module, ...]:
    return tuple(
        parse(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in python_files()
    )


# ---- helpers over one tree


def room(name: str) -> str:
    """The room that an import name belongs to: the longest prefix in RANK."""
    return max((r for r in RANK if name == r or name.startswith(r + ".")), key=len)


def imports(
    module: Module, names: frozenset[str] = frozenset(), *, at_import_only: bool = False
) -> Iterator[str]:
    """Absolute names of what a module imports; `names` tells submodules (from a import b) from attributes."""
    skip: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        is_lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if at_import_only and (is_lazy or is_typing):
            skip.update(child for child in ast.walk(node) if child is not node)
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = f"{module.name}._" if module.path.endswith("__init__.py") else module.name
                base = package.split(".")[: -node.level]
                source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in names or inner == "rzero._native" else source


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def is_mutable_literal(value: ast.expr | None) -> bool:
    makers = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict", "bytearray"}
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in makers
    return isinstance(value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp))


# ---- rules: each takes one module and yields what is wrong with it


def spdx_line(module: Module) -> Iterator[str]:
    if not any("SPDX-License-Identifier: Apache-2.0" in line for line in module.text.splitlines()[:2]):
        yield "no SPDX line at the top"


def length(module: Module) -> Iterator[str]:
    lines = module.text.count("\n")
    if lines > MAX_FILE:
        yield f"{lines} lines, at most {MAX_FILE}"
    for node in functions(module):
        size = (node.end_lineno or node.lineno) - node.lineno + 1
        if size > MAX_FUNCTION:
            yield f"{node.lineno}: {node.name} has {size} lines, at most {MAX_FUNCTION}"


def parameters(module: Module) -> Iterator[str]:
    """Keyword-only parameters are named at every call, so only those that can be given by position count.

    A Triton kernel has no keyword-only parameters, and takes every pointer and stride apart.
    """
    for node in functions(module):
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list):
            continue
        given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
        count = len([name for name in given if name not in ("self", "cls", "ctx")])
        if count > MAX_PARAMETERS:
            yield f"{node.lineno}: {node.name} has {count} positional parameters, at most {MAX_PARAMETERS}"


def import_direction(module: Module) -> Iterator[str]:
    if not module.is_package_code:
        return
    for name in imports(module):
        if name.split(".")[0] == "rzero" and RANK[room(name)] < RANK[room(module.name)]:
            yield f"imports {name}: rzero -> rzero.engine -> rzero.kernels -> rzero._native, never back"


def environment(module: Module) -> Iterator[str]:
    if not module.is_package_code or module.name.startswith("rzero.cli"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
            yield f"{node.lineno}: reads or writes the environment outside rzero.cli"


def broad_except(module: Module) -> Iterator[str]:
    """A broad except is fine where the handler raises in the end: it translates and swallows nothing."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
            caught = ast.unparse(node.type) if node.type else ""
            if not caught or re.search(r"\b(Base)?Exception\b", caught):
                yield f"{node.lineno}: broad except"


def module_state(module: Module) -> Iterator[str]:
    if not module.is_package_code:
        return
    for node in module.tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not is_mutable_literal(node.value):
            continue
        kind = ast.unparse(node.annotation if isinstance(node, ast.AnnAssign) else node.targets[0])
        if kind != "__all__" and not re.match(r"(Final\[)?(Mapping|Sequence|Collection)\b", kind):
            yield f"{node.lineno}: mutable value at module level: make it a tuple, or annotate Mapping[...]"
    for inner in ast.walk(module.tree):
        if isinstance(inner, ast.Global):
            yield f"{inner.lineno}: global statement"


def getattr_default(module: Module) -> Iterator[str]:
    if not module.is_package_code:
        return
    for node in ast.walk(module.tree):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name == "hasattr" or (name == "getattr" and isinstance(node, ast.Call) and len(node.args) == 3):
            yield f"{node.lineno}: {name} hides a missing attribute"


def monkey_patch(module: Module) -> Iterator[str]:
    imported: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            imported.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    for node in ast.walk(module.tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            root = target
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported:
                yield f"{target.lineno}: assigns to {ast.unparse(target)}, which another module owns"


def words(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.text.splitlines(), 1):
        if found := UNFINISHED.search(line):
            yield f"{number}: {found[0]}"
        if module.is_package_code and (found := OTHER_WORDS.search(line)):
            yield f"{number}: {found[0]!r}; the word here is answer"


Rule = Callable[[Module], Iterator[str]]
# Every rule with a file that breaks it: a rule that cannot fail guards nothing.
RULES: Mapping[Rule, tuple[str, str]] = {
    spdx_line: ("engine/a.py", "x = 1\n"),
    length: ("engine/a.py", "def f():\n" + "    x = 1\n" * 60),
    parameters: ("engine/a.py", "def f(a, b, c, d, e, f, g, h, i): ...\n"),
    import_direction: ("engine/a.py", "from rzero.config import Config\n"),
    environment: ("kernels/a.py", "import os\nx = os.environ['A']\n"),
    broad_except: ("engine/a.py", "try:\n    x = 1\nexcept (OSError, Exception):\n    pass\n"),
    module_state: ("engine/a.py", "cache = {}\n"),
    getattr_default: ("engine/a.py", "x = getattr(y, 'z', None)\n"),
    monkey_patch: ("engine/a.py", "import torch\ntorch.nn.Linear = None\n"),
    words: ("engine/a.py", "# TO" + "DO later\n"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    found = [f"{module.path}: {text}" for module in all_modules() for text in rule(module)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_can_fail(rule: Rule) -> None:
    assert list(rule(parse(*RULES[rule])))


# More ways to break a rule than the one above.
BAD = (
    (length, "engine/a.py", "x = 1\n" * 401),
    (import_direction, "kernels/a.py", "from ..engine import model\n"),
    (import_direction, "kernels/a.py", "def f():\n    import rzero.engine.model\n"),
    (broad_except, "tests/a.py", "try:\n    x = 1\nexcept:\n    pass\n"),
    (module_state, "engine/a.py", "NAMES: list[str] = []\n"),
    (module_state, "engine/a.py", "def f():\n    global x\n"),
    (getattr_default, "engine/a.py", "hasattr(x, 'y')\n"),
    (words, "engine/a.py", "num_compl" + "etions = 1\n"),
)
GOOD = (
    (module_state, "engine/a.py", "NAMES: Mapping[str, int] = {'a': 1}\n__all__ = ['f']\n"),
    (import_direction, "engine/a.py", "from rzero.kernels import resolve\nfrom rzero.engine.b import c\n"),
    (environment, "python/rzero/cli/run.py", "import os\nx = os.environ['A']\n"),
    (parameters, "engine/a.py", "def f(self, *, a, b, c, d, e, f, g, h, i): ...\n"),
    (parameters, "kernels/a.py", "@triton.jit\ndef f(a, b, c, d, e, f, g, h, i): ...\n"),
    (broad_except, "engine/a.py", "try:\n    x = 1\nexcept Exception as e:\n    raise ValueError from e\n"),
    (monkey_patch, "engine/a.py", "import torch\ny = torch.nn\nself.torch = y\n"),
    (words, "engine/a.py", "x = 'answers, questions'\n"),
)


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_rule_sees(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_rule_allows(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(parse(path, text)))


# ---- rules over the whole graph of imports


def graph(modules: Sequence[Module]) -> dict[str, list[str]]:
    names = frozenset(module.name for module in modules if module.is_package_code)
    return {
        module.name: sorted(set(imports(module, names, at_import_only=True)) - {module.name})
        for module in modules
        if module.is_package_code
    }


def cycle(edges: Mapping[str, list[str]]) -> list[str]:
    """One cycle of the graph as a list of names, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done or name not in edges:
            return []
        for target in edges[name]:
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := visit(name, []))), [])


def reachable(edges: Mapping[str, list[str]], start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(edges.get(name, []))
    return seen


def test_no_import_cycles() -> None:
    assert not cycle(graph(all_modules()))


def test_import_cycle_is_found() -> None:
    a = parse("engine/a.py", "from rzero.engine import b\n")
    b = parse("engine/b.py", "from rzero.engine.a import x\n")
    assert cycle(graph([a, b])) == ["rzero.engine.a", "rzero.engine.b", "rzero.engine.a"]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_scheduler_and_pages_import_no_torch(name: str) -> None:
    edges = graph(all_modules())
    assert name in edges
    heavy = {target.split(".")[0] for target in reachable(edges, name)} & {"torch", "transformers"}
    assert not heavy


def test_indirect_torch_is_found() -> None:
    a = parse("engine/pages.py", "from rzero.engine.b import x\n")
    b = parse("engine/b.py", "import torch.nn\n")
    assert "torch.nn" in reachable(graph([a, b]), "rzero.engine.pages")


def test_native_sources_carry_the_licence_line() -> None:
    sources = [p for kind in ("cpp", "h", "cu", "cuh", "inc") for p in (ROOT / "csrc").rglob(f"*.{kind}")]
    sources += [p for kind in ("css", "js") for p in (ROOT / "python").rglob(f"*.{kind}")]
    bare = [str(p.relative_to(ROOT)) for p in sources if "SPDX-License-Identifier" not in p.read_text()[:200]]
    assert not bare
