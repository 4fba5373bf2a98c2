"""The one exception for everything a user can get wrong, and its kind for what was not measured."""

import errno
import os
import re

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 2000  # characters of a message
# how torch, its libraries and the system say that memory ran out, where the class of the error does not
NO_MEMORY = re.compile(
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


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has its own on an accelerator, and none on a processor."""
    of_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return of_class or NO_MEMORY.search(str(error)) is not None


def disk_is_full(error: BaseException | str) -> bool:
    """Whether an error says that a disk, or what one may have of it, is full: libraries have classes of their own."""
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)


def unreadable(path: object, expected: str, error: Exception, advice: str = "fetch it again") -> InputError:
    """What to say of a file that is not what was expected; one that the user has no right to read may be whole."""
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read {path}: ask for the right to read it, or give another")
    return InputError(f"{path} is not {expected} ({first_line(error)}): {advice}")


def in_bytes(number: int) -> str:
    """Bytes as a person reads them."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"


def one_line(message: str) -> str:
    """A message as a terminal shows it: on one line, no character that moves its cursor, the middle left out of a long
    one. Messages quote names, values, and what other libraries say."""
    words = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(message.split()))
    return words if len(words) <= LONGEST else f"{words[: LONGEST * 2 // 3]} ... {words[-LONGEST // 4 :]}"


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough to be quoted: its first line, or its class's name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a first line that announces the reason is followed by it
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
