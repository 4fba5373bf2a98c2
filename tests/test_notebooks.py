"""The notebooks as a researcher runs them: papermill on a model of their own."""

import ast
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import nbformat
import pytest

from deeper_layers.experiments import healings
from deeper_layers.experiments.block_parameters import GeometryParameters, WhichLayersParameters
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
from deeper_layers.models import gguf_conversion
from deeper_layers.models.opening import load_model
from deeper_layers.package_index import file_hash
from deeper_layers.report.claims.claims import CLAIMS
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.records import all_records
from deeper_layers.results.units import all_units
from tests import notebook
from tests.mirror import write_boolq
from tests.tiny import write_gguf

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
    "13-which-layers": (WhichLayersParameters, ["block-maps", "regret", "rules-capitals"]),
    "14-geometry": (GeometryParameters, ["residual-cosines", "skipped-layers", "dimensions", "pairs"]),
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
        "text": "wikipedia", "steps": 2, "loss_sequences": 4, "loss_length": 32, "ranks": "2, 8", "seeds": "0, 1, 2",
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
        "samples": 8, "sequence_length": 32, "limit": 6, "tasks": "boolq", "sizes": "0, 2", "num_fewshot": 2,
        "numbers": 0, "orders": 1,
    },
    "14-geometry": {"samples": 8, "sequence_length": 32, "tokens": 4, "neighbours": 3, "skip_sequences": 2},
    "13-which-layers": {
        "samples": 8, "sequence_length": 32, "dtype": "float32", "text": "wikipedia", "loss_sequences": 4,
        "loss_length": 32, "calibration_sequences": 2, "bridge_sequences": 2, "percent": "20, 40", "limit": 6,
        "tasks": "capitals",
        "rules": "similarity, block-influence, taylor-plus, llm-drop, laco, replaceme",
    },
}  # fmt: skip


def papermill(name: str, output: Path, **parameters) -> subprocess.CompletedProcess:
    """`papermill NOTEBOOK OUTPUT -p ...` as typed at the root of the repository."""
    given = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    command = [Path(sys.executable).with_name("papermill"), f"notebooks/{name}.ipynb", output, "--kernel", "python3"]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """A cache of its own for what a notebook makes; wheels stay where they are."""
    for module in (healings, gguf_conversion):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")


def states(folder: Path) -> dict[Path, int]:
    """Every file of some results, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_a_folder(name, tiny_folder, tmp_path, caches, monkeypatch):
    results = tmp_path / "results"
    given = {"model": str(tiny_folder), "results": str(results)} | SMALL[name]
    if name == "11-shots":
        given["datasets"] = str(write_boolq(tmp_path / "mirror"))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    if name == "01-similarity":  # as it is typed, and in a kernel: for the others papermill would do the same again
        done = papermill(name, tmp_path / "out.ipynb", **given)
        assert done.returncode == 0, done.stderr[-3000:]
        output = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
        assert all(f'id=\\"{figure}\\"' in output for figure in NOTEBOOKS[name][1])
        assert "distances: 100%" in output, "progress does not reach papermill's log"
        before = states(results)
    page = notebook.run(name, **given)
    for figure in NOTEBOOKS[name][1]:
        assert f'id="{figure}"' in page, f"no figure {figure}"
    units = all_units(results)
    assert {unit.key["model"]["name"] for unit in units} == {Path(tiny_folder).name}
    (record,) = all_records(results)
    assert (record.notebook, record.parameters["model"]) == (name, Path(tiny_folder).name)
    assert record.parameters["samples"] == 8 and str(tmp_path) not in record.path.read_text()
    assert len(states(results)) == len(units) + 1
    if name == "05-ablations":
        assert "Not measured: two ranks or more, each with three seeds" in page
        assert 'id="ranks-by-seed-2"' in notebook.run(name, **given, rank=2), "each seed of another rank"
    if name == "13-which-layers":
        assert "the similarity rule costs" in page and "attention of" in page, "sublayers are among the choices"
        assert "taylor\\-plus\\: size is 1; expected 0 to 0" in page, "what can not be had of so few layers is named"
    if name == "01-similarity":  # a second time, everything is there and nothing is measured again
        assert states(results) == before
    if name == "02-question-answering":
        # measured again, it is what was measured before, answer by answer
        before = states(results)
        page = notebook.run("10-reproduction", **given, again="1, 2", sequences_again=8)
        (said,) = re.findall(r"\*\*(\d+) of (\d+) numbers lie .* (\d+) of (\d+) answers", page)
        assert said == ("8", "8", "36", "36")
        assert states(results) == before


@pytest.mark.slow
def test_what_is_only_written_has_no_choices(tiny_folder, tmp_path):
    """GSM8K is written and nothing else: the page compares it with no choosing of its answers."""
    datasets = ROOT.parent / "shared" / "datasets"
    if not datasets.is_dir():
        pytest.skip("needs ../shared/datasets")
    asked = {"tasks": "gsm8k:0@2", "sizes": "0, 1", "datasets": str(datasets), "results": str(tmp_path)}
    page = notebook.run("04-reasoning", model=str(tiny_folder), **SMALL["04-reasoning"] | asked)
    assert "**GSM8K**, generated: 2 items" in page
    assert "No task is both chosen and written here." in page and 'id="chosen-and-written"' not in page


@pytest.mark.slow
def test_page_of_what_is_measured_again_without_the_weights(tmp_path, monkeypatch):
    """The rest of the book can be made where no package index is reachable."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert "**Not measured again.** can't fetch" in notebook.run("10-reproduction")


