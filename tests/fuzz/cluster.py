"""Workers, jobs and the driver killed at drawn moments, and begun anew, until all is measured.

    python -m tests.fuzz.cluster 200         # so many workers killed: eight at once on the units of one folder
    python -m tests.fuzz.cluster 200 20      # and so many jobs and drivers of Snakemake, of SLURM where it is installed

At the end of each round every unit is there once, is what an undisturbed run measures, and nothing is left beside it;
while others are killed nothing is ever read half.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import psutil
import yaml
from click.testing import CliRunner

from deeper_layers import results
from deeper_layers.command import group
from deeper_layers.command.jobs import asked_of
from deeper_layers.experiments.measurement import each
from deeper_layers.results.units import all_units
from tests.cluster import slurm
from tests.test_workers import UNITS, WORKERS, distances_of
from tests.tiny import write_folder

CONTEXT = multiprocessing.get_context("fork")


def measured(folder: Path) -> dict:
    """The rows of each unit; one that is read half, or is there twice, is an error."""
    with warnings.catch_warnings(action="error"):
        units = all_units(folder)
    found = {(unit.key["model"]["name"], unit.kind, unit.name): unit.rows.to_csv() for unit in units}
    assert len(found) == len(units), "a unit is there twice"
    return found


def left_over(folder: Path) -> list[str]:
    """What is no unit."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]


# ---- workers -------------------------------------------------------------------------------------------------


def worker(folder: Path, seed: int) -> None:
    numbers = random.Random(seed).sample(range(UNITS), UNITS)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        each([distances_of(number, folder) for number in numbers])


def begun(target, *arguments) -> multiprocessing.Process:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def round_of_workers(draw: random.Random, folder: Path, most: int) -> int:
    """Eight workers, killed one after the other in the middle of it, and begun anew; how many were killed."""
    killed, seeds = 0, iter(range(10**6))
    workers = [begun(worker, folder, next(seeds)) for _ in range(WORKERS)]
    while any(one.is_alive() for one in workers):
        time.sleep(draw.uniform(0, 0.2))
        measured(folder / "results")
        chosen = draw.randrange(WORKERS)
        if killed < most and workers[chosen].is_alive():
            workers[chosen].kill()
            workers[chosen].join()
            killed += workers[chosen].exitcode == -signal.SIGKILL
            workers[chosen] = begun(worker, folder, next(seeds))
    assert all(one.exitcode == 0 for one in workers), [one.exitcode for one in workers]
    worker(folder, 0)
    return killed


# ---- jobs and the driver -------------------------------------------------------------------------------------


def straight_tiny(folder: Path) -> dict:
    """What workflow/config/tiny.yml measures, by its commands one after the other in this process."""
    config = yaml.safe_load((results.repository() / "workflow" / "config" / "tiny.yml").read_text())
    for entry in config["models"]:
        model = folder / "models" / f"random-{entry['random']}"
        write_folder(entry["random"], model)
        asked = asked_of(config | {"results": str(folder / "tiny")}, str(model), entry)
        typed = [asked.command("sweep"), *(asked.command("heal", drop=drop) for drop in asked.heal)]
        for command in typed:
            done = CliRunner().invoke(group.main, shlex.split(command))
            assert done.exit_code == 0, done.output
    return measured(folder / "tiny")


def snakemake(folder: Path, virtual: "slurm.Cluster | None") -> subprocess.Popen:
    profile = ["--profile", "workflow/profiles/slurm"] if virtual else ["--cores", "2"]
    command = [sys.executable, "-m", "snakemake", *profile, "--configfile", "workflow/config/tiny.yml", "--config"]
    given = [f"answers={folder}/jobs", f"results={folder}/results", "site=False", "--", "measured"]
    with open(folder / "driver.log", "ab") as log:
        return subprocess.Popen(
            [*command, *given], stdout=log, stderr=log, cwd=results.repository(), start_new_session=True
        )


def jobs_of(folder: Path) -> list[psutil.Process]:
    """Processes that measure into a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"{folder}/results" in (words := process.cmdline()) and "deeper_layers" in words:
                found.append(process)
    return found


def round_of_jobs(draw: random.Random, folder: Path, most: int, virtual: "slurm.Cluster | None") -> collections.Counter:
    """A run of workflow/config/tiny.yml whose jobs, nodes and driver are killed; which, and how often."""
    killed = collections.Counter()
    driver = snakemake(folder, virtual)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if driver.wait(draw.uniform(0, 20)) == 0:
                break
            driver = snakemake(folder, virtual)  # a job was killed more often than it is tried
        measured(folder / "results")
        if killed.total() >= most or not jobs_of(folder):  # a kill is one of a job, or while one runs
            continue
        what = draw.choice(["job", "driver", "node"] if virtual else ["job", "driver"])
        if what == "driver":
            driver.kill()
            driver.wait()
            driver = snakemake(folder, virtual)
            killed["driver"] += 1
        elif what == "node" and (running := virtual.running()):
            virtual.lose(draw.choice(sorted(running.values())))
            killed["node"] += 1
        elif what == "job" and (running := jobs_of(folder)):
            draw.choice(running).kill()
            killed["job"] += 1
        print(dict(killed), file=sys.stderr, flush=True)
    while jobs_of(folder):  # begun by a driver that was killed
        time.sleep(1)
    return killed


def main(workers: int, jobs: int = 0, seed: int = 0) -> None:
    draw, counts = random.Random(seed), collections.Counter()
    plain, state = results.provenance, results.provenance("a processor")
    results.provenance = lambda _: state  # to ask git takes longer than to measure
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        straight = Path(root) / "straight"
        straight.mkdir()
        worker(straight, 0)
        expected, number = measured(straight / "results"), 0
        while counts["workers killed"] < workers:
            folder = Path(root) / str(number := number + 1)
            folder.mkdir()
            counts["workers killed"] += round_of_workers(draw, folder, workers - counts["workers killed"])
            same = measured(folder / "results") == expected and not left_over(folder / "results")
            counts[f"rounds of {UNITS} units: {'same' if same else 'WRONG'}"] += 1
        results.provenance = plain
        virtual = None if not jobs or slurm.why_not() else stack.enter_context(slurm.started())
        tiny = straight_tiny(Path(root)) if jobs else {}
        while (done := sum(counts[f"{what}s killed"] for what in ("job", "driver", "node"))) < jobs:
            folder = Path(root) / f"jobs-{(number := number + 1)}"
            folder.mkdir()
            killed = round_of_jobs(draw, folder, min(jobs - done, 10), virtual)
            counts.update({f"{what}s killed": count for what, count in killed.items()})
            same = measured(folder / "results") == tiny and not left_over(folder / "results")
            counts[f"runs of config/tiny.yml: {'same' if same else 'WRONG'}"] += 1
            print(json.dumps(counts), file=sys.stderr, flush=True)
    print(json.dumps(counts, indent=1, sort_keys=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
