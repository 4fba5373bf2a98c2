"""The code of the book, without the built site: notebooks that run in it, pages that it makes of records."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from papermill.translators import PythonTranslator

from book.extension import article, captions, contents, measured, pages, running
from book.extension.inputs import Inputs
from deeper_layers.report.names import visible
from deeper_layers.results.records import Record, all_records, write_record
from deeper_layers.results.units import Unit
from tests import hostile, notebook
from tests.mirror import write_boolq
from tests.page import FIGURE, ROOT, Page

ERRORS = "class InputError(Exception): pass\nclass NotMeasuredError(InputError): pass"


@pytest.fixture
def book(tmp_path):
    """A book of one notebook with two parameters, and what makes a page of it."""

    def made(code: str, parameters: dict | None = None, **others) -> pages.Page:
        cells = [
            nbformat.v4.new_markdown_cell("# How many?"),
            nbformat.v4.new_code_cell("size: int = 1\nmeasure: bool = True", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f"{ERRORS}\n{code}"),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "notebooks" / "some.ipynb")
        record = None
        if parameters is not None:
            path = write_record("some", "tiny", parameters, tmp_path / "results", **others)
            (record,) = [record for record in all_records(tmp_path / "results") if record.path == path]
        return pages.Page("page", "some", "How many?", "How many?", record, tmp_path)

    return made


def test_a_failing_notebook_stops_the_build_and_leaves_no_page(book, tmp_path):
    page = book("raise ValueError('size 31 is too large')")
    with pytest.raises(
        SystemExit, match=r"notebooks/some\.ipynb failed: ValueError: size 31 is too large \(to see where: "
    ):
        running.run([page], Inputs(tmp_path), 2)
    assert not list(tmp_path.glob("book/executed/*"))


def test_a_page_of_a_record_measures_nothing_and_says_what_is_not_measured(book):
    page = book("print(f'size {size}, measure {measure}')", {"size": 7})
    running.run_notebook(page, "")
    shown = nbformat.read(page.executed, as_version=4).cells[-1].outputs[0].text
    assert shown == "size 7, measure False\n"
    page = book("raise NotMeasuredError('not measured: boolq')", {"size": 7})
    running.run_notebook(page, "")
    (cell,) = nbformat.read(page.executed, as_version=4).cells
    assert cell.source.startswith("# How many?\n") and "holds none of the measurements" in cell.source
    # whatever else goes wrong with a record is said where its page would be, and no other page is lost
    page = book("raise InputError('limit is <b>0</b>')", {"size": 7})
    assert running.run_notebook(page, "inputs")[0] == "", "it would not be tried again"
    (cell,) = nbformat.read(page.executed, as_version=4).cells
    assert cell.source.startswith("# How many?\n") and r"Not drawn: InputError\: limit is \<b\>0\</b\>" in cell.source


def test_a_page_of_a_record_can_not_load_what_measures(book):
    page = book("try:\n    import torch.nn\nexcept ImportError as error:\n    print(error)", {"size": 7})
    running.run_notebook(page, "")
    cells = nbformat.read(page.executed, as_version=4).cells
    assert cells[-1].outputs[0].text == "torch is asked for, by a page that measures nothing\n"
    assert not [cell for cell in cells if cell.source in (running.WITHOUT, running.LOADED)]
    assert running.may_measure(book("print(size)")) and not running.may_measure(page)


def test_a_notebook_runs_again_when_what_it_is_made_of_changes_and_at_no_other_time(book, tmp_path):
    page = book("print(size)", {"size": 7})
    for path in (
        "lib/loaded.py",
        "lib/other.py",
        "results/tiny/unit.json",
        "results/large/unit.json",
        "tests/test_some.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("as it was")
    page.executed.parent.mkdir(parents=True)
    page.executed.write_text("{}")

    def kept() -> Inputs:
        inputs = Inputs(tmp_path)
        inputs.keep(page, inputs.without_code(page), ["lib/loaded.py"])
        return Inputs(tmp_path)

    assert kept().is_current(page)
    for path in ("lib/other.py", "results/large/unit.json", "tests/test_some.py"):
        (tmp_path / path).write_text("another")
        assert Inputs(tmp_path).is_current(page), path
    (tmp_path / "lib/loaded.py").touch()  # written again as it was
    assert Inputs(tmp_path).is_current(page)
    for path in ("lib/loaded.py", "results/tiny/unit.json", "results/tiny/new.json", "notebooks/some.ipynb"):
        assert kept().is_current(page), path
        (tmp_path / path).write_text('{"cells": []}')
        assert not Inputs(tmp_path).is_current(page), path
    assert kept().is_current(page)
    other = dataclasses.replace(page, record=dataclasses.replace(page.record, parameters={"size": 8}))
    assert not Inputs(tmp_path).is_current(other)
    (tmp_path / "lib/loaded.py").unlink()
    assert not Inputs(tmp_path).is_current(page)
    kept()
    page.executed.unlink()
    assert not Inputs(tmp_path).is_current(page)


def record(notebook="01-similarity", model="tiny", **others) -> Record:
    parameters = others.pop("parameters", {})
    path = Path("results") / model / "records" / f"{notebook}-0.json"
    return Record(notebook, model, parameters, "2026-01-01", **others, path=path)


def test_a_page_of_the_story_is_the_latest_record_that_says_so():
    records = [record(page="01-similarity", parameters={"seed": 1}), record(page="01-similarity", title="Alike")]
    (page,) = pages.story(["01-similarity"], records)
    assert page.record == records[1] and page.title == "Alike" and page.parameters == {"measure": False}
    (page,) = pages.story(["07-models"], records)
    assert (
        page.record is None
        and page.parameters == {}
        and page.command == "papermill notebooks/07-models.ipynb out.ipynb"
    )
    with pytest.raises(SystemExit, match="names executed/99-none, but there is no notebooks/99-none.ipynb"):
        pages.story(["99-none"], records)


def test_pages_of_a_model_are_told_apart_by_what_was_asked():
    asked = [{}, {"quantization": "nf4"}, {"tasks": "a long list of tasks, which no title can hold"}]
    found = pages.of_models([record(parameters=parameters) for parameters in asked])
    assert [(page.name, page.short) for page in found["tiny"]] == [
        ("model-tiny-similarity", "Which layers are alike?"),
        ("model-tiny-similarity-2", "Which layers are alike? (nf4)"),
        ("model-tiny-similarity-3", "Which layers are alike? (3)"),
    ]
    assert found["tiny"][1].title == "tiny (nf4): which layers are alike?"
    assert found["tiny"][1].command == "papermill notebooks/01-similarity.ipynb out.ipynb -p quantization nf4"


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (record("99-none"), "there is no notebook '99-none'"),
        (record("../notebooks/01-similarity"), "there is no notebook"),
        (record("10-reproduction/../01-similarity"), "there is no notebook"),
        (record("07-models", parameters={"results": "/elsewhere"}), "is about all models"),
        (record("09-claims"), "is about all models"),
        # papermill writes the name of a parameter into the notebook as it is
        (record(parameters={"seed = __import__('os').system('id') #": 1}), 'it sets "seed = __import__'),
        (record(parameters={"seed\nimport os": 1}), "it sets"),
        (record(parameters={"unheard_of": 1}), "it sets 'unheard_of', which no record may"),
        (record(parameters={"trust_remote_code": True}), "it sets 'trust_remote_code', which no record may"),
        (record(parameters={"measure": True}), "it sets 'measure', which no record may"),
        (record(parameters={"results": "/elsewhere"}), "it sets 'results', which no record may"),
        (record(parameters={"datasets": "/elsewhere"}), "it sets 'datasets', which no record may"),
        (record("02-question-answering", parameters={"memory": 2**40}), "it sets 'memory', which no record may"),
        (record(parameters={"seed": [1]}), "seed is no plain value"),
        (record(parameters={"model": {"a": "b"}}), "model is no plain value"),
        (record(parameters={"seed": float("nan")}), "seed is not a number"),
        (record(parameters={"seed": float("-inf")}), "seed is no plain value"),
        (record(parameters={"model": "../private"}), "its parameter model is not its model"),
    ],
)
def test_a_record_can_not_make_a_page_measure_fetch_or_run_anything(odd, reason):
    with pytest.warns(UserWarning, match=f"has no page: .*{re.escape(reason)}"):
        assert pages.known([record(), odd]) == [record()]


def test_the_value_of_a_parameter_is_never_code():
    plain = ['a"b', "a'b", "a\\", '\\"; import os #', '"""', "{x}", "`id`", "$(id)", "%s", None, True, -1, 1e300, 2**70]
    for value in [*plain, "a\nimport os #\\'", "a\r\n$(id)", "\ud800", "\u202e", "\x1b[2J"]:
        page = pages.Page("page", "01-similarity", "", "", record(parameters={"model": value}))
        names: dict = {}
        exec(PythonTranslator.codify(page.parameters), names)
        assert names["model"] == value and names["measure"] is False
        assert {name for name in names if not name.startswith("_")} == {"model", "measure"}
        assert page.command.isprintable()
        if value in plain:
            words = ["papermill", "notebooks/01-similarity.ipynb", "out.ipynb", "-p", "model", str(value)]
            assert shlex.split(page.command) == words
    # what can't be seen is written with its code, as a shell reads it
    page = pages.Page("page", "01-similarity", "", "", record(parameters={"model": "a\n\\'\u202e$(id)"}))
    command = page.command.replace("papermill", "printf %s/")
    said = subprocess.run(["bash", "-c", command], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True)
    assert said.stdout.decode() == "notebooks/01-similarity.ipynb/out.ipynb/-p/model/a\n\\'\u202e$(id)/"


