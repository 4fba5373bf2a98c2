"""The notebooks as a researcher runs them: on a model of their own, and on what results hold."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbformat
import pytest

from deeper_layers.models import gguf_reading
from deeper_layers_companion.jobs import healings, notebook_options
from deeper_layers_companion.results.places import AROUND as ROOT
from tests.mirror import write_boolq

KINDS = {
    kind.notebook: kind
    for kind in vars(notebook_options).values()
    if isinstance(kind, type) and getattr(kind, "notebook", "")
}
DRAWN = {"samples": 8, "sequence_length": 32}
ASKED = DRAWN | {"limit": 6, "tasks": "capitals", "sizes": "0, 2"}
HEALED = ASKED | {"dtype": "float32", "text": "wikipedia", "loss_sequences": 4, "loss_length": 32}
FEW = {"calibration_sequences": 2, "bridge_sequences": 2, "tokens": 4, "neighbours": 3, "skip_sequences": 2}
ALL_BLOCKS = {"tasks": "capitals, lettered_capitals, wikipedia@4", "sizes": "all", "blocks": 2, "loss_length": 32}
RULES = {"sizes": "all", "rules": "similarity, block-influence, llm-drop, replaceme", "percent": "20, 40"}
STUDY = {"corpus": "wikipedia", "loss_length": 32, "map_sizes": "1-2", "map_sequences": 4, "sizes": "0-2"}
STUDY |= {"tasks": "answers_written, answers_by_letter, answers_in_words, answers_in_words_unasked, wikipedia@4"}
# what each is asked of a tiny model
SMALL = {
    "01-similarity": DRAWN,
    "02-question-answering": ASKED | {"tasks": "boolq:2", "numbers": "0", "orders": "1"},
    "03-reasoning": ASKED | {"tasks": "sums_one_digit, sums_one_digit_generated"},
    "04-healing": HEALED | {"steps": 2, "quantization": None, "ranks": "2, 8", "seeds": "1"},
    "05-which-layers": HEALED | FEW | RULES,
    "06-letters-or-words": ASKED | ALL_BLOCKS,
    "08-take-away": ASKED | {"bits": "bfloat16, nf4", "drop": 2},
    "11-what-do-the-last-layers-hold": ASKED | STUDY,
}
THOROUGH = [name if name < "03" else pytest.param(name, marks=pytest.mark.thorough) for name in SMALL]


def cells_of(name: str) -> list:
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def shown(name: str, **given) -> str:
    """What the cells of a notebook show, one after another, as a kernel runs them, but in this process.

    Its parameters are followed by those given, as papermill has it. Without the identifiers that pandas draws anew.
    """
    names, said = {"__name__": "__main__"}, []

    def show(value: object) -> None:
        forms = (getattr(value, form, lambda: None)() for form in ("_repr_html_", "_repr_markdown_"))
        said.append(next((text for text in forms if text is not None), repr(value)))

    with mock.patch("IPython.display.display", show):
        for cell in cells_of(name):
            body = ast.parse(cell.source).body
            last = body.pop() if isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), name, "exec"), names)
            if last is not None:
                show(eval(compile(ast.Expression(last.value), name, "eval"), names))
            names |= given if "parameters" in cell.metadata.get("tags", []) else {}
    return re.sub(r"T_[0-9a-f]{5}", "T", "\n".join(said))


@pytest.fixture
def given(tiny_folder, tmp_path, monkeypatch):
    """A model of one's own and a folder of results. What a notebook makes besides stays in a folder that goes."""
    for module in (healings, gguf_reading):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return {"model": str(tiny_folder), "results": str(tmp_path / "results")}


@pytest.mark.parametrize("name", THOROUGH)
def test_measures_what_results_lack_of_a_model(name, given, tmp_path):
    given |= SMALL[name]
    given |= {"datasets": str(write_boolq(tmp_path / "mirror"))} if "boolq" in given.get("tasks", "") else {}
    page = shown(name, **given)
    assert "<figure" in page or "<table" in page
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert {path.parent.name for path in before} == {Path(given["model"]).name}
    assert shown(name, **given, measure=False) == page, "what results hold is shown alike"
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}


