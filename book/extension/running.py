"""Runs the notebooks whose page is out of date before any page is read, several at once."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import nbformat
import papermill
from sphinx.application import Sphinx
from sphinx.util import logging
from traitlets.config import Config as JupyterConfig

from book.extension.contents import all_pages
from book.extension.inputs import Known, inputs_of
from book.extension.pages import Page
from lib.results import ROOT, write_whole

NOT_MEASURED = "```{note}\nNot measured: results/ holds none of the measurements of this page.\n```"

logger = logging.getLogger(__name__)


def run_notebooks(app: Sphinx) -> None:
    """Run every notebook of the contents whose executed page is out of date; a failing one ends the build."""
    told, models = all_pages()
    known = Known(ROOT)
    stale = [page for page in [*told, *sum(models.values(), [])] if not known.is_current(page)]
    run(stale, known, os.cpu_count() or 1)


def run(pages: Sequence[Page], known: Known, at_once: int) -> None:
    """Run the notebooks of some pages, so many at once. Raises SystemExit with one line for the first that fails."""
    if not pages:
        return
    # those of no record may measure something, and take longest: they are not to be the last
    pages = sorted(pages, key=lambda page: page.record is not None)
    start = time.monotonic()
    logger.info("running %d notebooks, %d at once", len(pages), at_once)
    # A kernel is a process of its own; a thread only waits for it.
    with ThreadPoolExecutor(at_once) as pool:
        waiting: dict[Future, Page] = {pool.submit(run_notebook, page): page for page in pages}
        try:
            for done, finished in enumerate(as_completed(waiting), 1):
                page, (inputs, seconds) = waiting[finished], finished.result()
                known.keep(page, inputs)
                half = min(at_once, len(pages) - done) / 2  # others are under way
                left = (time.monotonic() - start) / (done + half) * (len(pages) - done - half)
                logger.info("[%d/%d] %s in %.0f s, about %.0f s left", done, len(pages), page.name, seconds, left)
        finally:
            pool.shutdown(cancel_futures=True)


def run_notebook(page: Page) -> tuple[str, float]:
    """Run the notebook of a page and keep what it shows; return what it was made of, and the seconds that it took."""
    start = time.monotonic()
    inputs = inputs_of(page)  # before it runs: what changes meanwhile is run again
    write_whole(page.executed, nbformat.writes(_executed(page)).encode())
    return inputs, time.monotonic() - start


def _executed(page: Page) -> nbformat.NotebookNode:
    file = page.source.relative_to(page.root)
    # A virtual environment's own kernel before one that the user once installed for another interpreter.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of our own: no two kernels can race for a port, and the path is short enough.
        ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        try:
            notebook = papermill.execute_notebook(
                page.source,
                None,
                parameters=page.parameters,
                kernel_name="python3",
                cwd=page.root,
                progress_bar=False,
                stdout_file=sys.stderr,
                stderr_file=sys.stderr,
                config=JupyterConfig({"KernelManager": ipc}),
            )
        except Exception as error:
            text = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else repr(error)
            if page.record and text.startswith("InputError: not measured"):
                cell = nbformat.v4.new_markdown_cell(f"# {page.title}\n\n{NOT_MEASURED}")
                return nbformat.v4.new_notebook(cells=[cell])
            # Not a Sphinx error: Jupyter Book would wrap it in a traceback of its own.
            raise SystemExit(f"{file} failed: {text.strip().splitlines()[-1]} (to see where: {page.command})") from None
    # Where papermill read and wrote is of no use to a reader of the page.
    notebook.metadata.papermill.update(input_path=str(file), output_path=None)
    return notebook


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", run_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
