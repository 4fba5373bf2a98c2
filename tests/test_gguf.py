"""GGUF files without some of their layers: the same bytes, and in llama.cpp the answers of transformers."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from deeper_layers.command import main
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings, take_away
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.notebook_parameters import TakeAwayParameters
from deeper_layers.experiments.take_away import PROMPTS, score_files
from deeper_layers.export import gguf_files, llama_cpp, tensor_writer
from deeper_layers.export.gguf_files import KEPT, ORIGIN, slice_gguf, tensor_bytes
from deeper_layers.export.llama_cpp import LlamaCpp
from deeper_layers.healing.adapters import add_adapters, merge_adapters, save_adapters
from deeper_layers.models import gguf_conversion
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from tests.tiny import write_gguf

CUT = Cut(2, 3)
KEYS = [4, 4, 2, 2, 2, 1, 1]  # one value a layer, as files of some families have
CUT_OF_5 = Cut(2, 2)


def write(path: Path, arch: str = "llama", layers: int = 7, **entries) -> Path:
    """A GGUF file of tensors as a Llama has them, quantized feed-forward modules among them."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_array(f"{arch}.attention.head_count_kv", KEYS[:layers])
    writer.add_array("general.tags", [f"tag {i}" for i in range(layers)])  # not one a layer
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(32)])
    writer.add_string("general.size_label", "7M")
    writer.add_file_type(7)
    for key, value in entries.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name in (
        "token_embd",
        "output_norm",
        *(f"blk.{i}.{part}" for i in range(layers) for part in ("attn_norm", "ffn_down")),
    ):
        if name.endswith("norm"):
            writer.add_tensor(f"{name}.weight", draw.standard_normal(64, dtype=np.float32))
            continue
        values = gguf.quants.quantize(draw.standard_normal((32, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path / "tiny.gguf")


def contents(path: Path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_kept_tensors_are_the_same_bytes_under_new_numbers(tiny, tmp_path):
    out = slice_gguf(tiny, CUT, tmp_path / "out.gguf")
    (old_keys, old), (keys, new) = contents(tiny), contents(out)
    assert len(new) == 2 + 2 * 4
    for position, number in enumerate((0, 1, 5, 6)):
        for part in ("attn_norm", "ffn_down"):
            before, after = old[f"blk.{number}.{part}.weight"], new[f"blk.{position}.{part}.weight"]
            assert before.tensor_type == after.tensor_type and before.data.tobytes() == after.data.tobytes()
            assert list(before.shape) == list(after.shape)
    assert old["token_embd.weight"].data.tobytes() == new["token_embd.weight"].data.tobytes()
    assert keys["llama.block_count"] == 4 and keys["llama.attention.head_count_kv"] == [4, 4, 1, 1]
    assert keys["general.tags"] == old_keys["general.tags"]
    assert keys[KEPT] == [0, 1, 5, 6] and keys[ORIGIN] == find_model(str(tiny)).weights.removeprefix("sha256:")
    assert "general.size_label" not in keys and keys["general.file_type"] == 7
    assert sum(t.n_bytes for t in new.values()) == tensor_bytes(find_model(str(tiny)), CUT)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("tiny.gguf", "out.gguf")] == []


def test_a_second_cut_keeps_the_map_to_the_first_file(tiny, tmp_path):
    once = slice_gguf(tiny, CUT, tmp_path / "once.gguf")
    keys, _ = contents(slice_gguf(once, Cut(1, 1), tmp_path / "twice.gguf"))
    assert keys[KEPT] == [0, 5, 6] and keys[ORIGIN] == find_model(str(tiny)).weights.removeprefix("sha256:")


@pytest.mark.parametrize(("type", "number"), [("f32", 0), ("f16", 1), ("q8_0", 7)])
def test_another_type(type, number, tiny, tmp_path):
    _, old = contents(tiny)
    keys, new = contents(slice_gguf(tiny, CUT, tmp_path / "out.gguf", type=type))
    tensor = new["blk.2.ffn_down.weight"]
    assert tensor.tensor_type == gguf_files.TYPES[type] and keys["general.file_type"] == number
    assert new["blk.2.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    values = [gguf.quants.dequantize(t.data, t.tensor_type) for t in (old["blk.5.ffn_down.weight"], tensor)]
    np.testing.assert_allclose(*values, atol={"f32": 0, "f16": 2e-3, "q8_0": 1e-6}[type])


def test_adapters_are_added_in_full_precision(tiny, tmp_path):
    draw = np.random.default_rng(1)
    down, up = draw.standard_normal((2, 64), dtype=np.float32), draw.standard_normal((32, 2), dtype=np.float32)
    adapter = fake_adapter(tmp_path / "adapter", "model.layers.2.mlp.down_proj", down, up)
    _, old = contents(tiny)
    _, new = contents(slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter, type="f32"))
    was, now = old["blk.5.ffn_down.weight"], new["blk.2.ffn_down.weight"]
    expected = gguf.quants.dequantize(was.data, was.tensor_type) + 1.5 * up @ down
    np.testing.assert_allclose(now.data, expected, rtol=1e-6, atol=1e-6)
    _, new = contents(slice_gguf(tiny, CUT, tmp_path / "as-they-are.gguf", adapter=adapter))
    assert new["blk.2.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert new["blk.1.ffn_down.weight"].data.tobytes() == old["blk.1.ffn_down.weight"].data.tobytes()


def test_sums_that_a_type_can_not_hold_are_refused(tiny, tmp_path):
    """As f16 they would be infinite."""
    adapter = fake_adapter(
        tmp_path / "adapter", "model.layers.2.mlp.down_proj", *(np.full(s, 300, np.float32) for s in ((2, 64), (32, 2)))
    )
    for type in (None, "f16"):
        with pytest.raises(InputError, match=r"blk.5.ffn_down.weight would hold 27\d+.*, too large for F16: .*f32"):
            slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter, type=type)
    assert not list(tmp_path.glob("out*"))
    slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter, type="f32")


def fake_adapter(folder: Path, module: str, down, up, identity: dict | None = None, **config) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": [module.rpartition(".")[2]]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    names = {"A": down, "B": up}
    save_file({f"base_model.model.{module}.lora_{k}.weight": v for k, v in names.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    if identity:
        (folder / "healing.json").write_text(json.dumps(identity))
    return folder


@pytest.mark.parametrize(
    ("module", "shapes", "more", "message"),
    [
        ("model.layers.2.self_attn.q_proj", ((2, 64), (32, 2)), {}, "on model.layers.2.self_attn.q_proj: expected"),
        ("model.layers.9.mlp.down_proj", ((2, 64), (32, 2)), {}, "on model.layers.9.mlp.down_proj: expected"),
        ("model.layers.2.mlp.up_proj", ((2, 64), (32, 2)), {}, "on blk.2.ffn_up.weight, which tiny does not have"),
        ("model.layers.2.mlp.down_proj", ((2, 32), (64, 2)), {}, r"has the shape \[32, 64\], its adapter"),
        ("model.layers.2.mlp.down_proj", ((2, 64), (32, 2)), {"use_dora": True}, "no plain LoRA .*use_dora"),
        ("model.layers.2.mlp.down_proj", ((2, 64), (32, 2)),
         {"identity": {"base": {"name": "x", "weights": "sha256:1"}, "cut": [2, 3]}}, "were trained on x .sha256:1"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_belong(module, shapes, more, message, tiny, tmp_path):
    adapter = fake_adapter(
        tmp_path / "adapter", module, *(np.ones(shape, dtype=np.float32) for shape in shapes), **more
    )
    with pytest.raises(InputError, match=message):
        slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter)
    assert not list(tmp_path.glob("*out.gguf*"))
    with pytest.raises(InputError, match="lacks adapter_config.json"):
        slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=tmp_path / "none")


@pytest.mark.parametrize(
    ("arch", "cut", "message"),
    [
        ("gemma3", Cut(1, 6), None),
        ("gemma3", Cut(6, 1), None),  # above the cut nothing is left to change its kind
        ("gemma3", Cut(1, 3), "layer 5 .* every 6th layer .* drop a multiple of 6"),
        ("gemma2", Cut(0, 1), "every 2nd layer"),
        ("gemma2", Cut(1, 2), None),
        ("llama4", Cut(1, 1), "architecture llama4, whose layers may differ"),
    ],
)
def test_layers_whose_kind_follows_from_their_number(arch, cut, message, tmp_path):
    path = write(tmp_path / "tiny.gguf", arch)
    if message is None:
        assert contents(slice_gguf(path, cut, tmp_path / "out.gguf"))[0][f"{arch}.block_count"] == 7 - cut.size
        return
    with pytest.raises(InputError, match=message):
        slice_gguf(path, cut, tmp_path / "out.gguf")


def test_what_a_user_gets_wrong(tiny, tiny_folder, tmp_path, monkeypatch):
    content = tiny.read_bytes()
    for number, damaged in enumerate((content[:-100], content[:200], b"GG", b"{}" + content)):
        (tmp_path / f"{number}.gguf").write_bytes(damaged)
        with pytest.raises(InputError, match="not a whole GGUF file"):
            slice_gguf(tmp_path / f"{number}.gguf", CUT, tmp_path / "out.gguf")
    with pytest.raises(InputError, match="start is 6 with size 3"):
        slice_gguf(tiny, Cut(6, 3), tmp_path / "out.gguf")
    with pytest.raises(InputError, match="exists"):
        slice_gguf(tiny, CUT, tiny)
    with pytest.raises(InputError, match="type is 'q4_k'"):
        slice_gguf(tiny, CUT, tmp_path / "out.gguf", type="q4_k")
    with pytest.raises(InputError, match="no GGUF file: .*convert_hf_to_gguf.py"):
        slice_gguf(tiny_folder, Cut(1, 1), tmp_path / "out.gguf")
    with pytest.raises(InputError, match="one of several files"):
        slice_gguf(write(tmp_path / "part.gguf", split__count=2), CUT, tmp_path / "out.gguf")
    monkeypatch.setattr(tensor_writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="MB are free"):
        slice_gguf(tiny, CUT, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


def test_the_command(tiny, tiny_folder, tmp_path, capsys):
    def prune(*words):
        main(["prune", *map(str, words), "--drop", "2", "--rule", "simple"], standalone_mode=False)

    words = ["prune", str(tiny), str(tmp_path / "light.gguf"), "--drop", "2", "--rule", "simple"]
    light = f"import sys; from deeper_layers.command import main; main({words!r}, standalone_mode=False)"
    light += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", light], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    prune(tiny, tmp_path / "out.gguf", "--type", "f16")
    assert "drops layers 4..5 (0-based, 2 of 7)" in capsys.readouterr().out
    assert contents(tmp_path / "out.gguf")[0][KEPT] == [0, 1, 2, 3, 6]
    for words, message in [
        ([tiny_folder, "x.gguf"], "is no GGUF file"),
        ([tiny, "x", "--type", "f16"], "ends in .gguf"),
        ([tiny, "x.gguf", "--type", "q4_k"], "'q4_k' is not one of 'f32', 'f16', 'q8_0'"),
    ]:
        with pytest.raises(click.ClickException, match=message):
            prune(*words)


# ---- in llama.cpp ----------------------------------------------------------------------------------------


@pytest.fixture
def llama(tiny_folder, tmp_path, monkeypatch):
    """A random Llama of 5 layers and its tokenizer, and a cache for what is made of it that goes with the test."""
    monkeypatch.setattr(gguf_conversion, "cache_folder", lambda: tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config), tokenizer


@pytest.fixture
def llama_file(llama, tmp_path):
    """That Llama as a GGUF file."""
    return write_gguf(*llama, tmp_path / "llama.gguf")


@pytest.fixture
def rounded_file(llama_file, tmp_path):
    """The same in the kind of weights that the embedded model has."""
    pytest.importorskip("cyllama", reason="needs llama.cpp: pip install cyllama")
    return llama_cpp.quantize(llama_file, tmp_path / "rounded.gguf", "Q4_1")


def in_llama_cpp(path: Path) -> LlamaCpp:
    pytest.importorskip("cyllama", reason="needs llama.cpp: pip install cyllama")
    return LlamaCpp(path)


@pytest.mark.parametrize(("file", "cut"), [("llama_file", Cut(1, 2)), ("rounded_file", Cut(2, 2))])
def test_healed_it_answers_as_in_transformers(file, cut, request, tmp_path):
    """Sliced and with adapters, in F32: the weights of drop_layers and merge_adapters, the tokens of transformers."""
    file = request.getfixturevalue(file)
    source = find_model(str(file))
    model, _ = load_model(source)
    healed = add_adapters(drop_layers(model, cut), rank=2, alpha=2, dropout=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in healed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    save_adapters(healed, tmp_path / "adapter", source.key, cut)
    out = slice_gguf(file, cut, tmp_path / "healed.gguf", adapter=tmp_path / "adapter", type="f32")
    opened, tokenizer = load_model(str(out))
    found, expected = opened.state_dict(), merge_adapters(healed).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)

    theirs = in_llama_cpp(out)
    opened.generation_config.eos_token_id = None  # both go on to the last token
    for text in PROMPTS:
        prompt = tokenizer(text, return_tensors="pt")
        assert theirs.tokens(text) == prompt["input_ids"][0].tolist()
        ours = opened.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert theirs.greedy(theirs.tokens(text), 24) == ours.tolist()


def test_quantized_by_llama_cpp(llama_file, tmp_path):
    whole = in_llama_cpp(llama_file)
    out = llama_cpp.quantize(llama_file, tmp_path / "small.gguf", "Q4_0")
    assert find_model(str(out)).quantized != find_model(str(llama_file)).quantized == "F32"
    assert out.stat().st_size < llama_file.stat().st_size / 2
    assert whole.text(whole.tokens(PROMPTS[0])) == PROMPTS[0]
    with pytest.raises(InputError, match="exists"):
        llama_cpp.quantize(llama_file, out, "Q4_0")
    with pytest.raises(InputError, match="type is 'Q9'"):
        llama_cpp.quantize(llama_file, tmp_path / "other.gguf", "Q9")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="not a whole GGUF file"):
        llama_cpp.quantize(tmp_path / "damaged.gguf", tmp_path / "other.gguf", "Q4_0")
    with pytest.raises(InputError, match="not a whole GGUF file"):
        LlamaCpp(tmp_path / "damaged.gguf")


def test_a_text_begins_as_the_file_says(llama, llama_file, tmp_path):
    """Without its <bos> Gemma says "France of France of France"."""
    model, tokenizer = llama
    begun = write_gguf(model, tokenizer, tmp_path / "begun.gguf", begins=True)
    plain = in_llama_cpp(llama_file).tokens(PROMPTS[0])
    assert in_llama_cpp(begun).tokens(PROMPTS[0]) == [tokenizer.eos_token_id, *plain]


def test_without_llama_cpp_it_says_what_to_install(llama_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    with pytest.raises(InputError, match="pip install cyllama"):
        LlamaCpp(llama_file)


@pytest.mark.thorough
def test_the_way_to_llama_cpp(llama_file, tmp_path, monkeypatch):
    """One unit: the file whole, sliced, healed and rounded; measured once."""
    in_llama_cpp(llama_file)
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    few = PRESETS["small"]
    few = dataclasses.replace(few, rank=2, sequence_length=32, batch_sequences=2, at_once=2)
    monkeypatch.setitem(PRESETS, "small", few)
    parameters = TakeAwayParameters(
        model=str(llama_file), tasks="capitals", limit=4, steps=2, results=str(tmp_path / "results")
    )
    experiment = Experiment(parameters)
    assert score_files("similarity", CUT_OF_5, experiment.but(measure=False)) is None
    unit = score_files("similarity", CUT_OF_5, experiment)
    rows = unit.rows.set_index(["variant", "task", "metric"])["value"]
    assert rows["healed", "llama.cpp", "tokens equal"] == len(PROMPTS) * 24
    sizes = list(dict.fromkeys(unit.rows["bytes"]))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert sizes[0] == llama_file.stat().st_size
    assert {variant for variant, task, _ in rows.index if task == "capitals"} == set(unit.details["answers"])
    assert all(len(answers) == len(PROMPTS) for answers in unit.details["answers"].values())
    assert unit.details["healed_tokens"] == 2 * 2 * 32
    monkeypatch.setattr(take_away, "_variants", lambda *_: pytest.fail("measured again"))
    assert score_files("similarity", CUT_OF_5, experiment).path == unit.path
