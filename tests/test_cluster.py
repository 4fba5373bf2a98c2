"""The Snakefile: which jobs it makes, and its jobs on a real SLURM that loses them."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from deeper_layers_companion.command import main
from deeper_layers_companion.results.places import AROUND as ROOT
from deeper_layers_companion.results.store import read_results
from tests.cluster import slurm
from tests.tiny import write_folder

pytest.importorskip("snakemake", reason="snakemake is not installed: pip install -e '.[cluster]'")


def snakemake(*arguments: str, **options) -> subprocess.Popen:
    """A driver, of the configuration of tiny random models."""
    paths = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    words += ["--configfile", "workflow/config/tiny.yml", *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.STDOUT, **options)


def test_each_unit_is_a_job_and_the_site_comes_last(tmp_path):
    done = snakemake("-n", "--cores", "2", "--config", f"answers={tmp_path}/jobs", stdout=subprocess.PIPE, text=True)
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    stats = dict(line.split() for line in said.split("Job stats:")[1].splitlines()[3:11])
    once = dict.fromkeys(("heal", "notebooks", "site", "all"), "1")
    assert stats == once | {"random_model": "2", "plan": "2", "distances": "2", "sweep": "4"}


def rows(folder: Path) -> dict:
    """What was measured, by kind and name; a unit that is there twice fails."""
    with warnings.catch_warnings(action="error"):
        units = read_results(folder)
    found = {(unit.key["model"]["name"], unit.kind, unit.name): unit.rows.to_dict("records") for unit in units}
    assert len(found) == len(units)
    return found


@pytest.mark.thorough
def test_on_a_slurm_that_loses_jobs_and_a_node_and_the_driver_rows_are_those_of_a_plain_run(tmp_path):
    if why := slurm.why_not():
        pytest.skip(why)
    answers, log = tmp_path / "jobs", tmp_path / "driver.log"
    model = answers / "models" / "random-llama"
    write_folder("llama", model)
    targets = [answers / "random-llama" / f"sweep-{task}.json" for task in ("capitals", "sums_one_digit")]
    words = ["--profile", "workflow/profiles/slurm", "--config", f"answers={answers}", f"results={tmp_path}/results"]
    words += ["site=False", "--", *map(str, targets)]
    with slurm.started() as cluster, open(log, "ab") as said, contextlib.ExitStack() as stack:
        first = stack.enter_context(snakemake(*words, stdout=said))
        stack.callback(first.kill)
        (job,) = cluster.wait_for(lambda: cluster.running("plan"), "job for the plan")
        subprocess.run(["scancel", job], check=True)
        (node,) = cluster.wait_for(lambda: cluster.running("distances"), "job for the distances").values()
        cluster.lose(node)
        cluster.wait_for(lambda: cluster.running("sweep"), "sweep that runs")
        first.kill()
        assert snakemake(*words, stdout=said).wait(timeout=600) == 0, log.read_text()[-3000:]
    # the same, by the command as one types it
    plain = f"--results {tmp_path}/plain --limit 10 --samples 8 --sequence-length 32 --dtype float32"
    plain = ["sweep", str(model), "--tasks", "capitals, sums_one_digit", "--quantization", "none", *plain.split()]
    assert CliRunner().invoke(main, plain, catch_exceptions=False).exit_code == 0
    assert rows(tmp_path / "results") == rows(tmp_path / "plain")
    left = [path.name for path in tmp_path.rglob("*") if ".lock" in path.name or ".partial" in path.name]
    assert left == [] and all(json.loads(target.read_text())["units"] for target in targets)
