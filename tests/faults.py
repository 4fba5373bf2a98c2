"""Faults and kills at any one of the system calls by which a step writes files.

A step is run once undisturbed, to count its calls (`calls_of`). Then for each of them it is run again and killed
there (`killed_at`), or that call fails (`failing_at`); at last a plain run finishes it, and must give the same. Counted
is what Python code asks of the system, not what libraries in other languages write by themselves.
"""

import builtins
import contextlib
import errno
import io
import itertools
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)
# of the module os; besides these, files that are opened to be written, and what is written to them
NAMES = "write sendfile truncate fsync fdatasync replace rename link symlink unlink remove mkdir rmdir".split()
PARTLY = ("write", "sendfile")  # can be done in part


def calls_of(step: Callable[[], object]) -> list[str]:
    """The names of the calls by which a step writes, in order."""
    names: list[str] = []

    def count(name, call):
        names.append(name)
        return call(1)

    with _disturbed(count):
        step()
    return names


@contextlib.contextmanager
def failing_at(number: int, code: int, times: int = 1) -> Iterator[None]:
    """Inside, calls from this number (from 0) on fail with an error of the system; a full disk takes half first."""

    def fail():
        raise OSError(code, os.strerror(code))

    with _disturbed(_ending(fail, number, times, 0.5 if code == errno.ENOSPC else 0)):
        yield


def killed_at(number: int, step: Callable[[], object], share: float = 0.0) -> bool:
    """Run a step in a process that is killed just before its call of this number (from 0); whether it came so far.

    `share` of what a write was to write is written first: 0 is none, 0.5 leaves a torn file.
    """
    with warnings.catch_warnings(action="ignore"):  # that there are other threads: progress bars have one
        child = os.fork()
    if child == 0:
        try:
            with _disturbed(_ending(lambda: os.kill(os.getpid(), signal.SIGKILL), number, 1, share)):
                step()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "it failed by itself, see its traceback"
    return status != 0


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, hidden files too, by relative path: what is in each file; None for a folder."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return b"-> " + os.readlink(path).encode()
        return path.read_bytes() if path.is_file() else None

    return {path.relative_to(folder).as_posix(): content(path) for path in sorted(folder.rglob("*"))}


def _ending(end: Callable[[], object], number: int, times: int, share: float) -> Callable:
    """What lets calls pass until one number, does a share of that and of some after it, and ends each of them."""
    seen = itertools.count()

    def disturb(name, call):
        if not number <= next(seen) < number + times:
            return call(1)
        if share and name in PARTLY:
            call(share)
        end()

    return disturb


@contextlib.contextmanager
def _disturbed(disturb: Callable[[str, Callable[[float], object]], object]) -> Iterator[None]:
    """Inside, each call goes through `disturb(name, call)`, where `call(share)` does it, or a share of it."""

    def wrapped(name, function):
        def part(arguments: tuple, share: float) -> tuple:
            if name not in PARTLY:
                return arguments
            *others, last = arguments  # what to write, or how many bytes to send
            return *others, int(last * share) if isinstance(last, int) else memoryview(last)[: int(len(last) * share)]

        return lambda *given, **options: disturb(name, lambda share: function(*part(given, share), **options))

    class Raw(io.FileIO):
        def write(self, data):
            data = memoryview(data).cast("B")
            return disturb("write", lambda share: io.FileIO.write(self, data[: int(len(data) * share)]))

    true_open = io.open

    def open_(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not set(mode) & set("wax+"):
            return true_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = disturb("open", lambda share: Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    with contextlib.ExitStack() as stack:
        for name in filter(vars(os).get, NAMES):
            stack.enter_context(mock.patch.object(os, name, wrapped(name, getattr(os, name))))
        for module in (builtins, io):
            stack.enter_context(mock.patch.object(module, "open", open_))
        yield
