"""A plug-in of papermill: a mistake in what a notebook of ours was given ends the papermill command with one line.

papermill loads it by the entry point in pyproject.toml whenever it starts. Without it, the message of an InputError is
the last of some thirty lines of papermill's own calls. All other errors are shown whole.
"""

import sys

from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError

from deeper_layers.errors import ERROR_NAMES


class Engine(NBClientEngine):
    """papermill's own engine under our name: an entry point has to be one."""


def report(kind, error, traceback) -> None:
    """What Python shows of an error that nothing caught."""
    if isinstance(error, PapermillExecutionError) and error.ename in ERROR_NAMES:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = report
