"""config.json and tokenizer_config.json in the words of the source, and in those of older versions of transformers.

tests/dialects has configurations as transformers 4.57.6 saved them, of tiny models,
which opens the sliced folders in that version too.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export import config_text
from deeper_layers.export.slicing import slice_checkpoint
from tests.plain import logits, without
from tests.tiny import tiny_model

SAVED = sorted((Path(__file__).parent / "dialects").glob("*.json"))
CUT = Cut(2, 2)
TOKENS = torch.arange(1, 25)[None]


@pytest.mark.parametrize("config", SAVED, ids=lambda path: path.stem)
def test_it_stays_in_its_words_and_says_what_the_older_version_reads(config, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=torch.float32).eval()
    before, folder = json.loads(config.read_text()), tmp_path / "whole"
    model.save_pretrained(folder)
    here = sliced(folder, tmp_path / "saved-here")
    (folder / "config.json").write_bytes(config.read_bytes())
    after = sliced(folder, tmp_path / "saved-by-older")
    assert list(after)[: len(before)] == list(before)
    changed = {key for key in after if key not in before or after[key] != before[key]}
    lists = {"layer_types", "mlp_only_layers", "max_window_layers"}
    assert {"num_hidden_layers"} <= changed <= lists | {"num_hidden_layers", "torch_dtype", "num_experts"}
    # what was saved here has all the entries of the older version beside its own, with the same values
    assert {key: value for key, value in after.items() if here.get(key, "nothing") != value} == {
        "transformers_version": "4.57.6"
    }
    expected = logits(without(model, range(CUT.start, CUT.stop)), TOKENS)
    for name in ("saved-here", "saved-by-older"):
        reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(report.values()), report
        torch.testing.assert_close(logits(reloaded, TOKENS), expected, atol=1e-5, rtol=0)


def sliced(folder: Path, out: Path) -> dict:
    """The config.json of a sliced folder."""
    return json.loads((slice_checkpoint(folder, CUT, out) / "config.json").read_text())


def test_what_transformers_would_read_otherwise_is_refused(tmp_path, monkeypatch):
    tiny_model("qwen2").save_pretrained(tmp_path / "whole")
    monkeypatch.setattr(config_text, "cut_entries", lambda config, kept, layers: config | {"num_hidden_layers": 4,
                        "layer_types": ["full_attention"] * 4, "sliding_window": 9})  # fmt: skip
    with pytest.raises(InputError, match=r"can't say in its own words what the cut makes of sliding_window"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")


def test_kinds_that_were_worked_out_from_the_depth_are_stated_where_they_would_be_others(tmp_path):
    model = tiny_model("gemma2")
    model.save_pretrained(tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    del config["layer_types"]  # as Gemma 2 was released
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    even, odd = (slice_checkpoint(tmp_path / "whole", cut, tmp_path / str(cut.size)) for cut in (CUT, Cut(2, 1)))
    assert "layer_types" not in json.loads((even / "config.json").read_text())
    kinds = model.config.layer_types
    assert json.loads((odd / "config.json").read_text())["layer_types"] == [kinds[index] for index in (0, 1, 3, 4, 5)]


def test_a_tokenizer_is_one_that_the_older_version_knows(tiny_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<one>", "<two>"]})
    shutil.copytree(tiny_folder, tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    words = json.loads((out / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert words["additional_special_tokens"] == ["<one>", "<two>"] and "extra_special_tokens" not in words
    read = AutoTokenizer.from_pretrained(out)
    text = "The capital<one> of this<eos>"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.all_special_tokens == tokenizer.all_special_tokens
    # one in words that both know is copied as it is
    again = slice_checkpoint(out, Cut(0, 1), tmp_path / "again")
    assert (again / "tokenizer_config.json").read_bytes() == (out / "tokenizer_config.json").read_bytes()
