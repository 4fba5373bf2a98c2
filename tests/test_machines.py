"""What work costs on machines that are not at hand: the arithmetic, the large models, and what is typed."""

import dataclasses
import functools
import json

import pytest

from benchmarks import large
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import costs
from deeper_layers.models.machines import DEVICES, REACHED, find_machine
from deeper_layers.presets import PRESETS
from deeper_layers.sweeping.tree import Tree
from tests.test_command import said, typed

CONTENT = json.loads(large.COSTS.read_text())
# as their authors state them (the last without its head for two tokens at once, and the biases of its router)
PUBLISHED = {
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3.1-405B": 405_853_388_800,
    "DeepSeek-V3": 671_026_404_352,
}
LLAMA = costs.Shape(**CONTENT["shapes"]["Llama-2-7B"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shape_of_a_large_model_is_that_of_its_configuration(name):
    shape = large.shape_of(name)
    assert shape.parameters == PUBLISHED[name]
    assert dataclasses.asdict(shape) == CONTENT["shapes"][name], "python -m benchmarks.large writes it anew"


def test_the_table_is_what_the_arithmetic_gives():
    shapes = {name: costs.Shape(**shape) for name, shape in CONTENT["shapes"].items()}
    assert [row for name in PUBLISHED for row in large.rows(name, shapes[name], CONTENT["asked"])] == CONTENT["costs"]


def test_of_a_mixture_a_token_passes_a_few_experts():
    mixture = costs.Shape(**CONTENT["shapes"]["DeepSeek-V3"])
    assert 36e9 < mixture.used + mixture.head < 38e9, "37B, as its authors say"
    # keys and values compressed: 512 and 64 numbers a token and layer
    assert mixture.remembered == 61 * (512 + 64)


def test_operations_are_two_a_weight_and_token():
    cost = costs.distances_cost(LLAMA, tokens=1000, length=0, dtype="bfloat16")
    assert cost.operations == 2 * 1000 * LLAMA.of_layers and cost.weights == 2 * LLAMA.parameters
    longer = costs.distances_cost(LLAMA, tokens=1000, length=4096, dtype="bfloat16").operations
    # a token sees 2,048 others on average; 4 operations a key and number of the width, in each layer
    assert longer - cost.operations == 1000 * 4 * 4096 * 32 * 2048


def test_a_sweep_costs_what_its_tree_has_nodes():
    cuts = [simple_cut(32, size) for size in range(5)]
    one, all = (costs.sweep_cost(LLAMA, some, 1000, 0, 0, "bfloat16") for some in ([Cut(0, 0)], cuts))
    assert all.operations / one.operations == pytest.approx(Tree(cuts, 32).nodes / 32)
    assert all.memory > one.memory > one.weights
    scored = costs.sweep_cost(LLAMA, cuts, 1000, 10, 0, "bfloat16").operations - all.operations
    assert scored == 10 * 5 * 2 * LLAMA.head


def test_a_healing_goes_there_and_back():
    config = dataclasses.replace(PRESETS["Llama-2 7B"], gradient_checkpointing=False)
    cost = costs.healing_cost(LLAMA, Cut(0, 0), config, "bfloat16")
    assert cost.operations == pytest.approx(4 * config.tokens * (LLAMA.of_layers + LLAMA.head), rel=0.06)
    anew = costs.healing_cost(LLAMA, Cut(0, 0), PRESETS["Llama-2 7B"], "bfloat16")
    assert anew.memory < cost.memory and 1.4 < anew.operations / cost.operations < 1.5
    whole = costs.healing_cost(LLAMA, Cut(0, 0), dataclasses.replace(config, quantization=None), "bfloat16")
    assert whole.weights == 2 * LLAMA.parameters and cost.weights < 0.32 * whole.weights
    with pytest.raises(InputError, match="no linear modules"):
        costs.healing_cost(dataclasses.replace(LLAMA, adapted=None), Cut(0, 0), config, "bfloat16")


def test_devices_hold_one_copy_together_and_copies_share_the_work():
    cost = costs.Cost(operations=REACHED * 989.4e12 * 60, tokens=1, memory=150e9, weights=140e9, batches=9, shares=9)
    one, eight = find_machine("h100"), find_machine("h100x8")
    assert cost.devices(eight) == 2 and cost.seconds(one, "bfloat16") is None
    assert cost.seconds(eight, "bfloat16") == pytest.approx(60 / 4)
    assert dataclasses.replace(cost, shares=2).seconds(eight, "bfloat16") == pytest.approx(60 / 2)
    reads = dataclasses.replace(cost, batches=10_000)  # more than products take
    assert reads.seconds(eight, "bfloat16") == pytest.approx(10_000 * 140e9 / 3.35e12 / 4)


@pytest.mark.parametrize("name", ["", "h100x0", "h100x", "h100x8x8", "H100", "x8", "h100x1234567"])
def test_a_machine_that_is_not_known_is_refused(name):
    with pytest.raises(InputError, match="expected 'this' or one of h100, h200"):
        find_machine(name)


def test_machines_are_found_by_name_each_with_its_source():
    for name, device in DEVICES.items():
        assert find_machine(name) == device and device.source and device.devices == 1
        assert (find_machine(f"{name}x4").devices, find_machine(f"{name}x4").memory) == (4, device.memory)


# ---- what is typed -------------------------------------------------------------------------------------------


def test_a_model_known_by_its_configuration_is_planned(tiny_folder, tmp_path):
    config = tmp_path / "mine.json"
    config.write_text((tiny_folder / "config.json").read_text())
    words = ["plan", "--model-config", config, "--tasks", "boolq", "--sizes", "0-2", "--machine", "h100x8"]
    content = json.loads(typed(*words, "--json").stdout)
    assert (content["model"], content["layers"], content["dtype"]) == ("mine", 5, "float32")
    assert content["tasks"][0]["unknown"].startswith("its items are on the hub")
    distances, healing = content["predicted"]["costs"]
    assert (distances["what"], healing["what"]) == ("distances", "healing without 2 layers, small")
    assert 0 < distances["seconds"] < healing["seconds"] and distances["devices"] == 1
    text = typed(*words).stdout
    assert "Arithmetic, not measured: 40% of the matrix throughput of the NVIDIA H100" in text


def test_a_plan_for_the_machine_at_hand_tries_it(tiny_folder, tmp_path):
    words = ["plan", tiny_folder, "--tasks", "capitals", "--limit", "6", "--sizes", "0-2", "--results", tmp_path]
    found = json.loads(typed(*words, "--machine", "this", "--json").stdout)
    assert [row["what"] for row in found["predicted"]["costs"]] == [
        "distances", "sweep of capitals, 5 models", "healing without 2 layers, small"
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in found["predicted"]["costs"])
    assert found["predicted"]["machine"]["source"].startswith("tried on ")
    assert "predicted" not in json.loads(typed(*words, "--json").stdout)


def test_a_plan_counts_the_models_of_every_rule_and_of_a_given_cut(tiny_folder, tmp_path):
    """Rules that have not chosen yet may agree in nothing; of a cut that is given all is known, healing too."""
    words = ["plan", tiny_folder, "--tasks", "capitals", "--limit", "6", "--results", tmp_path, "--machine", "h100"]

    def planned(*more):
        content = json.loads(typed(*words, *more, "--json").stdout)
        (_, most), tokens = content["tasks"][0]["layer_steps"], content["tasks"][0]["tokens"]
        return most / tokens, [row["what"] for row in content["predicted"]["costs"]], content["predicted"]["costs"][1]

    layers, what, sweep = planned("--rules", "similarity, block-influence, greedy", "--sizes", "0-3")
    assert what == ["distances", "sweep of capitals, 10 models", "healing without 3 layers, small"]
    assert layers == 5 + 3 * (4 + 3 + 2)
    _, _, one = planned("--rules", "similarity", "--sizes", "0-3")
    assert sweep["operations"] > 2 * one["operations"]
    assert planned("--rules", "simple, reverse", "--sizes", "0-3")[1][1] == "sweep of capitals, 7 models"
    assert planned("--layers", "3")[1][1:] == ["sweep of capitals, 2 models", "healing without 1 layers, small"]
    assert planned("--attention", "3")[1][2:] == ["healing"]


def test_unknown_cuts_share_nothing():
    cost = functools.partial(costs.sweep_cost, LLAMA, tokens=1000, scored=10, length=8, dtype="bfloat16")
    apart = [Cut(0, size) for size in (2, 3)]  # already in the first layer
    assert cost([Cut(0, 0)], unknown=[2, 3]) == cost([Cut(0, 0), *apart])
    twice = cost([Cut(0, 0)], unknown=[2, 2]).operations - cost([Cut(0, 0)]).operations
    assert twice == pytest.approx(2 * (cost([Cut(0, 0)], unknown=[2]).operations - cost([Cut(0, 0)]).operations))


def test_mistakes_of_a_plan_are_told(tiny_folder, tmp_path):
    for words in (["plan"], ["plan", tiny_folder, "--model-config", tiny_folder / "config.json"]):
        assert "expected MODEL, or --model-config" in typed(*words, code=2).stderr
    (tmp_path / "none.json").write_text('{"model_type": "t5"}')
    assert "encoder-decoder" in said("plan", "--model-config", tmp_path / "none.json")
    assert "machine is 'h1'" in said("plan", tiny_folder, "--machine", "h1", "--tasks", "boolq").replace("--", "")
    assert "'big' is not one of" in typed("plan", tiny_folder, "--machine", "h100", "--heal", "big", code=2).stderr
