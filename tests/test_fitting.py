"""The largest model that fits: the file written does, and with one layer more it would not."""

import json

import pytest

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.export.fitting import fit_cut, read_size
from deeper_layers.export.pruned_checkpoint import prune_checkpoint, written_sizes
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from tests.test_command import said, typed
from tests.tiny import write_gguf

LAYERS = 5


def rule(size: int) -> Cut:
    return simple_cut(LAYERS, size)


def weights(out) -> int:
    return out.stat().st_size if out.is_file() else sum(path.stat().st_size for path in out.glob("*.safetensors"))


@pytest.fixture
def gguf(tiny_folder, tmp_path):
    return write_gguf(*load_model(str(tiny_folder)), tmp_path / "whole.gguf")


@pytest.mark.parametrize(("kind", "how"), [("folder", {"dtype": "bfloat16"}), ("gguf", {}), ("gguf", {"type": "f16"})])
def test_the_file_fits_and_with_one_layer_more_it_would_not(kind, how, tiny_folder, gguf, tmp_path):
    model, out = (str(tiny_folder), tmp_path / "out") if kind == "folder" else (str(gguf), tmp_path / "out.gguf")
    source, asked = find_model(model), {}
    for number in range(LAYERS):
        asked[number], _ = written_sizes(source, out, **how)(rule(number))
    for number in (1, 3):
        exactly = fit_cut(source, f"{asked[number] / 1e3:.3f}KB", rule, out, **how)
        less = fit_cut(source, f"{(asked[number] - 1) / 1e3:.3f}KB", rule, out, **how)
        assert exactly == rule(number) and less == rule(number + 1)
    prune_checkpoint(model, less, out, **how)
    assert weights(out) == asked[less.size] < asked[less.size - 1]
    with pytest.raises(InputError, match="no cut of .* fits into 1KB: the smallest has .* MB"):
        fit_cut(source, "1KB", rule, out, **how)


def test_sizes_in_words():
    assert read_size("400MB") == (400e6, True) and read_size("1.5 GiB") == (1.5 * 2**30, True)
    assert read_size("300M") == (300e6, False) and read_size("1.1b") == (1.1e9, False)
    for text in ("", "400", "MB", "-1MB", "0MB", "4 XB", "1e3MB"):
        with pytest.raises(InputError, match="expected bytes as 400MB"):
            read_size(text)


def test_the_command(tiny_folder, tmp_path):
    model, tokenizer = load_model(str(tiny_folder))
    whole = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    words = ["prune", tiny_folder, tmp_path / "out", "--rule", "simple", "--to-size", f"{(whole - layer) / 1e3}K"]
    planned = json.loads(typed(*words, "--dry-run", "--json").stdout)
    assert planned["cut"] == {"start": 3, "size": 1} and planned["scores"] == []
    written = json.loads(typed(*words, "--json").stdout)
    assert written["cut"] == planned["cut"] and weights(tmp_path / "out") == planned["bytes"]
    assert "--to-size and --drop exclude each other" in typed(*words, "--drop", 1, code=2).stderr
    assert "expected bytes as 400MB" in said(*words[:-1], "tiny", "--overwrite")
