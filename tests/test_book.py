"""The code of the book, without the built site: notebooks that run in it, and what it takes from them."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book.extension import figures, running

FIGURE = '<figure class="measured" id="some"><div></div></figure>'


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty book in a folder of its own, to which notebooks are added by their code."""
    executed = tmp_path / "book" / "executed"
    places = {"ROOT": tmp_path, "EXECUTED": executed, "EXPLORER": executed / "explorer.json"}
    for name, path in (places | {"STAMPS": executed / "stamps.json"}).items():
        monkeypatch.setattr(running, name, path)
    monkeypatch.setattr(figures, "EXECUTED", executed)
    monkeypatch.setenv("DEEPER_LAYERS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("book.extension.explorer.draw_explorer", lambda path: path.write_text("") or [])
    for folder in ("book/executed", "notebooks", "results", "lib/deeper_layers"):
        (tmp_path / folder).mkdir(parents=True)

    def add(name: str, code: str) -> None:
        parameters = new_code_cell("size: int = 1\nmeasure: bool = True", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell("# How many?"), parameters, new_code_cell(code)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        with open(tmp_path / "book" / "_toc.yml", "a") as contents:
            contents.write(f"- file: executed/{name}\n")

    return add


def test_a_failing_notebook_ends_the_build_with_one_line_and_leaves_no_page(book, tmp_path):
    book("01-bad", "raise ValueError('size 31 is too large\\nor so')")
    with pytest.raises(SystemExit, match="^notebooks/01-bad.ipynb failed: or so$"):
        running.draw_pages(None)
    assert not (running.EXECUTED / "01-bad.ipynb").exists()
    (tmp_path / "notebooks" / "01-bad.ipynb").unlink()
    with pytest.raises(SystemExit, match="names executed/01-bad, but there is no notebooks/01-bad.ipynb"):
        running.draw_pages(None)


MEASURES = f"""import os
from IPython.display import HTML, display
try:
    import torch.nn
except ImportError as error:
    print(error, size, measure, os.environ["DEEPER_LAYERS_NOTEBOOK"])
display(HTML('{FIGURE}'))
HTML('<p id="answer">42</p>')"""


def test_a_page_measures_nothing_and_is_drawn_again_when_what_it_is_made_of_changes(book, tmp_path):
    path = tmp_path / "lib" / "deeper_layers" / "__init__.py"
    path.write_text("x = 1")
    book("03-code", f"import sys; sys.path[:0] = [{str(path.parents[1])!r}]\nimport deeper_layers; deeper_layers.x")
    book("04-none", MEASURES)

    def drawn() -> set[str]:
        before = {path: path.stat().st_mtime_ns for path in running.EXECUTED.iterdir()}
        running.draw_pages(None)
        after = {path: path.stat().st_mtime_ns for path in running.EXECUTED.iterdir()}
        return {path.stem for path, time in after.items() if before.get(path) != time} - {"stamps"}

    every = {"03-code", "04-none", "explorer"}
    assert drawn() == every
    cells = nbformat.read(running.EXECUTED / "04-none.ipynb", as_version=4).cells
    said = "torch is asked for, by a page that measures nothing 1 False 04-none\n"
    assert cells[-1].outputs[0].text == said and "sys.meta_path" not in str(cells), "the cells around it are gone"
    found = [figures.find_html(f"04-none#{name}") for name in ("some", "answer", "other")]
    assert [*found, figures.find_html("07-none#some")] == [FIGURE, '<p id="answer">42</p>', None, None]
    (path.parent / "other.py").write_text("not loaded")
    path.touch()
    assert drawn() == set()
    path.write_text("x = 3")
    assert drawn() == {"03-code"}
    (tmp_path / "results" / "unit.json").write_text("{}")
    assert drawn() == every
    (running.EXECUTED / "04-none.ipynb").unlink()
    assert drawn() == {"04-none"}
