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


def test_a_curve_has_a_row_a_size_with_its_share_kept():
    found = statistics.curves(made(curve([0.75, 0.7, 0.5, 0.25])))
    assert found["size"].tolist() == [0, 1, 2, 3] and found["topic"].unique() == ["MMLU, letter chosen"]
    assert found["kept"].tolist() == pytest.approx([1, 0.9, 0.5, 0])
    assert (found["low"] < found["value"]).all() and (found["kept_low"][1:] < found["kept"][1:]).all()
    half = statistics.half_gone_table(made(curve([0.75, 0.7, 0.5, 0.25])))
    assert half[["value", "share", "untold"]].values.tolist() == [[2.0, 0.2, ""]]


def test_what_the_whole_model_guesses_is_at_floor():
    table = made(curve([0.3, 0.3, 0.25]))
    assert set(statistics.curves(table)["untold"]) == {"at floor"} and statistics.curves(table)["kept"].isna().all()
    assert statistics.half_gone_table(table)["untold"].tolist() == ["at floor"]


def test_where_half_is_never_gone_it_is_infinite_and_said_to_be_never():
    (row,) = statistics.half_gone_table(made(curve([0.75, 0.75, 0.7]))).to_dict("records")
    assert row["value"] == np.inf and names.say(row["value"], row["low"], row["high"], as_share=True) == (
        "never (never to never)"
    )


def test_curves_are_told_apart_by_what_one_asks_for():
    rows = curve([0.75, 0.5], shots=0, order=0) + curve([0.7, 0.4], shots=5, order=0)
    assert len(statistics.curves(made(rows))) == 2, "one measurement counts"
    found = statistics.curves(made(rows), ["shots"])
    assert found.groupby("shots")["value"].max().to_dict() == {0: 0.75, 5: 0.7}


def test_what_is_no_share_of_items_is_drawn_and_has_nothing_kept():
    rows = curve([0.75, 0.5])
    for row in rows:
        row["outcome"] = row["outcome"] * 0.5
    found = statistics.curves(made(rows))
    assert found["kept"].isna().all() and (found["low"] < found["value"]).all()
    assert statistics.half_gone_table(made(rows)).empty


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


def test_recovery_is_the_share_of_the_gap_to_the_whole_model_healed_alike():
    (row,) = statistics.recovery_table(healed(True)).to_dict("records")
    assert row["value"] == pytest.approx(1 - 1.5 / 2) and row["whole_healed"] == pytest.approx(2.5, abs=0.01)
    assert row["untold"] == "" and row["rank"] == 8 and row["healing"].startswith("rank 8, 100 tokens")


def test_without_the_whole_model_healed_alike_a_recovery_is_at_most():
    (row,) = statistics.recovery_table(healed(False)).to_dict("records")
    assert row["untold"] == "at most" and np.isnan(row["value"]) and row["high"] == pytest.approx(0.5, abs=0.01)


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
    kept = statistics.kept_by_place(scores[scores["model"] == QWEN])
    last = kept[kept["start"] == 24].set_index("task")["kept"]
    assert last["mmlu"] > 1 > 0.35 > last["written_facts"]
    half = statistics.half_gone_table(scores[(scores["rule"] == "similarity") & (scores["model"] == QWEN)])
    half = half.set_index("task")
    assert half.loc["mmlu", ["value", "low", "high"]].tolist() == [3, 2, 4] and half.loc["gsm8k", "value"] == 2
    regret = statistics.regret_table(scores[scores["task"] == "c4"], distances[distances["corpus"] == "c4"])
    mean = regret[regret["size"] == 0].set_index("model")["value"].round(2).to_dict()
    assert mean == {QWEN: 0.01, SMOLLM: 0.67, GEMMA: 1.07}
    recovered = statistics.recovery_table(scores[(scores["model"] == QWEN) & (scores["task"] == "c4")])
    told = recovered[(recovered["untold"] == "") & (recovered["rule"] == "similarity")]["value"]
    assert (round(told.min(), 2), round(told.max(), 2)) == (0.07, 0.30)


def test_letters_go_in_the_middle_and_words_late():
    found = letters_or_words.differences(published()[0].query("model == @QWEN")).set_index(["about", "place"])
    assert found.loc[("Capitals", "middle"), "value"] == pytest.approx(-0.27, abs=0.005)
    assert found.loc[("Capitals", "middle"), "verdict"] == "supported"
    of_words = found[found["number"].str.startswith("W")]["verdict"]
    assert of_words.tolist() == ["supported"] * 5


@pytest.mark.parametrize(
    ("start", "place"),
    [(9, ""), (10, "middle"), (14, "middle"), (15, "middle"), (16, ""), (18, ""), (19, "late"), (23, "late"), (24, "")],
)
def test_middle_and_late_blocks_are_thirds_without_the_last_layer(start, place):
    assert letters_or_words.place_of(start, 28) == place


