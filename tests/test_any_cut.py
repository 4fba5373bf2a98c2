"""Cuts of any shape as they are typed: lists of layers and sublayers, rules that search, checkpoints, what is kept."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deeper_layers import data, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.lineage import read_lineage
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.export.tensors import Changed
from deeper_layers.packing import pack
from deeper_layers.pruning import drop_layers, zero_sublayers
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion import rules
from deeper_layers_companion.jobs import options as kinds
from deeper_layers_companion.jobs.pruned_checkpoint import layer_options
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.report import one_cut
from deeper_layers_companion.results.frames import tabulate_scores
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.table import REGISTERED
from tests.plain import logits
from tests.test_command import said, typed
from tests.test_quantized import quantized
from tests.tiny import search, tiny_model

SMALL = ["--samples", 8, "--sequence-length", 32]
LISTS = ["--layers", "1", "--attention", "3", "--mlp", "0"]
CUT, IDS = Cut.of([1], attention=[3], mlp=[0]), torch.arange(1, 30)[None]


@pytest.fixture
def closed(monkeypatch):
    """From when it is called on, no model is opened."""
    return lambda: monkeypatch.setattr(Session, "open", lambda *_: pytest.fail("the model was opened"))


def answer(*words):
    return json.loads(typed(*words, "--json").stdout)


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_lists_are_what_is_typed():
    assert kinds.SweepParameters(layers="3, 7-9", mlp="12").given_cut == Cut.of([3, 7, 8, 9], mlp=[12])
    assert kinds.SweepParameters(layers="3-5").given_cut == Cut(3, 3) and kinds.SweepParameters().given_cut is None
    assert layer_options(Cut.of([3, 7, 8, 9], mlp=[12])) == ["--layers", "3,7-9", "--mlp", "12"]


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_a_shape_that_does_not_fit_is_refused_before_a_look_at_the_model_or_text(tiny_folder, tmp_path, closed):
    closed()
    for words, message in [
        (" ".join(LISTS), "no adapters are of a layer without one of its sublayers; --silence"),
        ("--drop 1 --rule block-pruner", "the rule block-pruner drops attention or MLP apart: no configuration"),
        ("--layers 3,5", "--layers 3,5 is of layer 5; expected layers 0 to 4, as the model has"),
        ("--mlp 1 --heal small", "this cut drops the MLP of layer 1, keeps [0:5]: no configuration"),
        ("--drop 1 --rule greedy --for vllm", "--rule is greedy, expected one that"),
    ]:
        assert message in typed("prune", tiny_folder, tmp_path / "out", *words.split(), code=1).stderr
    assert "is not one of" in typed("heal", tiny_folder, "--drop", 1, "--rule", "block-pruner", code=2).stderr


def test_a_sublayer_is_silenced_where_asked(opened, tiny_folder, tmp_path):
    words = ["prune", tiny_folder, tmp_path / "out"]
    assert "the attention of layer 3 and the MLP of layer 0" in typed(*words, *LISTS, "--silence").stdout
    assert torch.equal(logits(reloaded(tmp_path / "out"), IDS), logits(zero_sublayers(opened[0], CUT), IDS))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "zeros stand where it ends, so it runs and adds nothing" in card and "merge_method" not in card
    assert "--layers 1 --attention 3 --mlp 0 --silence" in card
    # and once more, of what is there by now
    typed("prune", tmp_path / "out", tmp_path / "again", "--drop", 1, "--rule", "simple")
    assert [step.cut for step in read_lineage(tmp_path / "again").steps] == [CUT, Cut(2, 1)]


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "mixtral", "gpt_oss"])
def test_silent_tensors_are_those_of_the_model(family, tmp_path):
    """Zeros by the names of tensors are zeros by modules, also where experts are stored one by one."""
    model, cut = tiny_model(family), Cut.of([1], attention=[2], mlp=[3])
    model.save_pretrained(tmp_path / "model")
    before, silenced = logits(model, IDS), logits(zero_sublayers(model, cut), IDS)
    slice_checkpoint(tmp_path / "model", cut, tmp_path / "out", silence=True)
    torch.testing.assert_close(logits(reloaded(tmp_path / "out"), IDS), silenced, atol=1e-6, rtol=0)
    assert torch.equal(logits(model, IDS), before), "the original stays as it was"


def test_what_can_not_be_written_is_refused(tiny_folder, tmp_path):
    tiny_model("opt", layers=4).save_pretrained(tmp_path / "opt")  # its MLP is no module of its own
    quantized("fp8", tmp_path / "quantized")
    changed = {"0.mlp.down_proj.weight": torch.full((32, 48), torch.inf)}, {"0.mlp.down_proj.bias": torch.zeros(3)}
    for source, how, words in [
        (tmp_path / "opt", {"silence": True}, "no tensor of a known name that ends the mlp of its layer 2"),
        (tmp_path / "quantized", {"silence": True}, "holds quantized weights, which can't be written as zeros"),
        (tiny_folder, {"changed": Changed(changed[0], "a rule")}, "not finite"),
        (tiny_folder, {"changed": Changed(changed[1], "a rule")}, "bias of shape .* has no such tensor"),
    ]:
        with pytest.raises(InputError, match=words):
            slice_checkpoint(source, Cut.of(mlp=[2]) if "silence" in how else Cut(1, 1), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


SELDOM = ("laco-code", "streamline")
CHANGING = [
    pytest.param(name, marks=[pytest.mark.thorough] if name in SELDOM else [])
    for name, rule in REGISTERED.items()
    if rule.changes
]


@pytest.mark.parametrize("rule", CHANGING)
def test_a_rule_that_changes_weights_is_written_as_in_memory(rule, opened, tiny_folder, tmp_path, monkeypatch):
    made, change = [], rules.change_model
    monkeypatch.setattr(rules, "change_model", lambda *given: made.append(change(*given)) or made[-1])
    words = ["--samples", 64, "--sequence-length", 32, "--drop", 2, "--rule", rule]
    cut = answer("prune", tiny_folder, tmp_path / "out", *words)["cut"]
    written = logits(reloaded(tmp_path / "out"), IDS)
    assert torch.allclose(written, logits(made[0], IDS), atol=1e-6)
    plain = logits(drop_layers(opened[0], Cut(cut["start"], cut["size"])), IDS)
    assert not torch.allclose(written, plain, atol=1e-3), "nothing was changed"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"out --drop 2 --rule {rule}" in card and "Weights that stay are changed by the rule" in card


# ---- sweeps ----------------------------------------------------------------------------------------------


def test_a_sweep_of_one_cut_is_kept_and_planned(opened, tiny_folder, tmp_path, closed):
    results = ["--results", tmp_path]
    asked = [tiny_folder, "--tasks", "capitals", "--limit", 6, *LISTS, *results]
    plan, rows = answer("plan", *asked), answer("sweep", *asked)["rows"]
    assert plan["distances"] is None and [row["size"] for row in plan["sizes"]] == [0, 1]
    assert plan["tasks"][0]["layer_steps"][0] == plan["tasks"][0]["tokens"] * (5 + 4)
    plain = sweeping.sweep(*opened, ["capitals"], [Cut(0, 0), CUT], limit=6)
    found = {(row["cut"], row["metric"]): row["value"] for row in rows}
    assert found == {(row.cut, row.metric): row.value for row in plain.itertuples()}
    closed()
    assert answer("sweep", *asked)["rows"] == rows and CUT.name in typed("sweep", *asked).stdout
    (known,) = answer("prune", tiny_folder, tmp_path / "out", *LISTS, "--silence", *results, "--dry-run")["scores"]
    assert (known["pruned"][0], known["rule"]) == (found[CUT.name, "acc"], "this cut alone")


def test_a_search_is_priced_kept_step_by_step_and_found_again(opened, tiny_folder, tmp_path, closed):
    given = [*SMALL, "--results", tmp_path / "results"]
    asked = [tiny_folder, *given, "--tasks", "capitals", "--limit", 6, "--rules", "greedy", "--sizes", "0-2"]
    plan, passes = answer("plan", *asked), round(REGISTERED["greedy"].price(2, 5)[0], 1)
    assert plan["searches"] == {"greedy": {"passes": passes, "heads": 5, "tokens_at_most": 256}}
    done = typed("sweep", *asked, "--json")
    price = f"greedy: at most {passes} passes of all layers and 5 of the head, over at most 256 tokens"
    assert done.stderr.index(price) < done.stderr.index("loss on text")
    batches = data.text_batches(opened[1], data.texts("wikipedia"), samples=8, length=32)
    texts = [ids[mask.bool()] for batch in batches for ids, mask in zip(*batch.values())]
    cuts = search(opened[0], "greedy", [0, 1, 2], texts)
    assert {row["cut"] for row in json.loads(done.stdout)["rows"]} == {cut.name for cut in cuts}
    least, most = plan["tasks"][0]["layer_steps"]
    assert least <= plan["tasks"][0]["tokens"] * Tree(cuts, 5).nodes <= most
    closed()
    prune = ["prune", tiny_folder, tmp_path / "out", *given, "--rule", "greedy", "--dry-run", "--drop"]
    assert answer(*prune, 2)["kept"] == cuts[2].kept(5)
    assert "not measured: the losses of 1 candidates" in said(*prune, 3, "--no-measure")


def test_distances_of_another_data_type_choose_the_cut_and_it_is_said(tiny_folder, tmp_path, closed):
    asked = [*SMALL, "--results", tmp_path / "results"]
    found = answer("distances", tiny_folder, *asked, "--dtype", "bfloat16")
    closed()
    done = typed("prune", tiny_folder, tmp_path / "out", *asked, "--drop", 2, "--dry-run", "--json")
    assert json.loads(done.stdout)["cut"] == found["most_similar"][1]
    assert "the cut is chosen by distances in bfloat16, as results hold none of" in done.stderr


def test_a_task_that_was_swept_twice_counts_once():
    def swept(measured: str, **right) -> Result:
        rows = [
            {"task": "a", "metric": "acc", "cut": cut, "value": float(np.mean(items)), "items": 8}
            | {"outcome": pack(items)}
            for cut, items in right.items()
        ]
        key = {"model": {"name": "m", "weights": "w"}, "dtype": "float32", "data": "d", "cuts": {"given": list(right)}}
        key |= {"tasks": {"a": {"shots": None, "limit": None}}}
        return Result("scores", key, {"measured": measured}, rows, {"num_layers": 6, "weights": "none"})

    whole, half = np.ones(8), (np.arange(8) < 4).astype(float)
    first = swept("2026", **{"0,0": whole, CUT.name: whole, "1,1": whole})
    rows = tabulate_scores([swept("2027", **{"0,0": whole, CUT.name: half}), first])
    assert rows["rule"].isna().all(), "nobody chose what is given"
    rows["path"] = "m/" + rows["measured"]
    (score,) = one_cut.find_scores(rows, CUT)
    assert score.items == 8 and score.pruned[0] == 1, "that of most cuts"
