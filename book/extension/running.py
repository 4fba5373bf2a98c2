"""Runs the notebooks whose page is out of date before any page is read, several at once."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import papermill
from jupyter_core.utils import ensure_event_loop
from sphinx.application import Sphinx
from sphinx.util import logging
from traitlets.config import Config as JupyterConfig

from book.extension.contents import all_pages
from book.extension.inputs import Inputs
from book.extension.kernels import Nursery
from book.extension.outdated import files
from book.extension.pages import ROOT, Page, code_of
from book.extension.rooms import HEAVY
from deeper_layers.files import write_file
from deeper_layers.report.names import as_markdown, visible

NOT_MEASURED = "```{note}\nNot measured: results/ holds none of the measurements of this page.\n```"
NOT_DRAWN = "```{{note}}\nNot drawn: {}\n```"

logger = logging.getLogger(__name__)


# The first cell of a run that measures nothing, which no page shows either: what would measure can't be imported, so a
# page can't keep a build busy for hours, or need packages that only measuring needs.
WITHOUT = f"""import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(HEAVY)}:
            raise ImportError(f"{{name}} is asked for, by a page that measures nothing")
sys.meta_path.insert(0, Without())"""
# The last cell of every run, which no page shows: the files of the library that the notebook has loaded.
LOADED = """import sys
print("\\n".join(sorted({file for name, module in list(sys.modules.items()) if name.startswith("deeper_layers")
                        for file in [getattr(module, "__file__", None)] if file})))"""


def run_notebooks(app: Sphinx) -> None:
    """Run every notebook of the contents whose executed page is out of date; a failing one ends the build."""
    told, models = all_pages()
    inputs = Inputs(ROOT)
    stale = [page for page in [*told, *sum(models.values(), [])] if not inputs.is_current(page)]
    run(stale, inputs, os.cpu_count() or 1)


def run(pages: Sequence[Page], inputs: Inputs, at_once: int) -> None:
    """Run the notebooks of some pages, so many at once. Raises SystemExit with one line for the first that fails."""
    if not pages:
        return
    # those of no record may measure something, and take longest: they are not to be the last
    pages = sorted(pages, key=lambda page: page.record is not None)
    start = time.monotonic()
    logger.info("running %d notebooks, %d at once", len(pages), at_once)
    # A kernel is a process of its own; a thread only waits for it.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # elsewhere the system's own libraries do not bear to be copied in the middle of a process
        nursery = stack.enter_context(Nursery(folder)) if sys.platform == "linux" else None
        pool = stack.enter_context(ThreadPoolExecutor(at_once))
        waiting: dict[Future, Page] = {}
        for page in pages:
            waiting[pool.submit(run_notebook, page, inputs.without_code(page), nursery)] = page
        try:
            for done, finished in enumerate(as_completed(waiting), 1):
                page, (state, code, seconds) = waiting[finished], finished.result()
                inputs.keep(page, state, code)
                half = min(at_once, len(pages) - done) / 2  # others are under way
                left = (time.monotonic() - start) / (done + half) * (len(pages) - done - half)
                logger.info("[%d/%d] %s in %.0f s, about %.0f s left", done, len(pages), page.name, seconds, left)
        finally:
            pool.shutdown(cancel_futures=True)


def run_notebook(page: Page, state: str, nursery: Nursery | None = None) -> tuple[str, list[str], float]:
    """Run the notebook of a page and keep what it shows.

    Returns `state`, that of the inputs before the run, or none where nothing was drawn; the files of code that it
    loaded, and its seconds.
    """
    start = time.monotonic()
    notebook = executed(page, nursery)
    said = "".join(output.get("text", "") for output in notebook.cells.pop().get("outputs", []))
    notebook.cells = [cell for cell in notebook.cells if cell.source != WITHOUT]
    if notebook.metadata.get("not_drawn"):  # the next build tries again, and says so again
        state = ""
    inside = (Path(line) for line in said.splitlines())
    code = [path.relative_to(page.root).as_posix() for path in inside if path.is_relative_to(page.root)]
    write_file(page.executed, nbformat.writes(notebook).encode())
    return state, code, time.monotonic() - start


def may_measure(page: Page) -> bool:
    """Whether a page has no record, and its notebook measures where it is not told otherwise."""
    return page.record is None and "measure: bool = True" in code_of(page.source)


def executed(page: Page, nursery: Nursery | None) -> nbformat.NotebookNode:
    """The notebook of a page with its outputs, and with LOADED as its last cell, WITHOUT as its first where it is."""
    # A virtual environment's own kernel before one that the user once installed for another interpreter.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # Threads of PyTorch that wait for each other sleep meanwhile, and leave their cores to other notebooks.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    notebook = nbformat.read(page.source, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LOADED))
    if not may_measure(page):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / page.source.name
        nbformat.write(notebook, source)
        # Sockets in a folder of our own: no two kernels can race for a port, and the path is short enough.
        ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        try:
            notebook = papermill.execute_notebook(
                source,
                None,
                parameters=page.parameters,
                kernel_name="python3",
                cwd=page.root,
                progress_bar=False,
                stderr_file=None if page.record else sys.stderr,  # progress of what is measured
                config=JupyterConfig({"KernelManager": ipc}),
                **({"kernel_manager_class": nursery.manager()} if nursery else {}),
            )
        except Exception as error:
            text = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else repr(error)
            last = visible(text.strip().splitlines()[-1])
            said = f"notebooks/{page.notebook}.ipynb failed: {last} (to see where: {visible(page.command)})"
            if page.record is None:
                # Not a Sphinx error: Jupyter Book would wrap it in a traceback of its own.
                raise SystemExit(said) from None
            shown = NOT_MEASURED
            if not text.startswith("NotMeasuredError:"):  # one odd record is no reason to have no book
                logger.info("NOT DRAWN: %s, of %s: %s", page.name, page.record.path, said)
                shown = NOT_DRAWN.format(as_markdown(last))
            note = nbformat.v4.new_markdown_cell(f"# {as_markdown(page.title)}\n\n{shown}")
            # what it would have loaded is not known: all code
            loaded = nbformat.v4.new_output("stream", text="\n".join(map(str, files([page.root / "lib"]))))
            cells = [note, nbformat.v4.new_code_cell(outputs=[loaded])]
            return nbformat.v4.new_notebook(cells=cells, metadata={"not_drawn": shown != NOT_MEASURED})
        finally:
            ensure_event_loop().close()  # of this thread, which nobody else would close
    # Where papermill read and wrote is of no use to a reader of the page.
    notebook.metadata.papermill.update(input_path=f"notebooks/{page.notebook}.ipynb", output_path=None)
    return notebook


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", run_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