def test_every_model_has_pages_of_its_own():
    """Two names can have one folder, and a name can be that of another model's page."""
    names = ["a/b", "a-b", "A-B", "tiny", "tiny-similarity", "tiny-healing-2", "other"]
    records = [
        dataclasses.replace(record(notebook, name.replace("/", "-"), parameters={"seed": seed}), model=name)
        for name in names
        for notebook in ("01-similarity", "03-healing")
        for seed in (0, 1)
    ]
    found = pages.of_models(records)
    assert list(found) == sorted(names)
    own = [name for of_model in found.values() for name in (of_model[0].of_model, *(page.name for page in of_model))]
    assert len({name.lower() for name in own}) == len(own) == 5 * len(names)
    assert found["other"][0].of_model == "model-other" and found["tiny"][0].name == "model-tiny-similarity"
    assert re.fullmatch("model-a-b-[0-9a-f]{8}-similarity", found["a/b"][0].name)


def test_each_model_is_one_entry_of_the_contents():
    models = pages.of_models([record(), record("03-healing"), record(model="other")])
    toc = {"parts": [{"caption": "Models", "chapters": [{"file": "executed/07-models"}]}, {"chapters": []}]}
    for given in (toc, {"parts": [{"chapters": []}]}):  # where no part is called so, one is added
        made = contents.with_models(given, models)
        (part,) = [part for part in made["parts"] if part.get("caption") == "Models"]
        entries = part["chapters"][-2:]
        assert [entry["file"] for entry in entries] == ["executed/model-other", "executed/model-tiny"]
        assert [len(entry["sections"]) for entry in entries] == [1, 2]
    assert len(toc["parts"][0]["chapters"]) == 1, "what was given has changed"


