"""GGUF files: read as if alone and converted once; sliced, the same bytes, and in llama.cpp transformers' answers."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.export import llama_cpp
from deeper_layers.export.gguf_files import KEPT_LAYERS, ORIGIN, TYPES, count_tensor_bytes, slice_gguf
from deeper_layers.export.llama_cpp import LlamaCpp
from deeper_layers.healing.adapters import add_adapters, merge_adapters, save_adapters
from deeper_layers.models.gguf_reading import conversion_folder, convert_gguf
from deeper_layers.models.opening import load_empty_model, load_model, load_tokenizer
from deeper_layers.models.sources import checkpoint_folder, find_model
from deeper_layers.package_index import file_hash
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.jobs import take_away
from deeper_layers_companion.jobs.job import PROMPTS, file_job, rounded_job
from deeper_layers_companion.jobs.notebook_options import TakeAwayParameters
from deeper_layers_companion.jobs.session import Session
from tests.fuzz.damage import replaced
from tests.fuzz.folders import CUT, described
from tests.test_command import answer, typed
from tests.test_slicing import stated
from tests.tiny import tiny_model, write_gguf, write_out

DOWN = "model.layers.1.mlp.down_proj"  # after CUT, before it of layer 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, arch: str = "llama") -> Path:
    """A GGUF file of 4 layers, with an entry of one value for each of these, and a list that only is as long."""
    draw, writer = np.random.default_rng(0), gguf.GGUFWriter(path, arch)
    for name, value in {
        "size_label": "7M",
        "file_type": 7,
        "tags": list("abcd"),
        "block_count": 4,
        "head_count_kv": [4, 2, 2, 1],
        "sliding_window": 8,
        "sliding_window_pattern": 3,
    }.items():
        getattr(writer, f"add_{name}")(value)
    parts = (f"blk.{i}.{part}" for i in range(4) for part in ("attn_norm", "ffn_down"))
    for name in ("token_embd", "output_norm", *parts):
        kind, shape = (TYPES["f32"], [64]) if "norm" in name else (TYPES["q8_0"], [32, 64])
        content = gguf.quants.quantize(draw.standard_normal(shape, dtype=np.float32), kind)
        writer.add_tensor(f"{name}.weight", content, raw_dtype=kind)
    write_out(writer)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def contents(path: Path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def values(tensor) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


# ---- sliced ----------------------------------------------------------------------------------------------


def test_kept_tensors_are_the_same_bytes_under_new_numbers_and_a_second_cut_keeps_the_map(tiny, tmp_path):
    out, source = slice_gguf(tiny, CUT, tmp_path / "out.gguf"), find_model(str(tiny))
    assert described(out, Cut(0, 0)) == described(tiny, CUT)
    keys, tensors = contents(out)
    assert sum(tensor.n_bytes for tensor in tensors.values()) == count_tensor_bytes(source, CUT)
    assert keys["llama.attention.head_count_kv"] == [4, 1] and len(keys["general.tags"]) == 4
    twice, _ = contents(slice_gguf(out, Cut(0, 1), tmp_path / "twice.gguf"))
    assert twice[KEPT_LAYERS] == [3] and twice[ORIGIN] == keys[ORIGIN] == source.weights.removeprefix("sha256:")


def adapters(folder: Path, down: np.ndarray, up: np.ndarray, module: str = DOWN, **record) -> Path:
    """Adapters on one module, of which base and cut where that is given."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": [module.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    factors = {f"base_model.model.{module}.lora_{name}.weight": value for name, value in (("A", down), ("B", up))}
    save_file(factors, folder / "adapter_model.safetensors")
    if record:
        (folder / "healing.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("type", "file_type", "off"), [("f32", 0, 1e-6), ("f16", 1, 8e-3), ("q8_0", 7, 0.1), (None, 7, 8e-3)]
)
def test_adapters_are_added_in_full_precision_and_written_in_a_type(type, file_type, off, tiny, tmp_path):
    draw, changed, other = np.random.default_rng(1), "blk.1.ffn_down.weight", "blk.0.ffn_down.weight"
    down, up = draw.standard_normal((2, 64), dtype=np.float32), draw.standard_normal((32, 2), dtype=np.float32)
    adapter, (_, old) = adapters(tmp_path / "adapter", down, up), contents(tiny)
    keys, new = contents(slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter, type=type))
    assert keys["general.file_type"] == file_type and new[changed].tensor_type == TYPES[type or "f16"]
    assert new[other].tensor_type == TYPES[type or "q8_0"] and new["blk.1.attn_norm.weight"].tensor_type == TYPES["f32"]
    expected = values(old["blk.3.ffn_down.weight"]) + 1.5 * up @ down
    np.testing.assert_allclose(values(new[changed]), expected, atol=off)
    np.testing.assert_allclose(values(new[other]), values(old[other]), atol=off if type == "f16" else 0)


