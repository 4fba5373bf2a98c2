"""Quantized checkpoints: sliced as bytes, and what their configuration says of single layers follows the layers."""

import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deeper_layers.errors import InputError
from deeper_layers.export.config_text import cut_quantization
from deeper_layers.export.slicing import slice_checkpoint
from tests.plain import logits, without
from tests.test_slicing import CUT, LAYERS, TOKENS, alike, saved, stated, tensors
from tests.tiny import tiny_model

KEPT = {0: 0, 1: 1, 4: 2, 5: 3}
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{module}.qweight" for layer in range(LAYERS) for module in MODULES]
NAMES += ["lm_head.weight", "model.embed_tokens.weight"]
# of each method: what a weight is stored as, and what the configuration says of single layers, before and after
METHODS = {
    "gptq": (
        ("qweight", "scales", "qzeros", "g_idx"),
        {"bits": 4, "dynamic": {r"-:model\.layers\.2\..*": {}, r"+:model\.layers\.5\.mlp\..*": {"bits": 8}}},
        {"bits": 4, "dynamic": {r"+:model\.layers\.3\.mlp\..*": {"bits": 8}}},
    ),
    "awq": (
        ("qweight", "scales", "qzeros"),
        {"bits": 4, "modules_to_not_convert": ["model.layers.0", "model.layers.3.mlp", "model.layers.4.mlp.down_proj"]},
        {"bits": 4, "modules_to_not_convert": ["model.layers.0", "model.layers.2.mlp.down_proj"]},
    ),
    "fp8": (
        ("weight_scale_inv", "weight"),
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
    saved("llama", folder)
    found = {}
    for name, tensor in tensors(folder).items():
        stem, is_matrix = name.removesuffix("weight"), name.endswith("_proj.weight")
        parts = {f"{stem}{part}": torch.full((5,), len(found), dtype=torch.uint8) for part in METHODS[method][0]}
        found |= parts if is_matrix else {name: tensor}
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    stated(folder, quantization_config={"quant_method": method, **said})
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_and_the_names_follow_the_layers(method, tmp_path):
    _, before, after = METHODS[method]
    whole, expected = quantized(method, tmp_path / "whole", **before), {}
    for name, tensor in whole.items():
        new = re.sub(r"layers\.(\d)", lambda found: f"layers.{KEPT.get(int(found[1]))}", name)
        expected |= {} if "None" in new else {new: tensor}
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    assert alike(out, expected) and stated(out)["quantization_config"] == {"quant_method": method, **after}
    with pytest.raises(InputError, match="quantized weights, which can't be cast"):
        slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "cast", dtype="float16")


# names and patterns, what they are without layers 2 and 3 (None: nothing), or that this is not sure
TEXTS = {
    "model.layers.4.mlp.down_proj": "model.layers.2.mlp.down_proj",
    "layers.5": "layers.3",
    "model.layers.3.mlp": None,
    "lm_head": "lm_head",
    "model.layers.4.mlp.experts.3.w1": "model.layers.2.mlp.experts.3.w1",  # the first number alone
    "visual.blocks.3.mlp": "visual.blocks.3.mlp",
    r"re:.*layers\.4\..*": r"re:.*layers\.2\..*",
    r"re:.*layers\.\d+\.mlp.*": r"re:.*layers\.\d+\.mlp.*",
    r"re:.*q_proj": r"re:.*q_proj",
    r"-:model\.layers\.(0|1)\.mlp.*": InputError,
    "model.layers.5*": InputError,
    "gptqmodel:1.4.0-dev": "gptqmodel:1.4.0-dev",
    "model.layers.2.*": None,
    "W4A16": "W4A16",
    r"-:model\.layers\.(4|5)\.mlp.*": InputError,
    r"+:.*\.4\..*_proj": InputError,
    r"re:.*layers\.[0-4]\..*": InputError,
    "*.4.mlp.*": InputError,
    "re:(4": InputError,
    r"re:(\w+)+4": InputError,
    "decoder.layers.4.mlp": InputError,
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items())
def test_a_name_or_pattern_without_layers_2_and_3(text, expected, tmp_path):
    def found():
        return cut_quantization({"ignore": [text], "map": {text: 1}}, KEPT, NAMES, ("model.layers.",), tmp_path)

    if expected is InputError:
        with pytest.raises(InputError, match="can't be renumbered surely"):
            found()
    else:
        kept = [] if expected is None else [expected]
        assert found() == {"ignore": kept, "map": dict.fromkeys(kept, 1)}


def test_four_bits_of_bitsandbytes_answer_as_the_whole_model_without_these_layers(tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head", "model.layers.5.mlp"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how)
    model.save_pretrained(tmp_path / "whole")
    reloaded = AutoModelForCausalLM.from_pretrained(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out"))
    kinds = [type(layer.mlp.up_proj).__name__ for layer in reloaded.model.layers]
    assert kinds == ["Linear4bit"] * 3 + ["Linear"]
    assert torch.equal(logits(reloaded, TOKENS), logits(without(model, CUT.dropped), TOKENS))
