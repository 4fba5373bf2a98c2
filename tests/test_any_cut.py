"""Cuts of any shape as they are typed: lists of layers and sublayers, rules that search, checkpoints, what is kept."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deeper_layers import data, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import parameters as kinds
from deeper_layers.experiments.choosing import changed_choice
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.parameters import cut_of_lists
from deeper_layers.export.lineage import read_lineage
from deeper_layers.export.pruned_checkpoint import cut_as_json as as_json
from deeper_layers.export.pruned_checkpoint import typed_lists
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.export.tensor_edits import Changed
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.report import one_cut
from deeper_layers.results.frames import scores_of
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree
from tests.test_command import said, typed
from tests.test_frames import made_up
from tests.test_quantized import quantized
from tests.tiny import search, tiny_model

SMALL = ["--samples", 8, "--sequence-length", 32]
LISTS = ["--layers", "1", "--attention", "3", "--mlp", "0"]
CUT = Cut.of([1], attention=[3], mlp=[0])


@pytest.fixture
def closed(monkeypatch):
    """From when it is called on, no model is opened."""
    return lambda: monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("the model was opened"))


# ---- lists -----------------------------------------------------------------------------------------------


def test_lists_are_what_is_typed():
    assert cut_of_lists("3, 7-9", None, "12") == Cut.of([3, 7, 8, 9], mlp=[12])
    assert cut_of_lists("3-5", None, None) == Cut(3, 3) and cut_of_lists(None, None, None) is None
    assert typed_lists(Cut.of([3, 7, 8, 9], mlp=[12])) == ["--layers", "3,7-9", "--mlp", "12"]
    for text in ("", "x", "1;2", "-1"):
        with pytest.raises(InputError, match="layers is .*, expected whole numbers from 0"):
            cut_of_lists(text, None, None)


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_scattered_layers_are_left_out_of_a_checkpoint(tiny_folder, tmp_path):
    answer = json.loads(typed("prune", tiny_folder, tmp_path / "out", "--layers", "0, 2-3", "--json").stdout)
    assert answer["kept"] == [1, 4] and answer["cut"] == {
        "start": 0, "size": 3, "layers": [0, 2, 3], "attention": [], "mlp": []
    }  # fmt: skip
    drop_layers(load_model(str(tiny_folder))[0], Cut.of([0, 2, 3])).save_pretrained(tmp_path / "plain")
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in plain)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"deeper-layers prune {tiny_folder.name} out --layers 0,2-3" in card and "drops layers 0, 2..3" in card


def test_a_sublayer_is_refused_with_the_reason_and_silenced_where_asked(tiny_folder, tmp_path):
    line = said("prune", tiny_folder, tmp_path / "out", *LISTS)
    assert "no configuration states a layer without one of its sublayers; --silence writes zeros" in line
    # and before a rule looks at text, or searches for hours
    for rule in ("llm-drop-attention", "block-pruner"):
        words = ("--drop", 1, "--rule", rule)
        line, *before = reversed(typed("prune", tiny_folder, tmp_path / "out", *words, code=1).stderr.splitlines())
        assert f"the rule {rule} drops attention or MLP apart: no configuration" in line
        assert "passes" not in " ".join(before), "the price of a look at the text"
        assert "is not one of" in typed("heal", tiny_folder, *words, code=2).stderr
    answer = typed("prune", tiny_folder, tmp_path / "out", *LISTS, "--silence").stdout
    assert "the attention of layer 3 and the MLP of layer 0" in answer
    model, _ = load_model(str(tiny_folder))
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        assert torch.equal(found, silence_sublayers(model, CUT)(ids).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "zeros stand where it ends, so it runs and adds nothing" in card and "merge_method" not in card
    assert "--layers 1 --attention 3 --mlp 0 --silence" in card and read_lineage(tmp_path / "out").steps[0].cut == CUT
    # and once more, of what is there by now
    typed("prune", tmp_path / "out", tmp_path / "again", "--drop", 1, "--rule", "simple")
    assert [step.cut for step in read_lineage(tmp_path / "again").steps] == [CUT, Cut(2, 1)]


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "mixtral", "gpt_oss"])
def test_silent_tensors_are_those_of_the_model(family, tmp_path):
    """Zeros by the names of tensors are zeros by modules, also where experts are stored one by one."""
    model, cut = tiny_model(family, layers=6), Cut.of([1], attention=[2], mlp=[3])
    model.save_pretrained(tmp_path / "model")
    slice_checkpoint(tmp_path / "model", cut, tmp_path / "out", silence=True)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
        torch.testing.assert_close(found, silence_sublayers(model, cut)(ids).logits, atol=1e-6, rtol=0)


def test_what_can_not_be_silenced_is_refused(tmp_path):
    model = tiny_model("opt", layers=4)  # its MLP is no module of its own
    model.save_pretrained(tmp_path / "opt")
    with pytest.raises(InputError, match="no tensor of a known name that ends the mlp of its layer 2"):
        slice_checkpoint(tmp_path / "opt", Cut.of(mlp=[2]), tmp_path / "out", silence=True)
    quantized("fp8", tmp_path / "quantized")
    with pytest.raises(InputError, match="holds quantized weights, which can't be written as zeros"):
        slice_checkpoint(tmp_path / "quantized", Cut.of(mlp=[2]), tmp_path / "out", silence=True)
    assert not (tmp_path / "out").exists()


SELDOM = ("laco-code", "replaceme-cosine", "streamline")
CHANGING = [
    pytest.param(name, marks=[pytest.mark.thorough] if name in SELDOM else [])
    for name, rule in REGISTERED.items()
    if rule.changes
]


@pytest.mark.parametrize("rule", CHANGING)
def test_a_rule_that_changes_weights_is_written_as_in_memory(rule, tiny_folder, tmp_path):
    asked = ["--samples", 64, "--sequence-length", 32, "--drop", 2, "--rule", rule]
    answer = json.loads(typed("prune", tiny_folder, tmp_path / "out", *asked, "--json").stdout)
    given = {"model": str(tiny_folder), "samples": 64, "sequence_length": 32}
    parameters = kinds.Parameters(**given)
    experiment = Experiment(parameters)
    cut, changed = changed_choice(rule, 2, experiment)
    assert answer["cut"] == as_json(cut) and answer["scores"] == [] and changed.tensors
    model = drop_layers(experiment.opened()[0], cut)
    for name, tensor in changed.tensors.items():
        number, _, inside = name.partition(".")
        owner, _, attribute = inside.rpartition(".")
        layer = copy.deepcopy(decoder_layers(model)[int(number)])
        setattr(layer.get_submodule(owner), attribute, torch.nn.Parameter(tensor))
        decoder_layers(model)[int(number)] = layer
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(1, 20)[None]
    with torch.inference_mode():
        logits = found(ids).logits
        assert torch.allclose(logits, model(ids).logits, atol=1e-6)
        plain = drop_layers(experiment.opened()[0], cut)(ids).logits
        assert not torch.allclose(logits, plain, atol=1e-3), "nothing was changed"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"out --drop 2 --rule {rule}" in card and "Weights that stay are changed by the rule" in card
    assert "Gromov" not in card
    assert read_lineage(tmp_path / "out").steps[0].changed.startswith(f"{rule}: ")


def test_changed_tensors_that_the_source_has_not_are_refused(tiny_folder, tmp_path):
    changed = Changed({"0.mlp.down_proj.bias": torch.zeros(3)}, "a rule")
    with pytest.raises(InputError, match="the rule changed .*bias of shape .*, and the source has shape None"):
        slice_checkpoint(tiny_folder, Cut(1, 1), tmp_path / "out", changed=changed)
    weight = load_model(str(tiny_folder))[0].get_submodule("model.layers.0.mlp.down_proj").weight
    changed = Changed({"0.mlp.down_proj.weight": torch.full_like(weight, torch.inf)}, "a rule")
    with pytest.raises(InputError, match="not finite"):
        slice_checkpoint(tiny_folder, Cut(1, 1), tmp_path / "out", changed=changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "code", "message"), [
    ("--layers 3,5", 1, "the cut is of layer 5; expected layers 0 to 4, as the model has"),
    ("--mlp 7 --silence", 1, "the cut is of layer 7"),
    ("--layers 0-4", 1, "size is 5; expected 0 to 4 for a model of 5 layers, as one"),
    ("--layers x", 1, "--layers is 'x', expected whole numbers"),
    ("--mlp 1 --heal small", 1, "adapters are of whole layers, and this cut drops the MLP of layer 1"),
    ("--drop 1 --rule greedy --for vllm", 1, "--rule is greedy, expected one that"),
    ("--layers 1 --drop 1", 2, "give one of them"),
    ("--layers 1 --start 1", 2, "give one of them"),
    ("--layers 1 --rule simple", 2, "give one of them"),
    # beside a rule that changes weights
    ("--drop 1 --rule replaceme --heal small", 2, "--rule replaceme and --heal exclude each other"),
    ("--drop 1 --rule replaceme --dry-run", 2, "--rule replaceme and --dry-run exclude each other"),
    ("--drop 1 --rule replaceme --for vllm", 2, "--rule replaceme and --for exclude each other"),
    ("--drop 1 --rule replaceme --adapter .", 2, "--rule replaceme and --adapter exclude each other"),
])  # fmt: skip
def test_shapes_that_do_not_fit(tiny_folder, tmp_path, closed, words, code, message):
    closed()
    assert message in typed("prune", tiny_folder, tmp_path / "out", *words.split(), code=code).stderr


# ---- sweeps ----------------------------------------------------------------------------------------------


def test_a_sweep_of_one_cut_is_kept_and_planned(tiny_folder, tmp_path, closed):
    assert "--sizes is '0-1' beside a cut" in said("sweep", tiny_folder, "--layers", "1", "--sizes", "0-1")
    asked = [tiny_folder, "--tasks", "capitals, sums_one_digit_generated", "--limit", 6, *LISTS, "--results", tmp_path]
    plan = json.loads(typed("plan", *asked, "--json").stdout)
    assert plan["distances"] is None and [row["size"] for row in plan["sizes"]] == [0, 1]
    assert plan["tasks"][0]["layer_steps"][0] == plan["tasks"][0]["tokens"] * (5 + 4)
    rows = json.loads(typed("sweep", *asked, "--json").stdout)["rows"]
    assert {(row["cut"], row["rule"]) for row in rows} == {("0,0", "given"), (CUT.name, "given")}
    model, tokenizer = load_model(str(tiny_folder))
    plain = sweeping.sweep(model, tokenizer, ["capitals"], [Cut(0, 0), CUT], limit=6)
    found = {(row["cut"], row["metric"]): row["value"] for row in rows if row["task"] == "capitals"}
    assert found == {(row.cut, row.metric): row.value for row in plain.itertuples()}
    closed()
    assert json.loads(typed("sweep", *asked, "--json").stdout)["rows"] == rows
    shown = typed("sweep", *asked).stdout
    assert "capitals, acc: 6 items" in shown and CUT.name in shown and "nothing surely lost" not in shown
    assert "in results, measured in" in typed("plan", *asked).stdout
    # and known of its checkpoint
    pruned = ["prune", tiny_folder, tmp_path / "out", *LISTS, "--silence", "--results", tmp_path]
    known = json.loads(typed(*pruned, "--dry-run", "--json").stdout)["scores"]
    assert {score["topic"]: score["pruned"][0] for score in known}["Capitals, words chosen"] == found[CUT.name, "acc"]
    assert {score["rule"] for score in known} == {"this cut alone"}
    assert "Capitals" in typed(*pruned, "--dry-run").stdout


def test_a_search_is_priced_kept_step_by_step_and_found_again(tiny_folder, tmp_path, closed, monkeypatch):
    asked = [tiny_folder, *SMALL, "--results", tmp_path / "results"]
    tasks = ["--tasks", "capitals", "--limit", 6, "--rules", "greedy"]
    plan = json.loads(typed("plan", *asked, *tasks, "--sizes", "0-2", "--json").stdout)
    passes = round(REGISTERED["greedy"].passes(2, 5), 1)
    assert plan["searches"] == {"greedy": {"passes": passes, "heads": 5, "tokens_at_most": 256}}
    least, most = plan["tasks"][0]["layer_steps"]
    measured = []
    loss = sweeping.text_loss

    def interrupted(model, cuts, sequences, **options):
        if len(measured) == 1:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append(cuts)
        return loss(model, cuts, sequences, **options)

    monkeypatch.setattr("deeper_layers.experiments.choosing.sweeping.text_loss", interrupted)
    done = typed("sweep", *asked, *tasks, "--sizes", "0-2", code=130)
    price = f"greedy: at most {passes} passes of all layers and 5 of the head, over at most 256 tokens"
    assert done.stderr.index(price) < done.stderr.index("loss on text")
    rows = json.loads(typed("sweep", *asked, *tasks, "--sizes", "0-2", "--json").stdout)["rows"]
    # the first step was there: each step was measured once
    assert [len(cuts) for cuts in measured if cuts] == [3, 2]
    model, tokenizer = load_model(str(tiny_folder))
    batches = data.text_batches(tokenizer, data.texts("wikipedia"), samples=8, length=32)
    texts = [ids[mask.bool()] for b in batches for ids, mask in zip(b["input_ids"], b["attention_mask"])]
    cuts = search(model, "greedy", [0, 1, 2], texts)
    assert {row["cut"] for row in rows} == {cut.name for cut in cuts}
    assert least <= plan["tasks"][0]["tokens"] * Tree(cuts, 5).nodes <= most
    closed()
    answer = json.loads(typed("prune", *asked[:1], tmp_path / "out", *asked[1:], "--drop", 2, "--rule", "greedy",
                              "--json").stdout)  # fmt: skip
    assert answer["kept"] == cuts[2].kept(5)
    line = said("prune", *asked[:1], tmp_path / "more", *asked[1:], "--drop", 3, "--rule", "greedy", "--no-measure")
    assert "not measured: the losses of 1 candidates" in line and "give --rule simple, or --start" in line


def test_distances_of_another_data_type_choose_the_cut_and_it_is_said(tiny_folder, tmp_path, closed):
    asked = [*SMALL, "--results", tmp_path / "results"]
    found = json.loads(typed("distances", tiny_folder, *asked, "--dtype", "bfloat16", "--json").stdout)
    closed()
    done = typed("prune", tiny_folder, tmp_path / "out", *asked, "--drop", 2, "--dry-run", "--json")
    assert json.loads(done.stdout)["cut"] == found["most_similar"][1]
    assert "the cut is chosen by distances in bfloat16, as results hold none of" in done.stderr
    assert "not measured" in said("prune", tiny_folder, tmp_path / "out", *asked[:1], 9, "--drop", 2, "--dry-run")


def test_a_task_that_was_swept_twice_counts_once():
    whole, half = np.ones(8), (np.arange(8) < 4).astype(float)
    units = [
        dataclasses.replace(
            made_up("capitals", {"0,0": whole, CUT.name: after} | more),
            provenance={"measured": day},
        )
        for after, more, day in ((half, {}, "2026-02"), (whole, {"1,1": whole}, "2026-01"))
    ]
    rows = scores_of(units)
    rows["path"] = "m/" + rows["measured"]
    (score,) = one_cut.scores_of(rows, CUT)
    assert score.items == 8 and score.asked == "Capitals, words chosen" and score.pruned[0] == 1, "that of most cuts"
