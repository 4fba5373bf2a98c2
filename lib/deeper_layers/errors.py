"""The one exception for everything a user can get wrong, its kind for what was not measured, and faults of ours."""

import contextlib
import errno
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata

TRACEBACK_VARIABLE = "DEEPER_LAYERS_TRACEBACK"  # set to anything, tracebacks are shown as Python shows them
SECRET = re.compile(r"\b(hf_|gh[opsu]_|sk-)\w{8,}")  # of the hub and its like, wherever a library quotes one
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_LENGTH = 2000  # characters of a message
# how torch, its libraries and the system say that memory ran out, where the class of the error does not
OUT_OF_MEMORY = re.compile(
    "allocate memory|out of memory|not enough memory|tried to allocate|alloc_failed|map segment", re.IGNORECASE
)


class InputError(ValueError):
    """A value that the user gave, or a model or file that the user named, cannot be used.

    The message is one line: the value received, what was expected, and what to do next.

    Example:
        >>> from deeper_layers import InputError, simple_cut
        >>> try:
        ...     simple_cut(30, 30)
        ... except InputError as error:
        ...     print(str(error)[:53])
        size is 30; expected 0 to 29 for a model of 30 layers
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook prints for this error: the message alone, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class NotMeasuredError(InputError):
    """Results do not hold what was asked for, and nothing is to be measured now (`--no-measure`).

    Example:
        >>> from deeper_layers import InputError, NotMeasuredError
        >>> try:
        ...     raise NotMeasuredError("not measured: capitals")
        ... except InputError as error:
        ...     print(error)
        not measured: capitals
    """


ERROR_NAMES = (InputError.__name__, NotMeasuredError.__name__)  # all that is known of the class of a notebook's error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has its own on an accelerator, and none on a processor."""
    of_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return of_class or OUT_OF_MEMORY.search(str(error)) is not None


def disk_is_full(error: BaseException | str) -> bool:
    """Whether an error says that a disk, or what one may have of it, is full: libraries have classes of their own."""
    return getattr(error, "errno", None) in DISK_FULL or any(os.strerror(number) in str(error) for number in DISK_FULL)


@contextlib.contextmanager
def as_input_error(problem: str, advice: str = "fetch it again", kind: type[Exception] = Exception) -> Iterator[None]:
    """Inside, a library reads what strangers wrote, and can fail at any line of its code: an error of a kind becomes an
    InputError that says `what` is wrong, why, and what to do; where memory ran out a MemoryError."""
    try:
        yield
    except InputError:
        raise
    except kind as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise InputError(f"{problem} ({first_line(error)}): {advice}") from error


def format_bytes(number: int) -> str:
    """Bytes as a person reads them."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"


def escape_invisible(text: str) -> str:
    """A text without anything that can't be seen: line breaks, a change of direction and the like as their codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message as a terminal shows it: on one line, no character that moves its cursor, the middle left out of a long
    one. Messages quote names, values, and what other libraries say."""
    words = escape_invisible(" ".join(message.split()))
    return words if len(words) <= MAX_LENGTH else f"{words[: MAX_LENGTH * 2 // 3]} ... {words[-MAX_LENGTH // 4 :]}"


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough to be quoted: its first line, or its class's name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a first line that announces the reason is followed by it
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def write_fault_report(message: str, traceback: str) -> str:
    """What an error says that nobody foresaw, and where the rest is: traceback, versions and command line are written.

    Neither the environment nor the values of variables are.
    """
    versions = sorted(f"{package.name} {package.version}" for package in metadata.distributions())
    lines = [f"command: {shlex.join(sys.argv)}", f"python {sys.version} on {sys.platform}", *versions, traceback]
    try:
        descriptor, path = tempfile.mkstemp(prefix="deeper-layers-fault-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(SECRET.sub(r"\1...", "\n".join(lines)))
        location = f"{path} says where, report it with that"
    except OSError:
        location = f"{TRACEBACK_VARIABLE}=1 shows where, report what it shows"
    return one_line(SECRET.sub(r"\1...", f"{message} (a fault of this software and not of yours: {location})"))


def shows_tracebacks() -> bool:
    """Whether whoever works on this wants tracebacks as they are."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))
