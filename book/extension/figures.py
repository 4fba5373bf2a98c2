"""Measured figures on pages: numbered, with their data as files, and what notebooks say on other pages.

`python -m book.extension.figures NOTEBOOK#NAME FILE.svg` runs a notebook, which measures nothing then, and writes the
picture of one of its figures.
"""

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.running import EXECUTED, FILES, run_notebook
from deeper_layers.files import write_file
from deeper_layers_companion.report.names import MISSING

FIGURE = re.compile(r'<figure class="measured" id="([\w-]+)">.*?</figure>', re.DOTALL)
TABLE = re.compile(r'download="([\w-]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"')
PICTURE = re.compile(r'src="data:image/svg\+xml;base64,([^"]+)"')
DRAWING = re.compile(r'<script type="application/json" class="figure-data">(.*?)</script>', re.DOTALL)
SOURCE = re.compile(r'data-source="([\w-]+\.js)"')
NAME = re.compile(r'<figure class="measured" id="([\w-]+)">')
CAPTION = re.compile(r"<figcaption>(.*?)<span", re.DOTALL)
STATIC = "../_static"  # from a page of a notebook


def find_html(name: str) -> str | None:
    """The HTML of the first element with an id, `NOTEBOOK#ID`, among the outputs of an executed notebook."""
    notebook, _, identifier = name.partition("#")
    pattern = re.compile(rf'<(figure|div|table|p|span)\b[^>]*\bid="{re.escape(identifier)}".*?</\1>', re.DOTALL)
    path = EXECUTED / f"{notebook}.ipynb"
    for cell in nbformat.read(path, as_version=4).cells if path.exists() else []:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in ("text/html", "text/markdown"):
                if match := pattern.search(data.get(kind, "")):
                    return match[0]
    return None


def point_at(name: str, figure: str) -> str:
    """A sentence in place of a figure that stands on its own page: its number, as a link, and its caption."""
    notebook, _, identifier = name.partition("#")
    text = (EXECUTED / f"{notebook}.ipynb").read_text(encoding="utf-8").replace('\\"', '"')
    number = list(dict.fromkeys(NAME.findall(text))).index(identifier) + 1
    caption = CAPTION.search(figure)[1]
    link = f'<a href="executed/{notebook}.html#{identifier}">Figure {int(notebook[:2])}.{number}</a>'
    return f'<p class="said">{caption} {link} shows it.</p>'


class MeasuredFigure(SphinxDirective):
    """A sentence or table of an executed notebook on another page, `NOTEBOOK#NAME`, or where its figure stands. With
    the option `if-measured` there is nothing in place of what was not measured."""

    required_arguments = 1
    option_spec = {"if-measured": directives.flag}

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXECUTED / f"{self.arguments[0].partition('#')[0]}.ipynb"))
        if (content := find_html(self.arguments[0])) is None:
            return [self.state.document.reporter.warning(f"no figure {self.arguments[0]}", line=self.lineno)]
        if content.startswith(f'<p class="{MISSING}"') and "if-measured" in self.options:
            return []
        if content.startswith("<figure"):
            content = point_at(self.arguments[0], content)
        return [nodes.raw("", content, format="html")]


def move_to_files(notebook: str, text: str, count: int) -> tuple[str, int]:
    """The HTML of an output with its data as files beside the scripts of the site, and its figures numbered from
    `count` on, each with the command that draws it again; and the next number."""
    page = notebook.partition("-")[0]

    def move_table(match: re.Match) -> str:
        write_file(FILES / f"{page}-{match[1]}.csv", base64.b64decode(match[2]))
        return f'download="{match[1]}.csv" href="{STATIC}/{page}-{match[1]}.csv"'

    def move_figure(match: re.Match) -> str:
        nonlocal count
        figure, name = match[0], match[1]
        place = f"{page}-{name}"
        picture, drawing = PICTURE.search(figure), DRAWING.search(figure)
        if picture is None or drawing is None:
            return figure
        write_file(FILES / f"{place}.svg", base64.b64decode(picture[1]))
        script = f"(window.FIGURES ??= {{}})[{json.dumps(name)}] = {drawing[1]};\n"
        write_file(FILES / f"{place}.js", script.encode())
        figure = figure.replace(picture[0], f'src="{STATIC}/{place}.svg" loading="lazy"').replace(drawing[0], "")
        figure = figure.replace('class="measured"', f'class="measured" data-source="{place}.js"')
        number = f'<a class="number" href="#{name}">Figure {int(page)}.{count}.</a> '
        figure = figure.replace("<figcaption>", f"<figcaption>{number}", 1)
        link = f'<a class="picture" download="{name}.svg" href="{STATIC}/{place}.svg">picture (SVG)</a>'
        command = f"python -m book.extension.figures {notebook}#{name} {name}.svg"
        again = f'<details><summary>draw it again</summary><code class="command">{command}</code></details>'
        figure = re.sub(r'<a class="picture".*?</a>', lambda _: f"{link} {again}", figure, count=1)
        count += 1
        return figure

    return FIGURE.sub(move_figure, TABLE.sub(move_table, text)), count


def drop_missing(cells: list[dict]) -> None:
    """Take away what says that nothing was measured, from all cells of a notebook but the first: a page says it once.
    Where a sentence names what is missing, it says it."""

    def is_missing(cell: dict) -> bool:
        texts = ["".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", [])]
        return bool(texts) and all(text.startswith(f'<p class="{MISSING}"') for text in texts)

    is_named = any('<p class="said" id="missing">' in json.dumps(cell).replace('\\"', '"') for cell in cells)
    for cell in list(filter(is_missing, cells))[0 if is_named else 1 :]:
        cell["outputs"] = []
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key != "mystnb"}
        cell["metadata"]["tags"] = [tag for tag in cell["metadata"].get("tags", []) if tag != "hide-output"]


def move_outputs(app: Sphinx, docname: str, content: list[str]) -> None:
    """What a notebook holds as base64 becomes files, so that its page is light."""
    if not docname.startswith("executed/"):
        return
    notebook, count = json.loads(content[0]), 1
    drop_missing(notebook["cells"])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                text = "".join(data["text/html"])
                data["text/html"], count = move_to_files(docname.removeprefix("executed/"), text, count)
    content[0] = json.dumps(notebook)


def load_scripts(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The scripts on pages that have a figure, and on no other."""
    if sources := SOURCE.findall(context.get("body", "")):
        for script in ["drawing.js", *sources, "plots.js"]:
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.connect("source-read", move_outputs, priority=400)  # before the code is folded
    app.connect("html-page-context", load_scripts)
    app.add_directive("measured-figure", MeasuredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def draw_again(name: str, target: Path) -> None:
    """Run the notebook of a figure, `NOTEBOOK#NAME`, and write its picture."""
    notebook, _, identifier = name.partition("#")
    run_notebook(EXECUTED / f"{notebook}.ipynb")
    picture = PICTURE.search(find_html(name) or "")
    if not picture:
        sys.exit(f"notebooks/{notebook}.ipynb draws no figure {identifier!r}: the names are those of a page's links")
    target.write_bytes(base64.b64decode(picture[1]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("expected a figure and a file: python -m book.extension.figures NOTEBOOK#NAME FILE.svg")
    draw_again(sys.argv[1], Path(sys.argv[2]))
