"""Where data come from: the hub, or a local mirror of it.

A mirror is a folder laid out as the hub is, `<organisation>/<name>/README.md` with `configs:`; it is named by the
parameter `datasets` or the variable DATASETS_MIRROR, and tasks of lm-eval then read it unchanged.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import checks
from deeper_layers.data.embedded import embedded_tasks
from deeper_layers.errors import InputError, first_line

VARIABLE = "DATASETS_MIRROR"


def mirror(datasets: str | None) -> Path | None:
    """The local mirror, from the parameter or the variable DATASETS_MIRROR; None where the hub is used."""
    name, named = ("datasets", datasets) if datasets else (VARIABLE, os.environ.get(VARIABLE))
    if not named:
        return None
    return checks.folder(name, named, "give one laid out as the hub is")


@contextlib.contextmanager
def mirrored(datasets: str | None) -> Iterator[None]:
    """While it lasts, `datasets.load_dataset` reads what the mirror has from the mirror.

    A patch and not an option, since lm-eval calls `load_dataset` itself and groups can't be redirected
    through their configuration.
    """
    from unittest import mock  # slow, as is the next, and not needed where all data are embedded

    import datasets as hub

    folder = mirror(datasets)
    load = hub.load_dataset

    def load_dataset(path, *arguments, **options):
        local = folder / path if folder is not None else None
        if local is None or not local.is_dir():
            return load(path, *arguments, **options)
        # the cache of `datasets` knows a folder by its README alone: it would give old data for new
        cache = Path(hub.config.HF_DATASETS_CACHE) / f"mirror-{_stamp(local)}"  # ty: ignore[possibly-missing-submodule]
        return load(str(local), *arguments, **{"cache_dir": str(cache)} | options)

    with mock.patch.object(hub, "load_dataset", load_dataset):
        yield


def is_at_hand(name: str, datasets: str | None) -> bool:
    """Whether the data of a task or corpus can be read without a hub: embedded, or a mirror is named."""
    return name in ("wikipedia", "code") or name in embedded_tasks() or mirror(datasets) is not None


def _stamp(folder: Path) -> str:
    """Changes with the folder's place, and with every file in it. Raises InputError where one is a pipe or a device."""
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in sorted(folder.rglob("*")):
        state = checks.place("a file of datasets", path).stat()
        digest.update(
            f"\0{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def reachable(what: str) -> Iterator[None]:
    """While it lasts, what a data set's reader raises becomes one line that says what to do."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers of data sets have no common base class for what they raise
        raise InputError(
            f"can't read the data of {what} ({first_line(error)}): connect to the hub, or name a mirror that has them "
            "whole: DATASETS_MIRROR, or datasets, is its folder"
        ) from error
