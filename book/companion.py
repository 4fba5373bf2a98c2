"""What this book needs beyond Jupyter Book: executed notebooks, interactive figures, pages made of results.

Before a page is read, every notebook of the table of contents is run whose executed page is missing or
older than what it depends on. Pages take figures and tables from what the notebooks and results hold.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import plotly
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from traitlets.config import Config as JupyterConfig

from book.measured import not_measured
from book.models import add_models_to_contents, pages_of_models
from lib.results import ROOT, write_whole

EXECUTED = ROOT / "book" / "executed"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
NOT_MEASURED = "```{note}\nNot measured: results/ holds none of the measurements of this page.\n```"
MEASURED_FIGURE = re.compile(r'<figure\b[^>]*\bclass="[^"]*\bmeasured\b')

logger = logging.getLogger(__name__)


# ---- notebooks -------------------------------------------------------------------------------------------


def run_notebooks(app: Sphinx) -> None:
    """Run the notebooks of the table of contents whose executed page is out of date."""
    entries = (Path(entry) for entry in app.config.external_site_map)
    names = [entry.name for entry in entries if entry.parent.name == EXECUTED.name]
    for name in names:
        if not source(name).exists():
            raise SystemExit(f"book/_toc.yml names executed/{name}, but there is no {source(name).relative_to(ROOT)}")
    inputs = [path for folder in ("lib", "results", "benchmarks/measured") for path in contents(ROOT / folder)]
    inputs.append(ROOT / "book" / "pages.yml")
    changed = max((path.stat().st_mtime for path in inputs), default=0.0)
    stale = [name for name in names if is_older(executed(name), max(changed, source(name).stat().st_mtime))]
    for name in stale:
        run_notebook(name)
    if stale:
        # A notebook that had to measure has just made results newer than the pages before it.
        for name in names:
            executed(name).touch()


def run_notebook(name: str) -> None:
    """Run the notebook of a page, with the parameters that book/pages.yml gives it, and keep what it shows."""
    notebook_file, parameters = source(name).relative_to(ROOT), page(name).get("parameters", {})
    logger.info("running %s for executed/%s", notebook_file, name)
    start = time.monotonic()
    # A virtual environment's own kernel before one that the user once installed for another interpreter.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of our own: no two kernels can race for a port, and the path is short enough.
        ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        try:
            notebook = papermill.execute_notebook(
                source(name),
                None,
                parameters=parameters,
                kernel_name="python3",
                cwd=ROOT,
                progress_bar=False,
                stdout_file=sys.stderr,
                stderr_file=sys.stderr,
                config=JupyterConfig({"KernelManager": ipc}),
            )
        except Exception as error:
            text = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else repr(error)
            if parameters.get("measure") is False and text.startswith("InputError: not measured"):
                heading = nbformat.read(source(name), as_version=4).cells[0].source.partition("\n")[0]
                cell = nbformat.v4.new_markdown_cell(f"{heading}\n\n{NOT_MEASURED}")
                write_page(name, nbformat.v4.new_notebook(cells=[cell]))
                return
            # Not a Sphinx error: Jupyter Book would wrap it in a traceback of its own.
            raise SystemExit(
                f"{notebook_file} failed: {text.strip().splitlines()[-1]} "
                f"(to see where: papermill {notebook_file} out.ipynb)"
            ) from None
    # Where papermill read and wrote is of no use to a reader of the page.
    notebook.metadata.papermill.update(input_path=str(notebook_file), output_path=None)
    write_page(name, notebook)
    logger.info("ran %s in %.0f seconds", notebook_file, time.monotonic() - start)


def write_page(name: str, notebook) -> None:
    if title := page(name).get("title"):
        first = notebook.cells[0]
        first.source = re.sub(r"\A# .*", f"# {title}", first.source)
    write_whole(executed(name), nbformat.writes(notebook).encode())


def page(name: str) -> dict:
    """A page's notebook, title and parameters, by book/pages.yml or results; nothing for a notebook as it stands."""
    path = ROOT / "book" / "pages.yml"
    pages = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (pages | pages_of_models(ROOT / "results")).get(name, {})


def source(name: str) -> Path:
    return ROOT / "notebooks" / f"{page(name).get('notebook', name)}.ipynb"


def executed(name: str) -> Path:
    return EXECUTED / f"{name}.ipynb"


def is_older(path: Path, moment: float) -> bool:
    return not path.exists() or path.stat().st_mtime < moment


def contents(folder: Path) -> list[Path]:
    """Every file below a folder but caches and unfinished measurements, and the folders: they tell of deleted files."""
    skip = re.compile(r"__pycache__|\.partial\b")
    found = [folder, *folder.rglob("*")] if folder.exists() else []
    return [path for path in found if not skip.search(path.relative_to(ROOT).as_posix())]


# ---- interactive figures ---------------------------------------------------------------------------------


def ship_plotly(app: Sphinx, config: Config) -> None:
    config.html_static_path.append(str(PLOTLY))


def load_plotly(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Load the scripts on the pages that have a figure, and on no other: they weigh megabytes."""
    if MEASURED_FIGURE.search(context.get("body", "")):
        app.add_css_file("plots.css")
        app.add_js_file(PLOTLY.name, loading_method="defer")
        app.add_js_file("plots.js", loading_method="defer")


def mend(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """docutils calls the bibliography a list, but its parts no items: a screen reader would announce an empty one."""
    if "body" in context:
        context["body"] = re.sub(r'<div role="list" (?=class="citation-list")', "<div ", context["body"])


class MeasuredFigure(SphinxDirective):
    """A figure of an executed notebook, or its result in words, on another page: `NOTEBOOK#ID`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        name, identifier = self.arguments[0].split("#")
        figure = find_figure(executed(name), identifier)
        if figure is None:
            return [not_measured(f"notebooks/{name}.ipynb drew no figure named {identifier}.")]
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
    app.connect("config-inited", add_models_to_contents, priority=100)  # before the contents are read
    app.connect("builder-inited", run_notebooks)
    app.connect("html-page-context", load_plotly)
    app.connect("html-page-context", mend)
    app.add_directive("measured-figure", MeasuredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
