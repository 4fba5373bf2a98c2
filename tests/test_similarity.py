"""Angular distances of one pass are those of a plain loop over hidden states."""

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.rules.similarity import distance_matrix, distance_table, similarity_cut
from deeper_layers.similarity import angular_distances, batch_distances, measure_distances
from tests.plain import batch, plain_distances, residuals
from tests.tiny import FAMILIES, SLIDING_WINDOW, VOCABULARY, tiny_model

pytestmark = pytest.mark.quick

LAYERS = 5
LENGTHS = (7, 19, 3, 12, 19, 1, 10)  # some longer than the sliding window, one of a single token


@pytest.fixture(scope="module")
def sequences():
    draw = np.random.default_rng(3)
    assert max(LENGTHS) > 2 * SLIDING_WINDOW
    return [draw.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


def alone(sequences):
    return [batch([tokens]) for tokens in sequences]


def every_plain_distance(model, sequences):
    return np.stack([plain_distances(residuals(model, tokens)) for tokens in sequences])


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop_however_padded(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    expected = every_plain_distance(model, sequences).mean(axis=0)
    batches = {
        "right": [batch(sequences)],
        "left": [batch(sequences, "left")],
        "both": [batch(sequences[:3], "left"), batch(sequences[3:])],
        "none": alone(sequences),
    }
    for padding, given in batches.items():
        found = angular_distances(model, given)
        assert found.shape == (LAYERS, LAYERS) and found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0, err_msg=f"padding: {padding}")
    sizes, starts = np.indices((LAYERS, LAYERS))
    assert np.array_equal(np.isnan(expected), starts + sizes + 1 > LAYERS)
    # what differs by position alone is told apart: these distances are no constant
    assert np.nanstd(expected) > 1e-3


def test_padding_is_never_the_last_token_nor_the_final_norm_passed(sequences):
    """What is padded in does not matter, nor what comes after the last layer."""
    model = tiny_model("llama", layers=LAYERS)
    right = batch(sequences)
    filled = right | {"input_ids": right["input_ids"] + 7 * (1 - right["attention_mask"])}
    expected = angular_distances(model, [right])
    with torch.no_grad():  # gains that spread over a decade turn every vector
        model.model.norm.weight.copy_(torch.logspace(-0.5, 0.5, model.config.hidden_size))
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits that nobody reads"))
    np.testing.assert_allclose(angular_distances(model, [filled]), expected, atol=1e-12)


def test_identical_vectors_are_at_distance_zero():
    vectors = torch.randn(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    # rounding pushes some of these cosines past 1, where arccos is not-a-number
    assert ((unit[:, None] @ unit[:, :, None]).squeeze() > 1).any()
    found = batch_distances(torch.stack([vectors, vectors, -vectors]).float())
    assert not found.isnan().any()
    assert found[:, 0, 1].max() < 1e-7
    np.testing.assert_allclose(found[:, 0, 2], 1, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_angles_survive_half_precision(dtype):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 512, generator=draw, dtype=torch.float64), dim=-1)
    across = torch.nn.functional.normalize(b - (a @ b) * a, dim=-1)
    true = 0.01 if dtype == torch.bfloat16 else 0.005
    angle = torch.tensor(true * torch.pi, dtype=torch.float64)
    pair = torch.stack([a, a * angle.cos() + across * angle.sin()])[:, None].mul(20).to(dtype)
    # what goes wrong: the same formula in half precision reads nothing at all
    unit = pair / pair.norm(dim=-1, keepdim=True)
    assert torch.arccos((unit[0] * unit[1]).sum(-1).clamp(-1, 1)) == 0
    found = batch_distances(pair)
    assert found.dtype == torch.float64
    assert found[0, 0, 1].item() == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("block", [Cut(0, 1), Cut(0, 3), Cut(1, 2), Cut(2, 1), Cut(1, 3), Cut(3, 1)], ids=str)
def test_an_identity_block_is_found_at_its_start_and_size(block, sequences):
    model = tiny_model("llama", layers=LAYERS)
    with torch.no_grad():
        for layer in decoder_layers(model)[block.start : block.stop]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    distances = angular_distances(model, [batch(sequences)])
    assert similarity_cut(distances, block.size) == block
    zero = {(row + 1, start) for row, start in np.argwhere(distances < 1e-6).tolist()}
    assert zero == {(n, start) for n in range(1, block.size + 1) for start in range(block.start, block.stop - n + 1)}


def test_every_sample_counts_once(sequences):
    model = tiny_model("llama", layers=LAYERS)
    each = every_plain_distance(model, sequences)
    unequal = [batch(sequences[:1]), batch(sequences[1:5]), batch(sequences[5:])]
    found, error, samples = measure_distances(model, unequal)
    assert samples == len(sequences)
    np.testing.assert_allclose(found, angular_distances(model, alone(sequences)), atol=1e-6, rtol=0)
    np.testing.assert_allclose(error, each.std(axis=0, ddof=1) / np.sqrt(len(each)), atol=1e-6, rtol=0)


def test_nothing_to_measure_is_an_error_and_leaves_nothing_behind(sequences):
    model, padded = tiny_model("llama", layers=LAYERS), batch(sequences)
    padded["attention_mask"][2] = 0
    for batches, message in (([], "at least one batch"), ([batch(sequences), padded], "all padding")):
        with pytest.raises(InputError, match=message):
            angular_distances(model, batches)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(model))


def test_matrix_to_table_and_back(sequences):
    model = tiny_model("llama", layers=LAYERS)
    mean, error, samples = measure_distances(model, [batch(sequences)])
    table = distance_table(mean, error, samples)
    assert len(table) == LAYERS * (LAYERS + 1) // 2 and not table.isna().any().any()
    row = table[(table["start"] == 1) & (table["size"] == 3)].iloc[0]
    assert (row["distance"], row["stderr"], row["samples"]) == (mean[2, 1], error[2, 1], len(sequences))
    assert np.array_equal(distance_matrix(table), mean, equal_nan=True)
