"""Measured figures on pages: the scripts that bring them to life, and what notebooks show on other pages.

`python -m book.extension.figures NOTEBOOK#NAME FILE.svg` writes the picture of one, for the README.
"""

import base64
import re
import sys
from pathlib import Path

import nbformat
import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book.extension.running import EXECUTED

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
LIVE = re.compile(r'<figure\b[^>]*\bclass="measured')


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


class MeasuredFigure(SphinxDirective):
    """A figure or table of an executed notebook on another page: `NOTEBOOK#NAME`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXECUTED / f"{self.arguments[0].partition('#')[0]}.ipynb"))
        if (content := find_html(self.arguments[0])) is None:
            return [self.state.document.reporter.warning(f"no figure {self.arguments[0]}", line=self.lineno)]
        return [nodes.raw("", content, format="html")]


def ship_plotly(app: Sphinx, config: Config) -> None:
    config.html_static_path.append(str(PLOTLY))


def load_plotly(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The scripts on pages that have a figure, and on no other: they weigh megabytes."""
    if LIVE.search(context.get("body", "")):
        app.add_js_file(PLOTLY.name, loading_method="defer")
        app.add_js_file("plots.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", ship_plotly)
    app.connect("html-page-context", load_plotly)
    app.add_directive("measured-figure", MeasuredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    picture = re.search(r"data:image/svg\+xml;base64,([^\"]+)", find_html(sys.argv[1]) or "")
    if not picture:
        sys.exit(f"no figure {sys.argv[1]} in book/executed: run make book first")
    Path(sys.argv[2]).write_bytes(base64.b64decode(picture[1]))
