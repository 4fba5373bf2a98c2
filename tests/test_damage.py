"""What comes from strangers, damaged, hostile or odd: one line names it, and nothing comes of it."""

import collections
import os
import shutil
import struct
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.checkpoint_files import INDEX, SINGLE
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from tests.fuzz import folders
from tests.fuzz.damage import DEEP, GONE, Ran, instead, link, put, renamed, replaced, to_tensors, write
from tests.fuzz.folders import CUT
from tests.tiny import tiny_model

CONFIG, FILE, FIRST = "config.json", "model.gguf", "model-00001-of-00006.safetensors"
SETTINGS, WEIGHTS, IDENTITY = (f"adapter/{name}" for name in (SETTINGS, WEIGHTS, IDENTITY))
EMBEDDING, LORA = "model.embed_tokens.weight", "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
A, B, MAP = LORA.format("A"), LORA.format("B"), ("weight_map", EMBEDDING)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "number"), {"checkpoint": 300, "gguf": 1000, "adapters": 80}.items())
def test_whatever_is_damaged_ends_in_one_line_or_does_not_matter(kind, number, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    number = int(os.environ.get("DAMAGED", number))
    found = list(folders.outcomes(kind, range(number), tmp_path))
    assert [one for one in found if one[1] == "bad"] == []
    counts = collections.Counter(came for _, came, _ in found)
    assert counts["refused"] > number / 4 and counts["fine"] > number / 20


def twice_there(given: Path) -> None:
    """The first file again, under another name that the index has too."""
    shutil.copyfile(given / FIRST, given / "again.safetensors")
    put(INDEX, *MAP, "again.safetensors")(given)


def pickled(path: Path) -> None:
    torch.save({"x": Ran(path.with_name("ran"))}, path)


def other(old: bytes, new: bytes):
    """Other bytes in the header of a GGUF file."""
    return replaced(FILE, old, new)


TEXT, NUMBERS = struct.pack("<I", 8), struct.pack("<II", 9, 0)  # as GGUF calls them: a text, an array of bytes


def entry(name: bytes, kind: bytes = TEXT):
    """A text in the place of one entry, or small numbers, so long that what follows lies where it did."""
    content = bytes(-(16 + len(name) + len(kind)) % 32)
    new = struct.pack("<Q", len(name)) + name + kind + struct.pack("<Q", len(content)) + content
    return other(b"\x10" + bytes(7) + b"llama.vocab_size" + struct.pack("<II", 4, 298), new)


# of each kind what is done, by words of the line
REFUSED = {
    "one": {  # a checkpoint in one file
        "whole safetensors": [put(SINGLE, EMBEDDING, DEEP, codec=0), write(SINGLE, struct.pack("<Q", 2**63))],
        "it lacks lm_head.weight)": [put(SINGLE, "lm_head.weight", GONE)],
        "norm.weight has the shape": [put(SINGLE, "model.norm.weight", torch.ones(49))],
        "configuration asks for": [put(CONFIG, "vocab_size", 10**15)],
        "it lacks model.layers.2.": [renamed(SINGLE, "layers.2.", f"layers.{number}.") for number in ("02", "٢")],
        "config.json": [
            write(CONFIG, "[]"), put(CONFIG, "x", DEEP), instead(CONFIG), put(CONFIG, "num_hidden_layers", "5"),
            put(CONFIG, "quantization_config", {}),
        ],
        "encoder-decoder": [put(CONFIG, "model_type", "t5")],
        "adapters of another model": [write("adapter_config.json", "{}")],
    },
    "many": {  # in several
        INDEX: [write(INDEX, "{"), instead(INDEX)],
        "no weight_map": [put(INDEX, "weight_map", []), put(INDEX, "metadata", GONE)],
        "is no file beside it": [
            put(INDEX, *MAP, name)
            for name in ("pytorch_model.bin", "../elsewhere.safetensors", "a\0.safetensors", "none.safetensors")
        ],
        "holds more in 0 files": [put(INDEX, "weight_map", "more", FIRST)],
        "in 2 files": [twice_there],
        "no regular file": [instead(FIRST, os.mkfifo), link(FIRST, FIRST)],
        "or leads out of it": [link(FIRST, "../elsewhere"), link("vocab.txt", "/dev/zero")],
    },
    "gguf": {
        "block_count is": [
            other(b"block_count\4\0\0\0\4", b"block_count\4\0\0\0\3"), other(b"blk.1.attn_q.", b"blk.9.attn_q."),
        ],
        "Duplicate llama.block_count": [entry(b"llama.block_count")],
        "is not a valid": [other(b"block_count\4", b"block_count\r")],
        "no general.architecture": [other(b"llama", b"l ama")],
        "general.alignment": [entry(b"general.alignment")],
        "has the shape": [other(b"embedding_length\4\0\0\0\x30", b"embedding_length\4\0\0\0\x40")],
        "GGUFValueType.ARRAY": [other(b"tokens\t\0\0\0\b", b"tokens\t\0\0\0\t")],
        "ends too early": [other(b"block_count\4", b"block_count\b")],
        "expected 4 numbers of layers": [entry(b"pruning.kept_layers"), entry(b"pruning.kept_layers", NUMBERS)],
        "byte order of other processors": [other(b"GGUF\3\0\0\0", b"GGUF\0\0\0\3")],
        "or lies elsewhere": [other(b"output_norm.weight\1\0\0\0\x30", b"output_norm.weight\1\0\0\0\0")],
        "is missing, or none of llama": [other(b"output_norm", b"outqut_norm")],
        "have unlike tensors": [
            other(b"blk.1.attn_q.", b"blk.1.attn_x."), other(b"blk.1.attn_q.", b"blk.x.attn_q."),
        ],
        "bytes after the last tensor": [lambda given: write(FILE, (given / FILE).read_bytes() + bytes(64))(given)],
        "no such file": [instead(FILE), instead(FILE, os.mkfifo)],
    },
    "adapters": {
        "has no A and B": [
            put(WEIGHTS, B, lambda old: old * float("nan")), put(WEIGHTS, B, lambda old: old[:, :2]),
            put(WEIGHTS, A, GONE), put(SETTINGS, "r", 4),
        ],
        "no adapters of": [put(SETTINGS, "target_modules", [name]) for name in ("q_proj", "(a+)+$")],
        "too large": [put(SETTINGS, "lora_alpha", 1e300)],
        "megatron_config": [put(SETTINGS, "megatron_config", {"a": 1})],
        "nested too deep": [put(SETTINGS, "x", DEEP)],
        "cut": [put(IDENTITY, "cut", [2, 2, 2])],
        "base.name": [put(IDENTITY, "base", {"name": 1, "weights": "x"})],
        "plain file": [instead(IDENTITY, os.mkfifo), instead(SETTINGS, os.mkfifo)],
        "lacks adapter_model": [instead(WEIGHTS)],
        "whole": [instead(WEIGHTS, pickled)],
    },
}  # fmt: skip
ORIGINALS = {"one": ("checkpoint", 0), "many": ("checkpoint", 1), "gguf": ("gguf", 0), "adapters": ("adapters", 0)}


def spoilt(kind: str, spoil, place: Path) -> tuple[str, str]:
    """What came of using a folder of a kind after something is done to it."""
    name, number = ORIGINALS[kind]
    make, _, use = folders.KINDS[name]
    for name, content in {**folders.originals(make)[number], "../elsewhere": b"years of work"}.items():
        write(name, content)(place / "given")
    spoil(place / "given")
    return folders.outcome(use, place)


@pytest.mark.parametrize(
    ("kind", "words", "number"),
    [(kind, words, n) for kind, rows in REFUSED.items() for words, spoils in rows.items() for n in range(len(spoils))],
)
def test_what_is_refused_is_named_and_nothing_is_written(kind, words, number, tmp_path):
    came, said = spoilt(kind, REFUSED[kind][words][number], tmp_path)
    assert came == "refused" and words in said
    if kind in ("one", "many"):
        with pytest.raises(InputError):
            load_model(str(tmp_path / "given"))


@pytest.fixture
def given(tmp_path):
    """A checkpoint in several files."""
    assert spoilt("many", lambda _: None, tmp_path) == ("fine", "")
    return tmp_path / "given"


@pytest.mark.filterwarnings("ignore:.*no layer with attention is left")  # of the hybrid
@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("gpt2", "wte", "x"),
        ("qwen3_next", "model.norm", "x"),
        ("mixtral", "1.block_sparse_moe.experts.3", "1Rblock_sparse_moe.experts.3"),  # an expert to transformers alone
    ],
)
def test_tied_joined_and_renamed_tensors_are_known(family, old, new, tmp_path):
    tiny_model(family, layers=4).save_pretrained(tmp_path / "given")
    slice_checkpoint(tmp_path / "given", CUT, tmp_path / "fine")
    renamed(SINGLE, old, new)(tmp_path / "given")
    with pytest.raises(InputError, match="configuration and weights belong together|not guessed"):
        slice_checkpoint(tmp_path / "given", CUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("family", "depth"), [("qwen2", "num_hidden_layers"), ("mpt", "n_layers")])
