"""Measured figures on pages: the scripts that bring them to life, and figures borrowed from other pages."""

import re
from pathlib import Path

import nbformat
import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book.extension.measured import not_measured
from book.extension.pages import executed

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FIGURE = re.compile(r'<figure\b[^>]*\bclass="[^"]*\bmeasured\b')


def ship_plotly(app: Sphinx, config: Config) -> None:
    config.html_static_path.append(str(PLOTLY))


def load_plotly(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Load the scripts on the pages that have a figure, and on no other: they weigh megabytes."""
    if FIGURE.search(context.get("body", "")):
        app.add_css_file("plots.css")
        app.add_js_file(PLOTLY.name, loading_method="defer")
        app.add_js_file("plots.js", loading_method="defer")


class MeasuredFigure(SphinxDirective):
    """A figure of an executed notebook, or its result in words, on another page: `NOTEBOOK#ID`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name, identifier = self.arguments[0].split("#")
        self.env.note_dependency(str(executed(name)))
        figure = find_figure(executed(name), identifier)
        if figure is None:
            return [not_measured(f"The page executed/{name} has no figure named {identifier}.")]
        return [nodes.raw("", figure, format="html")]


def find_figure(path: Path, identifier: str) -> str | None:
    """The HTML of the figure, or of the text, with this id among a notebook's outputs."""
    if not path.exists():
        return None
    pattern = re.compile(rf'<(figure|div)\b[^>]*\bid="{re.escape(identifier)}".*?</\1>', re.DOTALL)
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            if found := pattern.search(output.get("data", {}).get("text/html", "")):
                return found[0]
    return None


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", ship_plotly)
    app.connect("html-page-context", load_plotly)
    app.add_directive("measured-figure", MeasuredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
