"""What is done with a model, by path and family: on a card that is not there the numbers are the processor's.

And how often the processor waits for the card, for each batch, sequence or token more: `waits`.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import zero_sublayers
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping.generation import Decoding, generate_one_by_one
from deeper_layers.sweeping.planning import Sharing
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods, request_loss, text_loss, text_requests
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.rules.changing import bridge_cut, build_likeness, merge_layers
from deeper_layers_companion.rules.end_maps import EndResiduals, fit_affine_map, replace_last_layers
from deeper_layers_companion.rules.geometry import record_passes, skip_each_layer
from deeper_layers_companion.rules.needs import saliences, sublayer_cosines, token_cosines
from tests.plain import batch, never, requests
from tests.simulated_device import simulated_card
from tests.tiny import FOUR, search, shared_model

CUTS = [Cut(0, 0), Cut(1, 2), simple_cut(6, 3)]
SILENT = Cut.of([1], attention=[3], mlp=[2])
GIVEN = batch([[5, 9, 17, 3, 2, 8, 10, 11, 12, 13, 14], [7, 8]])
MERGED = [0, (1, 2), 3, 4, 5]


def sequences(number: int) -> list[torch.Tensor]:
    return list(torch.randint(1, 128, (number, 24), generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def logits(model) -> np.ndarray:
    return model(torch.arange(1, 20, device=model.device)[None], use_cache=False).logits.cpu().numpy()


def choices(model, sharing: Sharing | None = None, cuts=CUTS, **options) -> np.ndarray:
    asked = requests(128, few_shot=60, questions=3)
    return loglikelihoods(TreeModel(model, cuts, sharing), asked, batch_tokens=64, **options)[0]


def losses(model, number: int) -> np.ndarray:
    table, _ = request_loss(model, CUTS, text_requests(sequences(number)), batch_tokens=24, compares=True)
    return table[["value", "agreement", "overlap", "kl"]].to_numpy()


def write(model, number: int) -> np.ndarray:
    return np.array(Decoding(TreeModel(model, CUTS), [list(range(1, 20)), list(range(5, 40))], number).write(never))


def recorded(run: Callable, model, number: int) -> np.ndarray:
    return np.concatenate([value.ravel() for of in run(model, [GIVEN] * number, tokens=2) for value in of.values()])


def searched(model, rule: str, size: int, number: int) -> np.ndarray:
    (cut,) = search(model, rule, [size], sequences(number))
    return np.array([*cut.dropped, -1, *cut.attention, -1, *cut.mlp])


def mapped(model, number: int) -> np.ndarray:
    residuals = EndResiduals(model, sequences(number), 2)
    return logits(replace_last_layers(model, 2, fit_affine_map(residuals, 2)))


class Path(NamedTuple):
    run: Callable  # a model to numbers
    families: list[str]


LLAMA, BRIDGED = ["llama"], ["llama", "falcon_h1"]  # of the others an MLP takes no map
PATHS = {
    "choices without sharing": Path(lambda model: choices(model, Sharing.NOTHING), LLAMA),
    "choices by layers": Path(lambda model: choices(model, Sharing.LAYERS), LLAMA),
    "choices with a prefix": Path(lambda model: choices(model, Sharing.PREFIXES), LLAMA),
    "choices without sublayers": Path(lambda model: choices(model, Sharing.MASKS, [Cut(0, 0), SILENT]), FOUR[:3]),
    "zeroed sublayers": Path(lambda model: logits(zero_sublayers(model, SILENT)), FOUR),
    "a scan": Path(
        lambda model: text_loss(model, [Cut(layer, 1) for layer in range(5)], sequences(1))[0]["value"], LLAMA
    ),
    "losses": Path(lambda model: losses(model, 1), FOUR[:3]),
    "greedy": Path(lambda model: searched(model, "greedy", 1, 1), LLAMA),
    "block-pruner": Path(lambda model: searched(model, "block-pruner", 1, 1), LLAMA),
    "cosines of residuals": Path(lambda model: token_cosines(model, sequences(1)), FOUR),
    "cosines of sublayers": Path(lambda model: sublayer_cosines(model, sequences(1)), FOUR),
    "saliences": Path(lambda model: saliences(model, sequences(1)), FOUR),
    "geometry": Path(lambda model: recorded(record_passes, model, 1), FOUR),
    "each layer left out": Path(lambda model: recorded(skip_each_layer, model, 1), FOUR),
    "least squares": Path(lambda model: logits(bridge_cut(model, Cut(2, 2), sequences(3), "least squares")), BRIDGED),
    "scaled": Path(lambda model: logits(bridge_cut(model, Cut(2, 2), sequences(3), "scaled")), BRIDGED),
    "trained": Path(lambda model: logits(bridge_cut(model, Cut(2, 2), sequences(1), "trained")), FOUR),
    "merged": Path(lambda model: logits(merge_layers(model, MERGED)), FOUR),
    "likeness": Path(lambda model: np.array([build_likeness(model, sequences(1))(MERGED)]), FOUR),
    "a map of last layers": Path(lambda model: mapped(model, 4), FOUR),
}
PAIRS = [(path, family) for path, entry in PATHS.items() for family in entry.families]
# seconds each, and what they do is in a quicker path too
SLOW = {
    ("choices without sharing", "llama"),
    ("block-pruner", "llama"),
    ("losses", "qwen3_moe"),
    ("losses", "gemma3"),
    ("a map of last layers", "falcon_h1"),
}
MARKED = [pytest.param(*pair, marks=pytest.mark.thorough if pair in SLOW else ()) for pair in PAIRS]


@pytest.mark.parametrize(("path", "family"), MARKED)
def test_a_path_gives_the_processors_numbers(path, family):
    run, model = PATHS[path].run, shared_model(family)
    with simulated_card():
        found = run(copy.deepcopy(model).to("card"))
    np.testing.assert_allclose(found, run(model), atol=1e-4, rtol=1e-5)


# saliences are gradients of all weights, summed: of a card without float64 they are summed on the processor
WITHOUT = ["cosines of residuals", "cosines of sublayers", "saliences", "geometry", "each layer left out"]
WITHOUT += ["least squares", "scaled", "likeness"]


@pytest.mark.parametrize("path", WITHOUT)
def test_a_card_without_float64_gives_the_processors_numbers(path):
    run, model = PATHS[path].run, shared_model("llama")
    with simulated_card(float64=False):
        found = run(copy.deepcopy(model).to("card"))
    np.testing.assert_allclose(found, run(model), atol=1e-4, rtol=1e-5)


MOST = {  # waits for each more: a batch, a sequence, a token
    "distances": (lambda model, number: angular_distances(model, [GIVEN] * number), 3, 3),
    "losses": (losses, 2, 3),
    "a token": (write, 2, 3),
    "cosines of residuals": (lambda model, number: token_cosines(model, sequences(number)), 2, 3),
    "cosines of sublayers": (lambda model, number: sublayer_cosines(model, sequences(number)), 1, 2),
    "saliences": (lambda model, number: saliences(model, sequences(number)), 1, 2),
}


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("path", MOST)
def test_how_often_a_card_is_waited_for(path, family):
    """Of distances one is the copy, and two are transformers', which looks whether a mask leaves out anything. Of all
    others each kind of mask is one, where transformers looks whether a row holds several sequences."""
    run, *most = MOST[path]
    with simulated_card() as card:
        model, waits = copy.deepcopy(shared_model(family)).to("card"), []
        for number in (2, 4):
            card.counts.clear()
            run(model, number)
            waits.append(card.counts.waits)
    assert waits[1] - waits[0] <= 2 * most[family == "gemma3"]


@pytest.mark.thorough
def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    model, shards = shared_model("llama"), Shards(tmp_path)
    put, kept = Shards.put, []

    def stop(self, number, arrays):
        put(self, number, arrays)
        kept.append(number)
        raise KeyboardInterrupt

    with simulated_card():
        moved = copy.deepcopy(model).to("card")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Shards, "put", stop)
            choices(moved, shards=shards)
        found = choices(moved, shards=shards)
    assert len(kept) == 1
    np.testing.assert_allclose(found, choices(model), atol=1e-4, rtol=0)


def test_hflm_itself_writes_the_same(tiny_folder, opened):
    settings = {"until": ["\n"], "max_gen_toks": 4}
    texts = ["Question: What is the capital", "The capital is"]
    asked = [Instance("generate_until", {}, (text, settings), number) for number, text in enumerate(texts)]
    cuts = [Cut(0, 0), Cut(1, 2)]
    with simulated_card():
        model, tokenizer = load_model(str(tiny_folder), dtype="float32", device="card")
        found = generate_one_by_one(model, tokenizer, cuts, asked)
    assert found == generate_one_by_one(*opened, cuts, asked)
