"""Ways to do the same thing, run turn by turn; medians of ratios within a turn; a JSON file of what came of it.

A machine changes its pace within an hour: a ratio is always of two runs of one turn, and each turn begins with another
way.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeper_layers.files import write_file
from deeper_layers.models import device_name
from deeper_layers_companion.results import provenance

MEASURED = Path(__file__).with_name("measured")
ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
# options that take a path, and what stands for it where the command is kept
PATHS = {"--datasets": "FOLDER", "--before": "CHECKOUT", "--mergekit": "PYTHON"}
# a process between: what a new one inherits of the peak of its parent is then small
LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
child = os.fork()
if child == 0:
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss * 1024]))
"""


@dataclass(frozen=True)
class Run:
    """One run of one way: what it returned, its seconds, and the most memory held meanwhile, in bytes."""

    result: Any
    seconds: float
    peak: int


def options(doc: str | None, **more) -> argparse.Namespace:
    """The command line of a comparison: what all have, and `more` by name: a default, or the words of add_argument."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    common = {"model": "embedded", "dtype": "bfloat16", "repeats": 3, "datasets": {"help": "a local mirror of the hub"}}
    for name, words in (common | more).items():
        if not isinstance(words, dict):
            words = {"default": words, "type": type(words), "help": f"by default {words}"}
        parser.add_argument(f"--{name.replace('_', '-')}", **words)
    torch.set_num_threads(THREADS)
    return parser.parse_args()


def timed(run: Callable[[], Any]) -> Run:
    """Run it once. The peak is Linux's, which is forgotten before."""
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    result = run()
    return Run(result, time.perf_counter() - start, held("VmHWM"))


def held(what: str = "VmRSS") -> int:
    """Memory of this process now, or with VmHWM its peak, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def by_turns(ways: dict[str, Callable[[], Any]], repeats: int, run: Callable = timed) -> dict[str, list[Run]]:
    """The runs of each way, one a turn, each turn begun by another way."""
    found: dict[str, list[Run]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(run(ways[name]))
            print(f"{name}: {found[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def ratio(found: dict[str, list[Run]], one: str, other: str, digits: int = 2) -> float:
    """How many times the seconds of `other` those of `one` are: the median over turns."""
    return round(statistics.median(a.seconds / b.seconds for a, b in zip(found[one], found[other])), digits)


def seconds(found: dict[str, list[Run]]) -> dict[str, list[float]]:
    return {name: [round(run.seconds, 3) for run in runs] for name, runs in found.items()}


def run_process(command: list[str], folder: Path = ROOT, library: Path | None = ROOT) -> Run:
    """A process from its start to its end, imports included; `library` is the checkout that it imports, if any. Raises
    SystemExit with the end of what it said where it failed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS), "TQDM_DISABLE": "1"}
    environment.pop("PYTHONPATH", None)
    if library:
        environment["PYTHONPATH"] = f"{library / 'lib'}{os.pathsep}{library}"
    words = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    code, passed, peak = json.loads(done.stdout.splitlines()[-1])
    if code:
        raise SystemExit(f"{' '.join(command[1:4])} ended with {code}: {done.stderr[-2000:]}")
    return Run(None, passed, peak)


def keep(name: str, content: dict) -> None:
    """Print a measurement, and write it to benchmarks/measured/NAME.json."""
    typed = [PATHS.get(before, word) for before, word in zip(sys.argv, sys.argv[1:])]  # no path of this machine
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *typed])
    text = json.dumps({"command": command, **content, "provenance": provenance(device_name())}, indent=1)
    print(text)
    write_file(MEASURED / f"{name}.json", f"{text}\n".encode())
