"""What rules drop, side by side: read back from units, ranked by regret, drawn without torch where all is measured."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.block_parameters import WhichLayersParameters
from deeper_layers.experiments.choices import parts_of
from deeper_layers.experiments.losses import blocks
from deeper_layers.report.figures.block_figures import block_maps, ranks_in_rows
from deeper_layers.report.figures.row_figures import in_rows
from deeper_layers.report.questions import rivals
from deeper_layers.report.questions.regret import Map
from deeper_layers.results.packing import pack
from deeper_layers.results.places import AROUND
from deeper_layers.results.schema import check_unit
from deeper_layers.results.units import Unit, all_units
from deeper_layers.rules.choosing import REGISTERED
from tests import notebook
from tests.test_notebooks import SMALL
from tests.test_regret import LAYERS, SEQUENCES, unit_of

STATE = {"measured": "2026-01-01T00:00:00", "packages": {}, "commit": None, "dirty": None, "device": "",
         "seconds": 1.0, "peak_memory_bytes": 1}  # fmt: skip
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
def every():
    draw = np.random.default_rng(0)
    of_sequence = draw.normal(3, 1, SEQUENCES)
    return Map.of(unit_of({cut: of_sequence + 0.3 * cut.size + 0.1 * cut.start for cut in blocks(range(4), LAYERS)}))


@pytest.fixture(scope="module")
def unit(every):
    return unit_of_choice(CUTS, [every.whole + 0.1, every.whole - 0.4])


def content(unit: Unit) -> dict:
    names = ("kind", "name", "key", "provenance", "details")
    return {name: getattr(unit, name) for name in names} | {"rows": unit.rows.to_dict("records")}


def test_what_was_dropped_is_read_back(unit):
    check_unit(content(unit))
    found = rivals.choices_of(unit)
    assert [found[size].cut for size in (1, 2)] == CUTS
    assert found[2].losses.tolist() == unit.details["by_sequence"]["2"]


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


def test_rules_by_their_regret(every, unit):
    choices = {
        "simple": rivals.blocks_of(every, [Cut(4, 1), Cut(3, 2)]),
        "similarity": rivals.blocks_of(every, [Cut(0, 1), Cut(0, 2)]),
        "llm-drop": rivals.choices_of(unit),
        "reverse": rivals.blocks_of(every, [Cut(5, 1)]),
    }
    table = rivals.regret_table(every, choices, [1, 2])
    assert table["rule"].tolist() == ["llm-drop", "similarity", "simple", "reverse"]
    assert table["n = 2"].tolist()[:3] == pytest.approx([-1.0, 0.0, 0.3])
    assert table["verdict"].fillna("").tolist() == ["as good", "as good", "worse", ""]
    assert table["rank"].tolist()[:3] == [1, 2, 3] and np.isnan(table["rank"][3])
    places = table.set_index("rule")["place"]
    assert places["similarity"] == 0 and places["simple"] == 1 and places[["llm-drop", "reverse"]].isna().all()
    assert rivals.answer(every, choices, [1, 2]).startswith("Over n = 1, 2 the similarity rule costs +0.000 nats")
    assert "+0.350 nats" in rivals.answer(every, choices, [1, 2], "simple")
    assert rivals.answer(every, choices, [1, 2], "reverse").startswith("Not measured")


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


def test_scores_of_rules_item_by_item():
    draw = np.random.default_rng(0)
    alike = (draw.random(200) < 0.8).astype(int)
    worse = alike * (draw.random(200) < 0.5)
    good, bad = {"a": alike[:9], "b": alike}, {"b": worse, "a": worse[:9]}  # a group's tasks in another order
    cuts = {"similarity": {1: Cut(1, 1), 2: Cut(1, 2)}, "laco": {1: Cut.of([3]), 2: Cut.of([3, 5])}}
    cuts |= {"reverse": {1: Cut(5, 1), 2: Cut(4, 2)}, "simple": {1: Cut(4, 1)}}
    names = {rule: [cut.name for cut in of_sizes.values()] for rule, of_sizes in cuts.items()}
    units = {rule: scores_unit("g", dict.fromkeys(names[rule], good)) for rule in ("reverse", "simple")}
    units["similarity"] = scores_unit("g", dict.fromkeys(["0,0", *names["similarity"]], good))
    changed = {"kind": "changed", "rule": "laco", "calibration": {"seed": 0}}
    units["laco"] = scores_unit("g", dict.fromkeys(names["laco"], bad), **changed)
    check_unit(content(units["laco"]))
    assert rivals.right_items(units["similarity"], Cut(0, 0)).sum() == alike.sum() + alike[:9].sum()
    found = rivals.scored(units, cuts, [1, 2])
    assert set(found) == {"similarity", "laco", "reverse"}, "one lacks a size"
    table = rivals.score_table(found, [1, 2]).set_index("rule")
    assert table.index[-1] == "laco" and table["rank"].tolist() == [1.5, 1.5, 3]
    assert table["seen"].fillna("").to_dict() == {"similarity": "", "reverse": "no difference seen", "laco": "worse"}
    above = rivals.score_table(found, [1, 2], guessing=0.9).set_index("rule")
    assert above["seen"].fillna("").to_dict() == {"similarity": "", "reverse": "guessing", "laco": "guessing"}
    assert above["p"].equals(table["p"]), "the test is the same"
    assert table.loc["laco", "change"] == pytest.approx(found["laco"].mean() - found["similarity"].mean())
    assert table.loc["laco", "low"] < table.loc["laco", "mean"] < table.loc["laco", "high"]
    assert table.loc["laco", "p"] < 1e-6 and table.loc["reverse", "p"] == 1 and np.isnan(table.loc["similarity", "p"])
    assert table.loc["similarity", "n = 2"] == pytest.approx(found["similarity"][1].mean())
    with pytest.raises(InputError, match="measure them on the same items"):
        rivals.scored(units | {"laco": scores_unit("g", dict.fromkeys(names["laco"], {"b": worse}))}, cuts, [1, 2])


def test_healed_beside_the_papers_rule():
    losses = np.random.default_rng(0).normal(3, 1, 40)
    cuts = {"similarity": Cut(1, 2), "greedy": Cut.of([1, 4]), "llm-drop": Cut.of([1], mlp=[2])}
    cuts |= {"replaceme": Cut(1, 2), "laco": Cut.of([1, 4])}  # healed without their changes: not what they leave
    choices = {rule: {2: rivals.Choice(cut, losses[:8] + 1)} for rule, cut in cuts.items()}
    assert rivals.healed_table([], choices) is None
    units = [healed_unit(Cut(1, 2), losses), healed_unit(Cut.of([1, 4]), losses - 0.5, acc=[1, 1, 0, 1])]
    units.append(healed_unit(Cut(1, 2), losses + 9, seed=1))  # in another way
    for unit in units:
        check_unit(content(unit))
    table, used = rivals.healed_table(units, choices)
    assert table["rule"].tolist() == ["greedy", "similarity"] and used == units[:2]
    assert table["change"].tolist() == pytest.approx([-0.5, np.nan], nan_ok=True)
    assert table["unhealed"].tolist() == pytest.approx([losses[:8].mean() + 1] * 2)
    assert table["Capitals"].tolist() == [0.75, 0.25] and table["interval"][0].startswith("-0.5")


def healed_unit(cut: Cut, losses: np.ndarray, *, acc=(1, 0, 0, 0), seed: int = 0) -> Unit:
    of_all = {"start": cut.start, "size": cut.size, "stderr": 0.1} | ({} if cut.is_block else {"cut": cut.name})
    rows = pd.DataFrame([
        {"task": "c4", "metric": "loss", "value": losses.mean(), "items": len(losses), **of_all},
        {"task": "capitals", "metric": "acc", "value": np.mean(acc), "items": len(acc), **of_all},
    ])  # fmt: skip
    course = {"losses": [1.0], "tokens": 1, "distinct_tokens": 1, "trained_parameters": 1, "seconds": 1.0}
    details = {
        "num_layers": LAYERS, "weights": "none", "levels": {}, "healing": course, "by_sequence": losses.tolist(),
        "vocabulary": 9, "outcomes": {"capitals": {"acc": pack(np.array(acc, dtype=np.uint8))}},
    }  # fmt: skip
    loss = {"text": "c4", "sequences": len(losses), "sequence_length": 8}
    settings = {"rank": 2, "learning_rate": 0.1, "sequence_length": 8, "steps": 1, "seed": seed, "quantization": None,
                "adapters": "all", "auxiliary": 0.0}  # fmt: skip
    key = {
        "model": {"name": "m", "weights": "w"}, "dtype": "float32", "version": 2, "data": "d", "quantization": None,
        "cut": cut.key, "healing": settings, "text": "c4", "loss": loss, "tasks": {"capitals": None}, "limit": 120,
    }  # fmt: skip
    return Unit("healing", "x", key, STATE, rows, details)


def test_rules_in_rows_best_first():
    rows = pd.DataFrame({"row": ["<a>", "b"], "value": [0.5, 0.4], "low": [0.4, 0.3], "high": [0.6, 0.5]})
    figure = in_rows(rows, across="Accuracy", said="x.", model="<m>", name="r", levels={"guessing": 0.25})
    assert figure.interactive.layout.yaxis.range[0] > figure.interactive.layout.yaxis.range[1], "the first on top"
    points = [trace for trace in figure.interactive.data if trace.mode == "markers"]
    assert list(points[0].x) == [0.5, 0.4] and np.diff(points[0].y).tolist() == [1]
    assert "guessing" in {trace.name for trace in figure.interactive.data} and "<m>" not in figure._repr_html_()
    many = pd.concat([rows] * 10).assign(row=[f"rule {number}" for number in range(20)])
    tall = in_rows(many, across="Accuracy", said="x.", model="m", name="r")
    assert tall.interactive.layout.height > figure.interactive.layout.height, "each name has a line of its own"


def test_side_by_side_what_was_not_measured_is_said():
    regrets = pd.DataFrame({"rule": ["llm-drop", "similarity", "laco"], "mean": [-0.1, 0.25, np.nan]})
    scores = pd.DataFrame({
        "rule": ["greedy", "similarity", "llm-drop"], "mean": [0.9, 0.5, 0.4], "seen": ["better", None, "no difference"]
    })  # fmt: skip
    table = rivals.side_by_side(regrets, {"Capitals": scores, "MMLU, 5-shot": pd.DataFrame()}, {"Capitals": 0.95})
    assert table.set_index("rule").to_dict("index") == {
        "none: unpruned": {"regret, nats": "", "Capitals": "0.950", "MMLU, 5-shot": ""},
        "llm-drop": {"regret, nats": "-0.100", "Capitals": "0.400", "MMLU, 5-shot": "not measured"},
        "similarity": {"regret, nats": "+0.250", "Capitals": "0.500", "MMLU, 5-shot": "not measured"},
        "greedy": {"regret, nats": "not measured", "Capitals": "0.900 better", "MMLU, 5-shot": "not measured"},
    }
    assert rivals.side_by_side(None, {}, {}).empty


def test_what_each_drops_in_words(unit):
    choices = {"llm-drop": rivals.choices_of(unit)[2], "simple": rivals.Choice(Cut(3, 2), np.ones(1))}
    table = rivals.dropped_table(choices, {"llm-drop": unit}, LAYERS, {"simple": 0.2, "llm-drop": None})
    assert table["drops"].tolist() == [
        "layer 1 (0-based, 1 of 6) and the attention of layer 3 and the MLP of layer 4",
        "layers 3..4 (0-based, 2 of 6)",
    ]
    assert table["seconds"][0] == 1.5 and np.isnan(table["seconds"][1])
    assert table["passes x tokens"].tolist() == ["2.0 x 64", "0"]
    assert "arXiv" in table["source"][0]
    assert np.isnan(table["of the weights"][0]) and table["of the weights"][1] == 0.2


def test_ranks_in_rows_are_shares_of_the_others():
    rows = pd.DataFrame({"start": [0, 1, 2, 0, 1], "size": [1, 1, 1, 2, 2], "loss": [3.0, 9.0, 4.0, 2.0, 1.0]})
    found = ranks_in_rows(rows, "loss", 3)
    np.testing.assert_array_equal(found.to_numpy(), [[0, 1, 0.5], [1, 0, np.nan], [np.nan] * 3])


def test_both_maps_have_the_same_axes(every):
    draw = np.random.default_rng(0)
    distances = pd.DataFrame(
        [(start, size, draw.random(), 0.01, 9) for size in range(1, LAYERS + 1) for start in range(LAYERS - size + 1)],
        columns=["start", "size", "distance", "stderr", "samples"],
    )
    best = {"distance": distances[["size", "start"]].head(5), "loss": every.best}
    figure = block_maps(distances, every.rows, LAYERS, best=best, model="<m>", text="c4", provenance="p")
    layout = figure.interactive.layout
    assert layout.xaxis.range == layout.xaxis2.range == (-0.5, 5.5) and layout.yaxis.range == layout.yaxis2.range
    maps = [trace for trace in figure.interactive.data if trace.type == "heatmap"]
    assert [np.isfinite(np.array(trace.z, dtype=float)).sum() for trace in maps] == [6 + 5 + 4 + 3 + 2, 6 + 5 + 4]
    assert maps[1].xaxis == "x2" and "<m>" not in figure._repr_html_()
    with pytest.raises(InputError, match="best is of .*expected"):
        block_maps(distances, every.rows, LAYERS, best={}, model="m", text="c4")


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


@pytest.mark.slow
def test_a_page_of_what_is_measured_needs_no_torch(tiny_folder, tmp_path):
    given = SMALL["13-which-layers"] | {"model": str(tiny_folder), "results": str(tmp_path / "results")}
    given |= {"rules": "similarity, block-influence, replaceme", "sizes": "1, 2"}
    shown = notebook.run("13-which-layers", **given)
    given |= {"model": tiny_folder.name, "measure": False}  # as results know it
    code = (
        "import sys; from tests import notebook; "
        f"page = notebook.run('13-which-layers', **{given}); "
        "assert 'block-maps' in page and 'rules-capitals' in page; print(*sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(AROUND / "lib"), str(AROUND)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=AROUND, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not {"torch", "transformers", "lm_eval"} & set(done.stdout.split())
    nothing = given | {"results": str(tmp_path / "nothing"), "model": str(tiny_folder)}
    with pytest.raises(InputError, match="not measured: the distances"):
        notebook.run("13-which-layers", **nothing)
    for path in (tmp_path / "results").glob("*/blocks-*.json"):
        path.unlink()
    without = notebook.run("13-which-layers", **given)
    assert "Not measured" in without and "block-maps" not in without and 'id="block-maps"' in shown
