"""Quantized checkpoints: sliced as bytes, and what their configuration says of single layers follows the layers."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.quantization_names import cut_quantization
from deeper_layers.export.slicing import slice_checkpoint
from tests.plain import logits, without
from tests.tiny import tiny_model

LAYERS, CUT, TOKENS = 6, Cut(2, 2), torch.arange(1, 25)[None]
KEPT = {0: 0, 1: 1, 4: 2, 5: 3}
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{module}.qweight" for layer in range(LAYERS) for module in MODULES]
NAMES += ["lm_head.weight", "model.embed_tokens.weight"]
# of each method: what a weight is stored as, and what the configuration says of single layers, before and after
METHODS = {
    "gptq": (
        ("qweight", "qzeros", "scales", "g_idx"),
        {"bits": 4, "dynamic": {r"-:model\.layers\.2\..*": {}, r"+:.*\.4\..*_proj": {"bits": 8}, r"-:lm_head": {},
                                r"+:model\.layers\.5\.mlp\..*": {"bits": 8}}},
        None,
    ),
    "awq": (
        ("qweight", "qzeros", "scales"),
        {"bits": 4, "modules_to_not_convert": ["model.layers.0", "model.layers.3.mlp", "model.layers.4.mlp.down_proj"]},
        {"bits": 4, "modules_to_not_convert": ["model.layers.0", "model.layers.2.mlp.down_proj"]},
    ),
    "fp8": (
        ("weight", "weight_scale_inv"),
        {"weight_block_size": [16, 16], "ignored_layers": ["lm_head", "layers.5.mlp.down_proj", "layers.2.mlp"]},
        {"weight_block_size": [16, 16], "ignored_layers": ["lm_head", "layers.3.mlp.down_proj"]},
    ),
    "compressed-tensors": (
        ("weight_packed", "weight_scale", "weight_shape"),
        {"ignore": ["lm_head", r"re:.*layers\.5\.mlp.*"],
         "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}},
                           "group_1": {"targets": [r"re:.*layers\.3\..*"], "weights": {"num_bits": 8}}}},
        {"ignore": ["lm_head", r"re:.*layers\.3\.mlp.*"],
         "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}},
    ),
    "bitsandbytes": (
        ("weight", "weight.absmax", "weight.quant_map"),
        {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp", "model.layers.4.mlp"]},
        {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp", "model.layers.2.mlp"]},
    ),
}  # fmt: skip


def quantized(method: str, folder, **said):
    """A checkpoint with the names and the configuration of a method; what its numbers mean is not asked here."""
    tiny_model("llama", layers=LAYERS).save_pretrained(folder)
    file, found = folder / "model.safetensors", {}
    for name, tensor in load_file(file).items():
        if re.search(r"_proj\.weight$", name):
            stem = name.removesuffix("weight")
            found |= {f"{stem}{part}": torch.full((5,), len(found), dtype=torch.uint8) for part in METHODS[method][0]}
        else:
            found[name] = tensor
    save_file(found, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **said}
    (folder / "config.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name][2]])
def test_the_bytes_and_the_names_follow_the_layers(method, tmp_path):
    _, before, after = METHODS[method]
    whole = quantized(method, tmp_path / "whole", **before)
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    sliced = load_file(out / "model.safetensors")
    for name, tensor in whole.items():
        number = re.search(r"layers\.(\d+)", name)
        if number is None or int(number[1]) in KEPT:
            new = name if number is None else name.replace(number[0], f"layers.{KEPT[int(number[1])]}")
            assert torch.equal(sliced.pop(new), tensor)
    assert not sliced
    stated = json.loads((out / "config.json").read_text())["quantization_config"]
    assert stated == {"quant_method": method, **after}


def test_a_pattern_that_names_layers_otherwise_is_refused(tmp_path):
    quantized("gptq", tmp_path / "whole", **METHODS["gptq"][1])
    with pytest.raises(InputError, match=r"has the pattern .*4.*_proj', which names layers in a way"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layers.4.mlp.down_proj", "model.layers.2.mlp.down_proj"),
        ("layers.5", "layers.3"),
        ("model.layers.3.mlp", None),
        ("lm_head", "lm_head"),
        ("model.layers.4.mlp.experts.3.w1", "model.layers.2.mlp.experts.3.w1"),  # the first number alone
        ("visual.blocks.3.mlp", "visual.blocks.3.mlp"),
        (r"re:.*layers\.4\..*", r"re:.*layers\.2\..*"),
        (r"re:.*layers\.3\..*", None),
        (r"re:.*layers\.\d+\.mlp.*", r"re:.*layers\.\d+\.mlp.*"),
        (r"re:.*q_proj", r"re:.*q_proj"),
        (r"-:model\.layers\.(0|1)\.mlp.*", r"-:model\.layers\.(0|1)\.mlp.*"),  # layers 0 and 1 keep their numbers
        ("model.layers.5*", "model.layers.3*"),
        ("model.layers.2.*", None),
        ("W4A16", "W4A16"),
        ("Linear", "Linear"),
    ],
)
def test_a_name_or_pattern_without_layers_2_and_3(text, expected, tmp_path):
    found = cut_quantization({"ignore": [text], "map": {text: {}}}, KEPT, NAMES, ("model.layers.",), tmp_path)
    assert found == ({"ignore": [], "map": {}} if expected is None else {"ignore": [expected], "map": {expected: {}}})


@pytest.mark.parametrize(
    "text",
    [
        r"-:model\.layers\.(4|5)\.mlp.*",
        r"re:.*layers\.[0-4]\..*",
        "*.4.mlp.*",
        "re:(4",
        r"re:(\w+)+4",
        "decoder.layers.4.mlp",
    ],  # fmt: skip
)
def test_what_can_not_be_renumbered_surely_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="can't be renumbered surely"):
        cut_quantization({"ignore": [text]}, KEPT, NAMES, ("model.layers.",), tmp_path)


@pytest.mark.parametrize(("method", "part"), [("gptq", "scales"), ("compressed-tensors", "weight_scale"),
                                              ("bitsandbytes", "weight.absmax")])  # fmt: skip
def test_a_weight_that_lacks_a_part_is_refused(method, part, tmp_path):
    whole = quantized(method, tmp_path / "whole")
    lost = f"model.layers.5.mlp.up_proj.{part}"
    save_file({name: t for name, t in whole.items() if name != lost}, tmp_path / "whole" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=rf"it lacks {re.escape(lost)}, a part of a quantized weight"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")


def test_four_bits_of_bitsandbytes_answer_as_the_whole_model_without_these_layers(tmp_path):
    tiny_model("llama", layers=LAYERS, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head", "model.layers.5.mlp"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how)
    model.save_pretrained(tmp_path / "whole")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(reloaded.model.layers[3].mlp.up_proj) is torch.nn.Linear
    assert type(reloaded.model.layers[2].mlp.up_proj).__name__ == "Linear4bit"
    assert torch.equal(logits(reloaded, TOKENS), logits(without(model, range(CUT.start, CUT.stop)), TOKENS))
