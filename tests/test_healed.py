"""Healed models: healed once, scored, kept and found again, and written by `deeper-layers prune`."""

import functools
import json

import pytest
import torch

from deeper_layers import data, healing, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.presets import PRESETS
from deeper_layers_companion.experiments import healings, scoring
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.parameters import HealingParameters
from deeper_layers_companion.report import one_cut
from deeper_layers_companion.results import distances, scores
from deeper_layers_companion.results.places import results_folder
from deeper_layers_companion.results.store import cut_names, read_results
from tests.test_command import typed
from tests.test_healing import SMALL
from tests.test_slicing import tensors

CUTS = [Cut(0, 0), Cut(1, 2), Cut(2, 2)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")


def never(*_, **__):
    pytest.fail("healed or measured again")


def test_a_healing_is_measured_once_and_other_tasks_find_its_adapters(tiny_folder, opened, tmp_path, monkeypatch):
    parameters = HealingParameters(
        model=str(tiny_folder), dtype="float32", quantization=None, text="wikipedia", tasks="capitals", limit=4,
        steps=3, results=str(tmp_path / "results"), loss_sequences=4, loss_length=32,
    )  # fmt: skip
    experiment = Experiment(parameters, open_model=lambda: opened)
    config = parameters.make_config(rank=2, sequence_length=32, batch_sequences=4, at_once=4)
    score_text = functools.partial(scoring.score, parameters.texts)
    heal = lambda of, **given: healings.Healing(CUTS[1], config, of).heal_and_score(**given)  # noqa: E731
    assert heal(experiment.replace(measure=False)) is None
    run, measured = heal(experiment, rules=["similarity"])
    assert set(measured.rows["task"]) == {"wikipedia", "capitals"} and set(measured.rows["cut"]) == {CUTS[1].name}
    assert run.details["tokens"] == measured.details["healed_tokens"] == 3 * 4 * 32 and len(run.records) == 3
    adapters = healings.Healing(CUTS[1], config, experiment).find_adapters()
    assert [path.name for path in adapters.parent.iterdir()] == ["adapter"], "no checkpoint"
    before = score_text({"similarity": CUTS}, experiment)
    losses_of = [table.rows.query("cut == '1,2' and metric == 'loss'")["value"].item() for table in (measured, before)]
    assert losses_of[0] != losses_of[1]
    monkeypatch.setattr(healing, "train", never)
    again, others = heal(experiment.replace(tasks="sums_one_digit"), rules=["similarity"])
    assert again.path == run.path and others.path != measured.path and others.records[0] == measured.records[0]
    monkeypatch.setattr(sweeping, "request_loss", never)
    assert heal(experiment.replace(measure=False))[1].path == heal(experiment)[1].path == measured.path, (
        "whoever chose it"
    )
    assert score_text({"similarity": CUTS[:2]}, experiment).path == before.path, "one for more cuts will do"


def test_text_that_heals_gives_no_loss(tiny_folder, opened, monkeypatch):
    experiment = Experiment(HealingParameters(model=str(tiny_folder), text="wikipedia"), open_model=lambda: opened)
    monkeypatch.setattr(data, "texts", lambda *_, **part: ["the same"])
    with pytest.raises(InputError, match="1 documents of wikipedia heal and give the loss"):
        healings.Healing(CUTS[1], experiment.parameters.make_config(), experiment).find_adapters()


def test_parameters_set_what_they_name_and_leave_the_rest_to_the_preset():
    config = HealingParameters(steps=20, rank=4, preset="small", seed=3, sequence_length=99).make_config()
    assert (config.steps, config.warmup_steps, config.rank, config.quantization) == (20, 2, 4, "nf4")
    assert (config.seed, config.sequence_length) == (0, 256), "those of the distances are others"
    assert HealingParameters(objective="distill").make_config() == PRESETS["distill"]
    with pytest.raises(InputError, match="preset is 'tiny'"):
        HealingParameters(preset="tiny")


def test_prune_heals_once_by_a_presets_name_and_takes_its_adapters_again(tiny_folder, tmp_path, monkeypatch):
    own = {"objective": "distill", "quantization": "nf4", "steps": 2}
    monkeypatch.setitem(PRESETS, "distill", type(SMALL)(**vars(SMALL) | own))
    asked = ["--drop", "2", "--rule", "simple", "--heal", "distill", "--text", "wikipedia", "--json"]
    content = json.loads(typed("prune", tiny_folder, tmp_path / "one", *asked).stdout)
    monkeypatch.setattr(healing, "train", never)
    assert json.loads(typed("prune", tiny_folder, tmp_path / "two", *asked).stdout)["adapters"] == content["adapters"]
    done = typed("prune", tiny_folder, tmp_path / "three", "--adapter", content["adapters"])
    assert "drops layers 2..3 (0-based, 2 of 5)" in done.stdout
    slice_checkpoint(tiny_folder, Cut(2, 2), tmp_path / "unhealed")
    one, two, three, unhealed = (tensors(tmp_path / name) for name in ("one", "two", "three", "unhealed"))
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], three[name]) for name in one)
    assert one.keys() == unhealed.keys() and any(not torch.equal(one[name], unhealed[name]) for name in one)
    card = (tmp_path / "one" / "README.md").read_text()
    for words in (
        ", healed\n", "rank 2 (alpha 2) on down_proj, gate_proj, up_proj", "Trained on 256 tokens of wikipedia",
        "2 steps", "weights in nf4", "Distilled: it learned what the unpruned model expects (temperature 1).",
    ):  # fmt: skip
        assert words in card
    words = ["prune", tiny_folder, tmp_path / "four", "--adapter", content["adapters"]]
    assert "and Cut(start=1, size=3): give" in typed(*words, "--drop", "3", "--start", "1", code=1).stderr
    assert "--drop says how many layers go" in typed(*words, "--start", "2", code=2).stderr


def test_a_card_has_the_scores_before_and_after_healing():
    units = [unit for unit in read_results(results_folder(), "scores") if unit.key.get("healing")]
    unit = next(unit for unit in units if cut_names(unit.key) == {"25,1"} and "c4" in unit.key["tasks"])
    config, text, cut = unit.key["healing"], unit.key["text"], Cut(25, 1)
    table, blocks = (read(results_folder(), unit.key["model"]["name"]) for read in (scores, distances))
    rows = one_cut.find_healed(table, cut, config, text)
    assert set(rows["path"]) == {unit.place}
    assert one_cut.find_healed(table, cut, config | {"rank": 64}, text).empty, "scores of another healing"
    (loss,) = (score for score in one_cut.find_scores(table, cut, rows) if score.topic == "C4, loss")
    (expected,) = unit.rows.query("task == 'c4' and metric == 'loss'")["value"]
    assert loss.healed[0] == pytest.approx(expected, abs=1e-4) and loss.pruned[0] > loss.whole[0] > 0
    card = one_cut.write_card_text(table, blocks, cut, rows)
    assert " | ".join(map(one_cut.format_interval, (loss.whole, loss.pruned, loss.healed))) in card
