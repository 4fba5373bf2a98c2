"""The card of a sliced checkpoint: what the hub reads of it, that its lines run, that nobody's words become markup."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from deeper_layers.cuts import Cut
from deeper_layers.export import lineage, model_card
from deeper_layers.export.slicing import slice_checkpoint

OWN = """---
license: other
license_name: someones
license_link: LICENSE
language: [en, de]
pipeline_tag: text2text-generation
base_model: someone/first
datasets: [not, passed on]
---
# A model

Its own words.
"""


@pytest.fixture
def source(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "source")
    return tmp_path / "source"


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def code(text: str, language: str) -> str:
    return re.search(f"```{language}\n(.*?)\n```", text, re.DOTALL)[1]


def test_the_lines_for_transformers_run_where_the_folder_is(source, tmp_path, monkeypatch):
    out = slice_checkpoint(source, Cut(1, 2), tmp_path / "it's out")
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code(card_of(out).text, "python"), {})
    assert said.getvalue().startswith("The capital of France is")
    assert "api_server --model 'it'\"'\"'s out'" in card_of(out).text


def test_what_the_hub_reads_comes_from_the_source(source, tmp_path):
    (source / "README.md").write_text(OWN)
    card = card_of(slice_checkpoint(source, Cut(1, 2), tmp_path / "out", command="deeper-layers prune source out"))
    assert card.data.to_dict() == {
        "library_name": "transformers", "tags": ["layer-pruning"], "license": "other", "license_name": "someones",
        "license_link": "LICENSE", "language": ["en", "de"], "pipeline_tag": "text2text-generation",
        "base_model": "someone/first",
    }  # fmt: skip
    assert "> # A model\n>\n> Its own words." in card.text and "deeper-layers prune source out" in card.text
    assert lineage.read_lineage(tmp_path / "out").steps[0].weights in card.text


@pytest.mark.parametrize(
    "text",
    [
        "---\nlicense: [a, {b: c}]\npipeline_tag: 3\nlanguage: {}\n---\n",
        "---\n\tno yaml: [\n---\ntext",
        "---\nlicense: \"mit\\n---\\n# Mine\"\n---\n",
        "---\n- a list\n---\n",
        "\0\xff",
    ],
)  # fmt: skip
def test_a_card_of_a_stranger_adds_nothing_to_ours(source, tmp_path, text):
    (source / "README.md").write_text(text, encoding="latin-1")
    card = card_of(slice_checkpoint(source, Cut(1, 2), tmp_path / "out"))
    assert set(card.data.to_dict()) - {"license"} == {"library_name", "tags", "pipeline_tag"}
    assert card.text.strip().startswith("# source without 2 of its 5 layers")


def test_a_name_is_a_name_in_all_of_a_card(tiny_folder, tmp_path, monkeypatch):
    name = "a`b```*c*<script>'\"@+é"
    shutil.copytree(tiny_folder, tmp_path / name)
    out = slice_checkpoint(tmp_path / name, Cut(1, 2), tmp_path / f"out {name}")
    text = card_of(out).text
    assert "# a\\`b\\`\\`\\`\\*c\\*\\<script\\>" in text
    blocks = re.findall(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert [language for _, language, _ in blocks] == ["python", "bash", "bash", "yaml"]
    model = yaml.safe_load(blocks[-1][2])["slices"][0]["sources"][0]["model"]
    assert model == {"model": {"path": f"./{name}"}}
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(blocks[0][2], {})


def test_the_cut_of_a_cut_tells_of_both(source, tmp_path):
    (source / "README.md").write_text(OWN)
    first = slice_checkpoint(source, Cut(0, 1), tmp_path / "first")
    second = slice_checkpoint(first, Cut(1, 2), tmp_path / "second")
    found = lineage.read_lineage(second)
    assert found.kept == [1, 4] and [step.model for step in found.steps] == ["source", "first"]
    assert found.base_model == "someone/first"
    text = card_of(second).text
    assert text.count("Its own words.") == 1 and text.count(model_card.KEPT_CARD) == 1
    assert "# source without 3 of its 5 layers" in text and "it keeps [1:2] and [4:5]" in text
    of_first = [one["sources"][0] for one in yaml.safe_load(code(text, "yaml"))["slices"]]
    assert of_first == [
        {"model": "someone/first", "layer_range": [1, 2]},
        {"model": "someone/first", "layer_range": [4, 5]},
    ]
    card = card_of(second).data
    assert card.base_model == "someone/first" and card.license == "other"


def test_a_lineage_of_another_model_is_refused(source, tmp_path):
    first = slice_checkpoint(source, Cut(0, 1), tmp_path / "first")
    content = json.loads((first / "pruning.json").read_text())
    (first / "pruning.json").write_text(json.dumps(content | {"kept": [0, 1]}))
    with pytest.raises(ValueError, match="pruning.json is of 2 layers, expected 4"):
        slice_checkpoint(first, Cut(1, 2), tmp_path / "second")
    (first / "pruning.json").write_text("{}")  # somebody else's: left alone, and not copied
    slice_checkpoint(first, Cut(1, 2), tmp_path / "second")
    assert lineage.read_lineage(tmp_path / "second").kept == [0, 3]
