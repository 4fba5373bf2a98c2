"""The notebooks as a researcher runs them: papermill on a model of their own."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import (
    AblationParameters,
    HealingParameters,
    QuestionAnsweringParameters,
    ReasoningParameters,
    ReproductionParameters,
    ShotParameters,
    SimilarityParameters,
    TakeAwayParameters,
)
from deeper_layers.models.packaged import EMBEDDED
from deeper_layers.report.claims import CLAIMS
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.units import all_units

NOTEBOOKS = {
    "01-similarity": (SimilarityParameters, ["distance-curves", "distance-heatmap", "best-start"]),
    "02-question-answering": (QuestionAnsweringParameters, ["headline", "accuracy-curves"]),
    "04-reasoning": (ReasoningParameters, ["reasoning", "chosen-and-written"]),
    "05-ablations": (
        AblationParameters,
        ["seeds-losses", "ranks-losses", "seeds-accuracy", "ranks-accuracy"],
    ),
    "03-healing": (HealingParameters, ["loss-curves", "healing-tasks", "training-curves"]),
    "08-take-away": (TakeAwayParameters, ["accuracy-bytes"]),
    "11-shots": (ShotParameters, ["shots-number", "shots-order"]),
}
SMALL = {
    "01-similarity": {"samples": 8, "sequence_length": 32},
    "02-question-answering": {"samples": 8, "sequence_length": 32, "limit": 6, "tasks": "capitals, sums_one_digit"},
    "04-reasoning": {
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "sums_one_digit, sums_one_digit_generated",
        "sizes": "0, 2",
    },
    "05-ablations": {
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "capitals", "sizes": "2", "dtype": "float32",
        "text": "wikipedia", "steps": 2, "loss_sequences": 4, "loss_length": 32, "ranks": "2, 8", "seeds": "0, 1",
    },
    "03-healing": {
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "capitals", "sizes": "0, 2", "dtype": "float32",
        "text": "wikipedia", "steps": 2, "loss_sequences": 4, "loss_length": 32,
    },
    "08-take-away": {
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "capitals", "sizes": "0, 2", "bits": "bfloat16, nf4",
        "drop": 2,
    },
    "11-shots": {
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "capitals, sums_one_digit", "sizes": "0, 2",
        "num_fewshot": 2, "numbers": 0, "orders": 1,
    },
}  # fmt: skip


def run(name: str, output: Path, **parameters) -> subprocess.CompletedProcess:
    """`papermill NOTEBOOK OUTPUT -p ...` as typed at the root of the repository."""
    given = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    command = [Path(sys.executable).with_name("papermill"), f"notebooks/{name}.ipynb", output, "--kernel", "python3"]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_a_folder(name, tiny_folder, tmp_path):
    output = tmp_path / "out.ipynb"
    done = run(name, output, model=tiny_folder, results=tmp_path / "results", **SMALL[name])
    assert done.returncode == 0, done.stderr[-3000:]
    page = output.read_text()
    for figure in NOTEBOOKS[name][1]:
        assert f'id=\\"{figure}\\"' in page, f"no figure {figure}"
    units = all_units(tmp_path / "results")
    assert {unit.key["model"]["name"] for unit in units} == {Path(tiny_folder).name}
    # a second time, everything is there and nothing is measured again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert len(before) == len(units)
    if name == "02-question-answering":
        # measured again, it is what was measured before, answer by answer
        small = SMALL[name] | {"again": "1, 2", "sequences_again": 8}
        done = run("10-reproduction", output, model=tiny_folder, results=tmp_path / "results", **small)
        assert done.returncode == 0, done.stderr[-3000:]
        (said,) = re.findall(r"\*\*(\d+) of (\d+) numbers lie .* (\d+) of (\d+) answers", output.read_text())
        assert said == ("8", "8", "36", "36")
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    if name == "01-similarity":
        assert run(name, output, model=tiny_folder, results=tmp_path / "results", **SMALL[name]).returncode == 0
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}


def test_what_is_only_written_has_no_choices(tiny_folder, tmp_path):
    """GSM8K is written and nothing else: the page compares it with no choosing of its answers."""
    datasets = ROOT.parent / "shared" / "datasets"
    if not datasets.is_dir():
        pytest.skip("needs ../shared/datasets")
    asked = {"tasks": "gsm8k:0@2", "sizes": "0, 1", "datasets": datasets}
    output = tmp_path / "out.ipynb"
    done = run("04-reasoning", output, model=tiny_folder, results=tmp_path / "results", **SMALL["04-reasoning"] | asked)
    assert done.returncode == 0, done.stderr[-3000:]
    page = output.read_text()
    assert "**GSM8K**, generated: 2 items" in page
    assert "No task is both chosen and written here." in page and 'id=\\"chosen-and-written\\"' not in page


def test_page_of_what_is_measured_again_without_the_weights(tmp_path, monkeypatch):
    """The rest of the book can be made where no package index is reachable."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    done = run("10-reproduction", tmp_path / "out.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "**Not measured again.** can't fetch" in (tmp_path / "out.ipynb").read_text()


def test_runs_on_a_gguf_file(tmp_path):
    try:
        path = EMBEDDED.file()
    except InputError as error:
        pytest.skip(f"needs the embedded model: {error}")
    output = tmp_path / "out.ipynb"
    small = {"samples": 4, "sequence_length": 32, "revision": EMBEDDED.sha256}
    done = run("01-similarity", output, model=path, results=tmp_path / "results", **small)
    assert done.returncode == 0, done.stderr[-3000:]
    (unit,) = all_units(tmp_path / "results")
    assert unit.key["model"]["weights"] == f"sha256:{EMBEDDED.sha256}"
    # progress and time left reach papermill's log
    assert "distances" in output.read_text()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"modle": "x"}, "unknown parameter 'modle'"),
        ({"samples": 0}, "samples is 0"),
        ({"model": "/does/not/exist.gguf"}, "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_status(parameters, message, tmp_path):
    done = run("01-similarity", tmp_path / "out.ipynb", **parameters)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: ") and message in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [*NOTEBOOKS, "10-reproduction"])
def test_parameters_are_typed_documented_and_the_ones_checked(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters = NOTEBOOKS[name][0] if name in NOTEBOOKS else ReproductionParameters
    stated = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    expected = {field.name: field.default for field in dataclasses.fields(parameters)}
    assert stated == expected
    for line in cell.source.splitlines():
        assert ": " in line.split("=")[0] and "  # " in line, f"{line!r} has no type or no explanation"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_help_shows_the_parameters():
    command = [Path(sys.executable).with_name("papermill"), "--help-notebook", "notebooks/02-question-answering.ipynb"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    for field in dataclasses.fields(QuestionAnsweringParameters):
        assert field.name in shown


def test_claims_without_results_are_not_measured(tmp_path):
    output = tmp_path / "out.ipynb"
    done = run("09-claims", output, results=tmp_path / "nothing")
    assert done.returncode == 0, done.stderr[-3000:]
    page = output.read_text()
    for claim in CLAIMS:
        assert f'id=\\"claim-{claim.identifier}\\"' in page
    assert page.count("not measured: ") >= len(CLAIMS) and 'class=\\"verdict agrees' not in page
