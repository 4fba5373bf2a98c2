"""The finished parts of a running measurement, so that an interrupted one continues where it stopped."""

import contextlib
import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeper_layers.files import remove_leftovers, write_file


class Shards:
    """Finished parts of one measurement, each an `.npz` file in a folder that is removed when the result is written.

    Several processes may measure one result: none fails because others write or remove shards.
    """

    def __init__(self, folder: Path, durations: list[float] | None = None):
        # seconds of each shard read
        self.folder, self._durations = (
            folder,
            [] if durations is None else durations,
        )
        self._started = time.monotonic()

    def part(self, name: str) -> "Shards":
        """The shards of a part of the measurement, in a folder of their own; their seconds count here too."""
        return Shards(self.folder / name, self._durations)

    @property
    def seconds_before(self) -> float:
        """The seconds that the shards took which an earlier run left."""
        return sum(self._durations, 0.0)

    def get(
        self, number: int, same: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray] | None:
        """The arrays of shard `number`; None if it is missing or, with a warning, unreadable. `same` are arrays that
        the shard must hold; None, without a warning, if they differ."""
        path = self.folder / f"{number:06d}.npz"
        try:
            # zip files have checksums
            with (
                open(path, "rb") as file,
                np.load(file, allow_pickle=False) as content,
            ):
                arrays = dict(content)
            seconds = float(arrays.pop("seconds"))
        except FileNotFoundError:
            return None
        except Exception as error:  # numpy and zipfile raise many types for a damaged file
            warnings.warn(
                f"{path} is not a readable shard ({error}): it is measured again", stacklevel=2
            )
            return None
        if not all(
            name in arrays and np.array_equal(arrays[name], value)
            for name, value in (same or {}).items()
        ):
            return None
        self._durations.append(seconds)
        self._started = time.monotonic()
        return arrays

    def put(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write shard `number` in one step. Raises InputError if it can't be written."""
        buffer = io.BytesIO()
        now = time.monotonic()
        np.savez(buffer, seconds=np.array(now - self._started), **arrays)
        self._started = now
        write_file(self.folder / f"{number:06d}.npz", buffer.getvalue())

    def remove(self) -> None:
        """Remove all shards, with those of parts; files of others stay, and so does their folder."""
        if self.folder.is_symlink():
            return
        for folder in (*sorted(self.folder.rglob("*/"), reverse=True), self.folder):
            remove_leftovers(folder)
            for shard in folder.glob(f"{'[0-9]' * 6}.npz"):
                with contextlib.suppress(OSError):  # a shard that stays does no harm
                    shard.unlink()
            with contextlib.suppress(OSError):  # not empty, or gone
                folder.rmdir()
