"""The code of the book, without the built site: notebooks that run in it, pages that it makes of results/."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from book import companion, explorer, measured, models
from deeper_layers.cuts import Cut
from deeper_layers.experiments.parameters import AblationParameters, TakeAwayParameters
from deeper_layers.healing.presets import PRESETS
from deeper_layers.models.packaged import EMBEDDED
from deeper_layers.report.evidence import Answers
from deeper_layers.results.units import Unit, all_units
from tests.page import FIGURE, Page

ROOT = Path(__file__).resolve().parents[1]


def test_a_failing_notebook_stops_the_build_and_leaves_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(companion, "ROOT", tmp_path)
    monkeypatch.setattr(companion, "EXECUTED", tmp_path / "executed")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('size 31 is too large')")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "bad.ipynb")
    with pytest.raises(SystemExit, match=r"notebooks/bad\.ipynb failed: ValueError: size 31 is too large"):
        companion.run_notebook("bad")
    assert not list(tmp_path.glob("executed/*"))


def test_a_page_of_other_parameters_says_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(companion, "ROOT", tmp_path)
    monkeypatch.setattr(companion, "EXECUTED", tmp_path / "executed")
    cells = [
        nbformat.v4.new_markdown_cell("# How many?"),
        nbformat.v4.new_code_cell("size = 1\nmeasure = True", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("class InputError(Exception): pass\nif not measure: raise InputError(message)"),
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "notebooks" / "some.ipynb")
    page = "other:\n  notebook: some\n  title: Complete\n  parameters: {size: 7, measure: %s, message: %r}\n"

    def built(measure, message="not measured: boolq"):
        (tmp_path / "book" / "pages.yml").write_text(page % (measure, message))
        companion.run_notebook("other")
        return nbformat.read(tmp_path / "executed" / "other.ipynb", as_version=4).cells

    cells = built("true")
    assert cells[0].source == "# Complete" and "size = 7" in cells[2].source
    (cell,) = built("false")
    assert cell.source.startswith("# Complete\n") and "holds none of the measurements" in cell.source
    # any other mistake stops the build
    with pytest.raises(SystemExit, match="some.ipynb failed: InputError: limit is 0"):
        built("false", "limit is 0")


def test_a_model_measured_with_papermill_is_in_the_next_site(tiny_folder, tmp_path):
    """Nobody edits a page: its own pages, their place in the navigation, and the figures of all models."""
    skip = shutil.ignore_patterns("_build", "executed", "__pycache__", "results")
    for name in ("book", "lib", "notebooks", "benchmarks", "_config.yml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skip, symlinks=True)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    for name in ("index", "method", "glossary"):  # pages of models lead to the latter two
        (tmp_path / "book" / f"{name}.md").write_text(f"# {name}\n")
    chapters = [{"file": name} for name in ("executed/07-models", "method", "glossary")]
    contents = {"format": "jb-book", "root": "index", "parts": [{"chapters": chapters}]}
    (tmp_path / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}

    def typed(command: str) -> None:
        program, *words = command.split()
        program = Path(sys.executable).with_name(program)
        done = subprocess.run([program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    small = f"--kernel python3 -p model {tiny_folder} -p samples 8 -p sequence_length 32 -p limit 6"
    asked = {
        "04-reasoning": "-p tasks capitals,sums_one_digit_generated/0-1",
        "03-healing": "-p tasks capitals -p sizes 0,2 -p dtype float32 -p text wikipedia -p steps 2 "
        "-p loss_sequences 4 -p loss_length 32",
        "11-shots": "-p tasks capitals -p sizes 0,2 -p num_fewshot 1 -p numbers 0 -p orders 1",
        "05-ablations": "-p tasks capitals -p sizes 2 -p dtype float32 -p text wikipedia -p steps 2 -p ranks 2,8 "
        "-p seeds 0,1 -p loss_sequences 4 -p loss_length 32",
        "08-take-away": "-p tasks capitals -p sizes 0,2 -p bits bfloat16,nf4 -p drop 2",
    }
    for notebook, own in asked.items():
        typed(f"papermill notebooks/{notebook}.ipynb out.ipynb {small} {own}")
    (folder,) = (tmp_path / "results").iterdir()
    measured = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    typed("jupyter-book build book/ -W -n --keep-going")
    html = tmp_path / "book" / "_build" / "html"
    links = [link.partition("#")[0] for link in Page(html / "index.html").links]
    ends = ("", "-reasoning", "-healing", "-ablations", "-take-away", "-shots", "-layers")
    for name in (f"model-{folder.name}{end}" for end in ends):
        page = html / "executed" / f"{name}.html"
        assert f"executed/{name}.html" in links, "it is not in the navigation"
        assert FIGURE.search(page.read_text(encoding="utf-8")), "it shows no figure"
    assert measured == {path: path.stat().st_mtime_ns for path in folder.iterdir()}, "it was measured again"
    figures = FIGURE.split((html / "executed" / "07-models.html").read_text(encoding="utf-8"))[1:]
    assert figures and Path(tiny_folder).name in figures[0]


def test_what_dropping_gains_is_measured_or_follows(tmp_path):
    """Parameters of every size where all layers are alike; times of the sizes measured, and of no other."""
    share = {way: [0.75, 0.7, 0.8] for way in ("prefill", "decode", "decode_many")}
    rows = [{"size": n, "parameters": 100 - 10 * n, "bytes": 200 - 20 * n, "share_of_time": share} for n in (0, 2, 4)]
    measured = {"model": "tiny", "dtype": "bfloat16", "prompt": 512, "tokens": 32, "rows": rows}
    path = tmp_path / "gained-tiny.json"
    path.write_text(json.dumps(measured))
    found = explorer.gained_by_size("tiny", 6, tmp_path)
    assert [found[n]["weights"] for n in (0, 1, 5)] == [
        [100, 200, "bfloat16"],
        [90, 180, "bfloat16"],
        [50, 100, "bfloat16"],
    ]
    assert found[2]["time"]["prefill"] == [0.75, 0.7, 0.8, 512] and "time" not in found[1]
    rows[2]["parameters"] = 61  # one layer has fewer than the others
    path.write_text(json.dumps(measured))
    assert sorted(explorer.gained_by_size("tiny", 6, tmp_path)) == [0, 2, 4]
    assert explorer.gained_by_size("other", 6, tmp_path) == {}


def test_a_group_took_as_long_as_its_tasks(monkeypatch):
    """The unit of a group is put together in seconds where its tasks were measured before."""

    def unit(name, seconds, gibibytes, **details):
        provenance = {"seconds": seconds, "seconds_in_earlier_runs": 100.0, "peak_memory_bytes": gibibytes * 2**30}
        return Unit("sweep", name, {}, provenance, pd.DataFrame(), details, Path(f"{name}.json"))

    tasks = {f"{name}.json": unit(name, 1000.0, 2) for name in ("one", "other")}
    monkeypatch.setattr(measured, "read_unit", lambda path: tasks.get(path.name))
    group = unit("group", 6.0, 1, units=[*tasks, "gone.json"])
    assert measured.cost(group) == {"Seconds": "2,200", "Memory, GiB": "2.0"}
    assert measured.cost(tasks["one.json"]) == {"Seconds": "1,100", "Memory, GiB": "2.0"}


def test_a_packaged_sample_is_no_second_panel_of_its_data_set():
    """What a healing asked of few packaged items stands on its own page, not beside the data set under one name."""

    def sweep(task, sizes, quantization=None):
        key = {"task": task, "cuts": [[3, size] for size in sizes], "rule": "simple", "dtype": "bfloat16"}
        return Unit("sweep", task, key | {"quantization": quantization}, {}, pd.DataFrame(), {}, Path(task))

    units = [sweep("embedded_boolq", [0, 2]), sweep("boolq", [0, 1, 2]), sweep("embedded_piqa", [0, 2])]
    units.append(sweep("embedded_boolq", [0, 2], "nf4"))
    names = [[unit.name for unit in group] for group in models._alike(units)]
    assert names == [["boolq", "embedded_piqa"], ["embedded_boolq"]]


def test_a_loss_beside_a_healing_is_of_the_same_weights():
    """Where a loss was measured of the weights as they are too, it is shown only where nothing was healed."""

    def unit(kind, quantization, losses):
        rows = [{"metric": "loss", "start": cut.start, "size": cut.size, "value": v} for cut, v in losses.items()]
        opened = {"dtype": "bfloat16", "quantization": quantization}
        settings = {"healing": dataclasses.asdict(PRESETS["small"])} if kind == "healing" else {}
        record = {"healing": {"tokens": 9, "trained_parameters": 9, "seconds": 9.0}}
        return Unit(kind, "c4", {"text": "c4"} | opened | settings, {}, pd.DataFrame(rows), record)

    cuts = [Cut(3, 1), Cut(2, 2)]
    units = [
        unit("loss", None, {cuts[0]: 4.0, cuts[1]: 5.0}),
        unit("loss", "nf4", {cuts[0]: 4.5}),
        unit("healing", "nf4", {cuts[0]: 3.0}),
    ]
    answers = {"some": Answers("some", cuts, np.ones((2, 5), bool), {"chance": 0.25}, 6)}
    first, second = (explorer._step(answers, cut.size, 6, units) for cut in cuts)
    assert first["loss"] == [4.5, "C4, nf4, bfloat16"] and first["healed"] == [3.0, "C4, nf4, bfloat16"]
    assert second["loss"] == [5.0, "C4, not quantized, bfloat16"] and "healed" not in second


@pytest.mark.parametrize(
    "kind, asked, healing, same",
    [
        (AblationParameters, models._ablated, lambda parameters: parameters, ("ranks", "seeds")),
        (TakeAwayParameters, models._taken_away, TakeAwayParameters.healing, ("drop", "gguf_type")),
    ],
)
def test_a_page_is_asked_for_what_its_notebook_was(kind, asked, healing, same):
    """Of a model whose notebooks ran as they are, read back from its units: the way to a file among them."""
    units = [unit for unit in all_units() if unit.key["model"]["name"] == EMBEDDED.name]
    page = kind(**asked(units, [unit for unit in units if unit.kind == "similarity"]))
    own = kind()
    assert page.limits == own.limits and page.size_list(30) == own.size_list(30)
    assert healing(page).config() == healing(own).config()
    for name in ("rules", "text", *same):
        assert getattr(page, name) == getattr(own, name), name
