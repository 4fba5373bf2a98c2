"""Weights cast while they are copied: what torch makes of them, tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export import tensor_edits, tensor_writer
from deeper_layers.export.slicing import slice_checkpoint, weights_written
from deeper_layers.export.tensor_writer import Entry
from deeper_layers.models.checkpoint_files import read_shards
from deeper_layers.pruning import drop_layers
from tests.tiny import tiny_model

pytestmark = pytest.mark.quick

CUT = Cut(2, 2)


@pytest.fixture
def whole(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "whole", max_shard_size="40KB")
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_as_torch_casts(whole, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(tensor_writer, "BLOCK", 1000)
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", dtype=dtype)
    expected = drop_layers(whole, CUT).to(getattr(torch, dtype)).state_dict()
    found = {name: value for path in out.glob("*.safetensors") for name, value in load_file(path).items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items()) and found
    config = json.loads((out / "config.json").read_text())
    assert {config[name] for name in ("dtype", "torch_dtype") if name in config} == {dtype}
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert reloaded.dtype == getattr(torch, dtype) and reloaded.config.num_hidden_layers == 4
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert weights_written(tmp_path / "whole", dtype, dequantized=False, mtp=True)(CUT) == (written, dtype)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())


def test_up_again_nothing_is_lost(whole, tmp_path):
    half = slice_checkpoint(tmp_path / "whole", Cut(0, 0), tmp_path / "half", dtype="bfloat16")
    again = slice_checkpoint(half, Cut(0, 0), tmp_path / "again", dtype="float32")
    entries, whole = (
        [Entry(t.name, t.entry["dtype"], s, t) for s in read_shards(folder) for t in s.tensors]
        for folder in (again, tmp_path / "whole")
    )
    assert {entry.dtype for entry in entries} == {"F32"}
    assert tensor_edits.smallest_dtype(entries) == "bfloat16" and tensor_edits.smallest_dtype(whole) == "float32"


def test_what_does_not_fit_is_refused(whole, tmp_path):
    file = sorted((tmp_path / "whole").glob("*.safetensors"))[0]
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].view(-1)[3] = 70000.0
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match="dtype is float16, and .* holds 70000, too large for it"):
        slice_checkpoint(tmp_path / "whole", Cut(0, 0), tmp_path / "out", dtype="float16")
    with pytest.raises(InputError, match="dtype is 'fp8', expected 'auto' or one of"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", dtype="fp8")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(InputError, match="holds quantized weights, which can't be cast"):
        tensor_edits.check_plain([], config, tmp_path, "cast")
    assert not (tmp_path / "out").exists()


def test_a_data_type_is_stated_where_it_was():
    assert tensor_edits.state_dtype({"torch_dtype": "float32"}, "bfloat16") == {"torch_dtype": "bfloat16"}
    nested = {"text_config": {"dtype": "float32", "a": 1}, "vision_config": {}}
    said = tensor_edits.state_dtype(nested, "float16")
    assert said["text_config"] == {"dtype": "float16", "a": 1} and said["torch_dtype"] == "float16"
