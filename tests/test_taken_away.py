"""What `deeper-layers prune` says before it writes, what it replaces, and where it uploads to."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deeper_layers.cuts import Cut
from deeper_layers.export import PruningDescription
from deeper_layers.models.packaged import EMBEDDED, QWEN
from deeper_layers.report import one_cut
from deeper_layers.results import scores
from deeper_layers.results.places import results_folder
from deeper_layers.results.store import all_results, cut_names, name_of, write_result
from tests.hub import serving
from tests.test_command import said, typed
from tests.tiny import tiny_model, write_gguf

SIMPLE = ["--drop", 2, "--rule", "simple"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- before it writes ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_and_writes_nothing(tiny_folder, tmp_path):
    words = ["prune", tiny_folder, tmp_path / "out", *SIMPLE, "--results", tmp_path / "results"]
    previewed = json.loads(typed(*words, "--dtype", "float16", "--dry-run", "--json").stdout)
    assert not list(tmp_path.iterdir())
    assert previewed["kept"] == [0, 1, 4] and previewed["scores"] == [] and previewed["engines"] == []
    written = json.loads(typed(*words, "--dtype", "float16", "--json").stdout)
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert previewed["bytes"] == weights < written["bytes"] and previewed["dtype"] == "float16"
    assert set(previewed) >= {"model", "layers", "cut", "kept", "engines", "scores", "ruins", "out", "bytes"}
    assert previewed["cut"] == written["cut"] == {"start": 2, "size": 2}
    plan = typed("prune", tiny_folder, "out", *SIMPLE, "--dry-run").stdout
    assert "results hold nothing of this model" in plan
    assert re.search(rf"`deeper-layers sweep {re.escape(str(tiny_folder))} --layers [0-9, -]+ --tasks TASKS`", plan)


def test_a_cut_that_ruins_the_model_is_told_before_it_is_made(tmp_path):
    """By the published results of the embedded model, whose file need not be here."""
    content = json.loads(typed("prune", "embedded", tmp_path / "o.gguf", "--drop", 4, "--dry-run", "--json").stdout)
    assert (
        content["cut"]["start"] == 2
        and "Capitals, words chosen" in content["ruins"]
        and not any("MMLU" in topic for topic in content["ruins"])
    )
    capitals = next(score for score in content["scores"] if score["topic"] == "Capitals, words chosen")
    units = [unit for unit in all_results(results_folder(), "scores", EMBEDDED.name) if unit.name == "capitals"]
    alike = {"dtype": capitals["how"], "quantization": None}
    units = [unit for unit in units if "2,4" in cut_names(unit.key) and unit.key.items() >= alike.items()]
    rows = [unit.rows.query("metric == 'acc' and size == 4 and start == 2") for unit in units]  # letters, and words
    assert any(capitals["pruned"][0] == pytest.approx(found["value"].iloc[0]) for found in rows if len(found))
    assert capitals["largest"] == 2
    assert capitals["guessing"] > 0.25 and capitals["items"] == 120
    found = one_cut.scores_of(scores(results_folder(), EMBEDDED.name), Cut(2, 4))
    assert [score.topic for score in found if score.ruined] == content["ruins"]
    described = PruningDescription(EMBEDDED.name, 30, Cut(2, 4), [], None, [], found)
    text = described.ruin_in_words()
    assert f"ruins {len(content['ruins'])} of " in text and "largest n that does not" in text
    assert dataclasses.replace(described, scores=[score for score in found if not score.ruined]).warnings() == []


def test_engines_that_would_misread_it_are_named_and_a_cut_for_them_is_chosen(tmp_path):
    model = tiny_model("gpt_oss", layer_types=["sliding_attention", "full_attention"] * 3)
    model.save_pretrained(tmp_path / "whole")
    words = ["prune", tmp_path / "whole", tmp_path / "out", "--rule", "simple", "--results", tmp_path / "results"]
    odd = json.loads(typed(*words, "--drop", 1, "--dry-run", "--json").stdout)
    assert "vllm" in {engine["engine"] for engine in odd["engines"]}
    assert odd["engines"][0]["nearest_safe"]["size"] == 2
    assert "vllm would read it wrongly" in typed(*words, "--drop", 1).stderr
    assert "--drop is 1, and no block" in said(*words[:2], tmp_path / "other", *words[3:], "--drop", 1, "--for", "vllm")
    words[2] = tmp_path / "other"
    even = json.loads(typed(*words, "--drop", 2, "--for", "vllm, llama.cpp", "--dry-run", "--json").stdout)
    assert even["engines"] == [] and even["cut"] == {"start": 3, "size": 2}
    placed = ["prune", tmp_path / "whole", tmp_path / "other", "--for", "vllm", "--start", 2, "--drop", 1]
    assert "--for is vllm, and " in said(*placed)
    assert "--for is 'ollama', expected one of" in said(*words, "--drop", 2, "--for", "ollama")


def test_what_is_known_of_a_file_is_found_by_its_hash(tiny_folder, tmp_path):
    """Whatever it is called."""
    from deeper_layers.models.opening import load_model
    from deeper_layers.package_index import file_hash

    model, tokenizer = load_model(str(tiny_folder))
    path = write_gguf(model, tokenizer, tmp_path / "renamed.gguf")
    unit = all_results(results_folder(), "distances", EMBEDDED.name)[0]
    key = unit.key | {"model": {"name": "A name", "weights": f"sha256:{file_hash(path)}"}}
    write_result("distances", key, unit.provenance, unit.records, unit.details, tmp_path / "results")
    words = ["prune", path, tmp_path / "out.gguf", *SIMPLE, "--dry-run", "--json", "--results", tmp_path / "results"]
    assert json.loads(typed(*words).stdout)["model"] == "A name"
    assert name_of(f"sha256:{QWEN.sha256}") == QWEN.name and name_of("sha256:0") is None


# ---- in the place of what was there ----------------------------------------------------------------------


@pytest.fixture
def written(tiny_folder, tmp_path):
    typed("prune", tiny_folder, tmp_path / "out", *SIMPLE)
    return tmp_path / "out"


def test_what_an_earlier_run_wrote_is_replaced(tiny_folder, written, tmp_path):
    before = files_of(written)
    assert "exists: give" in said("prune", tiny_folder, written, "--start", 0, "--drop", 1)
    typed("prune", tiny_folder, written, "--start", 0, "--drop", 1, "--overwrite")
    after = files_of(written)
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]
    assert b"deeper-layers prune tiny-llama out --start 0 --drop 1" in after["README.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(written)
    typed("prune", tiny_folder, written, *SIMPLE, "--overwrite")  # nothing to replace
    assert files_of(written) == before


def test_nothing_is_replaced_by_what_is_not_complete(tiny_folder, written, tmp_path, monkeypatch):
    before = files_of(written)
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.export.slicing.write_lineage_text", lambda *_: 1 / 0)
        typed("prune", tiny_folder, written, "--start", 0, "--drop", 1, "--overwrite", code=70)
    assert files_of(written) == before
    # the source is not replaced by its own cut
    assert "overlap" in said("prune", written, written, "--start", 0, "--drop", 1, "--overwrite")
    assert files_of(written) == before


def test_a_gguf_file_of_ours_is_replaced_and_no_other(tiny_folder, tmp_path):
    from deeper_layers.models.opening import load_model

    path = write_gguf(*load_model(str(tiny_folder)), tmp_path / "whole.gguf")
    words = ["prune", path, tmp_path / "out.gguf", *SIMPLE]
    typed(*words)
    before = (tmp_path / "out.gguf").read_bytes()
    typed("prune", path, tmp_path / "out.gguf", "--start", 0, "--drop", 1, "--overwrite")
    assert (tmp_path / "out.gguf").read_bytes() != before
    shutil.copy(path, tmp_path / "another.gguf")
    assert "no GGUF file with a pruning.sha256 of ours" in said(
        "prune", path, tmp_path / "another.gguf", *SIMPLE, "--overwrite"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.gguf", "out.gguf", "whole.gguf"]


# ---- to the hub ------------------------------------------------------------------------------------------


def test_uploaded_whole_and_private(tiny_folder, tmp_path, monkeypatch):
    with serving(monkeypatch) as hub:
        words = ["prune", tiny_folder, tmp_path / "out", *SIMPLE, "--push-to-hub", "me/pruned", "--json"]
        content = json.loads(typed(*words).stdout)
    assert hub.private == {"me/pruned": True} and hub.files["me/pruned"] == files_of(tmp_path / "out")
    assert content["address"].endswith("/me/pruned")
    assert 'name = "me/pruned"' in (tmp_path / "out" / "README.md").read_text()


def test_public_where_that_is_asked_for(tiny_folder, tmp_path, monkeypatch):
    with serving(monkeypatch) as hub:
        words = ["prune", tiny_folder, tmp_path / "out", *SIMPLE, "--push-to-hub", "me/pruned"]
        hub.private["me/pruned"] = False
        assert "which is there and public: add --public" in said(*words)
        assert not list(tmp_path.iterdir()) and not hub.files
        typed(*words, "--public")
    assert hub.private == {"me/pruned": False} and "config.json" in hub.files["me/pruned"]


def test_what_the_hub_refuses_is_one_line_and_what_was_written_stays(tiny_folder, tmp_path, monkeypatch):
    with serving(monkeypatch) as hub:
        hub.refuses = "/commit/"
        words = ["prune", tiny_folder, tmp_path / "out", *SIMPLE, "--push-to-hub"]
        message = said(*words, "me/pruned")
        assert "can't upload to me/pruned" in message and "is complete, and stays" in message
        assert (tmp_path / "out" / "config.json").exists()
        hub.refuses = "/whoami"
        words[2] = tmp_path / "second"
        assert "can't upload to me/pruned" in said(*words, "me/pruned") and not (tmp_path / "second").exists()
        assert "--push-to-hub is 'pruned', expected USER/NAME" in said(*words, "pruned")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert "run `hf auth login`" in said(*words, "me/pruned") and not (tmp_path / "second").exists()
        typed(*words[:-1], "--public", code=2)


def test_criterion_of_ruin_is_that_of_its_words():
    """Against a plain count of what is left above guessing, with and without doubt."""
    import numpy as np

    before = np.array([1.0] * 90 + [0.0] * 10)
    for right, ruined in ((90, False), (60, False), (50, False), (40, True), (25, True), (0, True)):
        after = np.array([1.0] * right + [0.0] * (100 - right))
        assert one_cut.surely_ruined(before, after, 0.25) is ruined, right  # half of it is left at 0.575
    assert not one_cut.surely_ruined(before[80:83], 0 * before[80:83], 0.25)  # of 3 items nothing is sure


def test_layers_for_multi_token_prediction_stay_or_are_left_out(tmp_path):
    from tests.test_mtp import released

    _, more = released("deepseek_v3", tmp_path / "whole")
    words = ["prune", tmp_path / "whole", tmp_path / "kept", *SIMPLE]
    both = {}
    for name, options in {"kept": [], "left out": ["--without-mtp"]}.items():
        words[2] = tmp_path / name
        previewed = json.loads(typed(*words, *options, "--dry-run", "--json").stdout)["bytes"]
        typed(*words, *options)
        both[name] = load_file(tmp_path / name / "model.safetensors")
        assert (tmp_path / name / "model.safetensors").stat().st_size == previewed
        card = (tmp_path / name / "README.md").read_text()
        assert f"multi-token prediction, which come after the last one, are {name}" in card
        assert ("--without-mtp" in card) == (name == "left out")
    assert len(both["kept"]) == len(both["left out"]) + len(more)
