"""Loss on text, and healed models scored: what is measured, kept and found again."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from deeper_layers import healing, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.data import corpora
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings, losses
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.pruning import drop_layers
from deeper_layers.report.statistics import recovery_table
from deeper_layers.results.frames import scores_of
from deeper_layers.results.store import all_results

CUTS = [Cut(0, 0), Cut(1, 2), Cut(2, 2)]


@pytest.fixture
def experiment(tiny_folder, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    parameters = HealingParameters(
        model=str(tiny_folder), dtype="float32", quantization=None, text="wikipedia", tasks="capitals", limit=4,
        steps=3, results=str(tmp_path / "results"), loss_sequences=4, loss_length=32,
    )  # fmt: skip
    return Experiment(parameters, opened=lambda: opened)


@pytest.fixture
def config(experiment):
    return experiment.parameters.config(rank=2, sequence_length=32, batch_sequences=4, at_once=4)


def test_a_healing_is_measured_once_and_other_tasks_find_its_adapters(experiment, config, monkeypatch):
    score_text = functools.partial(losses.score_text, *next(iter(experiment.parameters.loss.items())))
    heal = functools.partial(healings.heal_and_score, CUTS[1], config)
    assert heal(experiment.but(measure=False)) is None
    run, scores = heal(experiment, ["similarity"])
    assert set(scores.rows["task"]) == {"wikipedia", "capitals"} and set(scores.rows["cut"]) == {CUTS[1].name}
    assert run.details["tokens"] == scores.details["healed_tokens"] == 3 * 4 * 32 and len(run.records) == 3
    # what was not healed differs, and is compared on the same sequences
    before = score_text({"similarity": CUTS}, experiment)
    (row,) = recovery_table(scores_of([before, scores])).query("metric == 'loss'").itertuples()
    healed, pruned = (own.rows.query("cut == @CUTS[1].name and metric == 'loss'")["value"] for own in (scores, before))
    assert row.healed == pytest.approx(healed.iloc[0], abs=1e-4) != row.pruned
    assert row.pruned == pytest.approx(pruned.iloc[0], abs=1e-4) and not row.whole_healed > 0

    def never(*_, **__):
        pytest.fail("healed or measured again")

    monkeypatch.setattr(healing, "train", never)
    again, others = heal(experiment.but(tasks="sums_one_digit"), ["similarity"])
    assert again.path == run.path and others.path != scores.path and others.records[0] == scores.records[0]
    monkeypatch.setattr(sweeping, "request_loss", never)
    for asked in (experiment, experiment.but(measure=False)):
        assert heal(asked, ["similarity"])[1].path == heal(asked)[1].path == scores.path, "whoever chose it"
        assert score_text({"similarity": CUTS[:2]}, asked).path == before.path, "one for more cuts will do"
    assert len(all_results(experiment.parameters.results_folder)) == 4


def test_layers_that_are_no_block_heal_too(experiment, config, tiny_folder, tmp_path):
    source, cut = experiment.source, Cut.of([1, 3])
    run, scores = healings.heal_and_score(cut, config, experiment)
    assert run.name == "layers 1 3" and set(scores_of([scores])["cut"]) == {"layers 1 3"}
    assert healings.heal_and_score(cut, config, experiment.but(measure=False))[1].path == scores.path
    adapters = healings.adapter_folder(cut, config, experiment)
    assert sorted(path.name for path in adapters.parent.iterdir()) == ["adapter", "record.json"], "no checkpoint"
    pruned = drop_layers(experiment.opened()[0], cut)
    merged = healing.merge_adapters(healing.load_adapters(pruned, adapters, source.key, cut))
    merged.save_pretrained(tmp_path / "merged")
    slice_checkpoint(tiny_folder, cut, tmp_path / "sliced", adapter=adapters)
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("sliced", "merged"))
    assert ours.keys() == plain.keys()
    assert all(torch.allclose(ours[name], plain[name], atol=1e-6) for name in plain)
    with pytest.raises(InputError, match="were trained for Cut.*not for"):
        slice_checkpoint(tiny_folder, Cut.of([0, 3]), tmp_path / "other", adapter=adapters)


def test_text_that_heals_and_text_of_the_loss_are_apart():
    train, validation = (corpora.texts("wikipedia", split=split) for split in ("train", "validation"))
    healings.check_apart(train, validation)
    assert len(train) + len(validation) == len(corpora.texts("wikipedia"))
    with pytest.raises(InputError, match="1 documents are among those that heal"):
        healings.check_apart(train, [*validation, train[5]])


def test_parameters_set_what_they_name_and_leave_the_rest_to_the_preset():
    config = HealingParameters(steps=20, rank=4, preset="small", seed=3, sequence_length=99).config()
    assert (config.steps, config.warmup_steps, config.rank, config.quantization) == (20, 2, 4, "nf4")
    assert (config.seed, config.sequence_length) == (0, 256), "those of the distances are others"
    paper = HealingParameters(preset="Llama-2 7B", quantization=None).config()
    assert (paper.steps, paper.rank, paper.quantization) == (5000, 2, None)
    for name, value in {"preset": "tiny", "text": "pile", "loss_length": 1, "rank": 0}.items():
        with pytest.raises(InputError, match=f"{name} is {value!r}"):
            HealingParameters.from_names({name: value})
