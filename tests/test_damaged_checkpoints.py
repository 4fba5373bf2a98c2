"""Checkpoints of strangers: damaged, hostile or odd ones are refused in one line, and nothing is written."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.layer_tensors import number_of_layers
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.checkpoint_files import INDEX, SINGLE
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from tests.tiny import tiny_model

CUT = Cut(1, 1)
LAYERS = 3


def made(folder: Path, family: str = "llama", **options) -> Path:
    tiny_model(family, layers=LAYERS).save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The same checkpoint in one file and in two."""
    folder = tmp_path_factory.mktemp("models")
    return made(folder / "one"), made(folder / "two", max_shard_size="130KB")


@pytest.fixture
def one(originals, tmp_path):
    return Path(shutil.copytree(originals[0], tmp_path / "model"))


@pytest.fixture
def two(originals, tmp_path):
    return Path(shutil.copytree(originals[1], tmp_path / "model"))


def refusal(folder: Path, *, opened: bool = True) -> str:
    """What slicing says, in one line and at once, writing nothing; opening refuses it too, where that is asked."""
    before, started = sorted(folder.parent.iterdir()), time.monotonic()
    with pytest.raises(InputError) as caught:
        slice_checkpoint(folder, CUT, folder.parent / "out")
    if opened:
        with pytest.raises(InputError) as also:
            load_model(str(folder))
        assert "\n" not in str(also.value) and len(str(also.value)) < 1000
    assert sorted(folder.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 1000 and time.monotonic() - started < 5
    print(message)
    return message


# --- what a model needs -----------------------------------------------------------------------------------------


def change(folder: Path, **tensors) -> None:
    held = {name: value for name, value in (load_file(folder / SINGLE) | tensors).items() if value is not None}
    save_file(held, folder / SINGLE, {"format": "pt"})


def change_config(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight", "model.layers.2.self_attn.q_proj.weight",
     "model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"],
)  # fmt: skip
def test_a_tensor_that_is_missing_or_of_another_shape(name, one):
    shape = load_file(one / SINGLE)[name].shape
    change(one, **{name: torch.zeros(*[size + 1 for size in shape])})
    assert f"{name} has the shape" in refusal(one)
    change(one, **{name: None})
    assert f"it lacks {name})" in refusal(one)


@pytest.mark.filterwarnings("ignore:.*no layer with attention is left")  # of the hybrid
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3", "qwen3_next"])
def test_tied_joined_and_renamed_tensors_are_known(family, tmp_path):
    folder = made(tmp_path / "model", family)
    slice_checkpoint(folder, CUT, tmp_path / "out")
    names = sorted(load_file(folder / SINGLE))
    change(folder, **{names[-1]: None})
    shutil.rmtree(tmp_path / "out")
    assert "configuration and weights belong together" in refusal(folder)


