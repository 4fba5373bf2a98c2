"""Faults and kills at any one of the system calls by which a step writes files.

A step is run once undisturbed, to count its calls (`calls_of`). Then for each of them it is run again and killed
there (`killed_at`), or that call fails (`failing_at`); and at last it is finished by a plain run, which must give what
the undisturbed one gave. Counted is what Python code asks of the system: libraries in other languages that write by
themselves (safetensors' own writer) are seen only where Python renames, links or removes their files.

    for number in range(len(calls_of(step))):
        killed_at(number, step)
        step()
        assert snapshot(folder) == expected
"""

import builtins
import contextlib
import errno
import io
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
Disturb = Callable[[str, Callable[[float], object]], object]  # gets a call's name and what does a share of it


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
    """Inside, the call of this number (from 0) fails with an error of the system; a full disk takes half of it first.

    `times` is how many calls fail from there on: a disk that is full stays so.
    """
    seen = 0

    def fail(name, call):
        nonlocal seen
        seen += 1
        if not number < seen <= number + times:
            return call(1)
        if code == errno.ENOSPC and name in PARTLY:
            call(0.5)
        raise OSError(code, os.strerror(code))

    with _disturbed(fail):
        yield


def killed_at(number: int, step: Callable[[], object], share: float = 0.0) -> bool:
    """Run a step in a process that is killed just before its call of this number (from 0), as by SIGKILL.

    `share` of what a write was to write is written first: 0 is none, 0.5 leaves a torn file.

    Returns:
        Whether it was killed; False where it made fewer calls and ended.

    Raises:
        AssertionError: the step failed by itself, with its traceback.
    """
    seen = 0

    def kill(name, call):
        nonlocal seen
        seen += 1
        if seen <= number:
            return call(1)
        if share and name in PARTLY:
            call(share)
        os.kill(os.getpid(), signal.SIGKILL)

    def disturbed():
        with _disturbed(kill):
            step()

    status, said = in_child(disturbed)
    assert status in (0, -signal.SIGKILL), said
    return status != 0


def in_child(step: Callable[[], object]) -> tuple[int, str]:
    """Run a step in a copy of this process: its exit status (minus the signal that ended it), and its traceback."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are other threads: progress bars have one
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            step()
            status = 0
        except BaseException:
            with contextlib.suppress(OSError):
                os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, hidden files too, by relative path: what is in each file; None for a folder."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return b"-> " + os.readlink(path).encode()
        return None if path.is_dir() else path.read_bytes()

    return {path.relative_to(folder).as_posix(): content(path) for path in sorted(folder.rglob("*"))}


@contextlib.contextmanager
def _disturbed(disturb: Disturb) -> Iterator[None]:
    """Inside, each call goes through `disturb(name, call)`, where `call(share)` does it, or a share of it."""

    def wrapped(name, function):
        def call(*arguments, **options):
            return disturb(name, lambda share: function(*_part(name, arguments, share), **options))

        return call

    class Raw(io.FileIO):
        def write(self, data):
            data = memoryview(data).cast("B")
            return disturb("write", lambda share: io.FileIO.write(self, data[: int(len(data) * share)]))

    true_open = io.open

    def open_(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not set(mode) & set("wax+"):
            return true_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        kind = mode.replace("b", "").replace("t", "")
        raw = disturb("open", lambda share: Raw(file, kind, closefd, opener))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    with contextlib.ExitStack() as stack:
        for name in NAMES:
            if hasattr(os, name):
                stack.enter_context(mock.patch.object(os, name, wrapped(name, getattr(os, name))))
        for module in (builtins, io):
            stack.enter_context(mock.patch.object(module, "open", open_))
        yield


def _part(name: str, arguments: tuple, share: float) -> tuple:
    """Arguments of a call that does a share of it."""
    if share == 1 or name not in PARTLY:
        return arguments
    if name == "write":
        file, data = arguments
        return file, memoryview(data)[: int(len(data) * share)]
    target, source, place, number = arguments
    return target, source, place, int(number * share)
