"""A GGUF file is read as if it were alone, and converted once."""

import json
import shutil

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from deeper_layers.errors import InputError
from deeper_layers.models import sizes
from deeper_layers.models.gguf_conversion import conversion_of, converted_gguf
from deeper_layers.models.opening import checkpoint_folder, load_model
from deeper_layers.models.sources import find_model
from deeper_layers.package_index import file_hash
from tests.fuzz.damage import put
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


def test_a_file_is_converted_once_and_is_the_one_whose_hash_it_has(file, tmp_path, capsys):
    with pytest.raises(InputError, match="has SHA-256"):
        converted_gguf(file, "0" * 64)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    folder = checkpoint_folder(str(file))
    assert checkpoint_folder(str(file)) == folder == conversion_of(file_hash(file))
    assert capsys.readouterr().err.count("converting") == 2
    assert str(tmp_path / "models") not in "".join(path.read_text() for path in folder.glob("*json*"))
    assert load_model(str(file.rename(file.with_name("x" * 250 + ".gguf"))))[0].config.num_hidden_layers == 5


@pytest.mark.parametrize(
    ("key", "entry"),
    [("llama.attention.head_count", [4, 0]), ("tokenizer.ggml.merges", [9, [8, 2, ["a", ""]]])],
)
def test_an_entry_that_transformers_does_not_expect(key, entry, file):
    put(file.name, "entries", key, entry)(file.parent)
    source = find_model(str(file))
    with pytest.raises(InputError, match="can't convert|lack"):
        load_model(source)
    with pytest.raises(InputError, match="can't open the"):
        sizes.empty_model(source), sizes.tokenizer_of(source)


def test_a_cache_that_can_not_be_written(file, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="can't keep the conversion .* XDG_CACHE_HOME"):
        load_model(str(file))
