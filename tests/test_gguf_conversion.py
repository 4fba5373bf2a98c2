"""A GGUF file is read as if it were alone, and what was converted is not used where it was changed since."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from deeper_layers.errors import InputError
from deeper_layers.models import sizes
from deeper_layers.models.gguf_conversion import HASHES, conversion_of, converted_gguf
from deeper_layers.models.opening import checkpoint_folder, load_model
from deeper_layers.models.sources import find_model
from deeper_layers.package_index import file_hash
from tests.fuzz.gguf_cases import Parts, array, number, text
from tests.tiny import write_gguf

CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Tokenizer: pass\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # what a user would be asked, and types
    monkeypatch.setattr("builtins.input", lambda *_: "y")


@pytest.fixture
def file(tiny_folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    (tmp_path / "models").mkdir()
    return write_gguf(model, AutoTokenizer.from_pretrained(tiny_folder), tmp_path / "models" / "tiny.gguf")


@pytest.mark.parametrize("trusting", [False, True])
def test_what_lies_beside_a_file_is_not_read(trusting, file, tmp_path, tiny_folder):
    alone = load_model(str(file))[1]
    shutil.rmtree(tmp_path / "cache")
    marker = tmp_path / "ran"
    (file.parent / "evil.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {name: "evil.Tokenizer" for name in ("AutoConfig", "AutoModelForCausalLM")}
    auto_map["AutoTokenizer"] = ["evil.Tokenizer", "evil.Tokenizer"]
    config = json.loads((tiny_folder / "config.json").read_text())
    (file.parent / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "num_hidden_layers": 2}))
    (file.parent / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "model_max_length": 7}))
    other = json.loads((tiny_folder / "tokenizer.json").read_text())
    other["model"] |= {"vocab": {"<eos>": 0, "<pad>": 1}, "merges": []}
    (file.parent / "tokenizer.json").write_text(json.dumps(other))

    source = find_model(str(file), trust_remote_code=trusting)
    tokenizer = sizes.tokenizer_of(source, trust_remote_code=trusting)
    assert tokenizer("capital")["input_ids"] == alone("capital")["input_ids"]
    assert sizes.empty_model(source, trust_remote_code=trusting).config.num_hidden_layers == 5
    model, tokenizer = load_model(source, trust_remote_code=trusting)
    assert tokenizer("capital")["input_ids"] == alone("capital")["input_ids"] and tokenizer.model_max_length > 7
    assert model.config.num_hidden_layers == 5 and not marker.exists()


def replaced(path: Path, content: bytes, keep_time: bool = False) -> None:
    time = path.stat()
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))


def test_a_conversion_that_was_changed_is_made_again(file):
    sha256 = file_hash(file)
    folder = Path(converted_gguf(file, sha256))
    weights, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    names, tampered = sorted(path.name for path in folder.iterdir()), content[:-1] + bytes([content[-1] ^ 1])
    assert conversion_of(sha256) == conversion_of(sha256, hashed=True) == folder
    os.utime(weights)  # copied to another machine: read again, and it is the same
    assert conversion_of(sha256) == folder

    changes = {
        "truncated": lambda: replaced(weights, content[:-4]),
        "of the same size": lambda: replaced(weights, tampered),
        "missing": weights.unlink,
        "one more": (folder / "evil.py").touch,
        "no hashes": (folder.parent / HASHES).unlink,
        "other hashes": lambda: (folder.parent / HASHES).write_text("[1, 2]"),
        "no folder": lambda: (shutil.rmtree(folder.parent), folder.parent.write_text("")),
    }
    for change in changes.values():
        change()
        assert conversion_of(sha256) is None
        assert Path(converted_gguf(file, sha256)) == folder and weights.read_bytes() == content
        assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in folder.parents[1].iterdir()] == [sha256]
    # one that only its bytes tell is found before anything is written from it
    replaced(weights, tampered, keep_time=True)
    assert conversion_of(sha256) == folder and conversion_of(sha256, hashed=True) is None
    assert checkpoint_folder(str(file)) == folder and weights.read_bytes() == content
    assert str(file.parent.parent) not in "".join((folder / name).read_text() for name in names if "json" in name)


def test_a_conversion_is_of_the_file_whose_hash_it_has(file, tmp_path):
    with pytest.raises(InputError, match="has SHA-256"):
        converted_gguf(file, "0" * 64)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "entry",
    [
        ("llama.attention.head_count", 4, number(0)),
        ("llama.expert_count", 8, text("x")),
        ("tokenizer.ggml.merges", 9, array(8, [text("a"), text("")])),
    ],
    ids=lambda entry: entry[0],
)
def test_an_entry_that_transformers_does_not_expect(entry, tmp_path):
    parts = Parts()
    parts.entries = [e for e in parts.entries if e[0] != entry[0]] + [entry, ("tokenizer.ggml.model", 8, text("gpt2"))]
    parts.counts[1] = len(parts.entries)
    (tmp_path / "odd.gguf").write_bytes(parts.content())
    source = find_model(str(tmp_path / "odd.gguf"))
    with pytest.raises(InputError, match="can't convert|lack"):
        load_model(source)
    with pytest.raises(InputError, match="can't (build|open)"):
        sizes.empty_model(source), sizes.tokenizer_of(source)


def test_a_file_with_the_longest_name(file):
    longest = file.rename(file.with_name("x" * 250 + ".gguf"))
    assert load_model(str(longest))[0].config.num_hidden_layers == 5


def test_a_cache_that_can_not_be_written(file, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="can't keep the conversion .* XDG_CACHE_HOME"):
        load_model(str(file))
