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
    return checks.folder(name, named, "give one laid out as the hub is") if named else None


@contextlib.contextmanager
def mirrored(datasets: str | None) -> Iterator[None]:
    """While it lasts, `datasets.load_dataset` reads what the mirror has from the mirror.

    A patch and not an option, since lm-eval calls `load_dataset` itself and groups can't be redirected
    through their configuration.
    """
    from unittest import mock  # slow, as is the next, and not needed where all data are embedded

    import datasets as hub

    folder, load = mirror(datasets), hub.load_dataset

    def load_dataset(path, *arguments, **options):
        if folder is None or not (local := folder / path).is_dir():
            return load(path, *arguments, **options)
        # the cache of `datasets` knows a folder by its README alone: it would give old data for new
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(local.rglob("*"))]
        stamp = hashlib.sha256(repr((local.resolve(), stats)).encode(errors="surrogateescape")).hexdigest()[:16]
        cache = f"{hub.config.HF_DATASETS_CACHE}/mirror-{stamp}"  # ty: ignore[possibly-missing-submodule]
        return load(str(local), *arguments, **{"cache_dir": cache} | options)

    with mock.patch.object(hub, "load_dataset", load_dataset):
        yield


def is_at_hand(name: str, datasets: str | None) -> bool:
    """Whether the data of a task or corpus can be read without a hub: embedded, or a mirror is named."""
    return name in ("wikipedia", "code") or name in embedded_tasks() or mirror(datasets) is not None


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