def test_a_name_that_would_stand_for_another_layer_after_the_cut(tmp_path):
    """transformers takes this for an expert of layer 1, and it does not begin like one."""
    folder = made(tmp_path / "model", "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    odd = name.replace("1.block", "1Rblock")
    change(folder, **{odd: load_file(folder / SINGLE)[name], name: None})
    assert "belong together" in refusal(folder, opened=False)


def test_more_than_a_model_needs_stays(one, tmp_path):
    change(one, **{"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(6), "score.weight": torch.zeros(2, 48)})
    slice_checkpoint(one, Cut(0, 1), tmp_path / "out")
    found = load_file(tmp_path / "out" / SINGLE)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in found and "score.weight" in found


def test_a_model_saved_without_its_head(tmp_path):
    tiny_model("llama", layers=LAYERS).model.save_pretrained(tmp_path / "model")
    slice_checkpoint(tmp_path / "model", CUT, tmp_path / "out")
    assert "layers.1.mlp.up_proj.weight" in load_file(tmp_path / "out" / SINGLE)
    change(tmp_path / "model", **{"norm.weight": None})
    shutil.rmtree(tmp_path / "out")
    assert "it lacks model.norm.weight" in refusal(tmp_path / "model")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_checkpoint_is_cut_and_one_that_lacks_something_is_not(bits, one, tmp_path):
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
    model = AutoModelForCausalLM.from_pretrained(one, quantization_config=BitsAndBytesConfig(**how), device_map="cpu")
    model.save_pretrained(tmp_path / "quantized")
    out = slice_checkpoint(tmp_path / "quantized", CUT, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(out, device_map="cpu")
    assert reloaded.config.num_hidden_layers == LAYERS - 1 and reloaded.is_quantized
    shutil.rmtree(out)
    change(tmp_path / "quantized", **{"model.norm.weight": None})
    assert "it lacks model.norm.weight" in refusal(tmp_path / "quantized")


@pytest.mark.parametrize("method", ["gptq", "fp8", "compressed-tensors"])
def test_names_and_shapes_of_other_quantizations(method, one, tmp_path):
    """Weights that another program packed, which is not installed here."""
    packed = {}
    for name, value in load_file(one / SINGLE).items():
        module, _, kind = name.rpartition(".")
        if "_proj" not in name:
            packed[name] = value
        elif method == "fp8":
            packed |= {name: value.to(torch.float8_e4m3fn), f"{module}.weight_scale_inv": torch.ones(1, 1)}
        elif method == "gptq":
            rows, columns = value.shape
            packed |= {f"{module}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32)}
            packed |= {
                f"{module}.g_idx": torch.zeros(columns, dtype=torch.int32),
                f"{module}.scales": torch.ones(1, rows),
            }
        else:
            packed |= {f"{module}.weight_packed": torch.zeros(len(value), 6, dtype=torch.int32)}
            packed |= {f"{module}.weight_scale": torch.ones(len(value), 1)}
    save_file(packed, one / SINGLE, {"format": "pt"})
    change_config(one, quantization_config={"quant_method": method, "bits": 4})
    out = slice_checkpoint(one, CUT, tmp_path / "out")
    assert len(load_file(out / SINGLE)) < len(packed)
    shutil.rmtree(out)
    for lost in ("model.norm.weight", "model.layers.0.self_attn.q_proj."):
        save_file({name: value for name, value in packed.items() if lost not in name}, one / SINGLE, {"format": "pt"})
        assert "it lacks model." in refusal(one)


# --- index and folder ---------------------------------------------------------------------------------------------


def set_index(folder: Path, content) -> None:
    (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def index(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "null", {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}},
     {"weight_map": {"a": 1}}, {"weight_map": {"a": ["model.safetensors"]}}, {"weight_map": {"a": None}},
     "[" * 10**6, '{"weight_map":' * 10**5],
    ids=lambda content: str(content)[:30],
)  # fmt: skip
def test_an_index_of_another_kind(content, two):
    set_index(two, content)
    assert INDEX in refusal(two)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../private/x.safetensors", "expected a plain name"),
        ("../../private/x.safetensors", "expected a plain name"),
        ("./model-00001-of-00002.safetensors", "expected a plain name"),
        ("a\0.safetensors", "expected a plain name"),
        ("..\\x.safetensors", "expected a plain name"),
        ("pytorch_model.bin", "expected \\*.safetensors"),
        ("", "expected \\*.safetensors"),
        ("..", "expected \\*.safetensors"),
        ("none.safetensors", "which is missing"),
        ("n" * 300 + ".safetensors", "which is missing|can't be read"),
        ("folder.safetensors", "no regular file"),
        ("pipe.safetensors", "no regular file"),
        ("link.safetensors", "out of its folder"),
        ("loop.safetensors", "missing or can't be read"),
    ],
)
def test_an_index_that_leads_elsewhere(name, message, two, tmp_path):
    (tmp_path / "private").mkdir()
    shutil.copyfile(two / "model-00001-of-00002.safetensors", tmp_path / "private" / "x.safetensors")
    (two / "pytorch_model.bin").write_bytes(b"never opened")
    make = {
        "folder.safetensors": lambda path: path.mkdir(),
        "pipe.safetensors": os.mkfifo,
        "link.safetensors": lambda path: path.symlink_to(tmp_path / "private" / "x.safetensors"),
        "loop.safetensors": lambda path: path.symlink_to(path),
    }
    if name in make:
        make[name](two / name)
    content = index(two)
    content["weight_map"] = {
        tensor: name if file.startswith("model-00001") else file for tensor, file in content["weight_map"].items()
    }
    set_index(two, content)
    found = refusal(two)
    assert any(part in found for part in message.replace("\\", "").split("|"))


def test_an_index_in_the_hub_s_cache_that_names_a_pickle(two, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--one--two"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots").mkdir()
    content = index(two)
    set_index(two, content | {"weight_map": content["weight_map"] | {"more": "evil.bin"}})
    (two / "evil.bin").write_bytes(b"never opened")
    os.rename(two, repository / "snapshots" / "0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(InputError, match="names 'evil.bin', expected"):
        load_model("one/two")


def test_an_absolute_path_in_an_index(two, tmp_path):
    content = index(two)
    content["weight_map"] = dict.fromkeys(content["weight_map"], str(two / "model-00001-of-00002.safetensors"))
    set_index(two, content)
    assert "expected a plain name" in refusal(two)


def test_shards_without_their_index_twice_or_unlike_it(two, tmp_path):
    whole = index(two)
    set_index(two, whole | {"weight_map": whole["weight_map"] | {"more": "model-00001-of-00002.safetensors"}})
    assert "names more, which model-00001-of-00002.safetensors does not hold" in refusal(two)
    shutil.copyfile(two / "model-00001-of-00002.safetensors", two / "again.safetensors")
    set_index(two, whole | {"weight_map": whole["weight_map"] | {"model.norm.weight": "again.safetensors"}})
    assert "in two files" in refusal(two)
    # one that no index names is none of the model's
    set_index(two, whole)
    slice_checkpoint(two, CUT, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (two / INDEX).unlink()
    assert f"neither {SINGLE} nor {INDEX}" in refusal(two)


def test_of_one_file_and_an_index_that_is_read_which_transformers_reads(one, originals, tmp_path):
    for path in originals[1].glob("model*"):
        shutil.copyfile(path, one / path.name)
    change(one, **{"model.norm.weight": torch.full((48,), 7.0)})
    out = slice_checkpoint(one, CUT, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(one).model.norm.weight[0] == 7
    assert [path.name for path in out.glob("*.safetensors")] == [SINGLE] and not (out / INDEX).exists()
    assert AutoModelForCausalLM.from_pretrained(out).model.norm.weight[0] == 7


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "config.json", "model.safetensors", "LICENSE"])
def test_a_link_out_of_the_folder_is_not_followed(name, one, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (one / name).unlink(missing_ok=True)
    for target in (tmp_path / "private" / "key", Path("../private/key"), Path("/dev/zero")):
        (one / name).symlink_to(target)
        assert "out of its folder" in refusal(one)
        (one / name).unlink()
    (one / name).symlink_to(tmp_path / "model" / "nowhere")
    assert "is missing or can't be read" in refusal(one)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "config.json", SINGLE])
def test_what_is_no_regular_file_is_never_opened(name, one):
    (one / name).unlink(missing_ok=True)
    os.mkfifo(one / name)
    assert "no regular file" in refusal(one)


def test_links_within_the_folder_and_those_of_the_hub_s_cache_work(one, tmp_path):
    (one / "weights").mkdir()
    os.rename(one / SINGLE, one / "weights" / "blob")
    (one / SINGLE).symlink_to(Path("weights") / "blob")
    with pytest.warns(UserWarning, match="no part of a checkpoint: weights/"):  # but for the file that is read of it
        slice_checkpoint(one, CUT, tmp_path / "inside")
    cache = tmp_path / "models--one--two"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "0123").mkdir(parents=True)
    for path in one.iterdir():
        if path.is_file():
            shutil.copyfile(path, cache / "blobs" / path.name[::-1])
            (cache / "snapshots" / "0123" / path.name).symlink_to(Path("../../blobs") / path.name[::-1])
    out = slice_checkpoint(cache / "snapshots" / "0123", CUT, tmp_path / "cached")
    assert (out / SINGLE).read_bytes() == (tmp_path / "inside" / SINGLE).read_bytes()
    assert not any(path.is_symlink() for path in out.iterdir())
    # blobs that are elsewhere themselves
    os.rename(cache / "blobs", tmp_path / "private")
    (cache / "blobs").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="out of its folder"):
        slice_checkpoint(cache / "snapshots" / "0123", CUT, tmp_path / "out")


