"""A plug-in of papermill: what goes wrong in a notebook of ours ends the papermill command with one line.

papermill loads it by the entry point in pyproject.toml whenever it starts. Without it, the message of an
InputError is the last of some thirty lines of papermill's own calls. Errors of other notebooks are shown whole.
"""

import sys
from traceback import walk_tb

from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError
from yaml import YAMLError

from deeper_layers.errors import ERROR_NAMES, fault_in_one_line, one_line, shows_tracebacks


class Engine(NBClientEngine):
    """papermill's own engine under our name: an entry point has to be one."""


def report(kind, error, traceback) -> None:
    """What Python shows of an error that nothing caught."""
    if not isinstance(error, PapermillExecutionError) and _of_parameters(error, traceback):
        said = one_line(str(error))
        print(f"error: can't read the parameters ({said}): write NAME: VALUE, each a plain value", file=sys.stderr)
    elif not isinstance(error, PapermillExecutionError):
        sys.__excepthook__(kind, error, traceback)
    elif error.ename in ERROR_NAMES:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
    elif shows_tracebacks() or "deeper_layers" not in "".join(error.traceback):
        sys.__excepthook__(kind, error, traceback)
    else:
        print(fault_in_one_line(f"{error.ename}: {error.evalue}", "\n".join(error.traceback)), file=sys.stderr)


def _of_parameters(error: BaseException, traceback) -> bool:
    """Whether papermill failed at the parameters: no YAML, no names with values, or a value that JSON does not hold."""
    last = [frame.f_code.co_name for frame, _ in walk_tb(traceback)][-1:]
    in_command = last == ["papermill"]  # in papermill's click command itself, which updates them
    return isinstance(error, YAMLError) or in_command or "is not JSON serializable" in str(error)


sys.excepthook = report
