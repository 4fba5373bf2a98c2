"""The exception for all mistakes of users, one for results that are missing, and the line for our own faults."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

TRACEBACK_VARIABLE = (
    "DEEPER_LAYERS_TRACEBACK"  # set to anything, Python shows tracebacks, as developers want
)
# of the hub and others, which libraries may quote in errors
SECRET = re.compile(r"\b(hf_|gh[opsu]_|sk-)\w{8,}")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_LENGTH = 2000  # characters of a message
# what torch, its libraries and the system say when memory runs out, where the error's class does not tell
OUT_OF_MEMORY = re.compile(
    "allocate memory|out of memory|not enough memory|tried to allocate|alloc_failed|map segment",
    re.IGNORECASE,
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
    """Results lack what was asked for, and nothing may be measured (`--no-measure`).

    Example:
        >>> from deeper_layers import InputError, NotMeasuredError
        >>> try:
        ...     raise NotMeasuredError("not measured: capitals")
        ... except InputError as error:
        ...     print(error)
        not measured: capitals
    """


# a notebook's error is known only by its name
ERROR_NAMES = (
    InputError.__name__,
    NotMeasuredError.__name__,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. torch has a class for it on accelerators, but none on processors."""
    of_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return of_class or OUT_OF_MEMORY.search(str(error)) is not None


def disk_is_full(error: BaseException | str) -> bool:
    """Whether an error of any class says that a disk or a quota is full."""
    return getattr(error, "errno", None) in DISK_FULL or any(
        os.strerror(number) in str(error) for number in DISK_FULL
    )


@contextlib.contextmanager
def as_input_error(
    problem: str, advice: str = "fetch it again", kind: type[Exception] = Exception
) -> Iterator[None]:
    """Inside, errors of this kind become an InputError with the problem, its cause and advice, or a MemoryError where
    memory ran out. For libraries that read the files of strangers, and may raise anything. What may not be read is not
    known to be damaged: advice that is not for errors of the system alone gives way."""
    try:
        yield
    except InputError:
        raise
    except kind as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        if isinstance(error, PermissionError) and error.filename is not None and kind is Exception:
            problem = f"{error.filename} may not be used"
            advice = "change its permissions, or give another"
        raise InputError(f"{problem} ({first_line(error)}): {advice}") from error


def format_bytes(number: int) -> str:
    """A number of bytes in GB or MB."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"


def escape_invisible(text: str) -> str:
    """A text with its invisible characters (line breaks, changes of direction) written as escape codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message on one line, without characters that move a terminal's cursor, and without the middle of a long one.
    Messages quote names, values and errors of other libraries."""
    words = escape_invisible(" ".join(message.split()))
    if len(words) <= MAX_LENGTH:
        return words
    return f"{words[: MAX_LENGTH * 2 // 3]} ... {words[-MAX_LENGTH // 4 :]}"


def first_line(error: Exception) -> str:
    """The first line of a library's error, short enough to quote, or the name of its class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # where the first line ends with a colon, the reason follows
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def describe_fault(error: Exception) -> str:
    """One line for an error that nobody foresaw, without tokens that a library may quote in it."""
    message = SECRET.sub(r"\1...", f"{type(error).__name__}: {first_line(error)}")
    advice = f"{TRACEBACK_VARIABLE}=1 shows where, report what it shows"
    return one_line(f"{message} (a fault of this software and not of yours: {advice})")
