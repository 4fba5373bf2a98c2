"""What the benchmarks have in common: clock, peak memory, what was true while measuring, where it is kept."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.outdated import PATHS
from benchmarks.table import MEASURED
from deeper_layers.files import write_file
from deeper_layers.models import device_name
from deeper_layers.results.circumstances import provenance

THREADS = 2


def measured(run: Callable):
    """What `run` returns, its seconds, and the most memory that the process held meanwhile, in bytes."""
    reset_peak()
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start, peak()


def reset_peak() -> None:
    """Linux forgets the peak so far when a 5 is written here."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most memory held since then, in bytes."""
    return _status("VmHWM")


def held() -> int:
    """Memory held now, in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def keep(name: str, content: dict) -> None:
    """Print a measurement, and write it to benchmarks/measured/NAME.json."""
    content = {"command": " ".join(["python -m", *_command()]), **content, "provenance": provenance(device_name())}
    text = json.dumps(content, indent=1)
    print(text)
    write_file(MEASURED / f"{name}.json", f"{text}\n".encode())


def _command() -> list[str]:
    """What was typed, but for paths of this machine."""
    typed = [PATHS.get(before, word) for before, word in zip(sys.argv, sys.argv[1:], strict=False)]
    return [f"benchmarks.{Path(sys.argv[0]).stem}", *typed]


def start() -> None:
    torch.set_num_threads(THREADS)
