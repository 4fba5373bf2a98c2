"""A model spread over devices, and data types of 16 bits, as far as they can be tried without an accelerator."""

import warnings

import accelerate
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models.network import Network
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.forward import Batch, Forward, run_layers
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import TreeModel, run_alone
from deeper_layers.sweeping.trial import Sharing
from tests.tiny import model_type, settings_of, tiny_model

LAYERS = 6
CUTS = [Cut(0, 0), simple_cut(LAYERS, 2), Cut(1, 3), Cut(0, 1), Cut(4, 2), Cut.of([1, 4])]
TOKENS = list(range(1, 90))
ONE, OTHER = "cpu:0", "cpu:1"


def sequences(start: int, branches: bool) -> tuple[Sequence, ...]:
    """Of unequal lengths, the same up to `start`."""
    answers = [(0, [7, 8, 9]), (1, [5, 6, 4])] if branches else [(0, [7, 8, 9])]
    return tuple(Sequence.joined([*TOKENS[:start], *TOKENS[n : n + 9 + 2 * n]], answers) for n in range(3))


def spread_model(family: str):
    """A model without numbers, whose first layers are on one device and last on another."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type(family), **settings_of(family, LAYERS)))
    places = {name: ONE for name in ("model.embed_tokens", "model.rotary_emb")}
    places |= {name: OTHER for name in ("model.norm", "lm_head")}
    places |= {f"model.layers.{layer}": ONE if layer < 3 else OTHER for layer in range(LAYERS)}
    for name, place in places.items():
        for module in model.get_submodule(name).modules():
            for tensors in (module._parameters, module._buffers):
                tensors |= {key: tensor.to(place) for key, tensor in tensors.items() if tensor is not None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer")
        return accelerate.dispatch_model(model.eval(), places, force_hooks=True)


WAYS = [(False, 0, False), (False, 5, True), (True, 5, True)]


@pytest.mark.parametrize(("branches", "start", "scored_only"), WAYS, ids=["plain", "prefix", "branches"])
def test_a_batch_on_two_devices(branches, start, scored_only):
    """Devices that torch plays: it refuses what mixes them, and computes places and shapes, no numbers."""
    with FakeTensorMode(), torch.inference_mode():
        network, tree, prefix = Network(spread_model("llama")), Tree(CUTS, LAYERS), None
        assert [str(place) for place in network.places] == [ONE] * 3 + [OTHER] * 3
        if start:
            tokens = Batch.of_tokens([TOKENS[:start]], network.device)
            run_layers([forward := Forward(network, tree, tokens, scored_only=scored_only, keeps=True)])
            prefix = forward.cache
            held = {network.places[n.layer]: prefix.kept[n.leaves][0].device for level in tree.levels for n in level}
            assert held == {place: place for place in network.places}
        batch = Batch.of(sequences(start, branches), start, network.device)
        run_layers([forward := Forward(network, tree, batch, prefix, scored_only=scored_only)])
        logits = network.logits(forward.states.flatten(0, 1))
        assert logits.shape == (len(CUTS) * len(batch.rows), 128) and str(logits.device) == ONE


def test_answers_on_two_devices():
    with FakeTensorMode(), torch.inference_mode():
        model = TreeModel(spread_model("llama"), CUTS[:3], Sharing.MASKS)
        decoding = Decoding(model, [TOKENS[:60], TOKENS[:70]], 3)
        ones = torch.ones(6, dtype=torch.long, device=ONE)
        found = decoding._next(0, ones, ones[:, None])
        assert found.shape == (6,) and str(found.device) == ONE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_in_sixteen_bits_the_tree_is_the_pruned_model(family, dtype):
    """To the bit, without savings."""
    model = tiny_model(family, layers=LAYERS, dtype=dtype)
    network, tree = Network(model), Tree(CUTS, LAYERS)
    batch = Batch.of(sequences(0, False), 0, network.device)
    with torch.inference_mode():
        run_layers([forward := Forward(network, tree, batch)])
        for number, cut in enumerate(CUTS):
            found = network.logits(forward.states[number])
            assert found.dtype == dtype and torch.equal(found, run_alone(model, cut, batch))
