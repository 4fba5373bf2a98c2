"""The code of the book, without the built site: notebooks that run in it, and what it takes from them."""

import os
import signal

import nbformat
import pandas as pd
import pytest
from jupyter_client.provisioning import LocalProvisioner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book.extension import figures, running, ways
from deeper_layers_companion.command.report import execute_notebook
from deeper_layers_companion.report.figures import in_rows

FIGURE = '<figure class="measured" id="some"><div></div></figure>'


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty book in a folder of its own, to which notebooks are added by their code."""
    executed = tmp_path / "book" / "executed"
    places = {"ROOT": tmp_path, "EXECUTED": executed, "EXPLORER": executed / "files" / "cuts.js"}
    for name, path in (places | {"STAMPS": executed / "stamps.json"}).items():
        monkeypatch.setattr(running, name, path)
    monkeypatch.setattr(figures, "EXECUTED", executed)
    monkeypatch.setenv("DEEPER_LAYERS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(ways, "PARQUET", executed / "files" / "results.parquet")
    for draw in ("explorer.draw_explorer", "ways.write_tables"):
        monkeypatch.setattr(f"book.extension.{draw}", lambda path: path.write_text("") or [])
    for folder in ("book/executed/files", "notebooks", "results", "lib/deeper_layers"):
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


def test_a_figure_on_its_page_is_numbered_with_its_data_as_files(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "FILES", tmp_path)
    rows = pd.DataFrame({"topic": ["a", "b"], "value": [0.25, 0.5], "low": 0.2, "high": 0.6, "model": "m"})
    shown = [in_rows(rows, y="topic", name=name)._repr_html_() for name in ("some", "other")]
    text, count = figures.move_to_files("03-reasoning", "".join(shown), 4)
    assert count == 6 and "base64" not in text and "application/json" not in text
    assert '<a class="number" href="#other">Figure 3.5.</a>' in text
    assert "python -m book.extension.figures 03-reasoning#some some.svg" in text
    assert figures.SOURCE.findall(text) == ["03-some.js", "03-other.js"]
    assert pd.read_csv(tmp_path / "03-some.csv")["value"].tolist() == [0.25, 0.5]
    assert b"<svg" in (tmp_path / "03-other.svg").read_bytes()
    named = (tmp_path / "03-some.js").read_text()
    assert named.startswith('(window.FIGURES ??= {})["some"] = {"panels":[') and named.endswith("};\n")


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
        before = {path: path.stat().st_mtime_ns for path in running.EXECUTED.rglob("*.*")}
        running.draw_pages(None)
        after = {path: path.stat().st_mtime_ns for path in running.EXECUTED.rglob("*.*")}
        return {path.stem for path, time in after.items() if before.get(path) != time} - {"stamps"}

    every = {"03-code", "04-none", "cuts", "results"}
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


def test_a_kernel_is_interrupted_in_a_cell_and_not_once_it_has_nothing_to_do(book, tmp_path, monkeypatch):
    """An interrupt at the end of a run that succeeded made the kernel say KeyboardInterrupt."""
    sent = []
    send = LocalProvisioner.send_signal

    async def record(self, number):
        sent.append(number)
        await send(self, number)

    monkeypatch.setattr(LocalProvisioner, "send_signal", record)
    book("03-fine", "42")
    running.draw_pages(None)
    assert sent == [] and (running.EXECUTED / "03-fine.ipynb").exists()
    stop = f"import os, signal, time\nos.kill({os.getpid()}, signal.SIGINT)\ntime.sleep(60)"
    code = nbformat.v4.new_notebook(cells=[new_code_cell(stop)])
    code.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(code, tmp_path / "stopped.ipynb")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            execute_notebook(tmp_path / "stopped.ipynb", None, {}, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent == [signal.SIGINT], "a cell that runs is stopped"
