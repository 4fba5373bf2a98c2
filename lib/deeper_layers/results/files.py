"""Files that are either absent or complete."""

import os
import tempfile
from pathlib import Path

from deeper_layers.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete, whatever kills the process meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and try to write there; InputError where that can't be, before hours are spent on what goes in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"can't write in {folder} ({error.strerror}): mend that, or name another folder") from error
