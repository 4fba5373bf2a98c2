"""Layers for multi-token prediction, numbered after the last layer: kept under new numbers, or left out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.layer_tensors import read_layout
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.pruning import drop_layers
from tests.plain import logits
from tests.tiny import VOCABULARY, tiny_model

LAYERS, CUT, TOKENS = 6, Cut(2, 2), torch.arange(1, 25)[None]
GLM = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": LAYERS,
       "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "moe_intermediate_size": 16,
       "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
       "pad_token_id": 0, "eos_token_id": None, "num_nextn_predict_layers": 1}  # fmt: skip


def released(family: str, folder):
    """A checkpoint as GLM-4.5 and DeepSeek-V3 were released: one more layer after the last, with its own parts."""
    if family == "glm4_moe":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **GLM), dtype=torch.float32).eval()
    else:
        model = tiny_model(family, layers=LAYERS)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    found, last = load_file(file), f"model.layers.{LAYERS - 1}."
    more = {name.replace(last, f"model.layers.{LAYERS}."): t + 1 for name, t in found.items() if name.startswith(last)}
    more |= {f"model.layers.{LAYERS}.{name}.weight": torch.ones(48) for name in ("enorm", "hnorm", "shared_head.norm")}
    more[f"model.layers.{LAYERS}.eh_proj.weight"] = torch.ones(48, 96)
    save_file(found | more, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("num_mtp_layers", None)
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return model, more


@pytest.mark.parametrize("own_code", [False, True], ids=["of transformers", "code of its own"])
@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_they_stay_under_new_numbers_or_are_left_out(family, own_code, tmp_path):
    folder = tmp_path / "whole"
    model, more = released(family, folder)
    if own_code:
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
        (folder / "config.json").write_text(json.dumps(config))
    whole = load_file(slice_checkpoint(folder, CUT, tmp_path / "kept") / "model.safetensors")
    plain = load_file(slice_checkpoint(folder, CUT, tmp_path / "plain", mtp=False) / "model.safetensors")
    moved = {name.replace(f".layers.{LAYERS}.", f".layers.{LAYERS - 2}."): tensor for name, tensor in more.items()}
    assert whole.keys() == plain.keys() | moved.keys() and not plain.keys() & moved.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in (plain | moved).items())
    stated = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("kept", "plain")]
    assert [config["num_nextn_predict_layers"] for config in stated] == [1, 0]
    if not own_code:
        expected = logits(drop_layers(model, CUT), TOKENS)
        for name in ("kept", "plain"):
            assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name), TOKENS), expected)


def test_layers_beyond_those_that_are_stated_are_refused(tmp_path):
    folder = tmp_path / "whole"
    released("glm4_moe", folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tensors that may belong to layers beside its 6"):
        slice_checkpoint(folder, CUT, tmp_path / "out")


def test_those_of_a_name_of_their_own_are_not_renumbered(tmp_path):
    folder, model = tmp_path / "whole", tiny_model("qwen3_next", layers=LAYERS)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    more = {"mtp.layers.0.input_layernorm.weight": torch.ones(48), "mtp.fc.weight": torch.ones(48, 96)}
    save_file(load_file(file) | more, file, {"format": "pt"})
    kept = load_file(slice_checkpoint(folder, CUT, tmp_path / "kept") / "model.safetensors")
    plain = load_file(slice_checkpoint(folder, CUT, tmp_path / "plain", mtp=False) / "model.safetensors")
    assert kept.keys() - plain.keys() == more.keys()
    assert read_layout(folder).mtp == 1


HYBRID = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 64, "mamba_num_heads": 8, "mamba_head_dim": 12, "n_groups": 1, "ssm_state_size": 8,
    "chunk_size": 8, "use_mamba_kernels": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def test_a_hybrid_keeps_its_letters(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("nemotron_h", **HYBRID, hybrid_override_pattern="M-*M-M")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    # as the released checkpoints state them
    stated = json.loads((tmp_path / "whole" / "config.json").read_text())
    stated.pop("layers_block_type", None)
    (tmp_path / "whole" / "config.json").write_text(json.dumps(stated | {"hybrid_override_pattern": "M-*M-M"}))
    out = slice_checkpoint(tmp_path / "whole", Cut(3, 2), tmp_path / "letters")
    assert json.loads((out / "config.json").read_text())["hybrid_override_pattern"] == "M-*M"
