"""The code of the book, without the built site: notebooks that run in it, and what it takes from them."""

import json

import nbformat
import pytest

from book.extension import figures, running

FIGURE = '<figure class="measured" id="some"><div></div></figure>'


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty book in a folder of its own, to which notebooks are added by their code."""
    executed, drawn = tmp_path / "book" / "executed", []
    places = {"ROOT": tmp_path, "EXECUTED": executed, "EXPLORER": executed / "explorer.json"}
    for name, path in (places | {"STAMPS": executed / "stamps.json"}).items():
        monkeypatch.setattr(running, name, path)
    monkeypatch.setattr(figures, "EXECUTED", executed)
    monkeypatch.setattr("book.extension.explorer.draw_explorer", lambda path: drawn.append(path) or path.touch() or [])
    for folder in ("book/executed", "notebooks", "results", "lib/deeper_layers"):
        (tmp_path / folder).mkdir(parents=True)

    def add(name: str, code: str) -> None:
        new, parameters = nbformat.v4.new_code_cell, {"tags": ["parameters"]}
        cells = [new("size: int = 1\nmeasure: bool = True", metadata=parameters), new(code)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# How many?"), *cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        with open(tmp_path / "book" / "_toc.yml", "a") as contents:
            contents.write(f"- file: executed/{name}\n")

    add.folder, add.drawn = tmp_path, drawn
    return add


def shown(name: str) -> str:
    cells = nbformat.read(running.EXECUTED / f"{name}.ipynb", as_version=4).cells
    assert not [cell for cell in cells if "Without" in cell.source or "sys.modules" in cell.source]
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_a_failing_notebook_ends_the_build_with_one_line_and_leaves_no_page(book):
    book("01-bad", "raise ValueError('size 31 is too large\\nor so')")
    with pytest.raises(SystemExit, match="^notebooks/01-bad.ipynb failed: or so$"):
        running.draw(None)
    assert not (running.EXECUTED / "01-bad.ipynb").exists()
    (book.folder / "notebooks" / "01-bad.ipynb").unlink()
    with pytest.raises(SystemExit, match="names executed/01-bad, but there is no notebooks/01-bad.ipynb"):
        running.draw(None)


def test_a_page_measures_nothing_and_is_drawn_again_when_what_it_is_made_of_changes(book, monkeypatch):
    path = book.folder / "lib" / "deeper_layers" / "__init__.py"
    path.write_text("x = 1")
    (path.parent / "other.py").write_text("not loaded")
    code = f"import sys; sys.path.insert(0, {str(path.parents[1])!r})\nimport deeper_layers; print(deeper_layers.x)"
    book("03-code", code)
    book("04-none", """import os
from IPython.display import HTML, display
try:
    import torch.nn
except ImportError as error:
    print(error, size, measure, os.environ["DEEPER_LAYERS_NOTEBOOK"])
display(HTML('FIGURE'))
HTML('<p id="answer">42</p>')""".replace("FIGURE", FIGURE))  # fmt: skip
    ran, run = [], running.run_notebook
    monkeypatch.setattr(running, "run_notebook", lambda path: ran.append(path.stem) or run(path))

    def drawn() -> set[str]:
        ran.clear(), book.drawn.clear()
        running.draw(None)
        return {*ran, *(path.stem for path in book.drawn)}

    every = {"03-code", "04-none", "explorer"}
    assert drawn() == every
    assert shown("04-none") == "torch is asked for, by a page that measures nothing 1 False 04-none\n"
    assert figures.find("04-none#some") == FIGURE and figures.find("04-none#answer") == '<p id="answer">42</p>'
    assert figures.find("04-none#other") is None and figures.find("07-none#some") is None
    path.touch()
    (path.parent / "other.py").write_text("still not loaded")
    assert drawn() == set()
    path.write_text("x = 3")
    assert drawn() == {"03-code"} and shown("03-code") == "3\n"
    (book.folder / "results" / "unit.json").write_text("{}")
    assert drawn() == every
    (running.EXECUTED / "04-none.ipynb").unlink()
    assert drawn() == {"04-none"}


def test_the_page_of_a_notebook_is_an_article_with_its_code_at_the_end(book):
    book("05-some", """print('<a data-page="06-other">')""")
    content = [(book.folder / "notebooks" / "05-some.ipynb").read_text()]
    running.fold_code(None, "executed/05-some", content)
    cells = json.loads(content[0])["cells"]
    assert all("remove-input" in cell["metadata"]["tags"] for cell in cells if cell["cell_type"] == "code")
    assert "Code of this page" in cells[-1]["source"] and "print('<a " in cells[-1]["source"]
    assert '<a href="06-other.html">' in cells[-1]["source"], "what names a page is a link to it"
    plain = ["# A page"]
    running.fold_code(None, "method", plain)
    assert plain == ["# A page"]