def test_a_billion_layers_are_refused_before_they_are_built(family, depth, tmp_path):
    """Where the configuration itself makes a list of them, and code may come with it."""
    tiny_model(family, layers=4).save_pretrained(tmp_path)
    put(CONFIG, "layer_types", None)(tmp_path)
    put(CONFIG, "auto_map", {"AutoModelForCausalLM": "modeling.Model"})(tmp_path)
    for number in (10**9, 5):
        put(CONFIG, depth, number)(tmp_path)
        for use in (load_model, lambda folder: slice_checkpoint(folder, CUT, tmp_path / "../out")):
            with pytest.raises(InputError, match=f"{number}|lack|its 5 layers"):
                use(str(tmp_path))


@pytest.mark.parametrize("classes", ["other/code--modeling.Model", [None, "other/code--modeling.Model"]])
def test_code_of_another_repository_is_refused_since_no_key_sees_it(classes, tmp_path):
    tiny_model("llama", layers=4).save_pretrained(tmp_path)
    put(CONFIG, "auto_map", {"AutoModelForCausalLM": classes})(tmp_path)
    with pytest.raises(InputError, match="takes its code from other/code, whose changes nobody would see"):
        load_model(tmp_path.as_posix(), trust_remote_code=True)


def test_more_than_a_model_needs_stays_and_a_head_may_lack(tmp_path):
    model = tiny_model("llama", layers=4)
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "body")
    put(SINGLE, "model.layers.1.self_attn.rotary_emb.inv_freq", torch.zeros(6))(tmp_path / "whole")
    put(SINGLE, "score.weight", torch.zeros(2, 48))(tmp_path / "whole")
    found = load_file(slice_checkpoint(tmp_path / "whole", Cut(0, 1), tmp_path / "1") / SINGLE)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in found and "score.weight" in found
    assert "layers.1.mlp.up_proj.weight" in load_file(slice_checkpoint(tmp_path / "body", CUT, tmp_path / "2") / SINGLE)
    put(SINGLE, "norm.weight", GONE)(tmp_path / "body")
    with pytest.raises(InputError, match="it lacks model.norm.weight"):
        slice_checkpoint(tmp_path / "body", CUT, tmp_path / "3")


