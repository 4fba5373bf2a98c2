"""The card of a sliced checkpoint: what the hub reads of it, that its lines run, that nobody's words become markup."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from deeper_layers.cuts import Cut
from deeper_layers.export import lineage, model_card, slicing
from deeper_layers.export.slicing import slice_checkpoint

PASSED_ON = {"license": "other", "license_name": "someones", "license_link": "LICENSE", "language": ["en", "de"]}
PASSED_ON |= {"pipeline_tag": "text2text-generation", "base_model": "someone/first"}
OWN = f"---\n{yaml.dump(PASSED_ON | {'datasets': ['not', 'passed on']})}---\n# A model\n\nIts own words.\n"
CUT = Cut(1, 2)


@pytest.fixture
def source(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "source")
    (folder / "README.md").write_text(OWN)
    return folder


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def blocks(card: ModelCard) -> list[tuple[str, str]]:
    """The code of a card, each block with its language."""
    return [found[1:] for found in re.findall(r"(?ms)^(`{3,})(\w+)\n(.*?)\n\1$", card.text)]


def test_what_the_hub_reads_comes_from_the_source(source, tmp_path):
    card = card_of(slice_checkpoint(source, CUT, tmp_path / "out", command="deeper-layers prune", card="More words."))
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["layer-pruning"], **PASSED_ON}
    weights = lineage.read_lineage(tmp_path / "out").steps[0].weights
    for words in (
        "> # A model\n>\n> Its own words.",
        "\ndeeper-layers prune\n",
        "More words.",
        CUT.describe(5),
        weights,
    ):
        assert words in card.text


def test_facts_of_a_gguf_file_are_those_of_its_header(tiny_gguf, tmp_path):
    facts = model_card.read_facts(str(tiny_gguf), tmp_path)
    assert facts == model_card.SourceFacts({"pipeline_tag": "text-generation"}, quantized="F32")


def test_a_model_from_the_hub_is_named_with_its_commit(tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "snapshots" / "0123abcd")
    monkeypatch.setattr(slicing, "checkpoint_folder", lambda *_: tmp_path / "snapshots" / "0123abcd")
    card = card_of(slice_checkpoint("someone/something", CUT, tmp_path / "out", revision="main"))
    assert card.data.base_model == "someone/something" and "someone/something at revision `0123abcd`; this" in card.text
    assert '{"model": {"path": "someone/something", "revision": "0123abcd"}}' in card.text and "None" not in card.text


@pytest.mark.parametrize(
    "text",
    [
        "---\nlicense: [a, {b: c}]\npipeline_tag: 3\nlanguage: {}\n---\n",
        "---\n\tno yaml: [\n---\ntext",
        '---\nlicense: "mit\\n---\\n# Mine"\n---\n',
        "---\n- a list\n---\n",
        "\0\xff",
    ],
)
def test_a_card_of_a_stranger_adds_nothing_to_ours(source, tmp_path, text):
    (source / "README.md").write_text(text, encoding="latin-1")
    card = card_of(slice_checkpoint(source, CUT, tmp_path / "out"))
    assert set(card.data.to_dict()) - {"license"} == {"library_name", "tags", "pipeline_tag"}
    assert card.text.strip().startswith("# source without 2 of its 5 layers")


@pytest.mark.parametrize("name", ["it's", "a`b```*c*<script>'\"@+é"])
def test_a_name_is_a_name_in_all_of_a_card_and_its_lines_run(name, tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / name)
    card = card_of(slice_checkpoint(tmp_path / name, CUT, tmp_path / f"out {name}"))
    assert not re.search(r"(?<!\\)[<*`]", card.text.strip().splitlines()[0])
    languages, (python, server, _, merging) = zip(*blocks(card), strict=True)
    assert languages == ("python", "bash", "bash", "yaml") and shlex.split(server)[-1] == f"out {name}"
    model = yaml.safe_load(merging)["slices"][0]["sources"][0]["model"]
    assert model in (f"./{name}", {"model": {"path": f"./{name}"}})
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(python, {})
    assert printed.getvalue().startswith("The capital of France is")


def test_the_cut_of_a_cut_tells_of_both(source, tmp_path):
    first = slice_checkpoint(source, Cut(0, 1), tmp_path / "first")
    written = json.loads((first / "pruning.json").read_text())
    # as earlier versions wrote it, with hashes of all files
    (first / "pruning.json").write_text(json.dumps(written | {"files": {"gone": "any"}, "sha256": "any"}))
    second = slice_checkpoint(first, CUT, tmp_path / "second")
    found, card = lineage.read_lineage(second), card_of(second)
    assert found.kept == [1, 4] and [step.model for step in found.steps] == ["source", "first"]
    assert card.data.base_model == "someone/first" and card.text.count("Its own words.") == 1
    assert "# source without 3 of its 5 layers" in card.text
    slices = [one["sources"] for one in yaml.safe_load(blocks(card)[-1][1])["slices"]]
    assert slices == [[{"model": "someone/first", "layer_range": [start, start + 1]}] for start in (1, 4)]


def test_a_lineage_of_another_model_is_refused_and_what_is_none_of_ours_is_not_copied(source, tmp_path):
    of_two = {
        "base_model": None,
        "steps": [{"model": "a", "weights": None, "layers": 2, "dropped": []}],
        "kept": [0, 1],
    }
    (source / "pruning.json").write_text(json.dumps(of_two))
    with pytest.raises(ValueError, match="pruning.json is of 2 layers, expected 5"):
        slice_checkpoint(source, CUT, tmp_path / "out")
    (source / "pruning.json").write_text("{}")
    assert lineage.read_lineage(slice_checkpoint(source, CUT, tmp_path / "out")).kept == [0, 3, 4]
