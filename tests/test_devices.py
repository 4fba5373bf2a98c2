"""A model spread over devices, and data types of 16 bits, as far as they can be tried without an accelerator."""

import warnings

import accelerate
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models.network import Network
from deeper_layers.sweeping.abilities import Abilities, alone
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.scored_only import ScoredOnly
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.walk import Batch, Walk, remembering
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


WAYS = [(False, False, 0, None), (False, True, 5, ScoredOnly(narrow=True)), (True, False, 5, ScoredOnly(narrow=True))]


@pytest.mark.parametrize(("branches", "apart", "start", "way"), WAYS, ids=["plain", "apart", "branches"])
def test_a_batch_on_two_devices(branches, apart, start, way):
    """Devices that torch plays: it refuses what mixes them, and computes places and shapes, no numbers."""
    with FakeTensorMode(), torch.inference_mode():
        network, tree, beginning = Network(spread_model("llama")), Tree(CUTS, LAYERS), None
        assert [str(place) for place in network.places] == [ONE] * 3 + [OTHER] * 3
        if start:
            tokens = torch.tensor([TOKENS[:start]], device=network.device)
            walk, beginning = remembering(network, tree, tokens, scored_only=way)
            walk.through()
            held = {network.places[n.layer]: beginning.kept[n.leaves][0].device for level in tree.levels for n in level}
            assert held == {place: place for place in network.places}
        batch = Batch.of(sequences(start, branches), start, network.device)
        walk = Walk(network, tree, batch, beginning, scored_only=way, apart=apart).through()
        logits = network.logits(torch.cat([walk.states[number] for number in tree.last]))
        assert logits.shape == (len(CUTS) * len(batch.rows), 128) and str(logits.device) == ONE


def test_answers_on_two_devices():
    with FakeTensorMode(), torch.inference_mode():
        family = PrunedFamily(spread_model("llama"), CUTS[:3], Abilities(split=True, share=True))
        decoding = Decoding(family, [TOKENS[:60], TOKENS[:70]], 3)
        places = torch.arange(70 + 3).expand(6, -1).to(ONE)
        found = decoding._pass(decoding.held, torch.ones(6, dtype=torch.long, device=ONE), places, places > -1)
        assert found.shape == (6, 1, 48) and str(found.device) == ONE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_in_sixteen_bits_the_tree_is_the_pruned_model(family, dtype):
    """To the bit, without savings."""
    model = tiny_model(family, layers=LAYERS, dtype=dtype)
    network, tree = Network(model), Tree(CUTS, LAYERS)
    batch = Batch.of(sequences(0, False), 0, network.device)
    with torch.inference_mode():
        walk = Walk(network, tree, batch).through()
        for cut, number in zip(CUTS, tree.last, strict=True):
            found = network.logits(walk.states[number])
            assert found.dtype == dtype and torch.equal(found, alone(model, cut, batch))