def test_of_one_file_and_an_index_that_is_read_which_transformers_reads(given, tmp_path):
    tensors = {name: tensor for path in given.glob("*.safetensors") for name, tensor in load_file(path).items()}
    write(SINGLE, to_tensors(tensors | {"model.norm.weight": torch.full((48,), 7.0)}, b""))(given)
    out = slice_checkpoint(given, CUT, tmp_path / "new")
    assert [path.name for path in out.glob("*.safetensors")] == [SINGLE] and not (out / INDEX).exists()
    assert all(AutoModelForCausalLM.from_pretrained(folder).model.norm.weight[0] == 7 for folder in (given, out))


def test_in_the_hub_s_cache_links_lead_to_its_blobs_alone(given, tmp_path):
    hub = tmp_path / "hub" / "models--one--two"
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    expected = slice_checkpoint(given, CUT, tmp_path / "plain")
    for path in given.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name[::-1])
        write(f"blobs/{path.name[::-1]}", path.read_bytes())(hub)
    out = slice_checkpoint(snapshot, CUT, tmp_path / "new")
    names = [path.name for path in expected.glob("*.safetensors")]
    assert all((out / name).read_bytes() == (expected / name).read_bytes() for name in names)
    assert not any(path.is_symlink() for path in out.iterdir())
    os.rename(hub / "blobs", tmp_path / "private")  # blobs that are elsewhere themselves
    (hub / "blobs").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="out of it"):
        slice_checkpoint(snapshot, CUT, tmp_path / "2")


def test_sources_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("file")(tmp_path)
    for source in ("", "~nobody/model", "a" * 5000, "a\0b", "a/b/c", "file", "/dev/null"):
        for use in (find_model, lambda source: slice_checkpoint(source, CUT, tmp_path / "out")):
            with pytest.raises(InputError):
                use(source)
    assert os.listdir() == ["file"]
