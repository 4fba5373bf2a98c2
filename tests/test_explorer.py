"""The page where a slider removes layers: what it is told of every rule, cut by cut."""

import json

import numpy as np
import pandas as pd

from book.extension import explorer
from deeper_layers.cuts import Cut
from deeper_layers.healing.presets import PRESETS
from deeper_layers.report.statistics.evidence import Answers
from deeper_layers.results.units import Unit, write_unit
from tests.test_choices import scores_unit, unit_of_choice
from tests.test_regret import SEQUENCES


def test_every_rule_shows_what_it_drops_and_what_was_scored(tmp_path):
    """Blocks, layers one by one and sublayers; scores of the same cut and rule alone, others by their own items."""
    right = np.array([1, 1, 1, 0])
    pruned = {"reverse": [Cut(5, 1), Cut(4, 2)], "greedy": [Cut.of([1]), Cut.of([1, 4])],
              "llm-drop": [Cut.of([2], mlp=[3])], "laco": [Cut.of([1])]}  # fmt: skip
    units = [unit_of_choice(cuts, [np.full(SEQUENCES, 2.0)] * len(cuts), rule) for rule, cuts in pruned.items()]
    calibration = units[0].key["calibration"]
    swept = scores_unit("capitals", {cut: {"capitals": right} for cut in ("0,0", "5,1", "4,1")}, kind="sweep")
    del swept.key["engine"]
    swept.key.update(cuts=[[0, 0], [5, 1], [4, 1]], rule="similarity, simple")
    units += [
        swept, scores_unit("capitals", {Cut.of([1, 4]).name: {"capitals": 1 - right}}),
        scores_unit("capitals", {Cut.of([2], mlp=[3]).name: {"capitals": right[:3]}}, limit=3),
        scores_unit("capitals", {"1,1": {"capitals": right}}, kind="changed", rule="laco", calibration=calibration),
        scores_unit("capitals", {"1,1": {"capitals": 0 * right}}, kind="changed", rule="laco-code",
                    calibration=calibration),
    ]  # fmt: skip
    for unit in units:
        rows = unit.rows.drop(columns="cut") if unit.kind == "sweep" else unit.rows
        write_unit(unit.kind, unit.name, unit.key, unit.provenance, rows, unit.details, tmp_path)
    (model,) = explorer.explored(tmp_path)
    assert list(model["rules"]) == ["similarity-informed", "simple heuristic", "reverse", "greedy", "llm-drop", "laco"]
    assert [step["size"] for step in model["rules"]["greedy"]] == [0, 1, 2]
    whole, first, last = model["rules"]["greedy"]
    assert whole == model["rules"]["similarity-informed"][0] and first["accuracy"] == {}
    assert "layers" not in first and last["layers"] == (1, 4) and last["halves"] == []
    assert last["accuracy"]["Capitals"][0] == 0.25 and last["loss"] == [2.0, "C4, not quantized, float32"]
    part = model["rules"]["llm-drop"][1]
    assert (part["layers"], part["halves"]) == ((2,), [3]) and "the MLP of layer 3" in part["kept"]
    assert list(part["accuracy"]) == ["Capitals, 3 items"], "not the items of the others"
    assert [task["title"] for task in model["tasks"]] == ["Capitals, 4 items", "Capitals, 3 items"]
    merged = model["rules"]["laco"][1]
    assert merged["accuracy"]["Capitals"][0] == 0.75 and merged["kept"].endswith("changes weights that stay (merged)")
    assert model["about"]["greedy"].startswith("one layer after another") and len(model["about"]) == 6
    json.dumps(model, allow_nan=False)


def test_what_dropping_gains_is_measured_or_follows(tmp_path):
    """Parameters of every size where all layers are alike; times of the sizes measured, and of no other."""
    share = {way: [0.75, 0.7, 0.8] for way in ("prefill", "decode", "decode_many")}
    rows = [{"size": n, "parameters": 100 - 10 * n, "bytes": 200 - 20 * n, "share_of_time": share} for n in (0, 2, 4)]
    measured = {"model": "tiny", "dtype": "bfloat16", "prompt": 512, "tokens": 32, "rows": rows}
    path = tmp_path / "gained-tiny.json"
    path.write_text(json.dumps(measured))
    found = explorer.gained_by_size("tiny", 6, tmp_path)
    assert [found[n]["weights"] for n in (0, 1, 5)] == [
        [100, 200, "bfloat16"],
        [90, 180, "bfloat16"],
        [50, 100, "bfloat16"],
    ]
    assert found[2]["time"]["prefill"] == [0.75, 0.7, 0.8, 512] and "time" not in found[1]
    rows[2]["parameters"] = 61  # one layer has fewer than the others
    path.write_text(json.dumps(measured))
    assert sorted(explorer.gained_by_size("tiny", 6, tmp_path)) == [0, 2, 4]
    assert explorer.gained_by_size("other", 6, tmp_path) == {}


def test_a_loss_beside_a_healing_is_of_the_same_weights():
    """Where a loss was measured of the weights as they are too, it is shown only where nothing was healed."""

    def unit(kind, quantization, losses):
        rows = [{"metric": "loss", "start": cut.start, "size": cut.size, "value": v} for cut, v in losses.items()]
        opened = {"dtype": "bfloat16", "quantization": quantization}
        settings = {"healing": PRESETS["small"].settings} if kind == "healing" else {}
        record = {"healing": {"tokens": 9, "trained_parameters": 9, "seconds": 9.0}}
        return Unit(kind, "c4", {"text": "c4"} | opened | settings, {}, pd.DataFrame(rows), record)

    cuts = [Cut(3, 1), Cut(2, 2)]
    units = [
        unit("loss", None, {cuts[0]: 4.0, cuts[1]: 5.0}),
        unit("loss", "nf4", {cuts[0]: 4.5}),
        unit("healing", "nf4", {cuts[0]: 3.0}),
    ]
    answers = {"some": Answers("some", cuts, np.ones((2, 5), bool), {"chance": 0.25}, 6)}
    first, second = (explorer._step(answers, cut.size, 6, units) for cut in cuts)
    assert first["loss"] == [4.5, "C4, nf4, bfloat16"] and first["healed"] == [3.0, "C4, nf4, bfloat16"]
    assert second["loss"] == [5.0, "C4, not quantized, bfloat16"] and "healed" not in second