@pytest.mark.thorough
def test_a_new_model_comes_first_on_a_page_and_the_published_ones_beside_it(given):
    """In a folder that holds what is published too, as that of the repository does."""
    shutil.copytree(ROOT / "results", given["results"])
    page, name = shown("01-similarity", **given, **DRAWN), Path(given["model"]).name
    answer = re.search(r'id="answer">(.*?)</p>', page)[1]
    assert answer.startswith(f"In {name} the most similar quarter of the layers (")
    alt = re.search(r'id="distance-curves">.*?alt="(.*?)"', page)[1]
    places = [alt.find(model) for model in (name, "Qwen2.5-Coder-1.5B", "Gemma-3-270m", "SmolLM2-135M")]
    assert -1 not in places and places == sorted(places)


@pytest.mark.thorough
def test_what_is_measured_again_is_what_was_measured(given):
    given |= ASKED | {"sizes": "0, 1"}
    shown("02-question-answering", **given)
    assert "Published numbers, and the same measured again" in shown("10-measured", **given)


def test_results_that_are_not_there_are_said_not_to_be(tmp_path):
    assert "Not measured" in shown("02-question-answering", results=str(tmp_path / "nothing"), measure=False)


@pytest.mark.thorough
def test_papermill_as_it_is_typed_at_the_root_of_the_repository(given, tmp_path):
    words = [word for key, value in (given | DRAWN).items() for word in ("-p", key, str(value))]
    command = [Path(sys.executable).with_name("papermill"), "notebooks/01-similarity.ipynb", tmp_path / "out.ipynb"]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--kernel", "python3", *words], cwd=ROOT, env=environment, timeout=900)
    output = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert done.returncode == 0 and 'id=\\"distance-curves\\"' in output
    assert "distances: 100%" in output, "progress reaches papermill's log"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("01-similarity", ["-p", "samples", "many"], "samples is 'many', expected a valid integer"),
        ("01-similarity", ["-p", "modle", "x"], "unknown parameter 'modle': expected some of model, results"),
        ("02-question-answering", ["-p", "tasks", "capitals@0"], "tasks is 'capitals@0', expected tasks like"),
        ("02-question-answering", ["-y", "sizes: [0, 1]"], 'sizes is [0, 1], expected numbers like "0-8, 12", or all'),
        ("04-healing", ["-p", "preset", "big"], "preset is 'big', expected one of Llama-2 7B"),
        ("09-cost", ["-p", "benchmarks", "nowhere"], "benchmarks is 'nowhere', and "),
    ],
)
def test_papermill_ends_with_one_line_for_a_wrong_value(name, words, message, tmp_path):
    command = [Path(sys.executable).with_name("papermill"), f"notebooks/{name}.ipynb", tmp_path / "out.ipynb"]
    command += ["--kernel", "python3", *words, "-p", "results", str(tmp_path / "results")]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=900, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"InputError: {message}")
    assert not (tmp_path / "results").exists()


@pytest.mark.quick
@pytest.mark.parametrize("name", KINDS)
def test_the_cell_of_parameters_is_its_class(name):
    """Names, defaults and what they mean, in one order; committed without outputs."""
    code = cells_of(name)
    (cell,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    stated = [
        (node.target.id, ast.literal_eval(node.value), line.partition("  # ")[2])
        for node, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True)
    ]
    fields = KINDS[name].model_fields.items()
    assert stated == [(field, of.default, of.description) for field, of in fields]
    assert not any(one.get("outputs") or one.get("execution_count") for one in code)
    used = re.findall(r"(\w+)\.from_names\(globals\(\)\)", "\n".join(one.source for one in code))
    assert used == [KINDS[name].__name__]
