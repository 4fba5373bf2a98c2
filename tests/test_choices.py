"""What rules drop, side by side: read back from units, ranked by regret, drawn without torch where all is measured."""

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.block_parameters import WhichLayersParameters
from deeper_layers.experiments.choices import parts_of
from deeper_layers.experiments.losses import blocks
from deeper_layers.results.frames import scores_of
from deeper_layers.results.packing import pack
from deeper_layers.results.schema import check_unit
from deeper_layers.results.units import Unit, all_units
from deeper_layers.rules.choosing import REGISTERED

pytestmark = pytest.mark.quick

STATE = {"measured": "2026-01-01T00:00:00", "packages": {}, "commit": None, "dirty": None, "device": "",
         "seconds": 1.0, "peak_memory_bytes": 1}  # fmt: skip
LAYERS, SEQUENCES = 6, 40
CUTS = [Cut.of([2]), Cut.of([1], attention=[3], mlp=[4])]


def unit_of_choice(cuts: list[Cut], losses: list[np.ndarray], rule: str = "llm-drop") -> Unit:
    sizes = list(range(1, len(cuts) + 1))
    rows = pd.DataFrame({"task": "c4", "metric": "loss", **parts_of(sizes, cuts)})
    rows = rows.assign(value=[found.mean() for found in losses], stderr=0.1, items=SEQUENCES)
    details = {
        "num_layers": LAYERS, "weights": "none", "vocabulary": 9, "passes": 2.5, "tokens": 64, "seconds": 1.5,
        "by_sequence": {str(size): found.tolist() for size, found in enumerate(losses, 1)},
    }  # fmt: skip
    key = {
        "model": {"name": "m", "weights": "w"}, "dtype": "float32", "version": 1, "data": "d", "quantization": None,
        "rule": rule, "sizes": sizes, "text": "c4", "sequences": SEQUENCES, "sequence_length": 8,
        "calibration": WhichLayersParameters().calibration,
    }  # fmt: skip
    return Unit("choice", rule, key, STATE, rows, details)


@pytest.fixture(scope="module")
def unit():
    whole = np.random.default_rng(0).normal(3, 1, SEQUENCES)
    return unit_of_choice(CUTS, [whole + 0.1, whole - 0.4])


def scores_unit(name: str, right: dict[str, dict[str, np.ndarray]], kind: str = "cuts", **key) -> Unit:
    """A unit of scores: by cut and task which items were right."""
    rows = [
        {"task": task, "metric": "acc", "start": Cut.named(cut).start, "size": Cut.named(cut).size,
         "value": float(np.mean(items)), "stderr": 0.1, "items": len(items), "cut": cut}
        for cut, of_tasks in right.items() for task, items in of_tasks.items()
    ]  # fmt: skip
    outcomes = {
        cut: {task: {"acc": pack(items.astype(np.uint8))} for task, items in of_tasks.items()}
        for cut, of_tasks in right.items()
    }
    details = {"num_layers": LAYERS, "weights": "none", "levels": {}, "outcomes": outcomes}
    key = {
        "model": {"name": "m", "weights": "w"}, "dtype": "float32", "version": 1, "data": "d", "quantization": None,
        "task": name, "cuts": list(right), "limit": None, "num_fewshot": None, "engine": None, **key,
    }  # fmt: skip
    return Unit(kind, name, key, STATE, pd.DataFrame(rows), details)


def content(unit: Unit) -> dict:
    names = ("kind", "name", "key", "provenance", "details")
    return {name: getattr(unit, name) for name in names} | {"rows": unit.rows.to_dict("records")}


def test_what_was_dropped_is_read_back(unit):
    check_unit(content(unit))
    rows = scores_of([unit])
    assert rows["cut"].tolist() == [cut.name for cut in CUTS] and rows["size"].tolist() == [1, 2]
    assert rows["outcome"][1].tolist() == unit.details["by_sequence"]["2"] and set(rows["rule"]) == {"llm-drop"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda unit: unit.update(name="laco"), "not that of its rule"),
        (lambda unit: unit["rows"].pop(), "not of the sizes"),
        (lambda unit: unit["key"].update(sizes=[2, 1]), "not of the sizes"),
        (lambda unit: unit["rows"][1]["mlp"].append(LAYERS), "reach past the 6 layers"),
        (lambda unit: unit["details"]["by_sequence"]["1"].pop(), "not as many as its rows have items"),
        (lambda unit: unit["rows"][0].update(layers=[-1]), "rows|layers|0"),
        (lambda unit: unit["key"]["calibration"].update(seed=None), "calibration.seed"),
    ],
)
def test_what_does_not_agree_is_no_unit(change, word, unit):
    damaged = content(unit_of_choice(CUTS, [np.array(losses) for losses in unit.details["by_sequence"].values()]))
    change(damaged)
    with pytest.raises(ValueError, match=word):
        check_unit(damaged)


def test_blocks_are_all_there_are_and_the_whole_model():
    found = blocks([0, 1, 4], 5)
    assert found == [Cut(0, 0), *(Cut(start, 1) for start in range(5)), Cut(0, 4), Cut(1, 4)]
    assert len(blocks(range(29), 30)) == 1 + 30 * 31 // 2 - 1 - 2  # but those of 29 and 30 layers


def test_what_a_bridge_is_fitted_on_is_in_the_key_where_it_is_not_as_long_as_usual():
    usual = WhichLayersParameters().calibration
    assert usual in [unit.key["calibration"] for unit in all_units(kind="changed")], "published units are found"
    assert WhichLayersParameters(loss_length=512).calibration == usual | {"loss_length": 512}


def test_parameters_name_rules_and_shares():
    parameters = WhichLayersParameters()
    assert parameters.rule_list == list(REGISTERED)
    assert [parameters.shares(layers) for layers in (30, 18, 28)] == [[3, 6, 8, 10], [2, 4, 5, 6], [3, 6, 7, 9]]
    assert WhichLayersParameters(percent="1, 99").shares(30) == [1, 29], "never all"
    for given, said in [({"rules": "best"}, "rule is 'best'"), ({"rules": " ,"}, "expected names"),
                        ({"percent": "0"}, "percent is '0'"), ({"sizes": "x"}, "sizes is 'x'"),
                        ({"text": "x"}, "text is 'x'")]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            WhichLayersParameters(**given)
