"""Angular distances of one pass are those of a plain loop over hidden states.

Of every family: tests/test_families.py.
"""

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import count_positions
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.similarity import angular_distances, batch_distances, measure_distances
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.sweeps import loglikelihoods, text_loss
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.rules.needs import token_cosines
from tests.plain import batch, plain_distances, residuals
from tests.tiny import SLIDING_WINDOW, VOCABULARY, tiny_model

pytestmark = pytest.mark.quick

LAYERS = 5
LENGTHS = (7, 19, 3, 12, 19, 1, 10)  # some longer than the sliding window, one of a single token


@pytest.fixture(scope="module")
def sequences():
    draw = np.random.default_rng(3)
    assert max(LENGTHS) > 2 * SLIDING_WINDOW
    return [draw.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


# positions that are learned count from the first column, and in one rotary family their norm follows the rotation
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_bigcode", "opt", "hunyuan_v1_dense"])
def test_equals_a_plain_loop_however_padded_and_batched(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    each = np.stack([plain_distances(residuals(model, tokens)) for tokens in sequences])
    for given in (
        [batch(sequences)],
        [batch(sequences, "left")],
        [batch(sequences[:3], "left"), batch(sequences[3:])],
        [on_both_sides(batch(sequences, "left"))],
        [batch([tokens]) for tokens in sequences],
    ):
        found, error, samples = measure_distances(model, given)
        assert found.dtype == np.float64 and samples == len(sequences)
        np.testing.assert_allclose(found, each.mean(axis=0), atol=1e-6, rtol=0)
        np.testing.assert_allclose(error, each.std(axis=0, ddof=1) / np.sqrt(samples), atol=1e-6, rtol=0)
    np.testing.assert_allclose(measure_distances(model, given[:2])[1], np.abs(each[0] - each[1]) / 2, atol=1e-6)


def on_both_sides(given):
    """A batch with two more columns of padding on the left and three on the right, its mask of yes and no."""
    padded = {name: torch.nn.functional.pad(tensor, (2, 3)) for name, tensor in given.items()}
    return padded | {"attention_mask": padded["attention_mask"].bool()}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sequence_beyond_the_positions_of_a_model_is_one_line_however_positions_are_made(family):
    model, cuts = tiny_model(family, layers=LAYERS, max_position_embeddings=80, n_positions=80), [Cut(0, 0), Cut(1, 1)]
    tokens = list(range(1, 83))
    for measured in (
        lambda ids: angular_distances(model, [batch([ids])]),
        lambda ids: token_cosines(model, [torch.tensor(ids)]),
        lambda ids: text_loss(model, cuts, [torch.tensor([*ids, 1])]),  # the last is predicted alone
    ):
        assert measured(tokens[:80]) is not None
        message = f"a sequence has 81 tokens, and {type(model).__name__} has 80 positions: take sequences of at most 80"
        with pytest.raises(InputError, match=message):
            measured(tokens[:81])
    # what a request of lm-eval has too many is cut on its left, as lm-eval's own model does
    family = TreeModel(model, cuts)
    found = [loglikelihoods(family, Requests([(ids, [7])], 80))[0] for ids in (tokens, tokens[-80:])]
    assert np.array_equal(*found)


def test_rotary_positions_that_are_stretched_count_as_stretched():
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    config = tiny_model("llama", layers=2, max_position_embeddings=32, rope_parameters=stretched).config
    assert count_positions(config) == 128
    plain = tiny_model("llama", layers=2, max_position_embeddings=32).config
    assert count_positions(plain) == 32
    assert count_positions(AutoConfig.for_model("gpt2", n_positions=24)) == 24
    assert (
        count_positions(AutoConfig.for_model("bloom")) is None
        and count_positions(AutoConfig.for_model("mamba")) is None
    )


def test_a_mask_between_tokens_is_refused(sequences):
    model, given = tiny_model("llama", layers=LAYERS), batch(sequences)
    given["attention_mask"][1, 4] = 0
    with pytest.raises(InputError, match="masks a token between others, expected padding before or after"):
        angular_distances(model, [given])


def test_padding_is_never_the_last_token_nor_the_final_norm_passed(sequences):
    """What is padded in does not matter, nor what comes after the last layer."""
    model, right = tiny_model("llama", layers=LAYERS), batch(sequences)
    filled = right | {"input_ids": right["input_ids"] + 7 * (1 - right["attention_mask"])}
    expected = angular_distances(model, [right])
    with torch.no_grad():  # gains that spread over a decade turn every vector
        model.model.norm.weight.copy_(torch.logspace(-0.5, 0.5, model.config.hidden_size))
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits that nobody reads"))
    np.testing.assert_allclose(angular_distances(model, [filled]), expected, atol=1e-12)
    right["attention_mask"][2] = 0
    with pytest.raises(InputError, match="all padding"):
        angular_distances(model, [filled, right])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_angles_are_those_of_float64_whatever_the_model_s_precision(dtype):
    """In the precision of the model the small ones would be none, and those of equal vectors not a number."""
    vectors = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    near = (vectors.double() + 0.01 * vectors.double().roll(1, 0)).to(dtype)
    found = batch_distances(torch.stack([vectors, vectors, -vectors, near]))
    assert found[:, 0, 1].max() < 1e-7
    cosines = torch.cosine_similarity(vectors.double(), near.double())
    torch.testing.assert_close(found[:, 0, 3], cosines.arccos() / torch.pi, atol=1e-7, rtol=0)
    torch.testing.assert_close(found[:, 1, 2], torch.ones(64, dtype=torch.float64), atol=1e-7, rtol=0)
