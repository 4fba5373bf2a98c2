"""A fault of ours, told in one line: what a maintainer needs goes to a file that the line names."""

import datetime
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback

from deeper_layers.errors import first_line, one_line

SHOWN = "DEEPER_LAYERS_TRACEBACK"  # set to anything, tracebacks are shown as Python shows them
TOKEN = re.compile(r"\b(hf_|gh[opsu]_|sk-)\w{8,}")  # of the hub and its like, wherever a library quotes one


def in_one_line(error: Exception | str, traceback_of: str | None = None) -> str:
    """What an error says that nobody foresaw, and where the rest is: traceback, versions and command line are written.

    An error of another process comes as what it says, and its traceback. Neither the environment nor the values of
    variables are written.
    """
    from importlib import metadata  # slow, for what happens hardly ever

    if isinstance(error, Exception):
        traceback_of = "".join(traceback.format_exception(error))
        error = f"{type(error).__name__}: {first_line(error)}"
    lines = [
        f"time: {datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}",
        f"command: {shlex.join(sys.argv)}",
        f"python {platform.python_version()} on {platform.platform()}",
        *sorted(f"{package.name} {package.version}" for package in metadata.distributions()),
        f"\n{traceback_of}\n",
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="deeper-layers-fault-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(TOKEN.sub(r"\1...", "\n".join(lines)))
        where = f"{file.name} says where, report it with that"
    except OSError:
        where = f"{SHOWN}=1 shows where, report what it shows"
    error = TOKEN.sub(r"\1...", error)
    return one_line(f"{error} (a fault of this software and not of yours: {where})")


def is_shown() -> bool:
    """Whether whoever works on this wants tracebacks as they are."""
    return bool(os.environ.get(SHOWN))
