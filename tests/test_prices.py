"""What work costs on machines that are not at hand: the arithmetic, the page's table, and what is typed."""

import copy
import dataclasses
import functools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig

from deeper_layers import models
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.models import configuration
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion.command.report import CLASSES
from deeper_layers_companion.jobs import plan as plans
from deeper_layers_companion.jobs import price as prices
from deeper_layers_companion.jobs.job import distances_job, list_unknown_cuts
from deeper_layers_companion.jobs.notebook_options import SimilarityParameters
from deeper_layers_companion.jobs.plan import plan_notebooks
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.places import AROUND as ROOT
from tests.test_command import answer, typed
from tests.tiny import shared_model

# as their authors state them (the last without its head for two tokens at once, and the biases of its router), and
# the settings of its healing: the paper's own, or those of its largest model
PUBLISHED = {
    "Llama-2-7B": (6_738_415_616, "Llama-2 7B"),
    "Llama-2-13B": (13_015_864_320, "Llama-2 13B"),
    "Llama-2-70B": (68_976_648_192, "Llama-2 70B"),
    "Llama-3.1-405B": (405_853_388_800, "Llama-2 70B"),
    "DeepSeek-V3": (671_026_404_352, "Llama-2 70B"),
}
BOOLQ = 493_823, 6540, 151.4, "bfloat16"  # distinct tokens, scored positions, tokens of a sequence


