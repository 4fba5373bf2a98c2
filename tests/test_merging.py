"""Adapters merged into a sliced checkpoint: what merge_adapters and save_pretrained give, without opening the model."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS, read_adapter
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.healing.adapters import add_adapters, load_adapters, merge_adapters, save_adapters
from deeper_layers.models.sources import find_model, model_key
from deeper_layers.pruning import drop_layers
from tests.test_command import typed
from tests.test_healing import GATED
from tests.test_slicing import saved, tensors
from tests.tiny import FAMILIES, shared_model, tiny_model

CUT = Cut(2, 2)


def adapted(whole, source, folder, cut=CUT, alpha=5):
    """Adapters of random values for a model without the layers of a cut, in a folder; the model with them."""
    model = add_adapters(drop_layers(whole, cut), rank=3, alpha=alpha, dropout=0.0)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter)
    save_adapters(model, folder, model_key(str(source), source), cut)
    return model.eval()


def same(folder, other) -> bool:
    ours, theirs = tensors(folder), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def llama(tmp_path):
    """A model in a folder, and adapters for it."""
    adapted(saved("llama", tmp_path / "whole"), tmp_path / "whole", tmp_path / "adapter")
    return tmp_path


def edited(name, **values):
    def spoil(folder):
        path = folder / "adapter" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


GPT2 = GPT2Config(n_layer=6, n_embd=48, n_head=4, vocab_size=128, n_positions=64, bos_token_id=0, eos_token_id=0)
CASES = [(family, dtype, CUT, {}) for family in FAMILIES for dtype in (torch.float32, torch.bfloat16)]
CASES += [  # weights that lie transposed; layers that are no block; scaled by the root of the rank
    ("gpt2", torch.float32, CUT, {}),
    ("llama", torch.float32, Cut.of([1, 3]), {}),
    ("llama", torch.float32, CUT, {"use_rslora": True}),
]


@pytest.mark.parametrize(("family", "dtype", "cut", "heeded"), CASES)
def test_equals_merging_and_saving_bit_by_bit(family, dtype, cut, heeded, tmp_path):
    gpt2, source, adapter = family == "gpt2", tmp_path / "whole", tmp_path / "adapter"
    whole = AutoModelForCausalLM.from_config(GPT2).eval() if gpt2 else tiny_model(family, dtype=dtype)
    whole.save_pretrained(source, max_shard_size="40KB")
    model = adapted(whole, source, adapter, cut)
    edited(SETTINGS, exclude_modules=".*", **heeded)(tmp_path)  # what was adapted, the tensors say
    loaded = load_adapters(drop_layers(whole, cut), adapter, find_model(str(source)).key, cut)
    with torch.inference_mode():
        answers = [one(torch.arange(12)[None]).logits for one in (model, loaded)]
    assert torch.equal(*answers) != bool(heeded)
    merge_adapters(loaded).save_pretrained(tmp_path / "expected")
    out = slice_checkpoint(source, cut, tmp_path / "out", adapter=adapter)
    assert same(out, tmp_path / "expected")
    ours, plain = tensors(out), tensors(slice_checkpoint(source, cut, tmp_path / "plain"))
    changed = {name for name in ours if not torch.equal(ours[name], plain[name])}
    assert len(changed) == len(read_adapter(adapter).factors) > 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # which peft asks for
def test_of_ranks_that_differ_by_module_each_update_is_divided_by_its_own(tmp_path):
    """Beside peft's own sum, and a plain one of the tensors on disk."""
    whole = saved("llama", tmp_path / "whole")
    ranks = {"layers.1.mlp.up_proj": 1, "layers.3.mlp.down_proj": 5}
    lora = LoraConfig(r=3, rank_pattern=ranks, lora_alpha=7, target_modules=GATED, task_type="CAUSAL_LM")
    healed = get_peft_model(drop_layers(whole, CUT), lora)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in healed.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    healed.peft_config["default"].base_model_name_or_path = ""
    save_adapters(healed, tmp_path / "adapter", find_model(str(tmp_path / "whole")).key, CUT)
    expected, kept = drop_layers(whole, CUT).state_dict(), load_file(tmp_path / "adapter" / WEIGHTS)
    for name in (name for name in kept if "lora_A" in name):
        a, b = kept[name], kept[name.replace("lora_A", "lora_B")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert len(a) == next((rank for end, rank in ranks.items() if module.endswith(end)), 3)
        expected[f"{module}.weight"] = expected[f"{module}.weight"] + 7 / len(a) * b @ a
    loaded = load_adapters(drop_layers(whole, CUT), tmp_path / "adapter", find_model(str(tmp_path / "whole")).key, CUT)
    out = tensors(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", adapter=tmp_path / "adapter"))
    merged = {name: tensor.clone() for name, tensor in merge_adapters(loaded).state_dict().items()}
    of_peft = healed.merge_and_unload().state_dict()  # which changes the weights of the whole model, too
    for found in (merged, out, of_peft):
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_a_checkpoint_of_the_bare_decoder_has_shorter_names_than_the_adapters(tmp_path):
    whole, bare = tiny_model("gpt_neox"), tmp_path / "bare"
    whole.gpt_neox.save_pretrained(bare)
    config = json.loads((bare / "config.json").read_text()) | {"architectures": ["GPTNeoXForCausalLM"]}
    (bare / "config.json").write_text(json.dumps(config))
    expected = merge_adapters(adapted(whole, bare, tmp_path / "adapter")).state_dict()
    ours = tensors(slice_checkpoint(bare, CUT, tmp_path / "out", adapter=tmp_path / "adapter"))
    assert ours and all(torch.equal(tensor, expected[f"gpt_neox.{name}"]) for name, tensor in ours.items())


def test_adapters_of_peft_alone_are_taken_at_the_word_of_who_gives_the_cut(llama):
    with_record = slice_checkpoint(llama / "whole", CUT, llama / "one", adapter=llama / "adapter")
    (llama / "adapter" / IDENTITY).unlink()
    without = slice_checkpoint(llama / "whole", CUT, llama / "two", adapter=llama / "adapter")
    assert same(with_record, without) and "not recorded" in (without / "README.md").read_text()
    refused = typed("prune", llama / "whole", llama / "three", "--adapter", llama / "adapter", code=2)
    assert "--drop says how many" in refused.stderr


def test_adapters_are_the_same_whatever_the_order_of_their_settings(llama):
    path, before = llama / "adapter" / "adapter_config.json", read_adapter(llama / "adapter").fingerprint
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(settings.items()))))
    assert read_adapter(llama / "adapter").fingerprint == before
    path.write_text(json.dumps(settings | {"lora_alpha": 1 + settings["lora_alpha"]}))
    assert read_adapter(llama / "adapter").fingerprint != before


