"""Damaged checkpoints given to ours and to others: who refuses, who ends in a traceback, who writes a wrong model.

Each is a tiny checkpoint of tests/fuzz/checkpoint_cases.py with one thing in it changed, the same for its number; two
layers are to be dropped. *refuses*: an error that ours foresaw, or of another tool an error and nothing written;
*leaves something*: an error, and a folder that looks begun; *hangs*: longer than 20 seconds; *right*: it writes what
transformers reads of the source, without the layers; *wrong*: it writes anything else. Damage that matters to nobody is
right everywhere.

    python -m benchmarks.damaged --mergekit PYTHON --optipfair PYTHON
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks import cutters, side_by_side
from tests.fuzz import checkpoint_cases
from tests.fuzz.checkpoint_cases import CUT, LAYERS, damage, is_slice, outcome

SECONDS, HANGS = 20, "it takes longer than 20 seconds"
RESULTS = ("refuses", "leaves something", "hangs", "right", "wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="a Python that has mergekit")
    parser.add_argument("--optipfair", required=True, help="a Python that has optipfair")
    parser.add_argument("--cases", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts: dict[str, collections.Counter] = {"ours": collections.Counter()}
    wrong: dict[str, list] = {"ours": []}
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepare(options.cases, Path(folder))
        for job in jobs:
            came = outcome(Path(job["source"]), Path(job["out"]) / "ours")
            note(counts["ours"], wrong["ours"], job, {"clear": "refuses", "harmless": "right"}.get(came, "wrong"))
        ways = {"mergekit": options.mergekit, "optipfair": options.optipfair}
        errors = {way: cut(way, python, jobs, Path(folder)) for way, python in ways.items()}
        versions = {way: json.loads((Path(folder) / f"{way}.json").read_text())["versions"] for way in ways}
        for job in jobs:  # whoever looks at the results does not wait for a pipe
            for path in filter(Path.is_fifo, Path(job["source"]).iterdir()):
                path.unlink()
        for way in ways:
            counts[way], wrong[way] = collections.Counter(), []
            for job, error in zip(jobs, errors[way], strict=True):
                note(counts[way], wrong[way], job, judged(job, way, error))
            print(way, dict(counts[way]), flush=True)
    content = {
        "layers": LAYERS, "cut": [CUT.start, CUT.size], "cases": options.cases, "families": checkpoint_cases.FAMILIES,
        "results": {way: {result: found[result] for result in RESULTS} for way, found in counts.items()},
        "wrong": wrong, "versions": versions,
    }  # fmt: skip
    side_by_side.keep("damaged", content)


def prepare(cases: int, folder: Path) -> list[dict]:
    jobs = []
    for number in range(cases):
        place = folder / str(number)
        (place / "model").mkdir(parents=True)
        what = damage(random.Random(number), place / "model")
        (place / "out").mkdir()
        source = str(place / "model")
        jobs.append({
            "name": str(number), "what": what, "source": source, "out": str(place / "out"), "layers": "model.layers",
            "start": CUT.start, "size": CUT.size, "yaml": CUT.mergekit_yaml(LAYERS, source),
        })  # fmt: skip
    return jobs


def cut(way: str, python: str, jobs: list[dict], folder: Path) -> list[str | None]:
    """The error of each job, or None: in one process, and another from the next job on where it hangs or dies."""
    errors: list[str | None] = []
    while len(errors) < len(jobs):
        rest = [job | {"out": str(Path(job["out"]) / way)} for job in jobs[len(errors) :]]
        (folder / "jobs.json").write_text(json.dumps(rest))
        said = folder / f"{way}.json"
        said.unlink(missing_ok=True)
        command = [python, "-P", cutters.__file__, way, str(folder), str(SECONDS)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        errors += json.loads(said.read_text())["errors"].values() if said.exists() else []
        if done.returncode and len(errors) < len(jobs):
            errors.append(HANGS if "Timeout (" in done.stderr else f"the process ended with {done.returncode}")
    return errors


def judged(job: dict, way: str, error: str | None) -> str:
    out = Path(job["out"]) / way
    if error is not None:
        left = out.exists() and any(out.iterdir())
        return "hangs" if error == HANGS else "leaves something" if left else "refuses"
    return "right" if is_slice(Path(job["source"]), out) == "harmless" else "wrong"


def note(counts: collections.Counter, wrong: list, job: dict, result: str) -> None:
    counts[result] += 1
    if result == "wrong":
        wrong.append([int(job["name"]), job["what"]])


if __name__ == "__main__":
    sys.exit(main())
