"""Every page is drawn from any part of results: a lab may have measured one thing alone."""

import ast
import random
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from book.extension.explorer import collect_models
from deeper_layers import results

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "results").glob("*/*.json"))
DRAWN = 24


def draw_notebook(path: Path, folder: Path) -> None:
    """Run the cells of a notebook as a page does, on a folder of results."""
    names: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            *lines, last = ast.parse(cell.source).body
            exec(compile(ast.Module(lines, []), path.name, "exec"), names)
            code = ast.Expression(last.value) if isinstance(last, ast.Expr) else ast.Module([last], [])
            shown = eval(compile(code, path.name, "eval" if isinstance(last, ast.Expr) else "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"results": str(folder), "measure": False}
            if hasattr(shown, "_repr_html_"):
                assert shown._repr_html_()
    plt.close("all")


def draw_from(files: list[Path], folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    for file in files:
        target = folder / file.relative_to(ROOT / "results")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    collect_models(results.scores(folder))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        draw_notebook(path, folder)


@pytest.mark.parametrize("kind", ["distances", "healing", "geometry", None])
def test_pages_are_drawn_from_one_file_and_from_none(kind, tmp_path, monkeypatch):
    draw_from([file for file in FILES if kind and file.name.startswith(f"{kind}-")][:1], tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(DRAWN))
def test_pages_are_drawn_from_any_files(seed, tmp_path, monkeypatch):
    draw = random.Random(seed)
    draw_from(draw.sample(FILES, draw.choice([1, 1, 2, 3, 6])), tmp_path, monkeypatch)
