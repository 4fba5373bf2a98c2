"""The key of a model: whatever can change its numbers changes its key, and what can't stands in a table."""

import hashlib
import json
import shutil

import pytest
import torch
from transformers import utils

from deeper_layers.models.checkpoint_files import CANNOT_MATTER, list_plain_files
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model, model_key
from deeper_layers.package_index import file_hash

CODE = "class Own:\n    pass\n"
MATTERS = {  # beside the files of `tiny_folder`
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "tokenizer.model": "pieces",
    "chat_template.jinja": "{{ messages }}",
    "chat_template.json": "{}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "preprocessor_config.json": "{}",
    "modeling_own.py": CODE,
    "below/modeling_own.py": CODE,
    "custom_generate/generate.py": CODE,
    "adapter_model.safetensors": "adapters",
    "model.safetensors.index.json": "{}",
    "a file of any name": "content",
}
# one for each line of the table
CANNOT = ["README.md", "LICENSE.txt", "NOTICE", "USE_POLICY.md", ".gitattributes", ".git/HEAD", "picture.png",
          "figure.jpg", "picture.jpeg", "moving.gif", "drawing.svg", "small.webp", "paper.pdf", "pytorch_model.bin",
          "optimizer.pt", "rng_state.pth", "last.ckpt", "state.pkl", "tf_model.h5", "flax_model.msgpack", "model.onnx",
          "model.onnx_data", "model.gguf", "model.tflite", "pruning.json", "checkpoint-500/model.safetensors",
          "checkpoint-500/config.json"]  # fmt: skip

# `vocab_files_names` of the tokenizers in transformers 5.24
VOCABULARIES = """bpe.codes byte_maps.json emoji.json entity_vocab.json merges.txt normalizer.json
prophetnet.tokenizer sentencepiece.bpe.model sentencepiece.model spiece.model spm.model tokenizer.model vocab-src.json
vocab-tgt.json vocab.json vocab.txt word_pronunciation.json word_shape.json""".split()


def write(folder, files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model's folder with every kind of file beside the weights."""
    copied = shutil.copytree(tiny_folder, tmp_path / "tiny")
    write(copied, MATTERS)
    write(copied, dict.fromkeys(CANNOT, "what it holds"))
    return copied


def key(folder) -> str:
    return model_key(str(folder), folder)["weights"]


@pytest.mark.quick
def test_a_byte_of_any_file_is_another_key_or_the_file_stands_in_the_table_of_those_that_can_not_matter(folder):
    before, changed = key(folder), []
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(paths) > len(MATTERS) + len(CANNOT)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if key(folder) != before:
            changed.append(path.relative_to(folder).as_posix())
        path.write_bytes(content)
        assert key(folder) == before
    assert {path.relative_to(folder).as_posix() for path in paths} - {*changed} == {*CANNOT}
    for name, others in (("vocab.json", "vocab.txt"), ("chat_template.jinja", "template.jinja")):
        (folder / name).rename(folder / others)  # the same bytes under another name are read otherwise, or not at all
        assert key(folder) != before
        (folder / others).rename(folder / name)
        (folder / name).unlink()
        assert key(folder) != before
        write(folder, {name: MATTERS[name]})
    assert key(folder) == before


@pytest.mark.quick
def test_every_file_that_transformers_reads_counts(tiny_folder, tmp_path):
    stated = {getattr(utils, name) for name in dir(utils) if name.endswith(("_NAME", "_TEMPLATE_FILE"))}
    read = {name for name in stated if "." in name} - {utils.WEIGHTS_NAME} | {*VOCABULARIES}
    read -= {name for name in read if name.endswith((".h5", ".msgpack", ".bin"))}
    assert {"generation_config.json", "chat_template.jinja", "processor_config.json"} <= read
    copied = shutil.copytree(tiny_folder, tmp_path / "tiny")
    found = {key(copied)}
    for name in sorted(read):
        write(copied, {name: "as it was"})
        found.add(key(copied))
    assert len(found) == 1 + len(read)


def test_what_can_not_matter_does_not_matter(folder):
    for name in MATTERS:
        (folder / name).unlink()

    def opened_again():
        model, tokenizer = load_model(str(folder))
        return model(torch.arange(9)[None]).logits, tokenizer("The capital")["input_ids"], tokenizer.chat_template

    logits, *others = opened_again()
    for name in CANNOT:
        (folder / name).write_bytes(b"\xffno such thing")
    again, *others_again = opened_again()
    assert torch.equal(logits, again) and others == others_again
    assert all(why for why in CANNOT_MATTER.values())


@pytest.mark.quick
def test_the_key_of_a_folder_without_such_files_is_as_it_always_was(tiny_folder, tmp_path):
    copied = shutil.copytree(tiny_folder, tmp_path / "tiny")
    first = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    for path in list_plain_files(copied):
        if path.name not in first:
            path.unlink()
    hashes = "".join(file_hash(copied / name) for name in first)
    assert key(copied) == f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}"
    write(copied, {"README.md": "words", ".git/HEAD": "a branch"})
    assert find_model(str(copied)).weights == key(copied) == f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}"


@pytest.mark.quick
def test_a_model_changed_between_two_calls_is_another(folder):
    """What is asked in one process, where hashes of files are kept."""
    (folder / "model.safetensors.index.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    first = find_model(str(folder))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert find_model(str(folder)).key != first.key