@pytest.mark.parametrize(
    ("module", "width", "size", "record", "message"),
    [
        ("model.layers.1.self_attn.q_proj", 64, 1, {}, "on model.layers.1.self_attn.q_proj: expected"),
        ("model.layers.1.mlp.up_proj", 64, 1, {}, "on blk.1.ffn_up.weight, which tiny does not have"),
        (DOWN, 32, 1, {}, r"has the shape \(32, 64\), its adapter \(32, 32\)"),
        (DOWN, 64, 300, {}, r"blk.3.ffn_down.weight would hold 27\d+.*, too large for F16: .*f32"),
        (DOWN, 64, 1, {"base": {"name": "x", "weights": "sha256:1"}, "cut": [1, 2]}, "healing.json of .*sha256:1"),
    ],
)
def test_adapters_that_do_not_belong_or_fit(module, width, size, record, message, tiny, tmp_path):
    factors = (np.full(shape, size, np.float32) for shape in ((2, width), (32, 2)))
    adapter = adapters(tmp_path / "adapter", *factors, module, **record)
    for type in (None, "f16"):
        with pytest.raises(InputError, match=message):
            slice_gguf(tiny, CUT, tmp_path / "out.gguf", adapter=adapter, type=type)
    assert not list(tmp_path.glob("*out.gguf*"))


@pytest.mark.parametrize(
    ("arch", "cut", "message"),
    [
        ("gemma3", Cut(0, 3), None),
        ("gemma3", Cut(3, 1), None),  # above the cut nothing is left to change its kind
        ("gemma3", Cut(1, 1), "first 2: there one layer in 3 .* drop other layers"),
        ("gemma2", Cut(0, 1), "one layer in 3"),
        ("olmo2", Cut(1, 1), "first 3: there one layer in 4"),  # of OLMo 3
        ("llama4", Cut(1, 1), "architecture llama4, whose layers may differ"),
    ],
)
def test_layers_whose_kind_follows_from_their_number(arch, cut, message, tmp_path):
    path, out = write(tmp_path / "tiny.gguf", arch), tmp_path / "out.gguf"
    if message is None:
        assert contents(slice_gguf(path, cut, out))[0][f"{arch}.block_count"] == 4 - cut.size
    else:
        with pytest.raises(InputError, match=message):
            slice_gguf(path, cut, out)


def test_a_file_that_is_there_is_not_replaced_and_an_unknown_type_not_written(tiny, tmp_path):
    out = slice_gguf(tiny, CUT, tmp_path / "out.gguf")
    assert "pruning.sha256" not in contents(out)[0]
    with pytest.raises(InputError, match="out.gguf exists, and nothing is overwritten"):
        slice_gguf(tiny, Cut(0, 1), out)
    with pytest.raises(InputError, match="type is 'q4_k'"):
        slice_gguf(tiny, CUT, tmp_path / "new.gguf", type="q4_k")


def test_the_command_needs_neither_torch_nor_transformers(tiny, tmp_path):
    words = ["prune", str(tiny), str(tmp_path / "out.gguf"), "--drop", "2", "--rule", "simple", "--type", "f16"]
    code = f"import sys; from deeper_layers_companion.command import main; main({words}, standalone_mode=False)"
    code += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | path)
    assert b"drops layers 1..2 (0-based, 2 of 4)" in done.stdout
    assert contents(tmp_path / "out.gguf")[0][KEPT_LAYERS] == [0, 3]


