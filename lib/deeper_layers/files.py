"""Files and folders that are absent or whole, and never in the place of somebody else's.

What is to be at PATH is made in the folder PATH.deeper-layers.partial beside it, under a lock, and renamed when it is
whole. What a killed process left there is known by that name and the free lock: the next one removes it, or goes on
from it.
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

OURS = ".deeper-layers."  # in the names of the folder and its lock, which nobody else gives
# in that folder: the new content, what it replaces, and the description of what it is made of
MADE, REPLACED, DESCRIPTION = "made", "before", "of.json"
MAX_BYTES = 2**28  # bytes of a file of JSON
Check = Callable[[Path], None]


def check_absent(path: Path) -> None:
    """Raise InputError where something has this name: a file, a folder, a link to nothing."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists: give a name that does not, so that nothing is overwritten")


@contextlib.contextmanager
def atomic_dir(
    path: Path, check: Check | None = check_absent, description: dict | None = None, *, is_folder: bool = True
) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error; `atomic_file`: a file to write.

    `check` raises InputError where what has the name may not be replaced; it is asked again just before that is done.
    None is for what is the library's alone, like a result: whatever is there goes, and others who write it are waited
    for, where else InputError is raised. Raises OSError where it can't be written.

    Interrupted in the middle a folder is kept where `of` says what it is of, for JSON: the next one of the same is
    handed what is there.
    """
    with _locked_partial_dir(path, check) as folder:
        content = folder / MADE
        if description is None or _read_description(folder) != description:
            shutil.rmtree(content) if content.is_dir() else content.unlink(missing_ok=True)
            (folder / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
        if is_folder:
            content.mkdir(exist_ok=True)
        yield content
        for file in filter(Path.is_file, (content, *content.rglob("*"))):
            with open(file, "rb") as descriptor:
                os.fsync(descriptor.fileno())
        if check is not None:
            check(path)
        if is_folder and os.path.lexists(path):
            os.rename(path, folder / REPLACED)
        os.rename(content, path)


atomic_file = functools.partial(atomic_dir, is_folder=False)


@contextlib.contextmanager
def passing_dir(path: Path) -> Iterator[Path]:
    """A folder beside `path` that goes when the block ends. What killed processes left there goes with the next one."""
    remove_leftovers(path.parent)
    with _locked_partial_dir(path.with_name(f"{path.name}-{secrets.token_hex(4)}"), check_absent) as folder:
        (folder / MADE).mkdir()
        yield folder / MADE


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the library's own, like a result, whole: what has its name is replaced."""
    advice = "mend that and run this again, what is finished is kept"
    with as_input_error(f"can't write {path}", advice, OSError), atomic_file(path, None) as target:
        target.write_bytes(content)


@contextlib.contextmanager
def locked(path: Path, wait: str | None = None) -> Iterator[None]:
    """Inside, this process alone is at work on what will be at `path`; the folder for it is there.

    The end of another is waited for, and `wait` said once on stderr; without that, Timeout is raised.
    """
    lock_path = path.with_suffix(".lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            raise
        print(wait, end="\n" if wait else "", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError:  # a file system without locks: two processes would do the same work, and write the same
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                lock_path.unlink()  # while it is held: who waits for it finds out, and makes a new one
            lock.release()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder, unless the same can go on from it; what they moved comes back."""
    for name in {leftover.name.partition(OURS)[0] for leftover in folder.glob(f"*{OURS}*")}:
        # InputError: a living process is at work on it
        with contextlib.suppress(InputError), _locked_partial_dir(folder / name, lambda _: None):
            pass


def read_plain_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All of a file. Raises OSError or ValueError where it is no plain one, or has more than `most` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for
        raise ValueError("it is no plain file")
    if status.st_size > max_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes, expected at most {max_bytes:,}")
    return path.read_bytes()


def read_json(path: Path, max_bytes: int = MAX_BYTES):
    """What a file of JSON holds. Raises OSError or ValueError."""
    try:
        return json.loads(read_plain_file(path, max_bytes))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def check_writable(folder: Path) -> None:
    """Make a folder and try to write there; InputError where that can't be, before hours are spent on what goes in."""
    with as_input_error(f"can't write in {folder}", "mend that, or name another folder", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _locked_partial_dir(path: Path, check: Check | None) -> Iterator[Path]:
    """The folder in which something is made, locked: it goes at the end, unless the same can go on from it."""
    folder = path.with_name(f"{path.name}{OURS}partial")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=None if check else ""))
        except Timeout:
            raise InputError(f"another process writes {path}: wait until it ends, or give another name") from None
        folder.mkdir(exist_ok=True)
        if foreign := set(os.listdir(folder)) - {MADE, REPLACED, DESCRIPTION}:
            raise InputError(f"{folder} holds {min(foreign)}, which is not ours: move it away")
        try:
            _restore_replaced(folder, path)
            if check is not None:
                check(path)
            yield folder
        finally:
            _restore_replaced(folder, path)
            if _read_description(folder) is None or not any(folder.glob(f"{MADE}/*")):
                shutil.rmtree(folder, ignore_errors=True)


def _restore_replaced(folder: Path, path: Path) -> None:
    """What was moved out of the way, where nothing took its place."""
    if os.path.lexists(folder / REPLACED) and not os.path.lexists(path):
        os.rename(folder / REPLACED, path)


def _read_description(folder: Path) -> dict | None:
    """What a folder says that it is of; None where it says nothing, or its process was killed while it wrote this."""
    try:
        return read_json(folder / DESCRIPTION)
    except (OSError, ValueError):
        return None
