"""Files that appear when they are complete, and never in the place of another.

What is under way lies in a private folder beside the place where it will be. The lock in it is held as long as the
process that made it lives: what a killed process left goes when the next one begins there.
"""

import contextlib
import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers.errors import InputError

PREFIX, LOCK = ".deeper-layers-partial-", "lock"
# what a file system says that knows no second name of a file
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends without an error.

    Raises InputError where something of that name is there before or by then, or where it can't be written.
    """
    try:
        # what a dead process left of it goes even where its file is complete
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(path.parent) as folder:
            check_absent(path)
            made = folder / path.name
            yield made
            _publish(made, path)
    except OSError as error:
        raise InputError(f"can't write {path} ({error.strerror or error}): mend that, or name another place") from error


def check_absent(path: Path) -> None:
    """Raise InputError where something has this name: a file, a folder, a link to nothing.

    What a process left that was killed when its file had its name already goes here, since nothing follows.
    """
    remove_abandoned(path.parent)
    if os.path.lexists(path):
        raise InputError(f"{path} exists: give a file that does not, so that nothing is overwritten")


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A private folder in another, gone with all that is in it when the block ends; those of dead processes go first.

    Raises OSError where it can't be made.
    """
    remove_abandoned(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def _publish(made: Path, path: Path) -> None:
    """Give a complete file its name, on the disk before it is seen."""
    with open(made, "rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(made, path)  # unlike a rename it fails where the name is taken
    except FileExistsError:
        check_absent(path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # the name is taken first
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(made, path)


def _locked_folder(parent: Path) -> tuple[Path, io.BufferedWriter]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        # until it is locked another process may take it for one of a dead process
        with contextlib.suppress(FileNotFoundError):
            lock = open(folder / LOCK, "xb")
            with contextlib.suppress(OSError):  # a file system without locks: then nothing is taken for dead
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / LOCK).exists():
                return folder, lock
            lock.close()


def remove_abandoned(parent: Path) -> None:
    """Remove the private folders whose lock nobody holds. One without a lock is removed only where it is empty."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink():
                continue
            if not (folder / LOCK).exists():
                folder.rmdir()
                continue
            with open(folder / LOCK, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """The lock goes last: a folder with anything in it and no lock would be taken for somebody's."""
    with contextlib.suppress(OSError):  # what stays goes when the next one begins there
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        shutil.rmtree(folder)
