"""A model spread over devices, and data types of 16 bits, as far as they can be tried without an accelerator."""

import warnings

import accelerate
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models.network import Network
from deeper_layers.models.opening import device_name
from deeper_layers.sweeping.forward import Forward, run_layers
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.planning import Batch, Sequence
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import Sharing, TreeModel, run_alone
from tests.plain import never
from tests.tiny import model_type, settings_of, tiny_model

LAYERS = 6
CUTS = [Cut(0, 0), simple_cut(LAYERS, 2), Cut(1, 3), Cut(0, 1), Cut(4, 2), Cut.of([1, 4])]
TOKENS = list(range(1, 90))
ONE, OTHER = "cpu:0", "cpu:1"


def batch_of(start: int, branches: bool = False) -> Batch:
    """Of unequal lengths, the same up to `start`."""
    answers = [(0, [7, 8, 9]), (1, [5, 6, 4])][: 1 + branches]
    sequences = [Sequence.join([*TOKENS[:start], *TOKENS[n : n + 9 + 2 * n]], answers) for n in range(3)]
    return Batch(tuple(TOKENS[:start]), tuple(sequences))


@pytest.fixture
def spread():
    """A model without numbers, whose first layers are on one device and last on another.

    Devices that torch plays: it refuses what mixes them, and computes places and shapes.
    """
    with FakeTensorMode(), torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer")
        config = AutoConfig.for_model(model_type("llama"), **settings_of("llama", LAYERS))
        model = AutoModelForCausalLM.from_config(config)
        places = {f"model.{name}": ONE for name in ("embed_tokens", "rotary_emb", *(f"layers.{n}" for n in range(3)))}
        places |= {name: OTHER for name in ("model.norm", "lm_head", *(f"model.layers.{n}" for n in range(3, LAYERS)))}
        for name, place in places.items():
            for module in model.get_submodule(name).modules():
                for tensors in (module._parameters, module._buffers):
                    tensors |= {key: tensor.to(place) for key, tensor in tensors.items() if tensor is not None}
        yield accelerate.dispatch_model(model.eval(), places, force_hooks=True)


WAYS = [(False, 0, False), (False, 5, True), (True, 5, True)]


@pytest.mark.parametrize(("branches", "start", "scored_only"), WAYS, ids=["plain", "prefix", "branches"])
def test_a_batch_on_two_devices(spread, branches, start, scored_only):
    network, tree, prefix = Network(spread), Tree(CUTS, LAYERS), None
    assert [str(place) for place in network.layer_devices] == [ONE] * 3 + [OTHER] * 3
    if start:
        tokens = Batch((), (Sequence(tuple(TOKENS[:start])),))
        run_layers([forward := Forward(network, tree, tokens, scored_only=scored_only, keeps=True)])
        prefix = forward.cache
        assert all(
            prefix.kept[n.leaves][0].device == network.layer_devices[n.layer] for level in tree.levels for n in level
        )
    batch = batch_of(start, branches)
    run_layers([forward := Forward(network, tree, batch, prefix, scored_only=scored_only)])
    logits = network.logits(forward.states.flatten(0, 1))
    assert logits.shape == (len(CUTS) * batch.scored, 128) and str(logits.device) == ONE


def test_answers_on_two_devices(spread):
    decoding = Decoding(TreeModel(spread, CUTS[:3], Sharing.MASKS), [TOKENS[:60], TOKENS[:70]], 3)
    with pytest.raises(DataDependentOutputException):  # a token has passed all layers, and its number is asked for
        decoding.write(never)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_in_sixteen_bits_all_is_shared_and_without_savings_the_tree_is_the_pruned_model(family, dtype):
    """To the bit."""
    model = tiny_model(family, dtype=dtype)
    assert TreeModel(model, CUTS).sharing == Sharing.MASKS
    network, tree = Network(model), Tree(CUTS, LAYERS)
    batch = batch_of(0)
    with torch.inference_mode():
        run_layers([forward := Forward(network, tree, batch)])
        for number, cut in enumerate(CUTS):
            found = network.logits(forward.states[number])
            assert found.dtype == dtype and torch.equal(found, run_alone(model, cut, batch))


def test_a_processor_is_named_with_its_threads(monkeypatch):
    for threads, words in ((1, ", 1 thread"), (2, ", 2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert device_name().endswith(words) and " processor (" in device_name()
