"""From the table of all results to tidy tables and figures: on frames made by hand, and what is published."""

import base64
import functools
import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.errors import InputError
from deeper_layers.report import figures, measured, names, paper, statistics
from deeper_layers.results.frames import COLUMNS, OF_DISTANCES
from deeper_layers.results.frames import _frame as frame
from deeper_layers.studies import letters_or_words, which_layers

QWEN, SMOLLM, GEMMA = "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct", "Gemma-3-270m"
LAYERS, ITEMS = 10, 200


@functools.cache
def published() -> tuple[pd.DataFrame, pd.DataFrame]:
    return results.scores(), results.distances()


def made(rows: list[dict]) -> pd.DataFrame:
    """A table of all results of one small model; what a row does not say is as it mostly is."""
    usual = {"model": "m", "layers": LAYERS, "dtype": "bfloat16", "metric": "acc", "items": ITEMS, "repeat": 0}
    usual |= {"chance": 0.25, "commonest": 0.25, "measured": "2026", "path": "m/sweep-a.json"}
    rows = [usual | row | {"value": row["outcome"].mean(), "items": len(row["outcome"])} for row in rows]
    return frame([row | {"share": row["size"] / LAYERS} for row in rows], COLUMNS)


def right(share: float, items: int = ITEMS) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(items) < round(share * items)).astype(float)


def curve(shares: list[float], rule: str = "similarity", **more) -> list[dict]:
    return [
        {"task": "mmlu", "cut": f"1,{n}" if n else "0,0", "start": 1 if n else 0, "size": n, "rule": rule,
         "outcome": right(share)} | more
        for n, share in enumerate(shares)
    ]  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "kept", "gone", "untold"),
    [
        ([0.75, 0.7, 0.5, 0.25], [1, 0.9, 0.5, 0], 2.0, ""),
        ([0.75, 0.75, 0.7], [1, 1, 0.9], np.inf, ""),
        ([0.3, 0.3, 0.25], [np.nan] * 3, np.nan, "at floor"),
    ],
)
def test_a_curve_has_a_row_a_size_with_its_share_kept_and_where_half_is_gone(shares, kept, gone, untold):
    found, (half,) = (
        statistics.curves(made(curve(shares))),
        statistics.half_gone_table(made(curve(shares))).to_dict("records"),
    )
    assert found["size"].tolist() == list(range(len(shares))) and found["topic"].unique() == ["MMLU, letter chosen"]
    assert found["kept"].tolist() == pytest.approx(kept, nan_ok=True) and (found["low"] < found["value"]).all()
    assert [half["value"], half["share"]] == pytest.approx([gone, gone / LAYERS], nan_ok=True)
    assert set(found["untold"]) == {untold} == {half["untold"]}
    assert names.say(half["value"], half["low"], half["high"], as_share=True).startswith("never") == np.isinf(gone)


def test_curves_are_told_apart_by_what_one_asks_for():
    rows = curve([0.75, 0.5], shots=0, order=0) + curve([0.7, 0.4], shots=5, order=0)
    assert len(statistics.curves(made(rows))) == 2, "one measurement counts"
    found = statistics.curves(made(rows), ["shots"])
    assert found.groupby("shots")["value"].max().to_dict() == {0: 0.75, 5: 0.7}


def test_what_is_no_share_of_items_is_drawn_and_has_nothing_kept():
    table = made([row | {"outcome": row["outcome"] * 0.5} for row in curve([0.75, 0.5])])
    found = statistics.curves(table)
    assert found["kept"].isna().all() and (found["low"] < found["value"]).all()
    assert statistics.half_gone_table(table).empty


def test_flips_are_counted_in_pairs_and_tested_exactly():
    whole, after = right(0.5), right(0.5).copy()
    after[np.flatnonzero(whole)[:9]] = 0
    after[np.flatnonzero(whole == 0)[0]] = 1
    rows = curve([0.5, 0.5])
    rows[1]["outcome"] = after
    (row,) = statistics.flips(made(rows)).to_dict("records")
    assert (row["lost"], row["gained"]) == (9, 1) and row["value"] == pytest.approx(-8 / ITEMS)
    assert row["p"] == row["p_holm"] == pytest.approx(2 * 11 / 1024)


def test_rules_are_compared_where_they_drop_other_layers():
    rows = curve([0.75, 0.7, 0.5]) + curve([0.75, 0.7, 0.3], "simple", start=3)
    for row in rows[4:]:
        row["cut"] = f"{row['start']},{row['size']}" if row["size"] == 2 else "1,1"
    (row,) = statistics.rules_compared(made(rows)).to_dict("records")
    assert row["size"] == 2 and row["value"] == pytest.approx(0.2)


HEALING = {"rank": 8, "seed": 0, "learning_rate": 0.005, "tokens": 100, "text": "c4", "adapters": "all",
           "auxiliary": 0.0, "quantization": None}  # fmt: skip