def test_an_article_has_a_title_no_code_and_its_code_at_the_end(book):
    page = dataclasses.replace(book("size"), title="Of *tiny*\n<script>")
    read = article.article(json.loads(page.source.read_text()), page)
    assert read["cells"][0]["source"] == r"# Of \*tiny\*\\n\<script\>" and "code-of-page" in read["cells"][-1]["source"]
    assert all(cell["metadata"] == {"tags": ["remove-input"]} for cell in read["cells"] if cell["cell_type"] == "code")
    assert "size: int = 1" in pages.code_of(page.source)


def test_captions_are_numbered_by_kind():
    figure = '<figure class="measured" id="a"><div></div><figcaption>A<small></small></figcaption></figure>'
    body = f"{figure}<table><caption>T</caption></table><figure><figcaption>none</figcaption></figure>{figure}"
    said = captions.numbered(body)
    assert [said.count(f">{name}.</span>") for name in ("Figure 1", "Figure 2", "Table 1")] == [1, 1, 1]
    assert "Figure 3" not in said and "<figcaption>none" in said
    said = captions.numbered(
        '<div role="region" aria-label="Claims &amp; all"><p>Lead.</p><table><tr></tr></table></div>'
    )
    assert '<table><caption><span class="caption-count">Table 1.</span> Claims &amp; all</caption>' in said


