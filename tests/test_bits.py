"""Pruned models in several kinds of weights: sliced and quantized is quantized and sliced; what is measured of them."""

import dataclasses

import pytest
import torch

from deeper_layers import models
from deeper_layers.cuts import Cut
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.notebook_parameters import TakeAwayParameters
from deeper_layers.experiments.take_away import checkpoint_bytes, score_rounded
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers

CUTS = {"similarity": [Cut(0, 0), Cut(1, 2)]}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_sliced_folder_opens_quantized_as_the_quantized_model_without_its_layers(quantization, tiny_folder, tmp_path):
    out = slice_checkpoint(tiny_folder, Cut(1, 2), tmp_path / "sliced")
    sliced, whole = (load_model(str(folder), quantization=quantization)[0] for folder in (out, tiny_folder))
    pruned, ids = drop_layers(whole, Cut(1, 2)), torch.arange(30)[None]
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
    shapes = [m.weight.shape for n, m in quantized.named_modules() if "_proj" in n]
    linear, rows = sum(shape.numel() for shape in shapes), sum(shape[0] for shape in shapes)
    assert linear + 4 * (parameters - linear) + 4 * rows <= checkpoint_bytes(quantized) < 4 * parameters


def test_each_kind_of_weights_is_measured_once(tiny_folder, tmp_path, monkeypatch):
    parameters = TakeAwayParameters(
        model=str(tiny_folder), tasks="capitals, sums_one_digit", limit=6, results=str(tmp_path)
    )
    experiment = Experiment(parameters)
    assert score_rounded("nf4", CUTS, experiment.but(measure=False)) is None
    found = {kind: score_rounded(kind, CUTS, experiment) for kind in parameters.bits_list(experiment.source)}
    assert list(found) == ["bfloat16", "int8", "nf4"]
    half = dataclasses.replace(experiment.source, dtype="bfloat16")
    for kind, result in found.items():
        assert set(result.rows["task"]) == {"capitals", "sums_one_digit"} and result.key["dtype"] == "bfloat16"
        whole, pruned = result.rows.drop_duplicates("size")["bytes"]
        assert whole > pruned
        assert whole == checkpoint_bytes(load_model(half, quantization=None if kind[0] == "b" else kind)[0])
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("measured again"))
    for kind, result in found.items():
        assert score_rounded(kind, CUTS, experiment).path == result.path