def healed(whole_healed: bool) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    loss = {"task": "c4", "metric": "loss", "length": 9, "chance": 10.0, "commonest": None, "rule": "similarity"}
    rows = [("0,0", 0, 3.0, None), ("1,4", 4, 5.0, None), ("1,4", 4, 4.0, HEALING), ("0,0", 0, 2.5, HEALING)]
    return made([
        loss | {"cut": cut, "start": 1, "size": size, "outcome": value + noise, "healing": how and json.dumps(how),
                "path": "m/healing-a.json" if how else "m/loss-a.json"}
        for cut, size, value, how in rows[: 4 if whole_healed else 3]
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("alike", "untold", "value", "high"), [(True, "", 1 - 1.5 / 2, 0.25), (False, "at most", np.nan, 0.5)]
)
def test_recovery_is_the_share_of_the_gap_to_the_whole_model_healed_alike(alike, untold, value, high):
    (row,) = statistics.recovery_table(healed(alike)).to_dict("records")
    assert row["untold"] == untold and [row["value"], row["high"]] == pytest.approx(
        [value, high], abs=0.01, nan_ok=True
    )
    assert row["untold"] == untold and row["rank"] == 8 and row["healing"].startswith("rank 8, 100 tokens")
    assert row["whole_healed"] == pytest.approx(2.5 if alike else np.nan, abs=0.01, nan_ok=True)


def distances_of(drawn: np.ndarray, layers: int = 4) -> pd.DataFrame:
    """Distances of blocks of one layer, by sequence [B, S]."""
    usual = {"model": "m", "layers": layers, "dtype": "bfloat16", "corpus": "c4", "samples": drawn.shape[1], "seed": 0}
    rows = [usual | {"start": start, "size": 1, "distance": own.mean(), "stderr": 0.1, "by_sequence": own}
            for start, own in enumerate(drawn)]  # fmt: skip
    return frame([row | {"share": 1 / layers, "measured": "2026", "path": "m/d.json"} for row in rows], OF_DISTANCES)


def test_the_most_similar_block_keeps_the_last_layer():
    drawn = np.tile([[0.3], [0.2], [0.4], [0.1]], (1, 20))
    (row,) = statistics.nearest(distances_of(drawn)).to_dict("records")
    assert (row["start"], row["low"], row["high"], row["agrees"]) == (1, 1, 1, 1)


# ---- what is published -----------------------------------------------------------------------------------------------


def test_headline_numbers_of_what_is_published():
    scores, distances = published()
    qwen = scores[scores["model"] == QWEN]
    last = statistics.kept_by_place(qwen).query("start == 24").set_index("task")["kept"]
    assert last["mmlu"] > 1 > 0.35 > last["written_facts"]
    half = statistics.half_gone_table(qwen[qwen["rule"] == "similarity"]).set_index("task")
    assert half.loc["mmlu", ["value", "low", "high"]].tolist() == [3, 2, 4] and half.loc["gsm8k", "value"] == 2
    regret = statistics.regret_table(scores[scores["task"] == "c4"], distances[distances["corpus"] == "c4"])
    mean = regret[regret["size"] == 0].set_index("model")["value"].round(2).to_dict()
    assert mean == {QWEN: 0.01, SMOLLM: 0.67, GEMMA: 1.07}
    recovered = statistics.recovery_table(qwen[qwen["task"] == "c4"]).query("untold == '' and rule == 'similarity'")
    assert recovered["value"].round(2).agg(["min", "max"]).tolist() == [0.07, 0.30]


def test_letters_go_in_the_middle_and_words_late():
    found = letters_or_words.differences(published()[0].query("model == @QWEN")).set_index(["about", "place"])
    assert found.loc[("Capitals", "middle"), "value"] == pytest.approx(-0.27, abs=0.005)
    assert found.loc[("Capitals", "middle"), "verdict"] == "supported"
    assert found[found["number"].str.startswith("W")]["verdict"].tolist() == ["supported"] * 5
    places = {start: letters_or_words.place_of(start, 28) for start in (9, 10, 15, 16, 18, 19, 23, 24)}
    assert places == {9: "", 10: "middle", 15: "middle", 16: "", 18: "", 19: "late", 23: "late", 24: ""}


def test_rules_and_measures_are_judged_by_the_regret_of_what_they_pick():
    scores, distances = (table[table["model"] == GEMMA] for table in published())
    rules = which_layers.rules(scores).set_index("rule")
    assert rules["value"].is_monotonic_increasing
    assert {"simple", "greedy", "random, mean of 5 draws"} <= set(rules.index)
    measures = which_layers.geometry().query("model == @GEMMA")
    picks = which_layers.picks(scores, measures, distances).groupby("measure")["value"].mean().round(2)
    assert picks["output without a layer (KL)"] == 0.36 and picks["angular distance, on C4"] == 1.07
    board = which_layers.leaderboard(scores, distances).set_index("rule")
    assert board.loc["greedy", "regret, Gemma-3-270m"] == pytest.approx(rules.loc["greedy", "value"])
    assert board.loc["similarity", "regret, Gemma-3-270m"] == pytest.approx(1.07, abs=0.01)
    assert board["regret, Gemma-3-270m"].isna().any() and "ReplaceMe" in board.loc["streamline", "published"]
    blocks = which_layers.blocks(scores)
    assert blocks.loc[blocks["start"] + blocks["size"] == 18, "place"].isna().all()


def test_every_task_of_results_has_words_and_a_data_set():
    scores, _ = published()
    assert set(scores["task"]) - {"llama.cpp"} <= set(names.TOPICS)
    assert not measured.data(scores).query("data != 'Wikipedia'")["asked"].eq(0).any()
    assert scores.loc[scores["task"] == "mmlu", "subject"].nunique() == 57


def test_runs_are_added_up_and_asked_twice_tells_which_answers_changed():
    every, hours = measured.runs(), measured.hours()
    assert hours["runs"].sum() == len(every) and hours["what"].notna().all()
    twice = measured.asked_twice(published()[0]).query("task == 'mmlu'")
    assert twice["differ"].agg(["min", "max"]).tolist() == [14, 70] and twice["turned"].max() == 46
    assert measured.processors("a processor, 2 threads") == 2 and measured.processors("NVIDIA H100") is None
    assert measured.watt_hours(3600, 2, 0) == pytest.approx(2 * 12 * 1.67)


# ---- figures ---------------------------------------------------------------------------------------------------------


def drawn() -> list:
    rows = statistics.curves(made(curve([0.75, 0.7, 0.5, 0.25]) + curve([0.75, 0.6, 0.4, 0.2], "simple")))
    half = statistics.half_gone_table(made(curve([0.75, 0.7, 0.5, 0.25])))
    distances = distances_of(np.random.default_rng(0).uniform(0.1, 0.4, (4, 9)))
    losses = statistics.losses(made(curve([0.75, 0.5, 0.3], task="c4", metric="loss", chance=2.0)))
    return [
        figures.curves(rows, over=paper.cliffs()),
        figures.in_rows(half, y="topic", x="share"),
        figures.distance_curves(distances),
        figures.heat_maps(distances),
        figures.best_starts(statistics.nearest(distances)),
        figures.curves(losses, hue="line", stroke="rule", apart="healed"),
    ]


def test_a_figure_is_complete_self_contained_and_drawn_twice_the_same(monkeypatch):
    monkeypatch.setenv("DEEPER_LAYERS_NOTEBOOK", "02-question-answering")
    for figure, other in zip(drawn(), drawn(), strict=True):
        text = figure._repr_html_()
        assert figure.svg() == other.svg() and text == other._repr_html_()
        assert not re.search(r'(src|href)="(?!data:)', text) and figure.alt and "nan" not in figure.caption
        assert "papermill notebooks/02-question-answering.ipynb out.ipynb -p model ORG/NAME" in text
        plot = json.loads(re.search(r'plotly-data">(.*?)</script>', text)[1].replace("\\u003c", "<"))
        assert plot["panels"] and all(panel["data"] and panel["layout"]["height"] for panel in plot["panels"])
        rows = base64.b64decode(re.search(r'text/csv;charset=utf-8;base64,(.*?)"', text)[1])
        assert len(pd.read_csv(io.BytesIO(rows))) == len(figure.data)


def test_what_is_missing_is_a_gap_and_no_zero_and_a_rule_has_one_colour():
    rows = statistics.curves(made(curve([0.75, 0.7, 0.5, 0.25]) + curve([0.75, 0.4], "simple")))

    def traces(rows: pd.DataFrame, name: str) -> list[dict]:
        return [trace for trace in figures.curves(rows).live["panels"][0]["data"] if trace.get("name") == name]

    both, alone = (traces(of, "simple heuristic")[-1] for of in (rows, rows[rows["rule"] == "simple"]))
    assert both["line"]["color"] == alone["line"]["color"]
    rows.loc[1, ["low", "high"]] = np.nan
    band = next(trace for trace in traces(rows, "similarity-informed") if trace.get("fill"))
    assert None in band["y"] and 0 not in band["y"]
    assert "Not measured" in figures.curves(rows[:0])._repr_html_()
    of_two = pd.concat([rows, rows.assign(model="org/m")], ignore_index=True)
    assert len(figures.curves(of_two).live["panels"]) == 2, "models of one title are two"
    with pytest.raises(InputError, match="expected a-z"):
        figures.curves(rows, name="No Name")
    table = figures.table(rows, "x", columns=["model", "rule", "value"]).to_html()
    assert "0.750 (0.686 to 0.805)" in table and "similarity-informed" in table


@pytest.mark.parametrize(
    ("given", "expected"),
    [((0.912, 0.87, 0.95), "0.91 (0.87 to 0.95)"), ((0.5,), "0.50"), ((float("nan"),), "not measured")],
)
def test_numbers_in_prose(given, expected):
    assert names.say(*given) == expected
