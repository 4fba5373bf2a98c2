"""Finished parts of a measurement under way, so that an interrupted one goes on where it stopped."""

import contextlib
import io
import os
import re
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeper_layers.errors import InputError
from deeper_layers.files import clear_all, read_plain, write_file

MOST = 2**33  # bytes of a shard
OURS = re.compile(r"\d{6}\.npz")


class Shards:
    """Finished parts of one measurement, each an `.npz` file in a folder that goes when the result is written.

    Several processes may measure one result: none minds what the others write or remove.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._seconds, self._parts = 0.0, []
        self._started = time.monotonic()

    def part(self, name: str) -> "Shards":
        """Those of a part of it, in a folder of their own, whose seconds count here too."""
        self._parts.append(Shards(self.folder / name))
        return self._parts[-1]

    @property
    def seconds_before(self) -> float:
        """What the shards that were found had taken."""
        return self._seconds + sum(part.seconds_before for part in self._parts)

    def check(self) -> None:
        """Raise InputError where something else than a folder is in their place."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"can't write in {self.folder}, which is no folder: move it away, it is not ours")

    def get(
        self,
        number: int,
        same: Mapping[str, np.ndarray] | None = None,
        like: Mapping[str, tuple[type, tuple[int | None, ...]]] | None = None,
    ) -> dict[str, np.ndarray] | None:
        """The arrays of shard `number`; None where it is missing or, with a warning, unreadable.

        Args:
            same: what says of which part it is; one of another part is passed over without a word.
            like: type and shape of all its other arrays, with None for a length that is not known before. A shard
                that holds anything else, or not-a-number, is no readable one. Without it any arrays are.
        """
        path = self.folder / f"{number:06d}.npz"
        try:
            arrays = _arrays(path)
            seconds = float(arrays.pop("seconds", np.zeros(())))
            if not 0 <= seconds < np.inf:
                raise ValueError(f"it took {seconds} seconds")
            if not all(name in arrays and np.array_equal(arrays[name], value) for name, value in (same or {}).items()):
                return None
            if like is not None:
                _check(arrays, set(same or ()), like)
        except FileNotFoundError:
            return None
        except Exception as error:  # what numpy and zipfile raise for a file that is not ours has no end
            warnings.warn(f"{path} is not a readable shard ({error}): it is measured again", stacklevel=2)
            return None
        self._seconds += seconds
        self._started = time.monotonic()
        return arrays

    def put(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write shard `number` whole. Raises InputError where it can't be written."""
        buffer = io.BytesIO()
        now = time.monotonic()
        np.savez(buffer, seconds=np.array(now - self._started), **arrays)  # ty: ignore[invalid-argument-type]
        self._started = now
        write_file(self.folder / f"{number:06d}.npz", buffer.getvalue())

    def remove(self) -> None:
        """Remove all shards, those of parts in folders of their own too; what is not ours stays, and its folder."""
        if self.folder.is_symlink():
            return
        for at, folders, names in os.walk(self.folder, topdown=False):
            clear_all(Path(at))
            for name in names:
                if OURS.fullmatch(name):
                    with contextlib.suppress(OSError):  # it is in nobody's way
                        Path(at, name).unlink()
            for folder in (*(Path(at, name) for name in folders), Path(at)):
                with contextlib.suppress(OSError):  # not empty, or gone
                    folder.rmdir()


def skip(bar, number: int | float) -> None:
    """Move a progress bar past work that shards hold: the time it says is left is that of the work that is left."""
    number = number if bar.total is None else min(number, bar.total - bar.n)  # what is summed is rounded
    bar.initial += number
    bar.n += number
    bar.last_print_n += number
    bar.refresh()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file that is stored as it is, so that they can't be larger than the file."""
    # from memory: numpy leaves a file open that it can't read
    content = io.BytesIO(read_plain(path, MOST))
    with zipfile.ZipFile(content) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
    with np.load(content, allow_pickle=False) as file:
        return dict(file)


def _check(arrays: dict[str, np.ndarray], known: set[str], like: Mapping[str, tuple]) -> None:
    if arrays.keys() != known | like.keys():
        raise ValueError(f"it holds {', '.join(sorted(arrays))}, expected {', '.join(sorted(known | like.keys()))}")
    for name, (dtype, shape) in like.items():
        found = arrays[name]
        fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape))
        if found.dtype != dtype or not fits:
            raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, expected {np.dtype(dtype)} of {shape}")
        if found.dtype.kind == "f" and np.isnan(found).any():
            raise ValueError(f"{name} holds not-a-number")
