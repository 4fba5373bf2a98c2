"""How long the command takes, and what it writes, beside an earlier checkout: by turns, each in a process of its own.

    python -m benchmarks.command --before CHECKOUT

Help, refusals, and a slice of the embedded model, which is converted before, so that neither side pays for it. The
seconds are those of a whole process, its imports included; of a pair of runs one after the other the ratio is taken.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deeper_layers.results.places import AROUND

CASES = {
    "--help": ["--help"],
    "prune --help": ["prune", "--help"],
    "sweep --help": ["sweep", "--help"],
    "a number that does not fit": ["prune", "embedded", "OUT", "--drop", "30"],
    "no such model": ["prune", "./none", "OUT", "--drop", "3"],
    "an unknown preset": ["prune", "embedded", "OUT", "--drop", "3", "--heal", "tiny"],
    "embedded, 4 layers": ["prune", "embedded", "OUT", "--start", "2", "--drop", "4"],
    "the same in bfloat16": ["prune", "embedded", "OUT", "--start", "2", "--drop", "4", "--dtype", "bfloat16"],
    "the same as a GGUF file": ["prune", "embedded", "OUT.gguf", "--start", "2", "--drop", "4"],
}
SINCE = ("the same in bfloat16",)  # what the earlier checkout may not know


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="an earlier checkout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="cases whose name begins so")
    options = parser.parse_args()
    sides, found = {"before": options.before, "now": AROUND}, {}
    for case, words in CASES.items():
        if not case.startswith(options.only or ""):
            continue
        runs: dict = {side: [] for side, checkout in sides.items() if side == "now" or known(case, checkout)}
        for number in range(-1, options.repeats):  # the first fills caches, and does not count
            for side in runs:
                seconds, bytes = run(words, sides[side])
                if number >= 0:
                    runs[side].append(seconds)
        medians = {side: round(statistics.median(seconds), 2) for side, seconds in runs.items()}
        ratio = [round(a / b, 2) for a, b in zip(runs.get("before", []), runs["now"])]
        found[case] = {"seconds": medians, "before_over_now": ratio, "bytes": bytes}
        print(case, json.dumps(found[case]), flush=True)


def has_rooms(checkout: Path) -> bool:
    """Whether the library is a package of rooms; before, a module of it pruned, and an installed copy is none of it."""
    return (checkout / "lib" / "deeper_layers").is_dir()


def known(case: str, checkout: Path) -> bool:
    """Whether a checkout has the command of a case."""
    return case not in SINCE and (has_rooms(checkout) or CASES[case][0] in ("--help", "prune"))


def run(words: list[str], checkout: Path) -> tuple[float, int]:
    """Seconds until the command ended, and bytes of what it wrote."""
    rooms = has_rooms(checkout)
    path, module = (checkout / "lib", "deeper_layers") if rooms else (checkout, "lib.pruning")
    words = words if rooms else [word for word in words if word != "prune"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        command = [sys.executable, "-m", module, *(word.replace("OUT", f"{folder}/out") for word in words)]
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        seconds = time.perf_counter() - start
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        shutil.rmtree(f"{folder}/out", ignore_errors=True)
    return seconds, written


if __name__ == "__main__":
    main()
