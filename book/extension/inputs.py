"""Whether an executed page is out of date, told by the contents of all that it depends on.

That is its notebook, its record, the results that it shows, the code that the notebook loads, and the versions of the
packages that draw. A test, a page of text, or a part of the library that only measures makes no page out of date.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from book.extension.imports import graph_of, imported, modules_of, reached
from book.extension.outdated import files
from book.extension.pages import FOLDER, LIBRARY, Page, code_of
from lib.results import ROOT, write_whole

DRAWING = ("matplotlib", "numpy", "pandas", "plotly", "seaborn")


def inputs_of(page: Page) -> str:
    """A hash of all that decides what a page shows."""
    found = hashlib.sha256(json.dumps([page.parameters, _versions()], sort_keys=True).encode())
    for path in sorted({page.source, *results_of(page), *library_of(page)}):
        found.update(f"{path.relative_to(page.root)}\0{_content(path, path.stat().st_mtime_ns)}\n".encode())
    return found.hexdigest()


def results_of(page: Page) -> list[Path]:
    """The results that a page can show: those of its model, or all, and the benchmarks."""
    results = page.record.path.parents[1] if page.record else page.root / "results"
    found = files([results, page.root / "benchmarks" / "measured"])
    return [path for path in found if path.parent.name != "records"]


def library_of(page: Page) -> list[Path]:
    """The code of the library that a page's notebook loads; all of it where the notebook may measure."""
    folder = page.root / LIBRARY.relative_to(ROOT)
    if page.record is None:
        return files([folder])
    modules = _modules(folder)
    try:
        start = imported(code_of(page.source), modules)
    except SyntaxError:  # a line for IPython alone, say
        return files([folder])
    return [modules[name] for name in reached(start, _graph(folder))]


class Known:
    """The inputs of the executed pages, in a file beside them."""

    def __init__(self, root: Path):
        self.path = root / "book" / FOLDER / "inputs.json"
        try:
            self.inputs = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.inputs = {}

    def is_current(self, page: Page) -> bool:
        return page.executed.exists() and self.inputs.get(page.name) == inputs_of(page)

    def keep(self, page: Page, inputs: str) -> None:
        """Note with which inputs a page was made."""
        self.inputs[page.name] = inputs
        write_whole(self.path, json.dumps(self.inputs, indent=1, sort_keys=True).encode())


@functools.cache
def _modules(folder: Path) -> dict[str, Path]:
    return modules_of(folder)


@functools.cache
def _graph(folder: Path) -> dict[str, set[str]]:
    return graph_of(_modules(folder))


@functools.cache
def _content(path: Path, written: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _versions() -> list[str]:
    return [f"{name} {version}" for name in DRAWING for version in _version(name)]


def _version(name: str) -> Iterable[str]:
    try:
        yield importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return
