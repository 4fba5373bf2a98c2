"""Which page is which notebook with which parameters: those of the story, and those that records ask for."""

import collections
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.results.records import Record, all_records

ROOT = Path(__file__).resolve().parents[2]  # of the repository
LIBRARY = ROOT / "lib" / "deeper_layers"
FOLDER = "executed"  # below book/: what is made for the build, and committed nowhere
LONGEST = 24  # characters of a parameter that sets two pages of one model apart


@dataclass(frozen=True)
class Page:
    """One page that is an executed notebook."""

    name: str  # the page is executed/NAME
    notebook: str
    title: str
    short: str  # its title below its model in the navigation
    record: Record | None = None  # None: the notebook as it stands, about all of results/
    root: Path = ROOT

    @property
    def source(self) -> Path:
        return self.root / "notebooks" / f"{self.notebook}.ipynb"

    @property
    def executed(self) -> Path:
        return executed(self.name, self.root)

    @property
    def parameters(self) -> dict:
        """Those of the run: a page of a record shows what was measured and measures nothing."""
        return {**self.record.parameters, "measure": False} if self.record else {}

    @property
    def command(self) -> str:
        """What a reader types to get the page again."""
        words = ["papermill", f"notebooks/{self.notebook}.ipynb", "out.ipynb"]
        for name, value in (self.record.parameters if self.record else {}).items():
            words += ["-p", name, str(value)]
        return shlex.join(words)


def executed(name: str, root: Path = ROOT) -> Path:
    return root / "book" / FOLDER / f"{name}.ipynb"


def slug(record: Record) -> str:
    """The folder of a record's model, a name without anything that an address could not have."""
    return record.path.parents[1].name


def story(names: Iterable[str], records: Iterable[Record], root: Path = ROOT) -> list[Page]:
    """The pages that the table of contents names: by a record that says so, else the notebook of that name.

    Of several such records the latest. Raises SystemExit for a name that is neither.
    """
    own = {record.page: record for record in records if record.page}
    pages = []
    for name in names:
        record = own.get(name)
        notebook = record.notebook if record else name
        if not (root / "notebooks" / f"{notebook}.ipynb").exists():
            raise SystemExit(f"book/_toc.yml names executed/{name}, but there is no notebooks/{notebook}.ipynb")
        title = (record.title if record else None) or heading(notebook, root)
        pages.append(Page(name, notebook, title, title, record, root))
    return pages


def of_models(records: Iterable[Record], root: Path = ROOT) -> dict[str, list[Page]]:
    """For each model the pages of its records, in the order of the notebooks, then of the records."""
    groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
    for record in records:
        groups[record.model, record.notebook].append(record)
    pages: dict[str, list[Page]] = {}
    for (model, notebook), of_notebook in sorted(groups.items(), key=lambda group: group[0]):
        about = re.sub(r"^\d+-", "", notebook)
        for number, record in enumerate(of_notebook, 1):
            name = f"model-{slug(record)}-{about}" + (f"-{number}" if number > 1 else "")
            apart = _apart(record, of_notebook) or (str(number) if number > 1 else "")
            apart, short = f" ({apart})" if apart else "", record.title or heading(notebook, root)
            title = f"{model}{apart}: {short[0].lower()}{short[1:]}"
            page = Page(name, notebook, title, short + apart, record, root)
            pages.setdefault(model, []).append(page)
    return pages


def known(records: Iterable[Record], root: Path = ROOT) -> list[Record]:
    """The records whose notebook is there."""
    return [record for record in records if (root / "notebooks" / f"{record.notebook}.ipynb").exists()]


def records_of(root: Path = ROOT) -> list[Record]:
    return known(all_records(root / "results"), root)


def heading(notebook: str, root: Path = ROOT) -> str:
    """The first line of a notebook's text."""
    cells = _cells(root / "notebooks" / f"{notebook}.ipynb")
    first = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), notebook)
    return first.partition("\n")[0].lstrip("# ").strip() or notebook


def code_of(notebook: Path) -> str:
    """The code of a notebook, cell after cell."""
    code = ["".join(cell["source"]).strip() for cell in _cells(notebook) if cell["cell_type"] == "code"]
    return "\n\n\n".join(code)


def _cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _apart(record: Record, others: list[Record]) -> str:
    """The first parameters, short ones, that set a record apart from the others of its model and notebook, in words."""
    words, alike = [], [other for other in others if other is not record]
    for name, value in record.parameters.items():
        rest = [other for other in alike if other.parameters.get(name) == value]
        if len(rest) < len(alike) and len(str(value)) <= LONGEST:
            words.append(str(value) if name == "quantization" else f"{name} {value}")
            alike = rest
    return ", ".join(words)
