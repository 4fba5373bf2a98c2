"""Pruned models in several kinds of weights: sliced and quantized is quantized and sliced, and is weighed."""

import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.experiments.take_away import count_checkpoint_bytes


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_sliced_folder_opens_quantized_as_the_quantized_model_without_its_layers(quantization, tiny_folder, tmp_path):
    out = slice_checkpoint(tiny_folder, Cut(1, 2), tmp_path / "sliced")
    sliced, whole = (load_model(str(folder), quantization=quantization)[0] for folder in (out, tiny_folder))
    pruned, ids = drop_layers(whole, Cut(1, 2)), torch.arange(30)[None]
    with torch.inference_mode():
        assert torch.equal(sliced(ids).logits, pruned(ids).logits)
        assert not torch.equal(whole(ids).logits, pruned(ids).logits)
    assert count_checkpoint_bytes(sliced) == count_checkpoint_bytes(pruned) < count_checkpoint_bytes(whole)


def test_bytes_count_tied_weights_once_and_scales_of_quantized_ones(tiny_folder):
    model, quantized = (load_model(str(tiny_folder), quantization=how)[0] for how in (None, "int8"))
    parameters, tied = sum(p.numel() for p in model.parameters()), model.get_input_embeddings().weight
    linear = [module.weight for name, module in model.named_modules() if "_proj" in name]
    weights, scales = sum(weight.numel() for weight in linear), sum(len(weight) for weight in linear)
    assert count_checkpoint_bytes(model) == 4 * parameters
    assert weights + 4 * (parameters - weights + scales) <= count_checkpoint_bytes(quantized) < 4 * parameters
    model.get_output_embeddings().weight = tied
    assert count_checkpoint_bytes(model) == 4 * (parameters - tied.numel())
