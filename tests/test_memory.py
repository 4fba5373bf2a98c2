"""Bytes and seconds that a sweep is estimated to need: the arithmetic, of a tiny Llama, by hand."""

import copy
import time

import pytest
import torch
from transformers import DynamicCache

from deeper_layers.cuts import Cut
from deeper_layers.models.configuration import text_config
from deeper_layers.models.network import Network, cache_argument
from deeper_layers.sweeping.planning import Batch, Sequence, Sharing
from deeper_layers.sweeping.sweeps import _predict_seconds
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import TreeModel
from tests.tiny import VOCABULARY, shared_model

pytestmark = pytest.mark.quick

LAYERS, CUTS = 6, [Cut(0, 0), Cut(1, 2), Cut(2, 1)]
RESIDUAL = 4 * 48  # bytes, of a width of 48 in float32
TOKEN = 6 * RESIDUAL + 4 * 4 * 64  # tensors of a token while a layer runs: of the residual's width, of the MLP's
CACHE = 4 * 2 * 2 * 12  # keys and values of two heads of width 12
COPIES = 2 + 4 // 2  # of keys and values, with those for each of four heads
MASK = 8  # of a pair of query and key
LOGITS = 12 * VOCABULARY


@pytest.fixture(scope="module")
def model():
    return TreeModel(shared_model("llama", LAYERS), CUTS, Sharing.MASKS)


def batch(*lengths: int) -> Batch:
    return Batch((), tuple(Sequence.join(list(range(1, length + 1)), [(0, [7])]) for length in lengths))


def test_bytes_for_scores(model):
    """Rows are padded to the longest; each waits at all nodes that are needed at once, scored ones in each model."""
    tree, given = model.tree, batch(9, 4)
    assert (given.width, given.scored, tree.alive) == (9, 2, 6)
    waiting, running = (6 * 2 * 9 + 2 * 3) * RESIDUAL, 2 * 9 * (TOKEN + 9 * MASK) + 2 * 9 * COPIES * CACHE
    assert model.estimate.scoring_bytes(tree, [given]) == waiting + running + 2 * 3 * LOGITS
    assert model.bytes_needed([given]) == model.estimate.scoring_bytes(tree, [given])
    alone = TreeModel(model.network.model, CUTS, Sharing.NOTHING)
    assert alone.bytes_needed([given]) == model.estimate.scoring_bytes(Tree(CUTS[:1], LAYERS), [given])


def test_bytes_for_answers(model):
    """Three prompts of ten tokens and five new ones in each of three models."""
    tree = model.tree
    caches = 3 * 15 * (6 + 4 + 5) * CACHE  # of every model's own layers
    reading = 3 * 10 * (tree.nodes * CACHE + tree.alive * RESIDUAL)
    reading += 3 * 10 * (TOKEN + 10 * MASK) + 3 * 10 * COPIES * CACHE
    writing = 9 * (TOKEN + 15 * MASK) + 9 * 15 * COPIES * CACHE + 9 * LOGITS
    assert reading != writing
    assert model.estimate.writing_bytes(tree, 3, 10, 5) == caches + max(reading, writing)


def test_what_is_kept_of_a_token_is_what_the_model_keeps():
    """Not what its number of heads says: keys and values that are compressed, or a state that recurs."""
    kept = {family: Network(shared_model(family, LAYERS)).token_cache_bytes for family in ("llama", "deepseek_v3")}
    assert kept == {"llama": CACHE, "deepseek_v3": 4 * (16 + 8)}
    assert Network(shared_model("falcon_h1", LAYERS)).token_cache_bytes > CACHE


@pytest.mark.parametrize("family", ["llama", "olmo3", "falcon_h1", "gemma4"])
def test_a_model_without_weights_tells_what_each_layer_keeps(family):
    """Windows, layers that share keys and values, states that recur: what the model keeps when it runs on tokens."""
    model = shared_model(family, LAYERS)
    cache = DynamicCache(config=text_config(model.config))
    with torch.inference_mode():
        model.base_model(
            input_ids=torch.ones(2, 24, dtype=torch.long), use_cache=True, **{cache_argument(model): cache}
        )
    told = Network(copy.deepcopy(model).to("meta")).measure_caches(tokens=24, sequences=2)
    for number, layer in enumerate(cache.layers):
        if getattr(layer, "keys", None) is not None:
            kept = layer.keys.nbytes + layer.values.nbytes
            assert kept <= told[number] <= kept * (1.01 if family != "falcon_h1" else 10)
    assert told == Network(model).measure_caches(tokens=24, sequences=2)


def test_seconds_are_those_of_a_small_batch_for_each_layer_step_and_of_the_head_by_its_parameters(model, monkeypatch):
    ticks = iter([0.0, 100.0, 107.0])  # the first pass does not count
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    steps, batches = 5000, [batch(9, 4)]
    a_step = 7.0 / (4 * 64) / LAYERS
    layers = shared_model("llama", LAYERS).model
    head = VOCABULARY * 48 * LAYERS / (layers.num_parameters() - layers.embed_tokens.weight.numel())
    with torch.inference_mode():
        assert _predict_seconds(model, batches, steps) == pytest.approx(a_step * (steps + 2 * 3 * head))