@pytest.mark.slow
def test_runs_on_a_gguf_file(tiny_folder, tmp_path, caches):
    path = write_gguf(*load_model(str(tiny_folder)), tmp_path / "tiny.gguf")
    weights = file_hash(path)
    small = {"samples": 4, "sequence_length": 32, "revision": weights, "results": str(tmp_path / "results")}
    notebook.run("01-similarity", model=str(path), **small)
    (unit,) = all_units(tmp_path / "results")
    assert unit.key["model"] == {"name": "tiny", "weights": f"sha256:{weights}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"modle": "x"}, "unknown parameter 'modle'"),
        ({"model": "/does/not/exist.gguf"}, "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_status(parameters, message, tmp_path):
    done = papermill("01-similarity", tmp_path / "out.ipynb", **parameters)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: ") and message in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [*NOTEBOOKS, "10-reproduction"])
def test_the_cell_of_parameters_is_its_class(name):
    """Names, types, defaults and what they mean, in one order."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    stated = [
        (node.target.id, ast.unparse(node.annotation), ast.literal_eval(node.value), line.partition("  # ")[2])
        for node, line in zip(ast.parse(cell.source).body, lines, strict=True)
    ]
    fields = (NOTEBOOKS[name][0] if name in NOTEBOOKS else ReproductionParameters).model_fields
    # papermill's reader of such cells knows no "str | None": the default says that None is one
    assert stated == [(name, kind_of(field), field.default, field.description) for name, field in fields.items()]


def kind_of(field) -> str:
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    return " | ".join(kind.__name__ for kind in kinds if kind is not type(None))


def test_every_notebook_with_a_class_is_among_these():
    kinds = {name: kind for name, (kind, _) in NOTEBOOKS.items()} | {"10-reproduction": ReproductionParameters}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        used = re.findall(r"(\w+)\.from_names\(globals\(\)\)", path.read_text(encoding="utf-8"))
        assert used == ([kinds[path.stem].__name__] if path.stem in kinds else []), path.name
    # the name under which a run is recorded; what is measured again is kept nowhere
    assert {kind.notebook: name for name, (kind, _) in NOTEBOOKS.items()} == {name: name for name in NOTEBOOKS}
    assert ReproductionParameters.notebook == ""


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_help_shows_the_parameters():
    command = [Path(sys.executable).with_name("papermill"), "--help-notebook", "notebooks/02-question-answering.ipynb"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    for name, field in QuestionAnsweringParameters.model_fields.items():
        assert name in shown and field.description in shown


@pytest.mark.slow
def test_claims_without_results_are_not_measured(tmp_path):
    page = notebook.run("09-claims", results=str(tmp_path / "nothing"))
    for claim in CLAIMS:
        assert f'id="claim-{claim.identifier}"' in page
    assert page.count("not measured: ") >= len(CLAIMS) and 'class="verdict agrees' not in page
