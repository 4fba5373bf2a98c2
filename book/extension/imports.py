"""Which module of a package imports which, read from the source without running it.

Imports inside functions do not count unless asked for: a module is loaded without them.
"""

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

Modules = Mapping[str, Path]  # file of each module, by its dotted name


def modules_of(folder: Path) -> dict[str, Path]:
    """Every module of the package in a folder, the package itself among them, by its dotted name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, modules: Modules, name: str = "", *, everywhere: bool = False) -> set[str]:
    """The modules of the package that a text of Python imports when it is loaded, or anywhere in it.

    `name` is the text's own, if it is a module. A name that a package hands out only when asked (by a `__getattr__`)
    may come from any of its modules: all count.
    """
    package = name if name in modules and modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree) if everywhere else _at_load(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            if base in modules:
                found |= {part for alias in node.names for part in _named(base, alias.name, modules)}
    return found - {name}


def outside(source: str) -> set[str]:
    """The names of top-level packages that a text of Python imports when it is loaded."""
    found = set()
    for node in _at_load(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def reached(start: Iterable[str], graph: Mapping[str, Iterable[str]]) -> set[str]:
    """All that can be reached along the arrows of a graph, the start included."""
    found, waiting = set(), list(start)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += graph.get(node, ())
    return found


def graph_of(modules: Modules) -> dict[str, set[str]]:
    """What each module loads: what it imports, and the packages that it lies in."""
    graph = {}
    for name, path in modules.items():
        parts = name.split(".")
        above = {".".join(parts[:count]) for count in range(1, len(parts))}
        graph[name] = imported(path.read_text(encoding="utf-8"), modules, name) | (above & set(modules))
    return graph


def _at_load(tree: ast.AST) -> Iterable[ast.AST]:
    """The statements that run when a module is loaded: not the bodies of functions, nor what only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_load(node)


def _named(base: str, name: str, modules: Modules) -> set[str]:
    """The modules behind `from base import name`."""
    if f"{base}.{name}" in modules:
        return {f"{base}.{name}"}
    path = modules[base]
    names = _bound(path, path.stat().st_mtime_ns)
    if "__getattr__" in names and name not in names:
        return {module for module in modules if module.startswith(f"{base}.")} | {base}
    return {base}


@functools.cache
def _bound(path: Path, written: int) -> set[str]:
    """The names that a module has once it is loaded."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        else:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found