@pytest.mark.parametrize("trusting", [False, True])
def test_what_lies_beside_a_file_is_not_read(trusting, opened, tiny_gguf, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what a user would be asked, and types
    beside = shutil.copytree(tiny_folder, tmp_path / "models")
    (beside / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    own = {name: "evil.Tokenizer" for name in ("AutoConfig", "AutoModelForCausalLM")}
    own = {"auto_map": own | {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    stated(beside, num_hidden_layers=2, **own)
    (beside / "tokenizer_config.json").write_text(json.dumps(own | {"model_max_length": 7}))
    (beside / "tokenizer.json").write_text("{}")

    source = find_model(shutil.copy(tiny_gguf, beside / "tiny.gguf").as_posix(), trust_remote_code=trusting)
    how, expected = {"trust_remote_code": trusting}, opened[1]("capital")["input_ids"]
    model, tokenizer = load_model(source, **how)
    for one in (tokenizer, load_tokenizer(source, **how)):
        assert one("capital")["input_ids"] == expected and one.model_max_length > 7
    assert {one.config.num_hidden_layers for one in (model, load_empty_model(source, **how))} == {5}
    assert not (tmp_path / "ran").exists()


def test_a_file_is_converted_once_and_is_the_one_whose_hash_it_has(tiny_gguf, tmp_path, capsys):
    file = shutil.copy(tiny_gguf, tmp_path / f"{'x' * 250}.gguf")
    with pytest.raises(InputError, match="has SHA-256"):
        convert_gguf(file, "0" * 64)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    folder = checkpoint_folder(str(file))
    assert checkpoint_folder(str(file)) == folder == conversion_folder(file_hash(file))
    assert capsys.readouterr().err.count("converting") == 2
    assert "xxx" not in "".join(path.read_text() for path in folder.glob("*json*"))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="can't keep what .* XDG_CACHE_HOME"):
        load_model(str(file))


def test_shapes_and_tokenizer_are_read_from_a_header_once_and_said(opened, tiny_gguf, tmp_path, capsys, monkeypatch):
    read, real = [], gguf.GGUFReader.__init__
    count = lambda self, path, *rest: (read.append(str(path)), real(self, path, *rest))[1]  # noqa: E731
    source = find_model(str(tiny_gguf))
    monkeypatch.setattr(gguf.GGUFReader, "__init__", count)
    first = load_tokenizer(source), load_empty_model(source)
    once = len(read)
    again = load_tokenizer(source), load_empty_model(source)
    assert once and len(read) == once
    assert capsys.readouterr().err.count(f"header of {tiny_gguf.name}, once") == 1
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    expected = opened[0].config
    for tokenizer, model in (first, again):
        assert tokenizer("capital")["input_ids"] == opened[1]("capital")["input_ids"]
        assert model.config.num_hidden_layers == expected.num_hidden_layers
        assert model.get_input_embeddings().weight.shape == opened[0].get_input_embeddings().weight.shape


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"head_count\4\0\0\0\4", b"head_count\4\0\0\0\0"), (b"tokenizer.ggml.merges", b"tokenizer.ggml.merged")],
)
def test_an_entry_that_transformers_does_not_expect(old, new, tiny_gguf, tmp_path):
    shutil.copy(tiny_gguf, tmp_path / "odd.gguf")
    replaced("odd.gguf", old, new)(tmp_path)
    source = find_model(str(tmp_path / "odd.gguf"))
    with pytest.raises(InputError, match="can't convert|lack"):
        load_model(source)
    with pytest.raises(InputError, match="can't read the header"):
        load_empty_model(source), load_tokenizer(source)


def test_a_plan_and_prune_say_what_will_be_written(tiny_gguf, tmp_path):
    asked = [tiny_gguf, "--results", tmp_path / "results"]
    small = ["--samples", 4, "--sequence-length", 16]
    options = [*asked, *small, "--sizes", "0-2", "--tasks", "capitals@4"]

    def planned() -> list:
        return [row["file_bytes"] for row in answer("plan", *options)["sizes"]]

    before = planned()  # the cut of the rule is not known yet
    written = [tiny_gguf.stat().st_size]
    for drop in (1, 2):
        out = tmp_path / f"{drop}.gguf"
        typed("prune", *asked, *small, out, "--drop", drop)
        written.append(out.stat().st_size)
    assert planned() == written
    for size, found in zip(written, before, strict=True):
        assert size == found if isinstance(found, int) else found[0] <= size <= found[1]
    done = typed("prune", *asked, *small, tmp_path / "folder", "--drop", 1)
    weights = (tmp_path / "folder" / "model.safetensors").stat().st_size
    assert f"will hold {weights / 1e6:,.0f} MB of weights in float32, made of a file of" in done.stderr
    assert "an OUT that ends in .gguf keeps the file's F32" in done.stderr


# ---- in llama.cpp ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_file(opened, tmp_path_factory):
    """A Llama whose rows the blocks of quantized types divide."""
    pytest.importorskip("cyllama", reason="needs llama.cpp: pip install cyllama")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256, "vocab_size": len(opened[1])}
    return write_gguf(tiny_model("llama", layers=5, **sizes), opened[1], tmp_path_factory.mktemp("gguf") / "llama.gguf")


