"""Every number on a card that is not there is the processor's, and how often the processor waits for the card.

The card is in simulated_device.py. Two devices at once: test_devices.py.
"""

import copy

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.healing.adapters import merge_adapters
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.launches import count_launches
from deeper_layers.models.network import Network
from deeper_layers.models.opening import load_model
from deeper_layers.similarity import angular_distances, iterate_residuals
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.jobs.check import check_model
from tests.plain import batch, never, requests
from tests.simulated_device import Module, simulated_card
from tests.test_healing import DISTILL, healed
from tests.tiny import FOUR, shared_model, write_folder

LAYERS = 6
CUTS = [Cut(0, 0), Cut(1, 2), Cut(0, 1), simple_cut(LAYERS, 3), Cut.of([1, 4])]
GIVEN = batch([[5, 9, 17, 3, 2, 8, 10, 11, 12, 13, 14], [7, 8]])


@pytest.fixture
def card():
    with simulated_card() as card:
        yield card


def on_card(model):
    return copy.deepcopy(model).to("card")


def refused(kind: type[Exception], run, words: str) -> None:
    with pytest.raises(kind, match=words):
        run()


def test_it_refuses_what_a_card_refuses_and_counts(card):
    here, there = torch.arange(6.0), torch.arange(6.0, device="card")
    card.counts.clear()
    refused(RuntimeError, lambda: here + there, "same device")
    refused(RuntimeError, lambda: here[there.long()], "same device")
    refused(TypeError, there.numpy, "can't convert")
    assert (card.counts.waits, card.counts.launches) == (0, 1)  # .long()
    assert torch.equal((there[here.long()] * 2.0 + torch.tensor(1.0)).cpu(), here * 2 + 1)
    assert (card.counts.waits, card.counts.bytes_to_host) == (1, 24)
    assert there[there > 2].shape == (3,) and there.sum().item() == 15 and there.tolist() == here.tolist()
    assert card.counts.waits == 4
    held = card.counts.live_bytes
    more = torch.ones(1000, device="card")
    assert card.counts.live_bytes == held + more.nbytes
    del more
    assert card.counts.live_bytes == held and card.counts.most_bytes >= held + 4000


def test_nothing_of_it_stays():
    with simulated_card(float64=False):
        assert torch.accelerator.is_available()
        refused(TypeError, torch.ones(2, device="card").double, "float64")
    assert not torch.accelerator.is_available() and Module.devices == 0
    assert type(torch.ones(2) + 1) is torch.Tensor and not torch._C._only_lift_cpu_tensors()


@pytest.mark.parametrize("family", FOUR)
def test_distances_are_the_processors_and_take_one_copy_a_batch(family, card):
    model = shared_model(family)
    moved = on_card(model)
    card.counts.clear()
    found = angular_distances(moved, [GIVEN] * 3)
    assert card.counts.operators["wait: _to_copy"] == 3
    np.testing.assert_allclose(found, angular_distances(model, [GIVEN] * 3), atol=1e-6, rtol=0)


def test_residuals_of_a_card_without_float64_are_doubled_on_the_processor():
    model, sequence = shared_model("llama"), torch.arange(1, 30)
    (expected,) = iterate_residuals(model, [sequence])
    with simulated_card(float64=False):
        (found,) = iterate_residuals(on_card(model), [sequence])
        assert found.dtype == torch.float64 and found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FOUR)
def test_a_sweep_gives_the_processors_answers_and_takes_one_copy_a_batch(family, card):
    model, asked = shared_model(family), requests(128, few_shot=60, questions=6)
    expected = loglikelihoods(TreeModel(model, CUTS), asked)
    tree = TreeModel(on_card(model), CUTS)
    assert tree.sharing == TreeModel(model, CUTS).sharing
    found = loglikelihoods(tree, asked)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4, rtol=0)
    assert np.array_equal(found[1], expected[1])
    parts = plan_requests(tree, asked, batch_tokens=64).parts
    tree.answer(parts[0])  # with the prefix, which later ones share
    card.counts.clear()
    for part in parts[1:]:
        tree.answer(part)
    waits = {name: number for name, number in card.counts.operators.items() if name.startswith("wait: ")}
    assert waits.get("wait: _to_copy") == len(parts) - 1 > 1
    assert not {"wait: index", "wait: index_put_", "wait: nonzero"} & waits.keys()


