"""Finished parts of a measurement under way, so that an interrupted one goes on where it stopped."""

import io
import pickle
import shutil
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np

from deeper_layers.results.files import write_whole


class Shards:
    """Finished parts of one measurement, each an `.npz` file in a folder that goes when the unit is written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds_before = 0.0
        self._started = time.monotonic()

    def get(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of shard `number`; None where it is missing or, with a warning, unreadable."""
        path = self.folder / f"{number:06d}.npz"
        try:
            # from memory: numpy leaves a file open that it can't read
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = dict(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            warnings.warn(f"{path} is not a readable shard ({error}): it is measured again", stacklevel=2)
            return None
        self.seconds_before += float(arrays.pop("seconds", 0.0))
        self._started = time.monotonic()
        return arrays

    def put(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write shard `number` whole."""
        buffer = io.BytesIO()
        now = time.monotonic()
        np.savez(buffer, seconds=np.array(now - self._started), **arrays)  # ty: ignore[invalid-argument-type]
        self._started = now
        write_whole(self.folder / f"{number:06d}.npz", buffer.getvalue())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def skip(bar, number: int | float) -> None:
    """Move a progress bar past work that shards hold: the time it says is left is that of the work that is left."""
    bar.initial += number
    bar.n += number
    bar.last_print_n += number
    bar.refresh()
