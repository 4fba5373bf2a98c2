"""Run a notebook as a process of its own: what report and the book share."""

import os
import sys
import tempfile
from pathlib import Path


def execute_notebook(source: Path, out: Path | None, parameters: dict, folder: Path):
    """Run a notebook in a folder, and return it with its outputs. Raises what papermill and nbclient raise."""
    import papermill  # slow
    from traitlets.config import Config

    # a virtual environment's own kernel before one that the user once installed for another interpreter
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # bars are lines of text there, and nothing has to be installed for that
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    with tempfile.TemporaryDirectory() as sockets:  # of our own: no two kernels can race for a port
        ipc = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        return papermill.execute_notebook(
            source,
            out,
            parameters=parameters,
            kernel_name="python3",
            cwd=folder,
            progress_bar=False,
            stderr_file=sys.stderr,
            config=Config({"KernelManager": ipc}),
        )
