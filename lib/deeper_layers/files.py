"""Write files and folders that are either absent or complete, and never overwrite somebody else's.

Output is made in the folder PATH.deeper-layers.partial beside PATH, under a lock, and renamed when it is complete. A
folder of this name without a lock was left by a killed process: the next one removes it, or goes on from it. What has
these names and was not made here stays as it is, and is refused.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from deeper_layers.errors import InputError, as_input_error

OURS = ".deeper-layers."  # in the names of that folder and its lock
MADE = "made"  # in that folder: the new content
DESCRIPTION = "of.json"  # and the description of what it is made of
MAX_BYTES = 2**28  # of a JSON file
Check = Callable[[Path], None]


def check_absent(path: Path) -> None:
    """Raise InputError where something has this name: a file, a folder, or a broken link."""
    if os.path.lexists(path):
        raise InputError(
            f"{path} exists, and nothing is overwritten: give another name, or remove it first (rm -r)"
        )


@contextlib.contextmanager
def atomic_dir(
    path: Path,
    check: Check | None = check_absent,
    description: dict | None = None,
    *,
    is_folder: bool = True,
) -> Iterator[Path]:
    """Give a folder to fill, which gets its name when the block ends without an error; `atomic_file` gives a file.

    `check` raises InputError where what has the name may not be replaced. It is called again just before replacing.
    None is for what is the library's alone, like results: a file that is there is replaced, and another process that
    writes it is waited for, where otherwise InputError is raised. Raises OSError where it can't be written.

    After an interruption a folder is kept where `description`, for JSON, is given: the next call with the same
    description gets its content.
    """
    with _locked_partial_dir(path, check) as folder:
        content = folder / MADE
        if description is None or _read_description(folder) != description:
            _remove(content)
            (folder / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
        if is_folder:
            content.mkdir(exist_ok=True)
        yield content
        for file in filter(Path.is_file, (content, *content.rglob("*"))):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
        if check is not None:
            check(path)
        os.rename(content, path)


atomic_file = functools.partial(atomic_dir, is_folder=False)


@contextlib.contextmanager
def temporary_dir(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is removed when the block ends, or after a kill by the next call."""
    remove_leftovers(path.parent)
    with _locked_partial_dir(
        path.with_name(f"{path.name}-{secrets.token_hex(4)}"), check_absent
    ) as folder:
        (folder / DESCRIPTION).write_text("null", encoding="utf-8")
        (folder / MADE).mkdir()
        yield folder / MADE


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the library's own, like a result, atomically: what has its name is replaced."""
    advice = "fix this and run it again, what is finished is kept"
    with as_input_error(f"can't write {path}", advice, OSError), atomic_file(path, None) as target:
        target.write_bytes(content)


@contextlib.contextmanager
def locked(path: Path, message: str | None = None) -> Iterator[None]:
    """Inside, only this process works on what will be at `path`; the folder of that exists. Waits for another process,
    after printing `message` on stderr; without a message it raises Timeout instead. Raises InputError where somebody
    else's file has the lock's name."""
    lock_path = path.with_suffix(".lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    _check_lock(lock_path)
    lock = FileLock(lock_path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if message is None:
            raise
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError:
        # a file system without locks: two processes may do the same work and write the same
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                lock_path.unlink()  # while it is held: waiting processes notice, and make a new one
            lock.release()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder, except what can be continued."""
    for name in {leftover.name.partition(OURS)[0] for leftover in folder.glob(f"*{OURS}*")}:
        # InputError: a living process is at work on it
        with contextlib.suppress(InputError), _locked_partial_dir(folder / name, lambda _: None):
            pass


def read_plain_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file. Raises OSError or ValueError where it is no plain file, or has more than `max_bytes` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a named pipe would block
        raise ValueError("it is no plain file")
    if status.st_size > max_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes, expected at most {max_bytes:,}")
    return path.read_bytes()


def read_json(path: Path, max_bytes: int = MAX_BYTES):
    """Read a JSON file. Raises OSError or ValueError."""
    try:
        return json.loads(read_plain_file(path, max_bytes))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def check_writable(folder: Path) -> None:
    """Make a folder and try to write in it. Raises InputError where that fails, before hours of work are lost."""
    with as_input_error(f"can't write in {folder}", "fix this, or name another folder", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _locked_partial_dir(path: Path, check: Check | None) -> Iterator[Path]:
    """The locked folder in which something is made. It is removed at the end, unless it can be continued."""
    folder = path.with_name(f"{path.name}{OURS}partial")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, message=None if check else ""))
        except Timeout:
            raise InputError(
                f"another process writes {path}: wait until it ends, or give another name"
            ) from None
        _check_partial_dir(folder)
        folder.mkdir(exist_ok=True)
        try:
            if check is not None:
                check(path)
            yield folder
        finally:
            if _read_description(folder) is None or not any(folder.glob(f"{MADE}/*")):
                with contextlib.suppress(OSError):  # what stays does no harm
                    # the description goes last: it tells the next process that the rest was made here
                    _remove(folder / MADE)
                    _remove(folder)


def _remove(path: Path) -> None:
    """Remove a folder or a file of ours, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_lock(path: Path) -> None:
    """Raise InputError where a lock's name is that of something else: our locks are empty files."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if status.st_size or not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no lock of ours, which is an empty file: move it away")


def _check_partial_dir(folder: Path) -> None:
    """Raise InputError where a partial folder's name is that of something else. Ours holds the description as long as
    it holds anything."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is no folder of ours: move it away")
    names = set(os.listdir(folder))
    foreign = names - {MADE, DESCRIPTION} if DESCRIPTION in names else names
    if foreign:
        raise InputError(f"{folder} holds {min(foreign)}, which is not ours: move it away")


def _read_description(folder: Path) -> dict | None:
    """The description of an interrupted folder's content; None where there is none, or where it is incomplete."""
    try:
        return read_json(folder / DESCRIPTION)
    except (OSError, ValueError):
        return None
