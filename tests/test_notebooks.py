"""The notebooks as a researcher runs them: on a model of their own, and on what results hold."""

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
from deeper_layers.experiments.block_parameters import ScanParameters, WhichLayersParameters
from deeper_layers.experiments.parameters import (
    ClaimsParameters,
    ComparedHealingsParameters,
    CostParameters,
    QuestionAnsweringParameters,
    ReasoningParameters,
    ReproductionParameters,
    SimilarityParameters,
    TakeAwayParameters,
)
from deeper_layers.models import gguf_conversion
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.units import all_units
from tests import notebook
from tests.mirror import write_boolq

KINDS = {
    kind.notebook: kind
    for kind in (
        SimilarityParameters,
        QuestionAnsweringParameters,
        ReasoningParameters,
        ComparedHealingsParameters,
        WhichLayersParameters,
        ScanParameters,
        ClaimsParameters,
        TakeAwayParameters,
        CostParameters,
        ReproductionParameters,
    )
}
DRAWN = {"samples": 8, "sequence_length": 32}
ASKED = DRAWN | {"limit": 6, "tasks": "capitals"}
HEALED = {"dtype": "float32", "text": "wikipedia", "loss_sequences": 4, "loss_length": 32}
# what each is asked of a tiny model, and kinds of units that it then measured
SMALL = {
    "01-similarity": (DRAWN, {"similarity"}),
    "02-question-answering": (
        ASKED | {"tasks": "boolq:2", "sizes": "0, 2", "numbers": "0", "orders": "1"},
        {"similarity", "sweep", "shots"},
    ),
    "03-reasoning": (
        ASKED | {"tasks": "sums_one_digit, sums_one_digit_generated", "sizes": "0, 2"},
        {"similarity", "sweep"},
    ),
    "04-healing": (
        ASKED | HEALED | {"sizes": "0, 2", "steps": 2, "quantization": None, "ranks": "2, 8", "seeds": "1"},
        {"similarity", "sweep", "loss", "healing"},
    ),
    "05-which-layers": (
        ASKED
        | HEALED
        | {"rules": "similarity, block-influence, llm-drop, replaceme", "percent": "20, 40"}
        | {"calibration_sequences": 2, "bridge_sequences": 2, "tokens": 4, "neighbours": 3, "skip_sequences": 2},
        {"distances", "similarity", "blocks", "choice", "cuts", "changed", "geometry"},
    ),
    "06-letters-or-words": (
        ASKED | {"tasks": "capitals, lettered_capitals, wikipedia@4", "blocks": 2, "loss_length": 32},
        {"scan", "blocks"},
    ),
    "08-take-away": (ASKED | {"sizes": "0, 2", "bits": "bfloat16, nf4", "drop": 2}, {"similarity", "bits"}),
}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What a notebook makes stays in a folder that goes."""
    for module in (healings, gguf_conversion):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def shown(name: str, **given) -> str:
    """A page, without the identifiers that pandas draws anew for each table."""
    return re.sub(r"T_[0-9a-f]{5}", "T", notebook.run(name, **given))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_measures_what_results_lack_of_a_model(name, tiny_folder, tmp_path, alone):
    given, kinds = SMALL[name]
    given = given | {"model": str(tiny_folder), "results": str(tmp_path / "results")}
    given |= {"datasets": str(write_boolq(tmp_path / "mirror"))} if "boolq" in given.get("tasks", "") else {}
    page = shown(name, **given)
    assert "<figure" in page or "<table" in page
    units = all_units(tmp_path / "results")
    assert {unit.key["model"]["name"] for unit in units} == {Path(tiny_folder).name}
    assert {unit.kind for unit in units} == kinds
    before = {unit.path: unit.path.stat().st_mtime_ns for unit in units}
    assert shown(name, **given, measure=False) == page, "what results hold is shown alike"
    assert {unit.path: unit.path.stat().st_mtime_ns for unit in all_units(tmp_path / "results")} == before


@pytest.mark.slow
def test_what_is_measured_again_is_what_was_measured(tiny_folder, tmp_path, alone):
    given = ASKED | {"model": str(tiny_folder), "results": str(tmp_path / "results"), "sizes": "0, 1"}
    notebook.run("02-question-answering", **given)
    assert "Published numbers, and the same measured again" in notebook.run("10-measured", **given)


@pytest.mark.slow
def test_every_page_of_what_is_published_loads_the_reading_wing_alone():
    """In a process in which what measures can't be imported, as the book is built."""
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'transformers', 'lm_eval', 'peft', 'bitsandbytes'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from tests import notebook\n"
        f"for name in {sorted(KINDS)}:\n"
        "    page = notebook.run(name, measure=False)\n"
        "    print(name, page.count('<figure'), 'nan' in page.split('<figure')[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        name, figures, untold = line.split()
        assert int(figures) and untold == "False", name


