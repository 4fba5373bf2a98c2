"""Checkpoints of strangers: damaged, hostile or odd ones are refused in one line, and nothing is written."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.checkpoint_files import INDEX, LARGEST, SINGLE, read_header
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from tests.fuzz.checkpoint_cases import outcomes
from tests.fuzz.trying import counted
from tests.tiny import tiny_model

CUT, LAYERS = Cut(1, 1), 3
FIRST = "model-00001-of-00002.safetensors"


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
    uses = [lambda: slice_checkpoint(folder, CUT, folder.parent / "out"), lambda: load_model(str(folder))]
    for use in uses[: 1 + opened]:
        with pytest.raises(InputError) as caught:
            use()
        assert "\n" not in str(caught.value) and 20 < len(str(caught.value)) < 1000
    assert sorted(folder.parent.iterdir()) == before and time.monotonic() - started < 10
    return str(caught.value)


def change(folder: Path, **tensors) -> None:
    held = {name: value for name, value in (load_file(folder / SINGLE) | tensors).items() if value is not None}
    save_file(held, folder / SINGLE, {"format": "pt"})


def change_config(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_index(folder: Path, file: object, tensor: str | None = None) -> None:
    """Another file for one tensor, or for all of the first file."""
    index = json.loads((folder / INDEX).read_text())
    names = [tensor] if tensor else [name for name, old in index["weight_map"].items() if old == FIRST]
    index["weight_map"] |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps(index))


# --- headers ------------------------------------------------------------------------------------------------------


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


HEADERS = [
    ({"a": entry(0, 8), "b": entry(4, 12)}, 12), ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
    ({"a": entry(8, 16)}, 16),
    ({"a": entry(-8, 8, (4,))}, 8), ({"a": entry(0, 16, (4,))}, 8), ({"a": entry(0, 8)}, 9), ({"a": entry(0, 8)}, 7),
    ({"a": entry(0, 8, (3,))}, 8), ({"a": entry(0, 8, (2**40, 2**40))}, 8), ({"a": entry(0, 8, (True, 2))}, 8),
    ({"a": entry(0, 8, (2,), "Q4")}, 8), ({"a": {"shape": [2], "dtype": "F32"}}, 8), ({"a": None}, 8),
    ({"a": ["F32", [2], [0, 8]]}, 8), ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8),
    ({"__metadata__": [], "a": entry(0, 8)}, 8), ("[1, 2]", 0), ("", 0), ("{not JSON", 0), (b'{"\xff": 1}', 0),
    (f'{{"\\ud800": {json.dumps(entry(0, 8))}}}', 8), ("[" * 10**6, 0), ('{"a":' * 10**5, 0),
    ('{"a":' + "[" * 10**5 + "]" * 10**5 + "}", 0),
]  # fmt: skip


def write_header(path: Path, header, bytes: int, length: int | None = None) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * bytes)


def test_headers_that_say_what_is_not_so(tmp_path):
    path = tmp_path / "a.safetensors"
    for header in [*HEADERS, *(({"a": entry(0, 8)}, 8, length) for length in (0, 1, 2**63, 7 * 2**30, LARGEST + 1))]:
        write_header(path, *header)
        if len(header) == 3:
            os.truncate(path, 8 * 2**30)  # of zeros that take no place
        with pytest.raises(
            InputError, match="a.safetensors is not a whole safetensors file .*fetch it again"
        ) as caught:
            read_header(path)
        assert "\n" not in str(caught.value)


# --- what a model needs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "lm_head.weight", "model.layers.2.self_attn.q_proj.weight",
     "model.layers.0.input_layernorm.weight"],
)  # fmt: skip
def test_a_tensor_that_is_missing_or_of_another_shape(name, one):
    change(one, **{name: torch.zeros(*[size + 1 for size in load_file(one / SINGLE)[name].shape])})
    assert f"{name} has the shape" in refusal(one)
    change(one, **{name: None})
    assert f"it lacks {name})" in refusal(one)


@pytest.mark.filterwarnings("ignore:.*no layer with attention is left")  # of the hybrid
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3_next"])
def test_tied_joined_and_renamed_tensors_are_known(family, tmp_path):
    folder = made(tmp_path / "model", family)
    slice_checkpoint(folder, CUT, tmp_path / "out")
    change(folder, **{max(load_file(folder / SINGLE)): None})
    shutil.rmtree(tmp_path / "out")
    assert "configuration and weights belong together" in refusal(folder)


def test_names_that_are_almost_those_of_layers(one, tmp_path):
    """Leading zeros and other digits are no numbers of layers, and what transformers takes for an expert is none."""
    held = load_file(one / SINGLE)
    for other in ("02", "٢", "2" * 5000):
        save_file({name.replace("layers.2.", f"layers.{other}."): value for name, value in held.items()}, one / SINGLE)
        refusal(one)
    folder = made(tmp_path / "mixture", "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    change(folder, **{name.replace("1.block", "1Rblock"): load_file(folder / SINGLE)[name], name: None})
    assert "not guessed" in refusal(folder, opened=False)


def test_more_than_a_model_needs_stays_and_a_head_may_lack(one, tmp_path):
    change(one, **{"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(6), "score.weight": torch.zeros(2, 48)})
    found = load_file(slice_checkpoint(one, Cut(0, 1), tmp_path / "out") / SINGLE)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in found and "score.weight" in found
    tiny_model("llama", layers=LAYERS).model.save_pretrained(tmp_path / "body")
    assert "layers.1.mlp.up_proj.weight" in load_file(slice_checkpoint(tmp_path / "body", CUT, tmp_path / "2") / SINGLE)
    change(tmp_path / "body", **{"norm.weight": None})
    assert "it lacks model.norm.weight" in refusal(tmp_path / "body")


def test_a_quantized_checkpoint_is_cut_and_one_that_lacks_something_is_not(one, tmp_path):
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(one, quantization_config=how, device_map="cpu")
    model.save_pretrained(tmp_path / "quantized")
    out = slice_checkpoint(tmp_path / "quantized", CUT, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(out, device_map="cpu")
    assert reloaded.config.num_hidden_layers == LAYERS - 1 and reloaded.is_quantized
    change(tmp_path / "quantized", **{"model.norm.weight": None})
    assert "it lacks model.norm.weight" in refusal(tmp_path / "quantized")


# --- index and folder ---------------------------------------------------------------------------------------------


def replaced(name: str, make):
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def linked(name: str):
    """A link out of the folder, which has a copy of the first file beside it."""
    return replaced(name, lambda path: path.symlink_to(path.parent.parent / "private.safetensors"))


# what is done to a checkpoint of two files, and words of the line
FOLDERS = {
    "no JSON": (lambda folder: (folder / INDEX).write_text("{"), INDEX),
    "deep": (lambda folder: (folder / INDEX).write_text('{"weight_map":' * 10**5), INDEX),
    "no map": (lambda folder: (folder / INDEX).write_text('{"metadata": {}, "weight_map": []}'), "no weight_map"),
    "no file": (lambda folder: change_index(folder, ["model.safetensors"]), "expected *.safetensors"),
    "a pickle": (lambda folder: change_index(folder, "pytorch_model.bin"), "expected *.safetensors"),
    "above": (lambda folder: change_index(folder, "../private.safetensors"), "is no plain name"),
    "absolute": (lambda folder: change_index(folder, "/private.safetensors"), "is no plain name"),
    "a null": (lambda folder: change_index(folder, "a\0.safetensors"), "is no plain name"),
    "missing": (lambda folder: change_index(folder, "none.safetensors"), "No such file"),
    "long": (lambda folder: change_index(folder, "n" * 300 + ".safetensors"), "name too long"),
    "a folder": (replaced(FIRST, os.mkdir), "no regular file"),
    "a pipe": (replaced(FIRST, os.mkfifo), "no regular file"),
    "a loop": (replaced(FIRST, lambda path: path.symlink_to(path)), "is not a file in that folder"),
    "a link": (linked(FIRST), "leads out of its folder"),
    "a link of the tokenizer": (linked("tokenizer.json"), "leads out of its folder"),
    "a device": (replaced("vocab.txt", lambda path: path.symlink_to("/dev/zero")), "leads out of its folder"),
    "one more name": (lambda folder: change_index(folder, FIRST, "more"), "names more, which no file holds"),
    "no index": (lambda folder: (folder / INDEX).unlink(), f"neither {SINGLE} nor {INDEX}"),
    "adapters": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapters of another model"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_as_it_should(name, two, tmp_path):
    shutil.copyfile(two / FIRST, tmp_path / "private.safetensors")
    spoil, words = FOLDERS[name]
    spoil(two)
    assert words in refusal(two)


def test_a_tensor_in_two_files(two):
    shutil.copyfile(two / FIRST, two / "again.safetensors")
    change_index(two, "again.safetensors", "model.embed_tokens.weight")
    assert "in two files" in refusal(two)


def test_an_index_in_the_hub_s_cache_that_names_a_pickle(two, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--one--two"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    change_index(two, "evil.bin", "more")
    (two / "evil.bin").write_bytes(b"never opened")
    os.rename(two, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(InputError, match="names 'evil.bin', expected"):
        load_model("one/two")


def test_of_one_file_and_an_index_that_is_read_which_transformers_reads(one, originals, tmp_path):
    for path in originals[1].glob("model*"):
        shutil.copyfile(path, one / path.name)
    change(one, **{"model.norm.weight": torch.full((48,), 7.0)})
    out = slice_checkpoint(one, CUT, tmp_path / "out")
    assert [path.name for path in out.glob("*.safetensors")] == [SINGLE] and not (out / INDEX).exists()
    assert all(AutoModelForCausalLM.from_pretrained(folder).model.norm.weight[0] == 7 for folder in (one, out))


def test_links_within_the_folder_and_those_of_the_hub_s_cache_work(one, tmp_path):
    expected = slice_checkpoint(one, CUT, tmp_path / "plain")
    cache = tmp_path / "models--one--two"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "0123").mkdir(parents=True)
    for path in one.iterdir():
        shutil.copyfile(path, cache / "blobs" / path.name[::-1])
        (cache / "snapshots" / "0123" / path.name).symlink_to(Path("../../blobs") / path.name[::-1])
    out = slice_checkpoint(cache / "snapshots" / "0123", CUT, tmp_path / "cached")
    assert (out / SINGLE).read_bytes() == (expected / SINGLE).read_bytes()
    assert not any(path.is_symlink() for path in out.iterdir())
    # blobs that are elsewhere themselves
    os.rename(cache / "blobs", tmp_path / "private")
    (cache / "blobs").symlink_to(tmp_path / "private")
    assert "out of its folder" in refusal(cache / "snapshots" / "0123", opened=False)


# --- config.json --------------------------------------------------------------------------------------------------


CONFIGS = [b"[]", b"null", b"", b"{", b"\xff\xfe", b"[" * 10**6, b'{"a":' * 10**5, b"{}", b'{"model_type": ["llama"]}']
ENTRIES = {
    "num_hidden_layers": ["5", -1, 0, 4, 10**9, 10**30, 2.0, True, [3]], "vocab_size": [10**15, -1, "many", 127],
    "hidden_size": [0, 10**9, -48, None, 49], "intermediate_size": [10**18], "num_attention_heads": [0, 7],
    "model_type": ["t5", "bert", "mixtral"], "transformers_weights": ["x.safetensors"], "rope_parameters": [7],
    "hidden_act": ["evil"], "head_dim": [10**9], "quantization_config": [7, {}],
}  # fmt: skip


def test_configurations_that_are_none(one):
    for content in CONFIGS:
        (one / "config.json").write_bytes(content)
        assert "config.json" in refusal(one)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_does_not_fit_the_weights(name, one):
    config = (one / "config.json").read_text()
    for value in ENTRIES[name]:
        (one / "config.json").write_text(config)
        change_config(one, **{name: value})
        refusal(one)


def test_a_billion_layers_are_refused_before_they_are_built(tmp_path):
    """Where the configuration itself makes a list of them, under two names."""
    for family, depth in (("qwen2", "num_hidden_layers"), ("mpt", "n_layers")):
        folder = made(tmp_path / family, family)
        config = json.loads((folder / "config.json").read_text())
        config.pop("layer_types", None)
        for value in (10**9, 9_999, LAYERS + 1):
            for code in ({}, {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}):
                (folder / "config.json").write_text(json.dumps(config | {depth: value} | code))
                assert str(value) in refusal(folder).replace(",", "")


def test_sources_that_are_no_folder(one, tmp_path):
    for source in ("", "~nobody/model", "a" * 5000, "a\0b", "a/b/c", str(one / "config.json"), "/dev/null", "\n"):
        for use in (find_model, lambda source: slice_checkpoint(source, CUT, tmp_path / "out")):
            with pytest.raises(InputError) as caught:
                use(source)
            assert "\n" not in str(caught.value)


# --- drawn ones ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "numbers",
    [range(1000, 1020), pytest.param([26, 92, 357, 3272, *range(1020, 1400)], marks=pytest.mark.thorough)],
    ids=["some", "many"],
)
def test_damaged_checkpoints(numbers, tmp_path, monkeypatch):
    """Each is refused in one line, or sliced as transformers reads it: python -m tests.fuzz.checkpoint_cases."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    counts, bad = counted(outcomes(numbers, tmp_path))
    assert bad == []
    assert counts["clear"] > len(numbers) / 2 and counts["harmless"] > len(numbers) / 10