def test_a_folder_of_adapters_is_none_of_a_model(one):
    (one / "adapter_config.json").write_text('{"base_model_name_or_path": "another"}')
    assert "adapters of another model" in refusal(one)


# --- config.json --------------------------------------------------------------------------------------------------


CONFIGS = {
    "a list": "[]", "a number": "7", "a word": '"llama"', "nothing": "null", "empty": "", "no JSON": "{",
    "no text": b"\xff\xfe", "deep lists": "[" * 10**6, "deep objects": '{"a":' * 10**5,
    "deep entries": '{"model_type": "llama", "a": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "no model type": "{}", "a model type that is a list": '{"model_type": ["llama"]}',
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none(name, one):
    content = CONFIGS[name]
    (one / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(one)
    assert "config.json" in message
    with pytest.raises(InputError):
        number_of_layers(one)


ENTRIES = [
    ("num_hidden_layers", value) for value in ("5", -1, 0, 4, 10**9, 10**30, 2.0, True, [3], {"a": 3}, "")
] + [
    ("vocab_size", 10**15), ("vocab_size", -1), ("vocab_size", "many"), ("vocab_size", 10**30), ("vocab_size", 127),
    ("hidden_size", 0), ("hidden_size", 10**9), ("hidden_size", -48), ("hidden_size", None), ("hidden_size", 49),
    ("intermediate_size", 10**18), ("num_attention_heads", 0), ("num_attention_heads", 7), ("num_key_value_heads", 0),
    ("model_type", "t5"), ("model_type", "bert"), ("model_type", "mixtral"), ("transformers_weights", "x.safetensors"),
    ("rope_parameters", 7), ("hidden_act", "evil"), ("head_dim", 10**9),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ENTRIES, ids=lambda value: str(value)[:20])
def test_an_entry_that_does_not_fit_the_weights(name, value, one):
    change_config(one, **{name: value})
    refusal(one)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mpt"])
def test_a_billion_layers_are_refused_before_any_is_built(family, tmp_path):
    """Where the configuration itself makes a list of its layers, and by each word for their number."""
    folder = made(tmp_path / "model", family)
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_types", None)
    depth = next(name for name in ("num_hidden_layers", "n_layer", "n_layers") if name in config)
    for value in (10**9, 9_999, LAYERS + 1):
        (folder / "config.json").write_text(json.dumps(config | {depth: value}))
        assert str(value) in refusal(folder).replace(",", "")
    with_code = config | {depth: 10**9, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(with_code))
    assert str(10**9) in refusal(folder)


def test_a_billion_experts_are_not_built(tmp_path):
    folder = made(tmp_path / "model", "jamba")
    change_config(folder, num_experts=10**9)
    refusal(folder)


def test_names_of_tensors_that_are_almost_layers(one):
    """Leading zeros and other digits are no numbers of layers."""
    held = load_file(one / SINGLE)
    for other in ("02", "٢", "2" * 5000):
        save_file({name.replace("layers.2.", f"layers.{other}."): value for name, value in held.items()}, one / SINGLE)
        refusal(one)


def test_sources_that_are_no_folder(one, tmp_path):
    for source in ("", "~nobody/model", "a" * 5000, "a\0b", "a/b/c", str(one / "config.json"), "/dev/null", "\n"):
        with pytest.raises(InputError) as caught:
            slice_checkpoint(source, CUT, tmp_path / "out")
        with pytest.raises(InputError):
            find_model(source)
        assert "\n" not in str(caught.value)
