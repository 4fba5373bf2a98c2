"""Files that are either absent or complete."""

import contextlib
import fcntl
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deeper_layers.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete, whatever kills the process meanwhile.

    What an earlier process left of the same file when it was killed goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.partial", orphan.name):
            _remove_orphan(orphan)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _held(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[BinaryIO]:
    """A new file, locked as long as it is written, so that whoever looks for orphans knows it is none."""
    while True:
        with open(path, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.exists(path):  # else it was taken for an orphan before it was locked
                yield file
                return


def _remove_orphan(path: Path) -> None:
    """Remove a temporary file that no process holds; where locks don't work it stays."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def check_writable(folder: Path) -> None:
    """Make a folder and try to write there; InputError where that can't be, before hours are spent on what goes in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"can't write in {folder} ({error.strerror}): mend that, or name another folder") from error