@pytest.mark.parametrize("family", FOUR[:3])
def test_written_answers_are_the_processors(family, card):
    model, prompts = shared_model(family), [list(range(1, 20)), list(range(5, 40))]
    expected, found = (Decoding(TreeModel(m, CUTS), prompts, 4).write(never) for m in (model, on_card(model)))
    assert found == expected


VARIANTS = [
    {},
    DISTILL,
    {"auxiliary": 1.0},
    {"last_layers": 1, "rank": 0, "dropout": 0.0},
    {"gradient_checkpointing": True},
]


@pytest.mark.parametrize("values", VARIANTS, ids=["adapters", "distilled", "auxiliary", "last layers", "checkpointing"])
def test_healing_learns_what_it_learns_on_the_processor(values, opened, tiny_folder):
    """Its adapters, merged, too; and how often a step waits is what it is."""
    expected, record = healed(opened, steps=2, **values)
    with simulated_card():
        model, tokenizer = load_model(str(tiny_folder), dtype="float32", device="card")
        found, on_card_record = healed((model, tokenizer), steps=2, **values)
        merged = {name: tensor.cpu() for name, tensor in merge_adapters(found).named_parameters()}
        assert all(parameter.device.type == "card" for parameter in model.parameters())
    np.testing.assert_allclose(on_card_record.losses, record.losses, atol=1e-4, rtol=0)
    for name, parameter in merge_adapters(expected).named_parameters():
        torch.testing.assert_close(merged[name], parameter, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("family", FOUR)
def test_a_machine_with_a_card_is_checked(family, tmp_path, card):
    write_folder(family, tmp_path / family)
    report = check_model(str(tmp_path / family), "card")
    assert report.agrees, report.fit
    on_it = {(trial.trial, trial.dtype) for trial in report.trials if trial.device == "card" and trial.agrees}
    assert {("distances", dtype) for dtype in ("float32", "bfloat16", "float16")} <= on_it
    # of experts without a feed-forward module nothing is healed, and a tiny falcon_h1 states no cut of its layer 3
    assert len(on_it) == {"llama": 15, "gemma3": 15, "qwen3_moe": 12}.get(family, len(on_it))
    untried = {trial.trial for trial in report.trials if trial.untried}
    assert untried == {"qwen3_moe": {"training"}}.get(family, untried) and (family in FOUR[2:]) == bool(untried)


def test_a_weight_that_is_wrong_on_the_card_is_found(tiny_folder, card, monkeypatch):
    def load_wrongly(model, **options):
        opened, tokenizer = load_model(model, **options)
        if opened.device.type == "card":
            decoder_layers(opened)[1].mlp.down_proj.weight.data.mul_(1.2)
        return opened, tokenizer

    monkeypatch.setattr("deeper_layers.models.load_model", load_wrongly)
    report = check_model(str(tiny_folder), "card")
    assert not report.agrees and "everything on cpu in float32; nothing on card in float32" in report.fit


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_pass_without_weights_has_the_launches_of_one_on_the_card(card, family):
    """To a twentieth, with attention in separate operators: a card's tensors are copied at more places."""
    model = copy.deepcopy(shared_model(family))
    model.set_attn_implementation("eager")
    counted = count_launches(copy.deepcopy(model).to("meta"))
    network = Network(copy.deepcopy(model).to("card"))
    card.counts.clear()
    network.measure_caches(tokens=8)
    assert counted == pytest.approx(card.counts.launches, rel=0.05)
    assert counted > 30 * len(network.layers)