def test_rules_and_measures_are_judged_by_the_regret_of_what_they_pick():
    scores, distances = (table[table["model"] == GEMMA] for table in published())
    rules = which_layers.rules(scores).set_index("rule")
    assert rules["value"].is_monotonic_increasing
    assert {"simple", "greedy", "random, mean of 5 draws"} <= set(rules.index)
    measures = which_layers.geometry().query("model == @GEMMA")
    picks = which_layers.picks(scores, measures, distances).groupby("measure")["value"].mean().round(2)
    assert picks["output without a layer (KL)"] == 0.36 and picks["angular distance, on C4"] == 1.07
    blocks = which_layers.blocks(scores)
    assert blocks.loc[blocks["start"] + blocks["size"] == 18, "place"].isna().all()
    board = which_layers.leaderboard(scores, distances).set_index("rule")
    assert board.loc["greedy", "regret, Gemma-3-270m"] == pytest.approx(rules.loc["greedy", "value"])
    assert board.loc["similarity", "regret, Gemma-3-270m"] == pytest.approx(1.07, abs=0.01)
    assert board["regret, Gemma-3-270m"].isna().any() and "ReplaceMe" in board.loc["streamline", "published"]


def test_every_task_of_results_has_words_and_a_data_set():
    scores, _ = published()
    tasks = set(scores["task"]) - {"llama.cpp"}
    assert tasks <= set(names.TOPICS) and not measured.data(scores).query("data != 'Wikipedia'")["asked"].eq(0).any()
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
    return [
        figures.curves(rows, over=paper.cliffs()),
        figures.in_rows(half, y="topic", x="share"),
        figures.distance_curves(distances),
        figures.heat_maps(distances),
        figures.best_starts(statistics.nearest(distances)),
        figures.curves(
            statistics.losses(made(curve([0.75, 0.5, 0.3], task="c4", metric="loss", chance=2.0))),
            hue="line",
            stroke="rule",
            apart="healed",
        ),
    ]


def test_a_figure_is_complete_and_self_contained():
    for figure in drawn():
        text = figure._repr_html_()
        assert not re.search(r'(src|href)="(?!data:)', text) and figure.alt and "nan" not in figure.caption
        plot = json.loads(re.search(r'plotly-data">(.*?)</script>', text)[1].replace("\\u003c", "<"))
        assert plot["panels"] and all(panel["data"] and panel["layout"]["height"] for panel in plot["panels"])
        rows = base64.b64decode(re.search(r'text/csv;charset=utf-8;base64,(.*?)"', text)[1])
        assert len(pd.read_csv(io.BytesIO(rows))) == len(figure.data)


def test_two_drawings_of_one_frame_are_the_same_bytes():
    for one, other in zip(drawn(), drawn(), strict=True):
        assert one.svg() == other.svg() and one._repr_html_() == other._repr_html_()


def test_the_command_below_a_figure_is_that_of_its_notebook(monkeypatch):
    monkeypatch.setenv("DEEPER_LAYERS_NOTEBOOK", "02-question-answering")
    assert "papermill notebooks/02-question-answering.ipynb out.ipynb -p model ORG/NAME" in drawn()[0]._repr_html_()


def test_what_is_missing_is_a_gap_and_no_zero():
    rows = statistics.curves(made(curve([0.75, 0.7, 0.5, 0.25])))
    rows.loc[1, ["low", "high"]] = np.nan
    figure = figures.curves(rows)
    band = next(trace for trace in figure.live["panels"][0]["data"] if trace.get("fill") == "toself")
    assert None in band["y"] and 0 not in band["y"]
    assert "Not measured" in figures.curves(rows[:0])._repr_html_()


def test_a_rule_has_one_colour_whichever_others_there_are():
    both = statistics.curves(made(curve([0.75, 0.5]) + curve([0.75, 0.4], "simple")))

    def colour(rows: pd.DataFrame) -> str:
        traces = figures.curves(rows).live["panels"][0]["data"]
        return next(
            trace["line"]["color"] for trace in traces if trace.get("name") == "simple heuristic" and trace.get("line")
        )

    assert colour(both) == colour(both[both["rule"] == "simple"])


def test_a_cell_of_a_table_has_its_interval():
    table = figures.table(statistics.curves(made(curve([0.75, 0.5]))), "x", columns=["model", "rule", "value"])
    assert "0.750 (0.686 to 0.805)" in table.to_html() and "similarity-informed" in table.to_html()


@pytest.mark.parametrize(
    ("given", "expected"),
    [((0.912, 0.87, 0.95), "0.91 (0.87 to 0.95)"), ((0.5,), "0.50"), ((float("nan"),), "not measured")],
)
def test_numbers_in_prose(given, expected):
    assert names.say(*given) == expected


def test_a_figure_has_a_plain_name():
    with pytest.raises(InputError, match="expected a-z"):
        figures.curves(statistics.curves(made(curve([0.75, 0.5]))), name="No Name")
