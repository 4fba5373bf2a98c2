"""Finished parts of a measurement under way, so that an interrupted one goes on where it stopped."""

import contextlib
import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeper_layers.files import clear_all, write_file


class Shards:
    """Finished parts of one measurement, each an `.npz` file in a folder that goes when the result is written.

    Several processes may measure one result: none minds what the others write or remove.
    """

    def __init__(self, folder: Path, took: list[float] | None = None):
        self.folder, self._took = folder, [] if took is None else took  # of each shard that was found the seconds
        self._started = time.monotonic()

    def part(self, name: str) -> "Shards":
        """Those of a part of it, in a folder of their own, whose seconds count here too."""
        return Shards(self.folder / name, self._took)

    @property
    def seconds_before(self) -> float:
        """What the shards that were found had taken."""
        return sum(self._took, 0.0)

    def get(self, number: int, same: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of shard `number`; None where it is missing or, with a warning, unreadable.

        `same` says of which part it is; one of another part is passed over without a word.
        """
        path = self.folder / f"{number:06d}.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:  # it checks sums of all bytes
                arrays = dict(content)
            seconds = float(arrays.pop("seconds"))
        except FileNotFoundError:
            return None
        except Exception as error:  # what numpy and zipfile raise for a file that is not ours has no end
            warnings.warn(f"{path} is not a readable shard ({error}): it is measured again", stacklevel=2)
            return None
        if not all(name in arrays and np.array_equal(arrays[name], value) for name, value in (same or {}).items()):
            return None
        self._took.append(seconds)
        self._started = time.monotonic()
        return arrays

    def put(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write shard `number` whole. Raises InputError where it can't be written."""
        buffer, now = io.BytesIO(), time.monotonic()
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
