"""The Snakefile: which jobs it makes, what it refuses, and its jobs on a real SLURM that loses them."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from deeper_layers.command import main
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.store import all_results
from tests.cluster import slurm
from tests.tiny import write_folder

pytest.importorskip("snakemake", reason="snakemake is not installed: pip install -e '.[cluster]'")
TINY = ("--configfile", "workflow/config/tiny.yml")


def environment() -> dict:
    paths = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def snakemake(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        snakemake(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


def test_each_unit_is_a_job_and_the_site_comes_last(tmp_path):
    done = run("-n", "--cores", "2", *TINY, "--config", f"answers={tmp_path}/jobs")
    assert done.returncode == 0, done.stderr
    stats = dict(line.split() for line in (done.stdout + done.stderr).split("Job stats:")[1].splitlines()[3:11])
    assert stats == {
        "random_model": "2", "plan": "2", "distances": "2", "heal": "1", "sweep": "4", "notebooks": "1", "site": "1",
        "all": "1",
    }  # fmt: skip


# ---- a real SLURM ------------------------------------------------------------------------------------------


def rows(folder: Path) -> dict:
    """What was measured, by kind and name; a unit that is there twice fails."""
    with warnings.catch_warnings(action="error"):
        units = all_results(folder)
    found = {(unit.key["model"]["name"], unit.kind, unit.name): unit.rows.to_dict("records") for unit in units}
    assert len(found) == len(units)
    return found


def straight(model: Path, folder: Path) -> dict:
    """The same, by the commands as one types them, in this process."""
    given = "--limit 10 --samples 8 --sequence-length 32 --dtype float32 --quantization none".split()
    command = ["sweep", str(model), "--tasks", "capitals, sums_one_digit", *given, "--results", str(folder)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return rows(folder)


@pytest.mark.thorough
def test_on_a_slurm_that_loses_jobs_and_a_node_and_the_driver_rows_are_those_of_a_plain_run(tmp_path):
    if why := slurm.why_not():
        pytest.skip(why)
    answers = tmp_path / "jobs"
    model = answers / "models" / "random-llama"
    write_folder("llama", model)
    targets = [str(answers / "random-llama" / f"sweep-{task}.json") for task in ("capitals", "sums_one_digit")]
    command = snakemake(
        "--profile", "workflow/profiles/slurm", *TINY, "--config", f"answers={answers}", f"results={tmp_path}/results",
        "site=False", "--", *targets,
    )  # fmt: skip
    with slurm.started() as cluster, open(tmp_path / "driver.log", "ab") as log:

        def driver():
            return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)

        with contextlib.ExitStack() as stack:
            first = stack.enter_context(driver())
            stack.callback(first.kill)
            (job,) = cluster.wait_for(lambda: cluster.running("plan"), "job for the plan")
            subprocess.run(["scancel", job], check=True)
            (node,) = cluster.wait_for(lambda: cluster.running("distances"), "job for the distances").values()
            cluster.lose(node)
            cluster.wait_for(lambda: cluster.running("sweep"), "sweep that runs")
        with driver() as second:
            assert second.wait(timeout=600) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert rows(tmp_path / "results") == straight(model, tmp_path / "plain")
    left = [path.name for path in tmp_path.rglob("*") if ".lock" in path.name or ".partial" in path.name]
    assert left == [] and all(json.loads(Path(target).read_text())["units"] for target in targets)
