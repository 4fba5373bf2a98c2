"""Every page is drawn from any part of results: a lab may have measured one thing alone."""

import ast
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from book.extension.explorer import collect_models
from deeper_layers_companion import results
from deeper_layers_companion.report.names import sort_models
from deeper_layers_companion.results.store import read_result, write_result

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "results").glob("*/*.json"))
DRAWN = 24


def draw_notebook(path: Path, folder: Path) -> str:
    """Run the cells of a notebook as a page does, on a folder of results, and return what they show as HTML."""
    names: dict = {}
    page = ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            *lines, last = ast.parse(cell.source).body
            exec(compile(ast.Module(lines, []), path.name, "exec"), names)
            code = ast.Expression(last.value) if isinstance(last, ast.Expr) else ast.Module([last], [])
            shown = eval(compile(code, path.name, "eval" if isinstance(last, ast.Expr) else "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"results": str(folder), "measure": False}
            if hasattr(shown, "_repr_html_"):
                assert (text := shown._repr_html_())
                page += text
    plt.close("all")
    return page


def draw_from(files: list[Path], folder: Path, monkeypatch) -> None:
    for file in files:
        target = folder / file.relative_to(ROOT / "results")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    draw_pages(folder, monkeypatch)


def draw_pages(folder: Path, monkeypatch) -> dict[str, str]:
    """What each notebook shows of a folder of results, as HTML."""
    monkeypatch.chdir(ROOT / "notebooks")
    collect_models(results.scores(folder))
    return {path.stem: draw_notebook(path, folder) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


@pytest.mark.parametrize("kind", ["distances", "healing", "geometry", None])
def test_pages_are_drawn_from_one_file_and_from_none(kind, tmp_path, monkeypatch):
    draw_from([file for file in FILES if kind and file.name.startswith(f"{kind}-")][:1], tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(DRAWN))
def test_pages_are_drawn_from_any_files(seed, tmp_path, monkeypatch):
    draw = random.Random(seed)
    draw_from(draw.sample(FILES, draw.choice([1, 1, 2, 3, 6])), tmp_path, monkeypatch)


# a name that opens an element, or adds to one, where it is not escaped; and moves a terminal's cursor
FOREIGN = "<x-foreign>\"' data-foreign=1 x='\x1b]0;x\x07\u202e"


def rename(content, names: dict[str, str]):
    """JSON with some texts replaced, in keys too."""
    if isinstance(content, dict):
        return {rename(key, names): rename(value, names) for key, value in content.items()}
    if isinstance(content, list):
        return [rename(value, names) for value in content]
    return names.get(content, content) if isinstance(content, str) else content


def test_names_of_others_are_text_on_every_page(tmp_path, monkeypatch):
    """A model, a task, a device, a rule and a commit with such names, in a result of each kind."""
    model = ROOT / "results" / "SmolLM2-135M-Instruct"
    wanted = ("distances-*", "geometry-*", "healing-*", "scores-capitals-*", "scores-c4-*")
    names = {model.name: FOREIGN, "capitals": f"{FOREIGN}capitals", "simple": f"{FOREIGN}simple"}
    for path in [path for pattern in wanted for path in sorted(model.glob(pattern))[:4]]:
        result = read_result(path)
        assert result
        run = result.provenance | {"device": FOREIGN, "commit": FOREIGN}
        rows, details = rename(result.records, names), rename(result.details, names)
        write_result(result.kind, rename(result.key, names), run, rows, details, tmp_path)
    pages = draw_pages(tmp_path, monkeypatch)
    assert sum("x-foreign" in page for page in pages.values()) > 5
    for name, page in pages.items():
        parser = Attributes()
        parser.feed(page)
        assert not parser.names & {"data-foreign", "x-foreign"}, name
        assert not {"\x1b", "\x07", "\u202e"} & set(page), name


def test_the_models_of_a_reader_come_before_the_published_ones(tmp_path, monkeypatch):
    """In the order of the first page and of the explorer, and on page 02."""
    published = ROOT / "results" / "SmolLM2-135M-Instruct"
    own = ["An-own-model", "Zoe-own-model"]
    for path in [*published.glob("scores-capitals-*"), *published.glob("distances-*")]:
        result = read_result(path)
        assert result
        for model in (published.name, *own):
            key, rows = (rename(content, {published.name: model}) for content in (result.key, result.records))
            write_result(result.kind, key, result.provenance, rows, result.details, tmp_path)
    wanted = [*own, published.name]
    scores = results.scores(tmp_path)
    assert [model["name"] for model in collect_models(scores)] == wanted
    assert sort_models(scores["model"].unique()) == wanted
    monkeypatch.chdir(ROOT / "notebooks")
    page = draw_notebook(ROOT / "notebooks" / "02-question-answering.ipynb", tmp_path)
    titles = ["An-own-model", "Zoe-own-model", "SmolLM2-135M"]
    places = [page.index(title) for title in titles]
    assert places == sorted(places)


class Attributes(HTMLParser):
    """Collects the names of all elements and of their attributes."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names |= {tag, *(name for name, _ in attrs)}
