"""Sliced checkpoints of every kind: what drop_layers and save_pretrained would give, without opening the model.

tests/dialects has configurations of tiny models as transformers 4.57.6 saved them, which opens what is sliced too.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.export import config_text
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.export.tensors import find_smallest_dtype, read_layout
from deeper_layers.models.checkpoint_files import INDEX
from deeper_layers.pruning import drop_layers
from tests.faults import killed_at
from tests.plain import logits, without
from tests.tiny import FAMILIES, settings_of, tiny_model

LAYERS, CUT, TOKENS = 6, Cut(2, 2), torch.arange(1, 25)[None]
SAVED = sorted((Path(__file__).parent / "dialects").glob("*.json"))
OWN_CODE = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def saved(family: str, folder: Path, **options):
    model = tiny_model(family)
    model.save_pretrained(folder, **options)
    return model


def dropped(model, folder: Path) -> dict[str, torch.Tensor]:
    """What dropping and saving gives."""
    drop_layers(model, CUT).save_pretrained(folder)
    return tensors(folder)


def alike(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = tensors(folder)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def stated(folder: Path, **entries) -> dict:
    """What config.json says, with other entries where some are given."""
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps(config))
    return config


def reopened(folder: Path):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("shards", ["10GB", "40KB"], ids=["one-file", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_dropping_and_saving(family, shards, tmp_path):
    model = saved(family, tmp_path / "whole", max_shard_size=shards)
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    assert alike(out, dropped(model, tmp_path / "expected"))
    folders = (out, tmp_path / "expected")
    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""} for folder in folders)
    assert ours == ours | theirs
    assert torch.equal(logits(reopened(out), TOKENS), logits(drop_layers(model, CUT), TOKENS))
    if shards == "40KB":
        assert json.loads((out / INDEX).read_text())["weight_map"].keys() == tensors(out).keys()


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_as_torch_casts_and_up_again_nothing_is_lost(dtype, tmp_path):
    model = saved("llama", tmp_path / "whole", max_shard_size="40KB")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", dtype=dtype)
    assert alike(out, dropped(model.to(getattr(torch, dtype)), tmp_path / "expected"))
    config = stated(out)
    assert {config[name] for name in ("dtype", "torch_dtype") if name in config} == {dtype}
    again = slice_checkpoint(out, UNPRUNED, tmp_path / "again", dtype="float32")
    for folder, expected in ((again, dtype), (tmp_path / "whole", "float32")):
        entries = read_layout(folder).entries(UNPRUNED)
        assert {entry.dtype for entry in entries.values()} == {"F32"} and find_smallest_dtype(entries) == expected


def test_a_model_whose_code_comes_with_it_is_cut_by_its_configuration(tmp_path):
    model, whole = saved("gemma3", tmp_path / "whole"), tmp_path / "whole"
    stated(whole, model_type="someones_own", hybrid_override_pattern="M-*EM-", **OWN_CODE)  # of Nemotron-H
    (whole / "modeling.py").write_text("raise SystemExit('this code was run')")
    out = slice_checkpoint(whole, CUT, tmp_path / "out", trust_remote_code=True)
    found = stated(out)
    assert found["layer_types"] == [model.config.layer_types[index] for index in (0, 1, 4, 5)]
    assert found["hybrid_override_pattern"] == "M-M-" and found["num_hidden_layers"] == 4
    assert found["auto_map"] == OWN_CODE["auto_map"] and (out / "modeling.py").exists()
    assert alike(out, dropped(model, tmp_path / "expected"))
    with pytest.raises(InputError, match="no configuration states a layer without one of its sublayers"):
        slice_checkpoint(whole, Cut.of(attention=[1]), tmp_path / "none", trust_remote_code=True)


def released(family: str, folder: Path):
    """A checkpoint as GLM-4.5, DeepSeek-V3 or Qwen3-Next was released, one more layer with parts of its own in it."""
    settings = settings_of("deepseek_v3" if family == "glm4_moe" else family, LAYERS)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    last, new = f"model.layers.{LAYERS - 1}.", "mtp.layers.0." if family == "qwen3_next" else f"model.layers.{LAYERS}."
    found = tensors(folder)
    more = {name.replace(last, new): tensor + 1 for name, tensor in found.items() if name.startswith(last)}
    more |= {f"{new}enorm.weight": torch.ones(48), f"{new}eh_proj.weight": torch.ones(48, 96)}
    save_file(found | more, folder / "model.safetensors", {"format": "pt"})
    stated(folder, num_nextn_predict_layers=1)
    return model, more


@pytest.mark.parametrize("own_code", [{}, OWN_CODE], ids=["of transformers", "code of its own"])
@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3", "qwen3_next"])
def test_layers_that_predict_more_stay_under_new_numbers_or_are_left_out(family, own_code, tmp_path):
    model, more = released(family, tmp_path / "whole")
    stated(tmp_path / "whole", **own_code)
    plain, number = dropped(model, tmp_path / "expected"), f"model.layers.{LAYERS}."
    moved = {name.replace(number, f"model.layers.{LAYERS - CUT.size}."): tensor for name, tensor in more.items()}
    for mtp, expected in ((True, plain | moved), (False, plain)):
        out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / str(mtp), mtp=mtp)
        assert alike(out, expected) and stated(out)["num_nextn_predict_layers"] == mtp
        assert f"after the last one, are {'kept' if mtp else 'left out'}" in (out / "README.md").read_text()
        if not own_code:
            opened = AutoModelForCausalLM.from_pretrained(out)
            assert torch.equal(logits(opened, TOKENS), logits(drop_layers(model, CUT), TOKENS))


@pytest.mark.parametrize("config", SAVED, ids=lambda path: path.stem)
def test_a_configuration_stays_in_its_words_and_says_what_the_older_version_reads(config, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "whole")
    here = stated(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "saved-here"))
    before = json.loads(shutil.copy(config, tmp_path / "whole" / "config.json").read_text())
    after = stated(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "saved-by-older"))
    assert list(after)[: len(before)] == list(before)
    changed = {key for key in after if key not in before or after[key] != before[key]} - {"num_hidden_layers"}
    assert changed <= {"layer_types", "mlp_only_layers", "max_window_layers", "torch_dtype", "num_experts"}
    assert after["num_hidden_layers"] == LAYERS - CUT.size
    # what was saved here has all the entries of the older version beside its own, with the same values
    assert here | after == here | {"transformers_version": "4.57.6"}
    expected = logits(without(model, range(CUT.start, CUT.stop)), TOKENS)
    for name in ("saved-here", "saved-by-older"):
        torch.testing.assert_close(logits(reopened(tmp_path / name), TOKENS), expected, atol=1e-5, rtol=0)


def test_kinds_that_were_worked_out_from_the_depth_are_stated_where_they_would_be_others(tmp_path):
    kinds = saved("gemma2", tmp_path / "whole").config.layer_types
    stated(tmp_path / "whole", layer_types=None)
    for cut, expected in ((CUT, None), (Cut(2, 1), [*kinds[:2], *kinds[3:]])):
        assert stated(slice_checkpoint(tmp_path / "whole", cut, tmp_path / cut.name))["layer_types"] == expected


def test_a_tokenizer_is_one_that_the_older_version_knows(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<one>", "<two>"]})
    tokenizer.save_pretrained(tmp_path / "whole")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    words = json.loads((out / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in words
    assert words["additional_special_tokens"] == ["<one>", "<two>"]
    read, text = AutoTokenizer.from_pretrained(out), "The capital<one> of this<eos>"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.all_special_tokens == tokenizer.all_special_tokens
    again = slice_checkpoint(out, Cut(0, 1), tmp_path / "again")  # in words that both know it is copied as it is
    assert (again / "tokenizer_config.json").read_bytes() == (out / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize(
    ("names", "value", "more", "dtype", "message"),
    [
        (["model.layers.6.extra.weight"], 0, {}, "auto", "1 tensors that may belong.*6.extra.weight.*not guessed"),
        (["model.heads.0.weight"], 0, OWN_CODE, "auto", "1 tensors that may belong.*model.heads.0.weight"),
        ([f"model.probes.{n}.weight" for n in range(LAYERS)], 0, OWN_CODE, "auto", "2 groups of tensors"),
        (["model.norm.weight"], 70000, {}, "float16", "model.norm.weight would .* too large for torch.float16"),
        ([], 0, {}, "fp8", "dtype is 'fp8', expected 'auto' or one of"),
    ],
)
def test_what_is_not_understood_or_does_not_fit_is_refused(names, value, more, dtype, message, tmp_path):
    saved("llama", tmp_path / "whole")
    held = tensors(tmp_path / "whole") | {name: torch.full([48], float(value)) for name in names}
    save_file(held, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    stated(tmp_path / "whole", **more)
    with pytest.raises(InputError, match=message):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_what_transformers_would_read_otherwise_is_stated_or_refused(tmp_path, monkeypatch):
    saved("qwen2", tmp_path / "whole")
    wrong = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "sliding_window": 9}
    monkeypatch.setattr(config_text, "cut_entries", lambda config, kept, layers: config | wrong)
    assert stated(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out"))["sliding_window"] == 8
    wrong["num_attention_heads"] = "four"
    with pytest.raises(InputError, match="can't say in its own words what the cut makes of it"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "none")


@pytest.mark.parametrize("seed", [0, 1], ids=["the same source", "another"])
def test_after_a_kill_it_goes_on_unless_the_source_changed(seed, tmp_path):
    whole, out, model = tmp_path / "whole", tmp_path / "out", tiny_model("llama", seed=seed)
    saved("llama", whole, max_shard_size="40KB")
    assert killed_at(20, lambda: slice_checkpoint(whole, CUT, out))
    begun = {path.stat().st_mtime_ns for path in tmp_path.glob("out.*.partial/made/model-*")}
    if seed:
        model.save_pretrained(whole, max_shard_size="40KB")
    slice_checkpoint(whole, CUT, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    assert begun and (seed or begun <= {path.stat().st_mtime_ns for path in out.iterdir()})
    assert alike(out, dropped(model, tmp_path / "expected"))
