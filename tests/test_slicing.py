"""Sliced checkpoints: what drop_layers and save_pretrained would give, without opening the model."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from deeper_layers.command import main
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export import slicing, tensor_writer
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.checkpoint_files import INDEX
from deeper_layers.pruning import drop_layers
from deeper_layers.results.places import results_folder
from deeper_layers.results.store import all_results, write_result
from tests.faults import killed_at
from tests.tiny import FAMILIES, tiny_model

CUT = Cut(2, 2)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def saved(family: str, folder: Path, **options):
    model = tiny_model(family)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("shards", ["10GB", "40KB"], ids=["one-file", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_dropping_and_saving(family, shards, tmp_path):
    model = saved(family, tmp_path / "whole", max_shard_size=shards)
    pruned = drop_layers(model, CUT)
    pruned.save_pretrained(tmp_path / "expected")
    slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "sliced")
    ours, theirs = tensors(tmp_path / "sliced"), tensors(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    sliced, expected = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("sliced", "expected"))
    assert {key: sliced[key] for key in expected} == expected | {"_name_or_path": sliced["_name_or_path"]}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced")
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        assert torch.equal(reloaded(ids).logits, pruned(ids).logits)
    if shards != "10GB":
        assert len(list((tmp_path / "sliced").glob("model-*.safetensors"))) > 1
        index = json.loads((tmp_path / "sliced" / INDEX).read_text())
        assert set(index["weight_map"]) == set(ours)


def test_other_files_come_along_and_a_card_says_what_was_done(tiny_folder, tmp_path):
    out = slice_checkpoint(tiny_folder, CUT, tmp_path / "out", card="More words.")
    copied = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "config.json"} <= copied
    card = (out / "README.md").read_text()
    assert CUT.describe(5) in card and "More words." in card
    assert CUT.mergekit_yaml(5, f"./{Path(tiny_folder).name}").strip() in card
    assert not list(tmp_path.glob("*.partial"))


def test_the_card_of_a_model_from_the_hub_names_its_commit(tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "snapshots" / "0123abcd")
    monkeypatch.setattr(slicing, "checkpoint_folder", lambda *_: tmp_path / "snapshots" / "0123abcd")
    out = slice_checkpoint("someone/something", CUT, tmp_path / "out", revision="main")
    card = (out / "README.md").read_text()
    assert "base_model: someone/something" in card and "someone/something at revision `0123abcd`; this" in card
    assert '{"model": {"path": "someone/something", "revision": "0123abcd"}}' in card


def test_a_model_whose_code_comes_with_it_is_cut_by_its_configuration(tmp_path):
    saved("gemma3", tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    own = config | {"model_type": "someones_own", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(own))
    (tmp_path / "whole" / "modeling.py").write_text("raise SystemExit('this code was run')")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "sliced", trust_remote_code=True)
    found = json.loads((out / "config.json").read_text())
    kept = [config["layer_types"][i] for i in (0, 1, 4, 5)]
    assert found["layer_types"] == kept and found["num_hidden_layers"] == 4 and found["auto_map"] == own["auto_map"]
    assert (out / "modeling.py").exists()
    expected = drop_layers(tiny_model("gemma3"), CUT)
    expected.save_pretrained(tmp_path / "expected")
    ours, theirs = tensors(out), tensors(tmp_path / "expected")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("names", "own_code"),
    [
        (["model.layers.6.extra.weight"], False),  # of a layer beyond the last
        (["model.heads.0.weight"], True),
        ([f"model.probes.{number}.weight" for number in range(6)], False),  # numbered like layers, and unknown
    ],
)
def test_tensors_of_unknown_layers_are_listed_and_not_guessed(names, own_code, tmp_path):
    saved("llama", tmp_path / "whole")
    file, path = tmp_path / "whole" / "model.safetensors", tmp_path / "whole" / "config.json"
    save_file(load_file(file) | {name: torch.zeros(2) for name in names}, file, {"format": "pt"})
    if own_code:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(InputError, match=rf"{len(names)} tensors that may belong.*{re.escape(names[0])}.*not guessed"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_what_was_written_stays(tmp_path, monkeypatch):
    saved("llama", tmp_path / "whole", max_shard_size="40KB")
    write = tensor_writer.write_hashed

    def full(out, *others):
        if not out.name.startswith(".model-00001"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(out, *others)

    monkeypatch.setattr(tensor_writer, "write_hashed", full)
    with pytest.raises(InputError, match="No space left on device.*run this again"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.glob("out.*.partial/made/*.safetensors"))) == 1


def test_what_a_user_gets_wrong(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        slice_checkpoint(tiny_folder, CUT, tmp_path / "there")
    with pytest.raises(InputError, match="start is 4 with size 2"):
        slice_checkpoint(tiny_folder, Cut(4, 2), tmp_path / "out")
    with pytest.raises(InputError, match="no file, no folder and no hub id"):
        slice_checkpoint(str(tmp_path / "none"), CUT, tmp_path / "out")
    monkeypatch.setattr(tensor_writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="MB are free"):
        slice_checkpoint(tiny_folder, CUT, tmp_path / "out")


def test_a_source_that_changed_meanwhile_is_copied_anew(tmp_path):
    saved("llama", tmp_path / "whole")
    assert killed_at(14, lambda: slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out"))
    assert list(tmp_path.glob("out.*.partial"))
    model = tiny_model("llama", seed=1)
    model.save_pretrained(tmp_path / "whole")
    slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    expected = drop_layers(model, CUT).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(tmp_path / "out").items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_weights_are_hashed_only_where_results_hold_a_model_of_this_name(tiny_folder, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("deeper_layers.models.sources.hash_once", lambda path: hashed.append(path.name) or "0")
    monkeypatch.setattr(slicing, "MOST_HASHED", 0)
    words = ["--drop", "2", "--rule", "simple", "--results", str(tmp_path / "results")]
    main(["prune", str(tiny_folder), str(tmp_path / "one"), *words], standalone_mode=False)
    assert not hashed
    unit = all_results(results_folder(), "distances")[0]
    key = unit.key | {"model": {"name": tiny_folder.name, "weights": "sha256:another's"}}
    write_result("distances", key, unit.provenance, unit.records, unit.details, tmp_path / "results")
    main(["prune", str(tiny_folder), str(tmp_path / "two"), *words], standalone_mode=False)
    assert "model.safetensors" in hashed and "Angular distance" not in (tmp_path / "two" / "README.md").read_text()
