"""Finished parts of a measurement under way, so that an interrupted one goes on where it stopped."""

import contextlib
import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeper_layers.errors import InputError
from deeper_layers.files import clear_all, write_file


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
                that holds anything else is no readable one. Without it any arrays are.
        """
        path = self.folder / f"{number:06d}.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:  # it checks sums of all bytes
                arrays = dict(content)
            seconds, same = float(arrays.pop("seconds")), same or {}
            if not all(name in arrays and np.array_equal(arrays[name], value) for name, value in same.items()):
                return None
            if like is not None:
                _check({name: array for name, array in arrays.items() if name not in same}, like)
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
        for folder in (*sorted(self.folder.rglob("*/"), reverse=True), self.folder):
            clear_all(folder)
            for shard in folder.glob(f"{'[0-9]' * 6}.npz"):
                with contextlib.suppress(OSError):  # it is in nobody's way
                    shard.unlink()
            with contextlib.suppress(OSError):  # not empty, or gone
                folder.rmdir()


def skip(bar, number: int | float) -> None:
    """Move a progress bar past work that shards hold: the time it says is left is that of the work that is left."""
    number = number if bar.total is None else min(number, bar.total - bar.n)  # what is summed is rounded
    bar.initial += number
    bar.n += number
    bar.last_print_n += number
    bar.refresh()


def _check(arrays: dict[str, np.ndarray], like: Mapping[str, tuple]) -> None:
    """Raise ValueError unless these arrays have such types and shapes."""
    if arrays.keys() != like.keys():
        raise ValueError(f"it holds {', '.join(sorted(arrays))}, expected {', '.join(sorted(like))}")
    for name, (dtype, shape) in like.items():
        found = arrays[name]
        fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape))
        if found.dtype != dtype or not fits:
            raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, expected {np.dtype(dtype)} of {shape}")
