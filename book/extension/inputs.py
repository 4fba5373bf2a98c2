"""Whether an executed page is out of date, told by the contents of all that it depends on.

That is its notebook, its record, the results that it shows, the code that it loaded when it ran, and the versions of
the packages that draw. A test, a page of text, or a part of the library that only measures makes no page out of date.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from book.extension.outdated import content, files
from book.extension.pages import FOLDER, Page
from deeper_layers.files import write_file

DRAWING = ("matplotlib", "numpy", "pandas", "plotly")


class Inputs:
    """What the executed pages were made of, in a file beside them."""

    def __init__(self, root: Path):
        self.root, self.path = root, root / "book" / FOLDER / "inputs.json"
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.known = {
                name: {"inputs": of_page["inputs"], "code": of_page["code"]} for name, of_page in known.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not as below: all run again
            self.known = {}

    def is_current(self, page: Page) -> bool:
        """Whether a page is there and made of what is there now."""
        known = self.known.get(page.name, {})
        return page.executed.exists() and known.get("inputs") == self.state(page, known.get("code", []))

    def keep(self, page: Page, state: str, code: list[str]) -> None:
        """Note of what a page was made: its state before it ran, without code, and the code that it then loaded."""
        self.known[page.name] = {"inputs": self.with_code(state, code), "code": code}
        write_file(self.path, json.dumps(self.known, indent=1, sort_keys=True).encode())

    def state(self, page: Page, code: Iterable[str]) -> str:
        """A hash of all that decides what a page shows, given the files of code that it loads."""
        return self.with_code(self.without_code(page), code)

    def without_code(self, page: Page) -> str:
        parts = [json.dumps([page.parameters, _versions()], sort_keys=True)]
        return _hash(parts + [_said(path, self.root) for path in [page.source, *results_of(page)]])

    def with_code(self, state: str, code: Iterable[str]) -> str:
        return _hash([state, *(_said(self.root / name, self.root) for name in code)])


def results_of(page: Page) -> list[Path]:
    """The results that a page can show: those of its model, or all, and the benchmarks."""
    results = page.record.path.parents[1] if page.record else page.root / "results"
    found = files([results, page.root / "benchmarks" / "measured"])
    return [path for path in found if path.parent.name != "records"]


def _said(path: Path, root: Path) -> str:
    """A file's name and content; a file that is gone has none."""
    return f"{path.relative_to(root)} {content(path) if path.exists() else 'gone'}"


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in DRAWING]
