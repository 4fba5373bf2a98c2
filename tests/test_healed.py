"""Loss on text, and healed models scored: what is measured, kept and found again."""

import functools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deeper_layers import healing, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import sequences as sequences_of
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings, losses
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.report.statistics import recovery_table
from deeper_layers.results.frames import scores_of
from deeper_layers.results.store import all_results
from deeper_layers.sweeping.losses import text_loss
from tests.test_healing import SMALL, changed

CUTS = [Cut(0, 0), Cut(1, 2), Cut(2, 2)]


@pytest.fixture
def parameters(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    return HealingParameters(
        model=str(tiny_folder), dtype="float32", quantization=None, text="wikipedia", tasks="capitals", limit=4,
        steps=3, results=str(tmp_path / "results"), loss_sequences=4, loss_length=32,
    )  # fmt: skip


def test_loss_is_the_cross_entropy_of_each_pruned_model(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder))
    sequences = sequences_of(tokenizer, ["Some text that goes on for a while. " * 8] * 3, length=40)
    rows, of_sequences = text_loss(model, CUTS, sequences)
    for row, cut in zip(rows.itertuples(), CUTS, strict=True):
        ids = torch.stack(sequences).long()
        with torch.inference_mode():
            expected = float(drop_layers(model, cut)(input_ids=ids, labels=ids).loss)
        assert row.value == pytest.approx(expected, abs=1e-4)
        assert (row.start, row.size, row.items) == (cut.start, cut.size, len(sequences))
        assert np.mean(of_sequences[f"{cut.start},{cut.size}"]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="no sequence"):
        text_loss(model, CUTS, [])


def test_a_healing_is_measured_once_and_other_tasks_find_its_adapters(parameters, monkeypatch):
    source = parameters.source()
    opened = functools.cache(lambda: parameters.open(source))
    config = parameters.config(rank=2, sequence_length=32, batch_sequences=4, at_once=4)
    text, cuts = losses.of_corpus(parameters.loss_key, None), {"similarity": CUTS}
    of_similarity = functools.partial(healings.heal_and_score, CUTS[1], config, rules=["similarity"])
    assert of_similarity(parameters.but(measure=False), source, opened) is None
    run, unit = of_similarity(parameters, source, opened)
    assert set(unit.rows["task"]) == {"wikipedia", "capitals"} and set(unit.rows["cut"]) == {CUTS[1].name}
    assert run.details["tokens"] == unit.details["healed_tokens"] == 3 * 4 * 32 and len(run.records) == 3
    # what was not healed differs, and is compared on the same sequences
    before = losses.score_text(text, cuts, parameters, source, opened)
    (row,) = recovery_table(scores_of([before, unit])).query("metric == 'loss'").itertuples()
    healed, pruned = (own.rows.query("cut == @CUTS[1].name and metric == 'loss'")["value"] for own in (unit, before))
    assert row.healed == pytest.approx(healed.iloc[0], abs=1e-4) != row.pruned
    assert row.pruned == pytest.approx(pruned.iloc[0], abs=1e-4) and not row.whole_healed > 0

    def never(*_, **__):
        pytest.fail("healed or measured again")

    monkeypatch.setattr(healing, "train", never)
    again, others = of_similarity(parameters.but(tasks="sums_one_digit"), source, opened)
    assert again.path == run.path and others.path != unit.path and others.records[0] == unit.records[0]
    monkeypatch.setattr(sweeping, "request_loss", never)
    for asked in (parameters, parameters.but(measure=False)):
        assert of_similarity(asked, source, never)[1].path == unit.path
        assert healings.heal_and_score(CUTS[1], config, asked, source, never)[1].path == unit.path, "whoever chose it"
        assert losses.score_text(text, cuts, asked, source, never).path == before.path
        fewer = {"similarity": CUTS[:2]}
        assert losses.score_text(text, fewer, asked, source, never).path == before.path, "one for more cuts will do"
    assert len(all_results(parameters.results_folder)) == 4


def test_layers_that_are_no_block_heal_too(parameters, tiny_folder, tmp_path):
    source, cut = parameters.source(), Cut.of([1, 3])
    opened = functools.cache(lambda: parameters.open(source))
    config = parameters.config(rank=2, sequence_length=32, batch_sequences=4, at_once=4)
    run, unit = healings.heal_and_score(cut, config, parameters, source, opened)
    assert run.name == "layers 1 3" and set(unit.rows["cut"]) == {"layers 1 3"}
    asked = parameters.but(measure=False)
    assert healings.heal_and_score(cut, config, asked, source, opened)[1].path == unit.path
    assert set(scores_of([unit])["cut"]) == {cut.name}
    adapters = healings.adapter_folder(cut, config, parameters, source, opened)
    pruned = drop_layers(opened()[0], cut)
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
    config = HealingParameters(steps=20, rank=4, preset="small").config()
    assert (config.steps, config.warmup_steps, config.rank, config.quantization) == (20, 2, 4, "nf4")
    paper = HealingParameters(preset="Llama-2 7B", quantization=None).config()
    assert (paper.steps, paper.rank, paper.quantization) == (5000, 2, None)
    for values, word in [
        ({"preset": "tiny"}, "preset is 'tiny'"),
        ({"text": "pile"}, "text is 'pile'"),
        ({"loss_length": 1}, "loss_length is 1"),
        ({"rank": 0}, "rank is 0"),
    ]:
        with pytest.raises(InputError, match=word):
            HealingParameters.from_names(values)


@pytest.mark.thorough
def test_a_healing_in_the_cache_that_is_damaged_is_healed_again(opened, parameters, monkeypatch):
    source, config = parameters.source(), changed(SMALL, steps=2, save_every=1, warmup_steps=0)
    adapter = functools.partial(healings.adapter_folder, CUTS[2], config, parameters, source, lambda: opened)
    folder = adapter()
    whole = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter", "record.json"]  # no checkpoint is left
    with monkeypatch.context() as patch:
        patch.setattr(healing, "train", lambda *_, **__: pytest.fail("healed again"))
        assert adapter() == folder
    for path, content in [
        (folder / "adapter_model.safetensors", b"torn"),
        (folder.parent / "record.json", b'{"losses": 3}'),
        (folder.parent / "record.json", b"[" * 60_000),
    ]:
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="holds no whole healing .*: the model is healed again"):
            adapter()
        assert all((folder / name).read_bytes() == content for name, content in whole.items())