def test_what_was_begun_with_other_adapters_is_begun_anew(llama, monkeypatch):
    adapted(shared_model("llama"), llama / "whole", llama / "other", alpha=50)
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.export.lineage.format_lineage", lambda *_: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception):
            slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "other")
    assert list(llama.glob("out.*.partial/made/model.safetensors"))
    one, two = (slice_checkpoint(llama / "whole", CUT, llama / to, adapter=llama / "adapter") for to in ("out", "new"))
    assert same(one, two)


def renamed(old: str, new: str, targets: bool = False, keep: slice = slice(None)):
    """Tensors under other names, of some columns; with `targets` the settings name those modules, too."""

    def spoil(folder):
        path, modules = folder / "adapter" / WEIGHTS, read_adapter(folder / "adapter").settings["target_modules"]
        found = {name: tensor[:, keep] if old in name else tensor for name, tensor in load_file(path).items()}
        save_file({name.replace(old, new): tensor.contiguous() for name, tensor in found.items()}, path)
        if targets:
            edited(SETTINGS, target_modules=[name.replace(old, new) for name in modules])(folder)

    return spoil


def quantize(folder):
    (folder / "adapter" / IDENTITY).unlink()
    file = folder / "whole" / "model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(("spoil", "words"), [
    (renamed("layers.3", "layers.4", targets=True), "model.layers.4.* has no such tensor|it has no model.layers.4"),
    (renamed("model.layers.3.mlp.up_proj", "lm_head", targets=True), "lm_head.* has one of shape|do not fit .*lm_head"),
    (renamed("layers.3", "layers.4"), "no adapters of model.layers.3"),
    (renamed("3.mlp.up_proj.lora_A", "3.mlp.up_proj.lora_A", keep=slice(9)), "has one of shape|do not fit .*mismatch"),
    (renamed("3.mlp.up_proj.lora_A", "3.mlp.up_proj.lora_B"), "up_proj has no A and B"),
    (edited(SETTINGS, use_dora=True), "no plain LoRA .*use_dora"),
    (edited(SETTINGS, init_lora_weights="pissa"), "no plain LoRA .*init_lora_weights.*'pissa'"),
    (edited(IDENTITY, cut=[1, 2]), r"and Cut\(start=1, size=2\), expected .* and Cut\(start=2, size=2\)"),
    (lambda folder: saved("mistral", folder / "whole"), "healing.json of .*sha256:.*, expected .*sha256:"),
    (lambda folder: (folder / "adapter" / WEIGHTS).unlink(), "lacks adapter_model"),
    (quantize, "in F8_E4M3: give .* weights in one of F64|healing.json of None and None"),
])  # fmt: skip
def test_adapters_that_do_not_belong_here_are_refused_on_disk_and_in_memory(spoil, words, llama):
    spoil(llama)
    with pytest.raises(InputError, match=words):
        slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "adapter")
    assert not (llama / "out").exists()
    pruned, base = drop_layers(shared_model("llama"), CUT), model_key(str(llama / "whole"), llama / "whole")
    before = list(pruned.named_modules())
    with pytest.raises(InputError, match=words):
        load_adapters(pruned, llama / "adapter", base, CUT)
    assert list(pruned.named_modules()) == before
