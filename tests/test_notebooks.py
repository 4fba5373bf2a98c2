"""The notebooks as a researcher runs them: on a model of their own, and on what results hold."""

import ast
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import nbformat
import pytest

from deeper_layers.experiments import healings, notebook_parameters
from deeper_layers.models import gguf_conversion
from deeper_layers.results.places import AROUND as ROOT
from tests import notebook
from tests.mirror import write_boolq

KINDS = {
    kind.notebook: kind
    for kind in vars(notebook_parameters).values()
    if isinstance(kind, type) and getattr(kind, "notebook", "")
}
DRAWN = {"samples": 8, "sequence_length": 32}
ASKED = DRAWN | {"limit": 6, "tasks": "capitals", "sizes": "0, 2"}
HEALED = {"dtype": "float32", "text": "wikipedia", "loss_sequences": 4, "loss_length": 32}
FEW = {"calibration_sequences": 2, "bridge_sequences": 2, "tokens": 4, "neighbours": 3, "skip_sequences": 2}
# what each is asked of a tiny model
SMALL = {
    "01-similarity": DRAWN,
    "02-question-answering": ASKED | {"tasks": "boolq:2", "numbers": "0", "orders": "1"},
    "03-reasoning": ASKED | {"tasks": "sums_one_digit, sums_one_digit_generated"},
    "04-healing": ASKED | HEALED | {"steps": 2, "quantization": None, "ranks": "2, 8", "seeds": "1"},
    "05-which-layers": ASKED
    | HEALED
    | FEW
    | {"sizes": "all", "rules": "similarity, block-influence, llm-drop, replaceme", "percent": "20, 40"},
    "06-letters-or-words": ASKED
    | {"tasks": "capitals, lettered_capitals, wikipedia@4", "sizes": "all", "blocks": 2, "loss_length": 32},
    "08-take-away": ASKED | {"bits": "bfloat16, nf4", "drop": 2},
}
THOROUGH = [name if name < "03" else pytest.param(name, marks=pytest.mark.thorough) for name in SMALL]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What a notebook makes stays in a folder that goes."""
    for module in (healings, gguf_conversion):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def shown(name: str, **given) -> str:
    """A page, without the identifiers that pandas draws anew for each table."""
    return re.sub(r"T_[0-9a-f]{5}", "T", notebook.run(name, **given))


@pytest.mark.parametrize("name", THOROUGH)
def test_measures_what_results_lack_of_a_model(name, tiny_folder, tmp_path, alone):
    given = SMALL[name] | {"model": str(tiny_folder), "results": str(tmp_path / "results")}
    given |= {"datasets": str(write_boolq(tmp_path / "mirror"))} if "boolq" in given.get("tasks", "") else {}
    page = shown(name, **given)
    assert "<figure" in page or "<table" in page

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}

    before = times()
    assert {path.parent.name for path in before} == {Path(tiny_folder).name}
    assert shown(name, **given, measure=False) == page, "what results hold is shown alike"
    assert times() == before


@pytest.mark.thorough
def test_a_new_model_comes_first_on_a_page_and_the_published_ones_beside_it(tiny_folder, tmp_path, alone):
    """In a folder that holds what is published too, as that of the repository does."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    page = shown("01-similarity", model=str(tiny_folder), results=str(tmp_path / "results"), **DRAWN)
    name = Path(tiny_folder).name
    assert f'id="answer">Of {name} the most similar' in page
    alt = re.search(r'id="distance-curves">.*?alt="(.*?)"', page)[1]
    places = [alt.find(model) for model in (name, "Qwen2.5-Coder-1.5B", "Gemma-3-270m", "SmolLM2-135M")]
    assert -1 not in places and places == sorted(places)


@pytest.mark.thorough
def test_what_is_measured_again_is_what_was_measured(tiny_folder, tmp_path, alone):
    given = ASKED | {"model": str(tiny_folder), "results": str(tmp_path / "results"), "sizes": "0, 1"}
    notebook.run("02-question-answering", **given)
    assert "Published numbers, and the same measured again" in notebook.run("10-measured", **given)


def test_results_that_are_not_there_are_said_not_to_be(tmp_path):
    page = notebook.run("02-question-answering", results=str(tmp_path / "nothing"), measure=False)
    assert "Not measured" in page


@pytest.mark.thorough
def test_papermill_as_it_is_typed(tiny_folder, tmp_path):
    """At the root of the repository; a mistake is one line."""

    def papermill(**parameters) -> subprocess.CompletedProcess:
        given = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
        command = [Path(sys.executable).with_name("papermill"), "notebooks/01-similarity.ipynb", tmp_path / "out.ipynb"]
        environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
        words = [*command, "--kernel", "python3", *given]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)

    done = papermill(model=tiny_folder, results=tmp_path / "results", **DRAWN)
    assert done.returncode == 0, done.stderr[-3000:]
    output = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert 'id=\\"distance-curves\\"' in output and "distances: 100%" in output, "progress reaches papermill's log"
    done = papermill(modle="x")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("InputError: unknown parameter 'modle'")


@pytest.mark.quick
@pytest.mark.parametrize("name", KINDS)
def test_the_cell_of_parameters_is_its_class(name):
    """Names, types, defaults and what they mean, in one order; committed without outputs, and no longer than a screen
    a cell."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    (cell,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    stated = [
        (node.target.id, ast.unparse(node.annotation), ast.literal_eval(node.value), line.partition("  # ")[2])
        for node, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True)
    ]
    # papermill's reader of such cells knows no "str | None": the default says that None is one
    fields = KINDS[name].model_fields.items()
    assert stated == [(field, kind_of(of), of.default, of.description) for field, of in fields]
    assert stated[0][:3] == ("model", "str", "published")
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in code)
    assert all(len(one.source.splitlines()) <= 16 for one in code if one is not cell)
    used = re.findall(r"(\w+)\.from_names\(globals\(\)\)", "\n".join(cell.source for cell in code))
    assert used == [KINDS[name].__name__]


def kind_of(field) -> str:
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    # a list is read from a text
    return " | ".join(
        kind.__name__ if kind in (int, float, bool) else "str" for kind in kinds if kind is not type(None)
    )