@functools.cache
def shape_of(name: str) -> prices.Shape:
    config = ROOT / "benchmarks" / "large" / f"{name}.json"
    return prices.read_shape(models.load_empty_model(models.source_of_config(config)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_the_page_is_what_the_arithmetic_gives(name):
    shape, machine, (parameters, preset) = shape_of(name), prices.find_machine("h100x32"), PUBLISHED[name]
    assert shape.parameters == parameters
    if name == "DeepSeek-V3":  # a token passes 37B, as its authors say; keys and values are compressed to 512 and 64
        assert 36e9 < shape.active + shape.head < 38e9 and shape.cache == 61 * (512 + 64)
    works = [
        prices.distances_cost(shape, 256 * 512, 512, "bfloat16"),
        prices.sweep_cost(shape, [simple_cut(shape.layers, size) for size in range(shape.layers)], *BOOLQ),
        prices.healing_cost(shape, simple_cut(shape.layers, round(0.3 * shape.layers)), PRESETS[preset], "bfloat16"),
    ]
    seconds = [prices.duration(work.seconds(machine, "bfloat16")) for work in works]
    cells = [name, f"{works[0].weights / 1e9:,.0f} GB", str(works[0].devices(machine)), *seconds]
    assert f"| {' | '.join(cells)} |\n" in (ROOT / "book" / "your-model.md").read_text()


def test_experts_in_float32_have_a_price():
    config = MixtralConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=99)
    shape = prices.read_shape(configuration.build_empty_model(config, "here"))
    assert shape.cache == 2 * 2 * config.num_key_value_heads * 64 / config.num_attention_heads


def test_a_sweep_costs_what_its_tree_has_nodes():
    llama, cuts = shape_of("Llama-2-7B"), [simple_cut(32, size) for size in range(5)]
    one, all = (prices.sweep_cost(llama, some, 1000, 0, 0, "bfloat16") for some in ([Cut(0, 0)], cuts))
    assert all.operations / one.operations == pytest.approx(Tree(cuts, 32).nodes / 32)
    assert all.memory > one.memory > one.weights
    scored = prices.sweep_cost(llama, cuts, 1000, 10, 0, "bfloat16").operations - all.operations
    assert scored == 10 * 5 * 2 * llama.head
    apart, shared = ([Cut(0, 0), *some] for some in (list_unknown_cuts("simple", [2, 3]), [Cut(0, 2), Cut(0, 3)]))
    assert prices.sweep_cost(llama, apart, 1000, 10, 8, "bfloat16") == prices.sweep_cost(
        llama, shared, 1000, 10, 8, "bfloat16"
    )


def test_training_the_last_layers_costs_what_torch_counts():
    whole, cut, ids = shared_model("llama"), Cut(4, 2), torch.arange(64).reshape(2, 32)
    model = copy.deepcopy(drop_layers(whole, cut)).requires_grad_(False)
    for trained in (model.model.layers[2:], model.lm_head):
        trained.requires_grad_(True)
    with FlopCounterMode(display=False) as counted:
        model(ids, labels=ids).loss.backward()
    one = {"steps": 1, "batch_sequences": 2, "at_once": 2, "sequence_length": 32, "last_layers": 2}
    config = dataclasses.replace(PRESETS["head-and-last-3"], **one)
    shape = dataclasses.replace(prices.read_shape(whole), attention=0)  # which torch does not count on a processor
    cost = prices.healing_cost(shape, cut, config, "float32")
    assert cost.operations == pytest.approx(counted.get_total_flops(), rel=0.01)
    assert cost.weights == 4 * model.num_parameters()
    attended = prices.healing_cost(prices.read_shape(whole), cut, config, "float32").operations - cost.operations
    # a token sees half of its sequence: once forward in four of six layers, twice more in the two that learn
    assert attended == pytest.approx(64 * (4 + 2 * 2) / 6 * prices.read_shape(whole).attention * 32 / 2)


def test_what_no_copy_fits_into_is_too_large_and_small_batches_wait_for_weights():
    cost = prices.Cost(1e12, memory=150e9, weights=140e9, batches=10_000, shares=9)
    one, eight = prices.find_machine("h100"), prices.find_machine("h100x8")
    assert cost.seconds(one, "bfloat16") is None
    assert cost.seconds(eight, "bfloat16") == pytest.approx(10_000 * 140e9 / 3.35e12 / 4)


def test_work_is_bound_by_what_takes_longest():
    one = prices.Machine(
        "one", memory=80, bandwidth=10.0, throughput={"bfloat16": 100.0}, source="", launch_seconds=0.5
    )
    bounds = {"compute": (5000, 40, 8), "memory": (5, 400, 8), "launches": (5, 40, 90)}
    for bound, (operations, weights, launches) in bounds.items():
        cost = prices.Cost(operations, 80, weights, batches=1, shares=1, launches=launches)
        assert cost.bound(one, "bfloat16") == bound
        assert cost.seconds(one, "bfloat16") == max(operations / 100, weights / 10, launches / 2)
    unknown = prices.Cost(5, 80, 40, batches=1, shares=1)
    assert unknown.seconds(one, "bfloat16") == 4 and unknown.bound(one, "bfloat16") == "memory"


def test_launches_bound_a_pass_of_few_tokens():
    llama, h100 = shape_of("Llama-2-7B"), prices.find_machine("h100")
    smallest = prices.smallest_batch(llama, h100, "bfloat16")
    for tokens, bound in ((smallest // 2, "launches"), (2 * smallest, "compute")):
        # of one batch, with weights that cost nothing to read
        cost = dataclasses.replace(prices.distances_cost(llama, tokens, 1, "bfloat16"), weights=0)
        assert cost.bound(h100, "bfloat16") == bound
    unknown = dataclasses.replace(llama, launches=None)
    assert prices.smallest_batch(unknown, h100, "bfloat16") is None
    assert prices.distances_cost(unknown, 99, 9, "bfloat16").launches is None


def test_a_machine_is_its_data_sheet():
    machine = prices.find_machine("h100x8")
    assert (machine.memory, machine.bandwidth, machine.devices) == (80e9, 3.35e12, 8)
    reached = {"bfloat16": 0.4 * 989.4e12, "float16": 0.4 * 989.4e12, "float32": 0.4 * 67e12}
    assert machine.throughput == pytest.approx(reached)


def test_written_answers_cost_each_token_in_a_sequence_of_mean_length():
    """Ten answers of at most 20 tokens, to prompts of 100 on average."""
    llama, cuts = shape_of("Llama-2-7B"), [simple_cut(32, size) for size in range(3)]
    cost, nodes = prices.writing_cost(llama, cuts, 10, 1000, 20, "bfloat16"), Tree(cuts, 32).nodes
    layers = (1000 + 10 * 20) * nodes / 32 * (2 * llama.active + llama.attention * 120 / 2)
    assert cost.operations == pytest.approx(layers + 2 * 10 * 20 * 3 * llama.head)
    assert cost.batches == 20 * math.ceil(10 / prices.ROWS)
    more = prices.writing_cost(llama, cuts, 2 * prices.ROWS + 1, 1000, 20, "bfloat16")
    assert more.batches == 20 * 3, "three batches of answers, each of 20 tokens"


def test_a_sweep_holds_weights_states_of_a_batch_and_two_bytes_for_each_number_of_a_cache():
    llama, cuts = shape_of("Llama-2-7B"), [simple_cut(32, size) for size in range(3)]
    few, more, longer = (
        prices.sweep_cost(llama, cuts, tokens, 1, length, "bfloat16")
        for tokens, length in ((1, 100), (1000, 100), (1, 300))
    )
    assert few.weights == 2 * llama.parameters < few.memory < more.memory
    assert longer.memory - few.memory == pytest.approx(200 * Tree(cuts, 32).nodes / 32 * llama.cache * 2)


def test_what_results_took_is_told_to_a_tenth_of_a_second():
    run = {"seconds": 1.23, "seconds_in_earlier_runs": 2.04, "device": "a processor"}
    told = plans._read_cost(SimpleNamespace(path="unit.json", provenance=run))
    assert told == {"unit": "unit.json", "seconds": 3.3, "device": "a processor"}


def test_sequences_shorter_than_their_limit_are_counted_as_long_as_they_are(tiny_folder, tmp_path):
    asked = {"model": str(tiny_folder), "results": str(tmp_path), "samples": 6, "sequence_length": 1000}
    options = SimilarityParameters(**asked)
    planned = Session(options, planning=True)
    job = distances_job(planned.source, options)
    ((_, cost),) = prices.price_job(job, planned)
    content = answer("plan", tiny_folder, *"--samples 6 --sequence-length 1000 --tasks capitals@6".split())
    tokens = Session(options).get(job).details["tokens"]
    shape = prices.find_shape(planned)
    assert tokens < 6 * 1000
    assert cost == prices.distances_cost(shape, tokens, tokens / 6, "float32")
    assert content["distances"] == {"tokens": tokens, "layer_steps": 5 * tokens}


# ---- what is typed -------------------------------------------------------------------------------------------


def test_a_model_known_by_its_configuration_is_planned(tiny_folder, tmp_path):
    config = tmp_path / "mine.json"
    config.write_text((tiny_folder / "config.json").read_text())
    words = ["plan", "--model-config", config, "--tasks", "boolq", "--sizes", "0-2", "--machine", "h100x8"]
    content = answer(*words)
    assert (content["model"], content["layers"], content["dtype"]) == ("mine", 5, "float32")
    assert content["tasks"][0]["unknown"].startswith("its items are on the hub")
    distances, healing = content["predicted"]["costs"]
    assert (distances["what"], healing["what"]) == ("distances", "healing without 2 layers, small")
    assert 0 < distances["seconds"] < healing["seconds"] and distances["devices"] == 1
    assert {distances["bound_by"], healing["bound_by"]} == {"launches"}, "the model is tiny"
    assert content["predicted"]["smallest_batch"] > 4096
    shown = typed(*words).stdout
    assert "operators of 8 microseconds each" in shown and "bound_by" in shown
    assert "Arithmetic, not measured: 40% of the matrix throughput of the NVIDIA H100" in shown
    assert all(f"{name}, 10^9" in shown for name in ("operations", "memory", "weights"))


def test_memory_is_that_of_weights_and_of_the_kv_cache(tiny_folder):
    content = answer("plan", tiny_folder, "--drop", 2, "--tokens", 1000, "--batch", 3, "--tasks", "capitals")
    config = json.loads((tiny_folder / "config.json").read_text())
    a_token = 2 * config["num_key_value_heads"] * config["head_dim"] * 4  # keys and values in float32
    assert content["cache"] == {"tokens": 1000, "batch": 3}
    assert [row["size"] for row in content["sizes"]] == [0, 2]
    for row, layers in zip(content["sizes"], (5, 3), strict=True):
        assert row["cache_bytes"] == layers * 3000 * a_token
        assert row["memory_bytes"] == row["bytes"] + row["cache_bytes"]


def test_a_plan_counts_the_models_of_every_rule_and_of_a_given_cut(tiny_folder, tmp_path):
    """Rules that have not chosen yet may agree in nothing; of a cut that is given all is known, healing too."""
    words = [tiny_folder, "--limit", 6, "--samples", 8, "--sequence-length", 32, "--results", tmp_path]

    def planned(more):
        content = answer("plan", *words, "--tasks", "capitals", "--machine", *more.split())
        return content["tasks"][0], [row["what"] for row in content["predicted"]["costs"]]

    task, what = planned("h100 --rules similarity,block-influence,greedy --sizes 0-3")
    assert what == ["distances", "sweep of capitals, 10 models", "healing without 3 layers, small"]
    assert round(task["length"], 1) == task["length"]
    assert task["layer_steps"][1] == task["tokens"] * (5 + 3 * (4 + 3 + 2))
    assert planned("h100 --rules simple,reverse --sizes 0-3")[1][1] == "sweep of capitals, 7 models"
    assert planned("this --layers 3")[1][1:] == ["sweep of capitals, 2 models", "healing without 1 layers, small"]
    assert planned("h100 --attention 3")[1][2:] == ["healing"]
    typed("distances", *words[:1], *words[3:])
    least, most = planned("h100")[0]["about_seconds"]
    assert 0 <= least <= most, "at the pace of its distances"


def test_what_notebooks_will_measure_is_told_once_and_not_where_results_hold_it(tiny_folder, tmp_path):
    given = {"model": str(tiny_folder), "results": str(tmp_path / "results"), "samples": 8, "sequence_length": 32}
    kinds = [CLASSES[notebook] for notebook in ("01-similarity", "03-reasoning", "04-healing")]
    small = {"tasks": "capitals, written_facts", "sizes": "0, 2", "limit": 6, "text": "wikipedia"}
    asked = {of.notebook: of(**given | {k: v for k, v in small.items() if k in of.model_fields}) for of in kinds}
    found = {(row["notebook"][:2], row["what"]): row["seconds"] for row in plan_notebooks(asked)}
    assert [what for of, what in found if of == "01"] == ["distances"]
    written = "answers of written_facts, 3 models, each of at most 12 tokens"
    assert [what for of, what in found if of == "03"] == ["sweep of capitals, 3 models", written]
    assert found["04", "healing, 122,880 tokens, 3 times"] > 0
    asked["01-similarity"].measure_missing()
    assert ("01", "distances") not in {(row["notebook"][:2], row["what"]) for row in plan_notebooks(asked)}


def test_a_file_on_its_way_has_a_price_before_its_cut_is_known(tiny_gguf, tmp_path):
    given = {"tasks": "capitals", "sizes": "0, 2", "drop": 2, "limit": 6, "bits": "Q8_0"}
    asked = CLASSES["08-take-away"](model=str(tiny_gguf), results=str(tmp_path), **given)
    assert "healing, 122,880 tokens" in [row["what"] for row in plan_notebooks({"08-take-away": asked})]
