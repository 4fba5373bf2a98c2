"""Faults and kills at any one of the system calls by which a step makes, moves or removes files.

A step is run once undisturbed, to count its calls (`calls_of`). Then for each of them it is run again and killed
there (`killed_at`), or that call fails (`failing_at`); at last a plain run finishes it, and must give the same. Counted
is what Python tells its auditors: files opened to be written, not each write, nor what libraries in other languages do.
"""

import contextlib
import errno
import itertools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)
EVENTS = [f"os.{name}" for name in ("rename", "link", "symlink", "remove", "mkdir", "rmdir", "truncate")]
WATCHING: list[Callable] = []  # who is asked before each call


def audit(event: str, given: tuple) -> None:
    is_written = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR) and "__pycache__" not in str(given[0])
    if WATCHING and (is_written or event in EVENTS):
        watcher = WATCHING.pop()  # what it does itself is not counted
        try:
            watcher(event, given[0])
        finally:
            WATCHING.append(watcher)


sys.addaudithook(audit)


@contextlib.contextmanager
def watched(watcher: Callable) -> Iterator[None]:
    WATCHING.append(watcher)
    try:
        yield
    finally:
        WATCHING.remove(watcher)


def calls_of(step: Callable[[], object]) -> list[str]:
    """The names of the calls by which a step writes, in order."""
    names: list[str] = []
    with watched(lambda event, path: names.append(event)):
        step()
    return names


@contextlib.contextmanager
def failing_at(number: int, code: int, times: int = 1) -> Iterator[None]:
    """Inside, calls from this number (from 0) on fail with an error of the system; a full disk leaves a torn file."""

    def fail():
        raise OSError(code, os.strerror(code))

    with watched(ending(fail, number, times, code == errno.ENOSPC)):
        yield


def killed_at(number: int, step: Callable[[], object]) -> bool:
    """Run a step in a process that is killed at its call of this number (from 0); whether it came so far."""
    with warnings.catch_warnings(action="ignore"):  # that there are other threads: progress bars have one
        child = os.fork()
    if child == 0:
        try:
            with watched(ending(lambda: os.kill(os.getpid(), signal.SIGKILL), number, 1, True)):
                step()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "it failed by itself, see its traceback"
    return status != 0


def ending(end: Callable[[], object], number: int, times: int, torn: bool) -> Callable:
    """A watcher that lets calls pass until one number, and ends that and some after it.

    `torn`: a file that such a call opens has lost what it had by then, and got the beginning of something; except for
    locks, into which nothing is written.
    """
    seen = itertools.count()

    def watcher(event, path):
        if number <= next(seen) < number + times:
            if torn and event == "open" and not str(path).endswith(".lock"):
                with contextlib.suppress(OSError):
                    Path(path).write_bytes(b"{")
            end()

    return watcher


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, hidden files too, by relative path: what is in each file; None for a folder."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return b"-> " + os.readlink(path).encode()
        return path.read_bytes() if path.is_file() else None

    return {path.relative_to(folder).as_posix(): content(path) for path in sorted(folder.rglob("*"))}
