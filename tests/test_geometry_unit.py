"""The geometry of a model as a result: measured, taken up where it was interrupted."""

import numpy as np
import pytest

from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.geometry import measure_geometry
from deeper_layers.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers.rules import geometry
from deeper_layers.studies import which_layers

SMALL = {"samples": 40, "sequence_length": 24, "tokens": 2, "neighbours": 4, "skip_sequences": 9}
LAYERS = 5


def measured(folder, results, **others):
    return measure_geometry(
        Experiment(WhichLayersParameters(model=str(folder), results=str(results), **SMALL | others))
    )


@pytest.fixture(scope="module")
def result(tiny_folder, tmp_path_factory):
    return measured(tiny_folder, tmp_path_factory.mktemp("results"))


def test_what_is_kept(result, tiny_folder):
    layers, states, folder = 7, 6, result.path.parents[1]
    assert len(result.rows) == layers * LAYERS + states * (LAYERS + 1)
    assert result.details["points"] == SMALL["samples"] * SMALL["tokens"]
    assert result.path.stat().st_size < 30_000 and not result.path.with_suffix(".partial").exists()
    values = result.rows.pivot_table(index="start", columns="metric", values="value")
    assert values.loc[LAYERS, "lens_divergence"] == 0 and values.loc[LAYERS, "lens_overlap"] == 1
    assert np.isfinite(values["two_nn"]).all() and (values["two_nn_shuffled"] > values["two_nn"]).mean() > 0.5
    blocks = which_layers.geometry(folder).query("model == @result.key['model']['name']")
    blocks = blocks.pivot(index=["layer", "size"], columns="measure", values="value")
    assert len(blocks) == LAYERS * (LAYERS + 1) // 2 and set(blocks) == set(which_layers.MEASURES)
    missing = blocks.isna().sum()
    assert missing[missing > 0].to_dict() == {"later layers without a layer": LAYERS}  # nothing comes after these
    assert measured(tiny_folder, folder, measure=False).path == result.path
    with pytest.raises(InputError, match="not measured: the geometry of"):
        measured(tiny_folder, folder, measure=False, tokens=1)


def test_an_interrupted_measurement_goes_on(result, tiny_folder, tmp_path, monkeypatch, capsys):
    """Without a change of any number: what was finished is not run again."""
    ran, passed, whole, skipped = [], [], geometry.record_passes, geometry.skip_each_layer

    def stopping(model, batches, **how):
        for number, found in enumerate(skipped(model, batches, **how)):
            ran.append(number)
            if len(ran) == 1:
                raise KeyboardInterrupt
            yield found

    def counted(model, batches, **how):
        return whole(model, (passed.append(1) or batch for batch in batches), **how)

    monkeypatch.setattr(geometry, "record_passes", counted)
    monkeypatch.setattr(geometry, "skip_each_layer", stopping)
    with pytest.raises(KeyboardInterrupt):
        measured(tiny_folder, tmp_path)
    assert "million layer-steps" in capsys.readouterr().err  # before it runs
    passes = len(passed)
    again = measured(tiny_folder, tmp_path)
    assert len(passed) == passes > 0
    assert again.rows.equals(result.rows) and again.details == result.details


@pytest.mark.parametrize(("given", "said"), [
    ({"tokens": 100}, "samples times tokens is 25600, expected at most 4096"),
    ({"samples": 8}, "skip_sequences is 32, expected at most 8"),
    ({"samples": 2, "tokens": 4, "neighbours": 8, "skip_sequences": 2}, "neighbours is 8, expected at most 7"),
])  # fmt: skip
def test_no_more_tokens_than_can_be_compared(given, said):
    with pytest.raises(InputError, match=said):
        WhichLayersParameters(**given)