@pytest.mark.slow
def test_results_that_are_not_there_are_said_not_to_be(tmp_path):
    page = notebook.run("02-question-answering", results=str(tmp_path / "nothing"), measure=False)
    assert "Not measured" in page


def papermill(name: str, output: Path, **parameters) -> subprocess.CompletedProcess:
    """`papermill NOTEBOOK OUTPUT -p ...` as typed at the root of the repository."""
    given = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    command = [Path(sys.executable).with_name("papermill"), f"notebooks/{name}.ipynb", output, "--kernel", "python3"]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_papermill_as_it_is_typed(tiny_folder, tmp_path):
    done = papermill("01-similarity", tmp_path / "out.ipynb", model=tiny_folder, results=tmp_path / "results", **DRAWN)
    assert done.returncode == 0, done.stderr[-3000:]
    output = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert 'id=\\"distance-curves\\"' in output and "distances: 100%" in output, "progress reaches papermill's log"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"modle": "x"}, "unknown parameter 'modle'"), ({"model": "/does/not/exist.gguf"}, "does not exist")],
)
def test_a_mistake_is_one_line_and_an_exit_status(parameters, message, tmp_path):
    done = papermill("01-similarity", tmp_path / "out.ipynb", **parameters)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: ") and message in last


@pytest.mark.parametrize("name", KINDS)
def test_the_cell_of_parameters_is_its_class(name):
    """Names, types, defaults and what they mean, in one order."""
    (cell,) = [cell for cell in cells_of(name) if "parameters" in cell.metadata.get("tags", [])]
    stated = [
        (node.target.id, ast.unparse(node.annotation), ast.literal_eval(node.value), line.partition("  # ")[2])
        for node, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True)
    ]
    # papermill's reader of such cells knows no "str | None": the default says that None is one
    fields = KINDS[name].model_fields.items()
    assert stated == [(field, kind_of(of), of.default, of.description) for field, of in fields]
    assert stated[0][:3] == ("model", "str", "published")


def kind_of(field) -> str:
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    return " | ".join(kind.__name__ for kind in kinds if kind is not type(None))


def cells_of(name: str) -> list:
    found = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    return [cell for cell in found if cell.cell_type == "code"]


def test_each_notebook_asks_by_one_class_and_is_committed_without_outputs():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in paths] == sorted(KINDS)
    for path in paths:
        code = cells_of(path.stem)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in code)
        used = re.findall(r"(\w+)\.from_names\(globals\(\)\)", "\n".join(cell.source for cell in code))
        assert used == [KINDS[path.stem].__name__]


def test_a_notebook_reads_as_a_method():
    """No functions of its own, and cells that fit on a screen."""
    lines = 0
    for name in KINDS:
        for cell in cells_of(name):
            length = len(cell.source.splitlines())
            lines += length
            assert "def " not in cell.source, name
            assert length <= 16 or "parameters" in cell.metadata.get("tags", []), (name, cell.source)
    assert lines <= 700
