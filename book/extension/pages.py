"""Which page is which notebook with which parameters: those of the story, and those that records ask for."""

import ast
import collections
import hashlib
import json
import math
import re
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.results.records import NOT_SHOWN, Record, all_records

ROOT = Path(__file__).resolve().parents[2]  # of the repository
LIBRARY = ROOT / "lib" / "deeper_layers"
FOLDER = "executed"  # below book/: what is made for the build, and committed nowhere
LONGEST = 24  # characters of a parameter that sets two pages of one model apart


@dataclass(frozen=True)
class Page:
    """One page that is an executed notebook. Its titles are text, whatever is in them: not Markdown."""

    name: str  # the page is executed/NAME
    notebook: str
    title: str
    short: str  # its title below its model in the navigation
    record: Record | None = None  # None: the notebook as it stands, about all of results/
    root: Path = ROOT
    of_model: str = ""  # the name of its model's own page, below which it lies in the navigation

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
        return " ".join(map(_typed, words))


def _typed(word: str) -> str:
    """A word for a shell; what can't be seen in it is written with its code, as bash and zsh read it."""
    if word.isprintable():
        return shlex.quote(word)
    codes = (c if c.isprintable() and c not in "\\'" else f"\\U{ord(c):08x}" for c in word)
    return f"$'{''.join(codes)}'"


def executed(name: str, root: Path = ROOT) -> Path:
    return root / "book" / FOLDER / f"{name}.ipynb"


def story(names: Iterable[str], records: Iterable[Record], root: Path = ROOT) -> list[Page]:
    """The pages that the table of contents names: by a record that says so, else the notebook of that name.

    Of several such records the latest. Raises SystemExit for a name that is neither.
    """
    own = {record.page: record for record in sorted(records, key=lambda record: record.recorded) if record.page}
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
    address = addresses(record for of_notebook in groups.values() for record in of_notebook)
    pages: dict[str, list[Page]] = {}
    for (model, notebook), of_notebook in sorted(groups.items(), key=lambda group: group[0]):
        about = re.sub(r"^\d+-", "", notebook)
        for number, record in enumerate(of_notebook, 1):
            name = f"{address[model]}-{about}" + (f"-{number}" if number > 1 else "")
            apart = _apart(record, of_notebook) or (str(number) if number > 1 else "")
            apart, short = f" ({apart})" if apart else "", record.title or heading(notebook, root)
            title = f"{model}{apart}: {short[0].lower()}{short[1:]}"
            page = Page(name, notebook, title, short + apart, record, root, address[model])
            pages.setdefault(model, []).append(page)
    return pages


def addresses(records: Iterable[Record]) -> dict[str, str]:
    """The address of each model's own page, with which those of its other pages begin.

    It is named after the folder of its results; where that would be another page's address too, a hash is added.
    """
    folders, abouts = {}, set()
    for record in records:
        folders[record.model] = record.path.parents[1].name
        abouts.add(re.sub(r"^\d+-", "", record.notebook))
    often = collections.Counter(folder.lower() for folder in folders.values())
    like_a_page = re.compile(rf".*-({'|'.join(map(re.escape, sorted(abouts)))})(-\d+)?")
    found = {}
    for model, folder in folders.items():
        shared = often[folder.lower()] > 1 or like_a_page.fullmatch(folder)
        own = "-" + hashlib.sha256(model.encode(errors="backslashreplace")).hexdigest()[:8] if shared else ""
        found[model] = f"model-{folder}{own}"
    return found


def known(records: Iterable[Record], root: Path = ROOT) -> list[Record]:
    """The records that may have a page; the others are named in a warning."""
    found = []
    for record in records:
        if refused := refusal(record, root):
            warnings.warn(f"{record.path} has no page: {refused}", stacklevel=2)
        else:
            found.append(record)
    return found


def refusal(record: Record, root: Path = ROOT) -> str:
    """Why a record may have no page, in words, or nothing.

    Records come with results, from whoever measured them, and a page of one runs a notebook. So its notebook has to be
    one of ours, one that can be told to measure nothing, and its parameters some of that notebook's own, plain values,
    and none that says where or how to run: papermill writes their names into the notebook as they are.
    """
    if record.notebook not in {path.stem for path in (root / "notebooks").glob("*.ipynb")}:
        return f"there is no notebook {record.notebook!r}"
    own = parameters_of(root / "notebooks" / f"{record.notebook}.ipynb")
    if "measure" not in own:
        return f"the notebook {record.notebook!r} is about all models"
    for name, value in record.parameters.items():
        if name not in own or name in NOT_SHOWN:
            return f"it sets {name!r}, which no record may"
        if not (value is None or isinstance(value, str | bool | int | float)) or value in (math.inf, -math.inf):
            return f"its parameter {name} is no plain value"
        if value != value:
            return f"its parameter {name} is not a number"
    if record.parameters.get("model", record.model) != record.model:
        return "its parameter model is not its model"
    return ""


def records_of(root: Path = ROOT) -> list[Record]:
    return known(all_records(root / "results"), root)


def parameters_of(notebook: Path) -> set[str]:
    """The names that a notebook's cell of parameters gives values to."""
    cells = [cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    lines = [line for cell in cells for line in ast.parse("".join(cell["source"])).body]
    return {line.target.id for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}


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