def test_a_model_measured_with_papermill_is_in_the_next_site(tiny_folder, tmp_path):
    """Nobody edits a page: its own pages, their place in the navigation, and the figures of all models."""
    skip = shutil.ignore_patterns("_build", "executed", "__pycache__")
    for name in ("book", "lib", "notebooks", "benchmarks", "conformance", "_config.yml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skip, symlinks=True)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    for name in ("index", "method", "glossary"):  # pages of models lead to the latter two
        (tmp_path / "book" / f"{name}.md").write_text(f"# {name}\n")
    named = ("executed/07-models", "explorer", "measured", "method", "glossary", "bibliography")
    chapters = [{"file": name} for name in named]
    contents = {"format": "jb-book", "root": "index", "parts": [{"chapters": chapters}]}
    (tmp_path / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    paths = os.pathsep.join(map(str, [tmp_path, tmp_path / "lib"]))
    environment = os.environ | {"PYTHONPATH": paths, "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")

    def typed(command: str) -> str:
        program, *words = command.split()
        program = Path(sys.executable).with_name(program)
        done = subprocess.run([program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    asked = {
        "04-reasoning": {"tasks": "capitals,sums_one_digit_generated/0-1"},
        "11-shots": {"tasks": "boolq", "datasets": str(write_boolq(tmp_path / "mirror")), "sizes": "0,2",
                     "num_fewshot": 1, "numbers": "0", "orders": "1"},
    }  # fmt: skip
    small = {"model": str(tiny_folder), "samples": 8, "sequence_length": 32, "limit": 6}
    words = " ".join(f"-p {name} {value}" for name, value in (small | asked["04-reasoning"]).items())
    typed(f"papermill notebooks/04-reasoning.ipynb out.ipynb --kernel python3 {words}")
    notebook.run("11-shots", results=str(tmp_path / "results"), **small | asked["11-shots"])  # as papermill does it
    (folder,) = (tmp_path / "results").iterdir()
    measured = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert sum(path.parent.name == "records" for path in measured) == len(asked)
    hostile.add_models(tmp_path / "results")
    bad = write_record("01-similarity", "bad", {"model": "bad", "seed = print() #": 1}, tmp_path / "results")
    odd = write_record("01-similarity", "odd", {"model": "odd", "samples": -1}, tmp_path / "results")
    said = typed("jupyter-book build book/ -W -n --keep-going")
    html = tmp_path / "book" / "_build" / "html"
    links = [link.partition("#")[0] for link in Page(html / "index.html").links]
    assert links.count(f"executed/model-{folder.name}.html") == 1, "it has no entry in the navigation"
    for name in (f"model-{folder.name}-{of_it[3:]}" for of_it in asked):
        page = html / "executed" / f"{name}.html"
        assert f"executed/{name}.html" in links, "it is not in the navigation"
        assert FIGURE.search(page.read_text(encoding="utf-8")), "it shows no figure"
    assert measured == {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}, "it was measured again"
    figures = FIGURE.split((html / "executed" / "07-models.html").read_text(encoding="utf-8"))[1:]
    assert figures and Path(tiny_folder).name in figures[0]
    # what others measured is shown, whatever they call it, and what is wrong with it is said
    assert f"{bad} has no page: it sets 'seed = print() #', which no record may" in said
    assert (
        f"NOT DRAWN: model-odd-similarity, of {odd}: notebooks/01-similarity.ipynb failed: InputError: samples" in said
    )
    assert "has no page: it sets" in (html / "measured.html").read_text(encoding="utf-8")
    assert "Not drawn: InputError: samples" in (html / "executed" / "model-odd-similarity.html").read_text(
        encoding="utf-8"
    )
    found = {
        path.relative_to(html): hostile.Understood(path) for path in html.rglob("*.html") if "_static" not in path.parts
    }
    assert {name: page.found for name, page in found.items() if page.found} == {}
    headings = {page.heading for page in found.values()}
    assert {f"{visible(name)}: of {visible(name)}" for name in hostile.WITH_PAGES} <= headings
    (script,) = (name for name, page in found.items() if re.match(r"<script>alert\(1\)</script> .*: of", page.heading))
    looked_at = [html / "executed/07-models.html", html / "explorer.html", html / "measured.html", html / script]
    addresses = [path.as_uri() for path in looked_at] + [(html / "search.html").as_uri() + "?q=onload"]
    assert not hostile.dialogs(addresses)


def test_a_group_took_as_long_as_its_tasks(monkeypatch):
    """The unit of a group is put together in seconds where its tasks were measured before."""

    def unit(name, seconds, gibibytes, **details):
        provenance = {"seconds": seconds, "seconds_in_earlier_runs": 100.0, "peak_memory_bytes": gibibytes * 2**30}
        provenance["device"] = "x86_64 processor, 2 threads"
        return Unit("sweep", name, {}, provenance, pd.DataFrame(), details, Path(f"{name}.json"))

    tasks = {f"{name}.json": unit(name, 1000.0, 2) for name in ("one", "other")}
    monkeypatch.setattr(measured, "read_unit", lambda path: tasks.get(path.name))
    group = unit("group", 6.0, 1, units=[*tasks, "gone.json"])
    # 2,200 s of 2 processors of 12 W, and of 2 GiB
    energy = {"Energy, Wh (estimate)": "25"}
    assert measured.cost(group) == {"Seconds": "2,200", "Memory, GiB": "2.0"} | energy
    assert measured.taken(tasks["one.json"]) == (1100, 2 * 2**30)
    (row,) = measured.spent([group])
    assert row == {
        "Hardware": "x86_64 processor, 2 threads", "Measurements": "1", "Hours": "0.6", "Processor hours": "1.2",
        "Energy, kWh (estimate)": "0.03",
    }  # fmt: skip
    elsewhere = unit("far", 1000.0, 1)
    elsewhere.provenance["device"] = "NVIDIA H100"
    assert [row["Energy, kWh (estimate)"] for row in measured.spent([group, elsewhere])] == [
        "not known", "0.03", "0.03 and more"
    ]  # fmt: skip
