"""What rules drop, side by side: measured of a tiny model, and read back."""

import pytest

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.choices import compare_rules
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.losses import blocks
from deeper_layers.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers.results.frames import scores_of
from deeper_layers.results.store import all_results
from deeper_layers.rules.choosing import REGISTERED


def test_what_rules_drop_is_measured_once_and_read_back(tiny_folder, tmp_path):
    parameters = WhichLayersParameters(
        model=str(tiny_folder), results=str(tmp_path), dtype="float32", rules="simple, llm-drop, replaceme", limit=4,
        samples=4, sequence_length=24, text="wikipedia", loss_sequences=2, loss_length=24, percent="20, 40",
        calibration_sequences=2, bridge_sequences=2, tasks="capitals", tokens=2, neighbours=2, skip_sequences=2,
    )  # fmt: skip
    compare_rules(Experiment(parameters))
    scores = scores_of(all_results(tmp_path, "scores"))
    losses = scores[(scores["metric"] == "loss") & (scores["cut"] != UNPRUNED.name)]
    assert losses.groupby("rule")["size"].agg(list).to_dict() == {rule: [1, 2] for rule in parameters.rule_list}
    assert losses.set_index("rule")["changed"].dropna().to_dict() == {"replaceme": "bridged"}
    of_drop = scores[scores["rule"] == "llm-drop"]
    assert of_drop[of_drop["task"] == "capitals"].set_index("cut")["size"].drop(UNPRUNED.name).tolist() == [1, 2]
    (found,) = (one for one in all_results(tmp_path) if (one.key.get("choice") or {}).get("rule") == "llm-drop")
    assert found.details["passes"] > 0 and list(found.details["cuts"]) == ["llm-drop"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    compare_rules(Experiment(parameters, opened=lambda: pytest.fail("opened again")))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


def test_what_is_asked_of_rules():
    every = blocks([0, 1, 4], 5)
    assert every["blocks of 1"] == [UNPRUNED, *(Cut(start, 1) for start in range(5))]
    assert every["blocks of 4"] == [UNPRUNED, Cut(0, 4), Cut(1, 4)] and len(every) == 2
    usual = WhichLayersParameters()
    assert usual.calibration in [one.key.get("calibration") for one in all_results(kind="scores")], "published ones"
    assert WhichLayersParameters(loss_length=512).calibration == usual.calibration | {"loss_length": 512}
    assert usual.rule_list == list(REGISTERED)
    assert [usual.shares(layers) for layers in (30, 18, 28)] == [[3, 6, 8, 10], [2, 4, 5, 6], [3, 6, 7, 9]]
    assert WhichLayersParameters(percent="1, 99").shares(30) == [1, 29], "never all"
