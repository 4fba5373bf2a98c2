"""Pruned models in several kinds of weights: sliced and quantized is quantized and sliced; what is measured of them."""

import dataclasses

import pytest
import torch

from deeper_layers import models
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.notebook_parameters import TakeAwayParameters
from deeper_layers.experiments.take_away import checkpoint_bytes, score_rounded
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers

CUTS = [Cut(0, 0), Cut(1, 2)]


@pytest.fixture
def parameters(tiny_folder, tmp_path):
    return TakeAwayParameters(
        model=str(tiny_folder), tasks="capitals, sums_one_digit", limit=6, results=str(tmp_path / "results")
    )


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_sliced_folder_opens_quantized_as_the_quantized_model_without_its_layers(quantization, tiny_folder, tmp_path):
    out = slice_checkpoint(tiny_folder, Cut(1, 2), tmp_path / "sliced")
    sliced, _ = load_model(str(out), quantization=quantization)
    whole, _ = load_model(str(tiny_folder), quantization=quantization)
    pruned = drop_layers(whole, Cut(1, 2))
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        assert torch.equal(sliced(ids).logits, pruned(ids).logits)
        assert not torch.equal(whole(ids).logits, pruned(ids).logits)
    assert checkpoint_bytes(sliced) == checkpoint_bytes(pruned) < checkpoint_bytes(whole)


def test_bytes_count_tied_weights_once_and_scales_of_quantized_ones(tiny_folder):
    model, _ = load_model(str(tiny_folder))
    parameters = sum(p.numel() for p in model.parameters())
    assert checkpoint_bytes(model) == 4 * parameters
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    assert checkpoint_bytes(model) == 4 * (parameters - model.get_input_embeddings().weight.numel())
    quantized, _ = load_model(str(tiny_folder), quantization="int8")
    linear = sum(m.weight.numel() for n, m in quantized.named_modules() if "_proj" in n)
    rows = sum(m.weight.shape[0] for n, m in quantized.named_modules() if "_proj" in n)
    found = checkpoint_bytes(quantized)
    assert linear + 4 * (parameters - linear) + 4 * rows <= found < 4 * parameters


def test_each_kind_of_weights_is_measured_once(parameters, monkeypatch):
    source = parameters.source()
    assert score_rounded("nf4", {"similarity": CUTS}, parameters.but(measure=False), source) is None
    units = {
        kind: score_rounded(kind, {"similarity": CUTS}, parameters, source) for kind in parameters.bits_list(source)
    }
    assert list(units) == ["bfloat16", "int8", "nf4"]
    for kind, unit in units.items():
        assert set(unit.rows["task"]) == {"capitals", "sums_one_digit"} and unit.key["dtype"] == "bfloat16"
        whole, pruned = unit.rows.drop_duplicates("size")["bytes"]
        assert whole > pruned
        model, _ = load_model(
            dataclasses.replace(source, dtype="bfloat16"), quantization=None if kind[0] == "b" else kind
        )
        assert whole == checkpoint_bytes(model)
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("opened again"))
    again = score_rounded("nf4", {"similarity": CUTS}, parameters, source)
    assert again.path == units["nf4"].path
    assert score_rounded("nf4", {"similarity": CUTS}, parameters.but(measure=False), source).path == again.path


def test_kinds_that_are_none(parameters):
    for given, message in (("float8", "bits has 'float8'"), ("nf4, Q3", "bits has 'Q3'")):
        with pytest.raises(InputError, match=message):
            TakeAwayParameters.from_names({"bits": given})
    for name in ("gguf_type", "text", "preset"):
        with pytest.raises(InputError, match=f"{name} is 'x'"):
            TakeAwayParameters.from_names({name: "x"})
    with pytest.raises(InputError, match="'Q8_0', and tiny-llama is no GGUF file"):
        parameters.but(bits="nf4, Q8_0").bits_list(parameters.source())
