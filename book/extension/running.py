"""Runs the notebooks whose page is out of date before any page is read, several at once, and draws the explorer.

A page is out of date when its notebook, a result, a benchmark, or a file of the library that it loaded has changed:
a hash of them all, kept beside the executed notebooks, tells. Here notebooks only show what was measured: whatever
measures can't be imported, so that a build is done in a minute, and needs no package that only measuring needs.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from jupyter_core.utils import ensure_event_loop
from sphinx.application import Sphinx
from sphinx.util import logging

from deeper_layers.files import write_file
from deeper_layers_companion.command.report import execute_notebook
from deeper_layers_companion.results.places import results_folder

ROOT = Path(__file__).resolve().parents[2]  # of the repository
EXECUTED = ROOT / "book" / "executed"
EXPLORER = EXECUTED / "explorer.json"
STAMPS = EXECUTED / "stamps.json"
HEAVY = frozenset({"torch", "transformers", "lm_eval", "peft", "bitsandbytes", "accelerate", "datasets"})
# the first and the last cell of a run: what measures can't be imported; what was loaded is told
WITHOUT = f"""import os, sys
os.environ.update(DEEPER_LAYERS_NOTEBOOK="NOTEBOOK", OPENBLAS_NUM_THREADS="1")  # a core for each notebook
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(HEAVY)}:
            raise ImportError(f"{{name}} is asked for, by a page that measures nothing")
sys.meta_path.insert(0, Without())"""
LOADED = """import sys
print(*sorted({file for name, module in list(sys.modules.items()) if name.startswith("deeper_layers")
               for file in [getattr(module, "__file__", None)] if file}), sep="\\n")"""
FOLDED = """````{{dropdown}} Code of this page
`papermill notebooks/{name}.ipynb out.ipynb -p model ORGANISATION/NAME` measures and draws all of it for another model.

```{{code-block}} python
{code}
```
````"""

logger = logging.getLogger(__name__)


def draw_pages(app: Sphinx) -> None:
    """Draw what is out of date. Ends the build with one line for the first notebook that fails."""
    from book.extension.explorer import draw_explorer

    contents = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    work = {EXPLORER: draw_explorer}  # takes longest, so it comes first
    work |= {EXECUTED / f"{name}.ipynb": run_notebook for name in re.findall(r"executed/([\w-]+)", contents)}
    stamps = json.loads(STAMPS.read_text(encoding="utf-8")) if STAMPS.exists() else {}
    measured = hash_files(path for folder in (results_folder(), ROOT / "benchmarks") for path in folder.rglob("*.json"))
    stale = [path for path in work if not (path.exists() and is_current(path, stamps.get(path.name, {}), measured))]
    if not stale:
        return
    # A kernel is a process of its own; a thread only waits for it.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = {pool.submit(work[path], path): path for path in stale}
        try:
            for count, done in enumerate(as_completed(paths), 1):
                path, code = paths[done], done.result()
                stamps[path.name] = {"code": code, "hash": hash_files(list_sources(path, code), measured)}
                write_file(STAMPS, json.dumps(stamps, indent=1, sort_keys=True).encode())
                logger.info("drawn: %s (%d of %d)", path.stem, count, len(stale))
        finally:
            pool.shutdown(cancel_futures=True)


def is_current(path: Path, stamp: dict, measured: str) -> bool:
    return "hash" in stamp and stamp["hash"] == hash_files(list_sources(path, stamp["code"]), measured)


def list_sources(path: Path, code: Iterable[str]) -> list[Path]:
    """The files, results apart, of which a drawn one is made: its notebook, and the code that it loaded."""
    return [ROOT / "notebooks" / path.name, *(ROOT / name for name in code)]


def hash_files(paths: Iterable[Path], *more: str) -> str:
    """What changes when a file among these comes, goes or has another content."""
    digest = hashlib.sha256("".join(more).encode())
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"
        digest.update(f"{os.path.relpath(path, ROOT)} {content}\n".encode())
    return digest.hexdigest()


def select_ours(files: Iterable[str]) -> list[str]:
    """The files below the repository, by their place in it."""
    return [Path(file).relative_to(ROOT).as_posix() for file in files if Path(file).is_relative_to(ROOT)]


def run_notebook(target: Path) -> list[str]:
    """Run the notebook of a page with its defaults, measuring nothing, and keep it with its outputs.

    Returns the files of the library that it loaded. Raises SystemExit with one line where it fails.
    """
    source = ROOT / "notebooks" / target.name
    if not source.exists():
        raise SystemExit(f"book/_toc.yml names executed/{target.stem}, but there is no notebooks/{target.name}")
    notebook = nbformat.read(source, as_version=4)
    first, last = map(nbformat.v4.new_code_cell, (WITHOUT.replace('NOTEBOOK"', f'{source.stem}"'), LOADED))
    notebook.cells = [first, *notebook.cells, last]
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, f"{folder}/{target.name}")
        try:
            notebook = execute_notebook(Path(folder) / target.name, None, {"measure": False}, ROOT)
        except Exception as error:
            text = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else repr(error)
            # not a Sphinx error: Jupyter Book would wrap it in a traceback of its own
            raise SystemExit(f"notebooks/{target.name} failed: {text.strip().splitlines()[-1]}") from None
        finally:
            ensure_event_loop().close()  # of this thread, which nobody else would close
    printed = "".join(output.get("text", "") for output in notebook.cells.pop().get("outputs", []))
    del notebook.cells[0]
    notebook.metadata.pop("papermill", None)  # where and when it ran is of no use to a reader
    write_file(target, nbformat.writes(notebook).encode())
    return select_ours(printed.splitlines())


def fold_code(app: Sphinx, docname: str, content: list[str]) -> None:
    """The page of a notebook is an article: its code lies folded at its end."""
    if docname.startswith("executed/"):
        notebook = json.loads(content[0])
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for cell in cells:
            cell["metadata"].setdefault("tags", []).append("remove-input")
        sources = ("".join(cell["source"]) for cell in cells if "injected-parameters" not in cell["metadata"]["tags"])
        code = FOLDED.format(name=docname.removeprefix("executed/"), code="\n\n".join(sources))
        notebook["cells"].append({"cell_type": "markdown", "id": "code", "metadata": {}, "source": code})
        # a table of a plain notebook can't lead to another page
        content[0] = re.sub(r'<a data-page=\\"([\w-]+)\\"', r'<a href=\\"\1.html\\"', json.dumps(notebook))


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", draw_pages)
    app.connect("source-read", fold_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
