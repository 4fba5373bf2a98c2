"""Files that are either absent or complete, whatever kills a process or fails meanwhile, and what such a process left.

A file is written under a temporary name and renamed. As long as it is written its process holds a lock on it: whose
lock nobody holds was left by one that is dead. What can't be read is an OSError or a ValueError, which whoever reads
turns into words.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deeper_layers.errors import InputError

MOST = 2**28  # bytes of a file of JSON
ROOM = 2**24  # bytes that have to be free before something is measured
TRIES = 20  # a folder that another process removes while it is written to is made again so often
LEFT = re.compile(r"\.(?P<name>.+)\.\d+\.deeper-layers\.partial")  # what `write_whole` leaves where it is killed


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete, whatever kills the process meanwhile.

    What an earlier process left of the same file when it was killed goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clean(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.deeper-layers.partial")
    try:
        with _held(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is absent or complete, also where another process cleans up the folder meanwhile.

    Raises:
        InputError: it can't be written: the disk is full, the folder may not be written to, or is none.
    """
    for left in reversed(range(TRIES)):
        try:
            write_whole(path, content)
            return
        except (FileNotFoundError, FileExistsError) as error:
            if not left:
                raise _unwritable(path, error) from error
        except OSError as error:
            raise _unwritable(path, error) from error


def read_plain(path: Path, most: int = MOST) -> bytes:
    """All of a file. Raises OSError or ValueError where it is no plain one, or has more than `most` bytes."""
    if not stat.S_ISREG((found := os.stat(path)).st_mode):  # a named pipe would be waited for
        raise ValueError("it is no plain file")
    if found.st_size > most:
        raise ValueError(f"it has {found.st_size:,} bytes, expected at most {most:,}")
    return path.read_bytes()


def read_json(path: Path):
    """What a file of JSON holds. Raises OSError or ValueError for all that is not a whole file of standard JSON."""
    text = read_plain(path).decode("utf-8")
    try:
        content = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:  # half a character by itself can't be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return content


def check_writable(folder: Path) -> None:
    """Make a folder and try to write there; InputError where that can't be, before hours are spent on what goes in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"can't write in {folder} ({error.strerror}): mend that, or name another folder") from error


def check_room(folder: Path) -> None:
    """Raise InputError where next to nothing is free for what will be measured."""
    if (free := shutil.disk_usage(folder).free) < ROOM:
        raise InputError(
            f"{free / 2**20:,.1f} MiB are free for {folder}, expected at least {ROOM / 2**20:.0f}: free some space, or "
            "name another folder"
        )


def clean(folder: Path, of: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder, of one file or of all; nothing else."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if (left := LEFT.fullmatch(name)) and of in (None, left["name"]):
            _remove_orphan(folder / name)


def remove_file(path: Path) -> None:
    """Remove a file of ours, where it is there and may be removed: it is in nobody's way."""
    with contextlib.suppress(OSError):
        path.unlink()


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


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}, which is no number")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write {path} ({error.strerror or error}): mend that and run this again, what is finished is kept"
    )
