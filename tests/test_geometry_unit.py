"""The geometry of a model as a result: measured, taken up where it was interrupted."""

import functools

import numpy as np
import pytest

from deeper_layers.errors import InputError
from deeper_layers.experiments.geometry import geometry_unit
from deeper_layers.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers.rules import geometry
from deeper_layers.studies import which_layers

SMALL = {"samples": 40, "sequence_length": 24, "tokens": 2, "neighbours": 4, "skip_sequences": 9}
LAYERS = 5


def measured(folder, results, **others):
    parameters = WhichLayersParameters(model=str(folder), results=str(results), **SMALL | others)
    source = parameters.source()
    return geometry_unit(parameters, source, functools.cache(lambda: parameters.open(source)))


@pytest.fixture(scope="module")
def unit(tiny_folder, tmp_path_factory):
    return measured(tiny_folder, tmp_path_factory.mktemp("results"))


def test_what_a_unit_holds(unit, tiny_folder):
    layers, states = 7, 6
    assert len(unit.rows) == layers * LAYERS + states * (LAYERS + 1)
    assert unit.details["points"] == SMALL["samples"] * SMALL["tokens"]
    assert unit.path.stat().st_size < 30_000
    assert not unit.path.with_suffix(".partial").exists()
    of_last = unit.rows[unit.rows["start"] == LAYERS].set_index("metric")["value"]
    assert of_last["lens_divergence"] == 0 and of_last["lens_overlap"] == 1
    blocks = which_layers.geometry(unit.path.parents[1]).query("model == @unit.key['model']['name']")
    blocks = blocks.pivot(index=["layer", "size"], columns="measure", values="value")
    assert len(blocks) == LAYERS * (LAYERS + 1) // 2 and set(blocks) == set(which_layers.MEASURES)
    missing = blocks.isna().sum()
    assert missing[missing > 0].to_dict() == {"later layers without a layer": LAYERS}  # nothing comes after these
    assert measured(tiny_folder, unit.path.parents[1], measure=False).path == unit.path
    with pytest.raises(InputError, match="not measured: the geometry of"):
        measured(tiny_folder, unit.path.parents[1], measure=False, tokens=1)


def test_an_interrupted_measurement_goes_on(unit, tiny_folder, tmp_path, monkeypatch, capsys):
    """Without a change of any number: what was finished is not run again."""
    ran = []

    whole, skipped = geometry.record_passes, geometry.skip_each_layer

    def stopping(model, batches, **how):
        for number, found in enumerate(skipped(model, batches, **how)):
            ran.append(len(found["output"]))
            if len(ran) == 1 and number == 0:
                raise KeyboardInterrupt
            yield found

    counted = []
    monkeypatch.setattr(
        geometry, "record_passes",
        lambda model, batches, **how: whole(model, (counted.append(1) or batch for batch in batches), **how),
    )  # fmt: skip
    monkeypatch.setattr(geometry, "skip_each_layer", stopping)
    with pytest.raises(KeyboardInterrupt):
        measured(tiny_folder, tmp_path)
    assert "million layer-steps" in capsys.readouterr().err  # before it runs
    passes = len(counted)
    again = measured(tiny_folder, tmp_path)
    assert len(counted) == passes > 0
    assert again.rows.equals(unit.rows) and again.details == unit.details


def test_no_more_tokens_than_can_be_compared():
    with pytest.raises(InputError, match="samples is 256 and tokens 100, 25600 tokens in all, expected at most 4096"):
        WhichLayersParameters(tokens=100)
    with pytest.raises(InputError, match="skip_sequences is 32, expected at most samples, 8"):
        WhichLayersParameters(samples=8)
    WhichLayersParameters(samples=2, tokens=4, neighbours=7, skip_sequences=2)
    with pytest.raises(InputError, match="neighbours is 8, expected fewer than samples times tokens, 8: ask for fewer"):
        WhichLayersParameters(samples=2, tokens=4, neighbours=8, skip_sequences=2)


def test_shuffled_tokens_are_a_control(unit):
    values = unit.rows.pivot_table(index="start", columns="metric", values="value")
    assert np.isfinite(values["two_nn"]).all() and (values["two_nn_shuffled"] > values["two_nn"]).mean() > 0.5
