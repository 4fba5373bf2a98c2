"""A plug-in of papermill: after a mistake in a parameter of our notebooks the papermill command prints one line.

papermill loads it by the entry point in pyproject.toml whenever it starts. Without it, the message of an InputError is
the last of some thirty lines of papermill's own calls. All other errors are shown in full.
"""

import sys

from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError

from deeper_layers.errors import ERROR_NAMES


class Engine(NBClientEngine):
    """papermill's own engine under our name, as the entry point has to name an engine."""


def report(kind, error, traceback) -> None:
    """Print an uncaught error: an InputError of a notebook in one line, any other as Python does."""
    if isinstance(error, PapermillExecutionError) and error.ename in ERROR_NAMES:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = report
