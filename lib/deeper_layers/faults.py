"""A fault of ours, told in one line: what a maintainer needs goes to a file that the line names."""

import contextlib
import datetime
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from deeper_layers.errors import InputError, first_line, one_line
from deeper_layers.package_index import cache_folder

SHOWN = "DEEPER_LAYERS_TRACEBACK"  # set to anything, tracebacks are shown as Python shows them
PACKAGES = ("deeper-layers", "torch", "transformers", "lm-eval", "datasets", "peft", "bitsandbytes", "gguf", "pydantic",
            "click", "papermill")  # fmt: skip
TOKEN = re.compile(r"\b(hf_|gh[opsu]_|sk-)\w{8,}")  # of the hub and its like, wherever a library quotes one
HIDDEN = r"\1..."


def in_one_line(error: Exception | str, traceback_of: str | None = None) -> str:
    """What an error says that nobody foresaw, and where the rest is: traceback, versions and command line are written.

    An error of another process comes as what it says, and its traceback. Neither the environment nor the values of
    variables are written.
    """
    if isinstance(error, Exception):
        traceback_of = "".join(traceback.format_exception(error))
        error = f"{type(error).__name__}: {first_line(error)}"
    path = _written(f"{_circumstances()}\n\n{traceback_of}\n")
    where = (
        f"{SHOWN}=1 shows where, report what it shows" if path is None else f"{path} says where, report it with that"
    )
    return one_line(f"{TOKEN.sub(HIDDEN, error)} (a fault of this software and not of yours: {where})")


def is_shown() -> bool:
    """Whether whoever works on this wants tracebacks as they are."""
    return bool(os.environ.get(SHOWN))


def _circumstances() -> str:
    import importlib.metadata  # slow, for what happens hardly ever

    lines = [f"time: {datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}"]
    lines += [f"command: {shlex.join(sys.argv)}", f"python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{package} {importlib.metadata.version(package)}")
    return "\n".join(lines)


def _written(content: str) -> Path | None:
    """A new file with this content: in the cache, else among temporary files; None where neither can be written."""
    content = TOKEN.sub(HIDDEN, content)
    for folder in (_cache, tempfile.gettempdir):
        with contextlib.suppress(OSError, RuntimeError, InputError):
            place = Path(folder())
            place.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="deeper-layers-fault-", suffix=".txt", dir=place)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(content)
            return Path(name)
    return None


def _cache() -> Path:
    return cache_folder() / "faults"