@pytest.mark.parametrize(("kind", "cut"), [("F32", Cut(1, 2)), ("Q4_1", Cut(2, 2))])
def test_healed_it_answers_as_in_transformers(kind, cut, llama_file, tmp_path):
    """Sliced and with adapters, in F32: the weights of drop_layers and merge_adapters, the tokens of transformers."""
    file = llama_file if kind == "F32" else llama_cpp.quantize(llama_file, tmp_path / "rounded.gguf", kind)
    source = find_model(str(file))
    healed = add_adapters(drop_layers(load_model(source)[0], cut), rank=2, alpha=2, dropout=0)
    with torch.no_grad():
        for name, parameter in healed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    save_adapters(healed, tmp_path / "adapter", source.key, cut)
    out = slice_gguf(file, cut, tmp_path / "healed.gguf", adapter=tmp_path / "adapter", type="f32")
    opened, tokenizer = load_model(str(out))
    found, expected = (dict(model.state_dict()) for model in (opened, merge_adapters(healed)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    theirs = LlamaCpp(out)
    opened.generation_config.eos_token_id = None  # both go on to the last token
    for prompt in PROMPTS:
        ours = opened.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)[0]
        assert theirs.tokenize(prompt) + theirs.generate(theirs.tokenize(prompt), 24) == ours.tolist()


def test_quantized_by_llama_cpp(llama_file, tmp_path):
    whole, out = LlamaCpp(llama_file), llama_cpp.quantize(llama_file, tmp_path / "small.gguf", "Q4_0")
    assert find_model(str(out)).quantized != find_model(str(llama_file)).quantized == "F32"
    assert out.stat().st_size < llama_file.stat().st_size / 2
    assert whole.detokenize(whole.tokenize(PROMPTS[0])) == PROMPTS[0]
    sliced = slice_gguf(llama_file, CUT, tmp_path / "sliced.gguf", type="q4_0")
    assert described(sliced, Cut(0, 0)) == described(out, CUT)
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    for source, new, type, message in [
        (llama_file, out, "Q4_0", "exists"),
        (llama_file, tmp_path / "new.gguf", "Q9", "type is 'Q9'"),
        (tmp_path / "damaged.gguf", tmp_path / "new.gguf", "Q4_0", "not a whole GGUF file"),
    ]:
        with pytest.raises(InputError, match=message):
            llama_cpp.quantize(source, new, type)


def test_a_text_begins_as_the_file_says(llama_file, tiny_gguf, opened, tmp_path):
    begun = write_gguf(*opened, tmp_path / "begun.gguf", begins=True)
    plain = LlamaCpp(tiny_gguf).tokenize(PROMPTS[0])
    assert LlamaCpp(begun).tokenize(PROMPTS[0]) == [opened[1].eos_token_id, *plain]


def test_without_llama_cpp_it_says_what_to_install(tiny_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    with pytest.raises(InputError, match="pip install cyllama"):
        LlamaCpp(tiny_gguf)


def test_pruned_models_are_weighed_in_a_type_of_llama_cpp(llama_file, tmp_path):
    options = TakeAwayParameters(model=str(llama_file), results=str(tmp_path), tasks="capitals", limit=4)
    session = Session(options)
    found = session.get(rounded_job(session.source, options, "Q8_0", {"simple": [UNPRUNED, CUT]})).rows
    rounded = llama_cpp.quantize(llama_file, tmp_path / "rounded.gguf", "Q8_0")
    expected = [count_tensor_bytes(find_model(str(rounded)), cut) for cut in (UNPRUNED, CUT)]
    assert found.drop_duplicates("cut")["bytes"].tolist() == expected and expected[1] < expected[0]


@pytest.mark.thorough
def test_the_way_to_llama_cpp_is_measured_once(llama_file, tmp_path, monkeypatch):
    """One unit: the file whole, sliced, healed and rounded."""
    few = dataclasses.replace(PRESETS["small"], rank=2, sequence_length=32, batch_sequences=2, at_once=2)
    monkeypatch.setitem(PRESETS, "small", few)
    settings = {"model": str(llama_file), "tasks": "capitals", "limit": 4, "steps": 2}
    session = Session(TakeAwayParameters(**settings, results=str(tmp_path / "results")))
    options = session.options
    made = {"config": options.make_config(), "text": options.text, "bits": options.gguf_type}
    job = file_job(session.source, options, "similarity", Cut(2, 2), **made)
    assert session.replace(measure=False).get(job) is None
    unit = session.get(job)
    rows = unit.rows.set_index(["variant", "task", "metric"])
    assert rows["value"]["healed", "llama.cpp", "tokens equal"] == len(PROMPTS) * 24
    assert list(rows["bytes"].drop_duplicates()) == sorted(set(rows["bytes"]), reverse=True)
    assert rows["bytes"].iloc[0] == llama_file.stat().st_size and unit.details["healed_tokens"] == 2 * 2 * 32
    assert all(len(unit.details["answers"][name]) == len(PROMPTS) for name in ("whole", "sliced", "healed", "rounded"))
    monkeypatch.setattr(take_away.export, "slice_gguf", lambda *_, **__: pytest.fail("measured again"))
    assert session.get(job).path == unit.path
