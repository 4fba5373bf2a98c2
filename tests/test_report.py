"""From the table of all results to tidy tables and figures: on frames made by hand, and what is published."""

import base64
import functools
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from deeper_layers.cuts import Cut
from deeper_layers.data.embedded import answers
from deeper_layers_companion import results
from deeper_layers_companion.report import figures, findings, measured, names, pairing, panels, paper, statistics
from deeper_layers_companion.report.one_cut import describe_lengths, find_scores
from deeper_layers_companion.results import frames, places
from deeper_layers_companion.studies import four_kinds, last_layers, letters_or_words, which_layers

QWEN, SMOLLM, GEMMA = "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct", "Gemma-3-270m"
LAYERS, ITEMS = 10, 200
FALLING = [0.75, 0.7, 0.5, 0.25]


@functools.cache
def published() -> tuple[pd.DataFrame, pd.DataFrame]:
    return results.scores(), results.distances()


def table_like(table: pd.DataFrame, rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).reindex(columns=table.columns).astype(table.dtypes)


def made(rows: list[dict], layers: int = LAYERS) -> pd.DataFrame:
    """A table of all results of one small model; what a row does not say is as it mostly is."""
    usual = {"model": "m", "layers": layers, "dtype": "bfloat16", "task": "mmlu", "metric": "acc", "chance": 0.25}
    usual |= {"rule": "similarity", "repeat": 0, "measured": "2026", "path": "m/scores-a.json"}
    full = []
    for row in rows:
        start, size = map(int, row["cut"].split(","))
        place = {"start": start, "size": size, "share": size / layers}
        row = row | {"outcome": np.array(row["outcome"], dtype=float)}
        full.append(usual | place | {"value": np.mean(row["outcome"]), "items": len(row["outcome"])} | row)
    return table_like(frames.tabulate_scores([]), full)


def right(share: float) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(ITEMS) < round(share * ITEMS)).astype(float)


def curve(shares: list[float], **more) -> list[dict]:
    return [{"cut": f"1,{n}" if n else "0,0", "outcome": right(share)} | more for n, share in enumerate(shares)]


def distances_of(drawn: np.ndarray) -> pd.DataFrame:
    """Distances of blocks of one layer, by sequence [B, S]."""
    usual = {"model": "m", "layers": len(drawn), "size": 1, "corpus": "c4", "samples": drawn.shape[1], "seed": 0}
    rows = [{"start": start, "distance": own.mean(), "by_sequence": own} for start, own in enumerate(drawn)]
    return table_like(frames.tabulate_distances([]), [usual | {"share": 1 / len(drawn)} | row for row in rows])


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "kept", "gone", "no_value_reason"),
    [
        (FALLING, [1, 0.9, 0.5, 0], 2.0, ""),
        ([0.75, 0.75, 0.7], [1, 1, 0.9], np.inf, ""),
        ([0.3, 0.3, 0.25], [np.nan] * 3, np.nan, "at floor"),
    ],
)
def test_a_curve_has_a_row_a_size_with_its_share_kept_and_where_half_is_gone(shares, kept, gone, no_value_reason):
    table = made(curve(shares))
    found, (half,) = statistics.curves(table), statistics.half_gone_table(table).to_dict("records")
    assert found["size"].tolist() == list(range(len(shares))) and found["topic"].unique() == ["MMLU by letter"]
    assert found["kept"].tolist() == pytest.approx(kept, nan_ok=True) and (found["low"] < found["value"]).all()
    assert found["whole"].tolist() == pytest.approx([shares[0]] * len(shares))
    assert [half["value"], half["share"]] == pytest.approx([gone, gone / LAYERS], nan_ok=True)
    assert {*found["no_value_reason"], half["no_value_reason"]} == {no_value_reason}


@pytest.mark.parametrize(
    ("sizes", "likely", "ends", "for_good", "words"),
    [
        (range(9), (3, 4), (2, 4), 3, "3 or 4 (2 to 4)"),
        (range(9), (2,), (2, 2), 5, "2, for good from 5"),
        (range(9), (2,), (1, 2), np.inf, "2 (1 to 2), not for good"),
        (range(9), (7, 8), (7, 8), 7, "7 or 8"),
        (range(9), (8, np.inf), (8, np.inf), 8, "8 or more than 8, the most measured"),
        (range(9), (7, 8), (5, np.inf), 7, "7 or 8 (5 to 8 or more than 8)"),
        ((0, 4, 8), (4,), (4, 4), 4, "1 to 4"),
        ((0, 4, 8), (4, 8), (4, 8), 4, "1 to 8"),
        ((0, 4, 8), (8,), (4, 8), 8, "5 to 8 (1 to 8)"),
        ((0, 4, 8), (np.inf,), (np.inf, np.inf), np.inf, "more than 8, the most measured"),
    ],
)
def test_where_half_is_gone_is_told_as_surely_as_it_is_known(sizes, likely, ends, for_good, words):
    row = {"layers": 8, "sizes": tuple(sizes), "likely": likely, "value": likely[0], "for_good": for_good}
    row |= {"low": ends[0], "high": ends[1]}
    assert statistics.describe_half_gone(row) == words
    shares = statistics.describe_half_gone(row, as_share=True)
    assert shares == re.sub(r"\d", lambda number: f"{int(number[0]) / 8:.0%}", words)


def test_half_gone_is_a_range_where_sizes_were_left_out_and_nothing_at_floor():
    rows = [{"cut": "0,0", "outcome": right(0.9)}, {"cut": "1,4", "outcome": right(0.4)}]
    rows += [{"cut": "1,8", "outcome": right(0.8)}]
    (half,) = statistics.half_gone_table(made(rows)).to_dict("records")
    assert half["words"] == "1 to 4, not for good" and half["sizes"] == (0, 4, 8) and half["value"] == 4
    (floor,) = statistics.half_gone_table(made(curve([0.3, 0.2]))).to_dict("records")
    assert floor["words"] == "" and floor["no_value_reason"] == "at floor"


def test_curves_are_told_apart_by_what_one_asks_for_and_losses_have_nothing_kept():
    table = made(curve([0.75, 0.5], shots=0) + curve([0.7, 0.4], shots=5))
    assert len(statistics.curves(table)) == 2, "one measurement counts"
    assert statistics.curves(table, ["shots"]).groupby("shots")["value"].max().to_dict() == {0: 0.75, 5: 0.7}
    guessed = made(
        curve([0.75, 0.5], limit=ITEMS, commonest=0.3)
        + curve([0.75, 0.5], commonest=0.4, model="all")
        + curve([0.75, 0.5], subject="law", target=np.zeros(ITEMS), task="mmlu_of_law", model="group")
    )
    found = statistics.curves(guessed).groupby("model")["guessing"].max()
    assert found.to_dict() == {"m": 0.3, "all": 0.4, "group": 1.0} and len(statistics.half_gone_table(guessed)) == 3
    table["outcome"] *= 0.5  # no share of items
    found = statistics.curves(table)
    assert found["kept"].isna().all() and (found["low"] < found["value"]).all()
    assert statistics.half_gone_table(table).empty


def test_what_does_not_count_changes_no_number():
    """What was measured again, rounded or healed is in no curve, whatever it says, and in whatever order it stands."""
    run = {"rank": 8, "seed": 0, "learning_rate": 1e-3, "auxiliary": 0, "adapters": "all", "quantization": "nf4"}
    healing = json.dumps(run | {"text": "c4", "tokens": 64})
    more = {"written": np.arange(ITEMS), "ended": np.ones(ITEMS), "chosen": right(0.5)}
    counted = curve(FALLING, **more) + curve([0.75, 0.6, 0.5, 0.3], rule="simple", **more)
    for row in counted[5:]:
        row["cut"] = f"2,{row['cut'][2:]}"  # the simple heuristic drops others
    counted += curve([0.75, 0.7, 0.6, 0.4], healing=healing, path="healed", **more)
    counted += curve([0.5, 0.6, 0.8, 0.9], task="c4", metric="loss", chance=5.0)
    opposite = {"outcome": right(0.5), "written": np.ones(ITEMS), "ended": np.zeros(ITEMS), "chosen": np.zeros(ITEMS)}
    fewer = counted[:3] + counted[4:7]  # a measurement of more cuts is the one that counts
    others = [row | opposite | {"repeat": 1, "path": "again"} for row in fewer]
    others += [row | opposite | {"bits": "Q4_0", "path": "rounded"} for row in fewer]
    plain, both = made(counted), made([*others, *counted])
    for table_of in (
        statistics.curves, statistics.half_gone_table, statistics.flips, statistics.rules_compared, statistics.lengths,
        statistics.recovery_table,
    ):  # fmt: skip
        found = [table_of(table) for table in (plain, both)]
        by = [name for name in ("task", "rule", "cut") if name in found[0]]
        pd.testing.assert_frame_equal(*(table.sort_values(by, ignore_index=True) for table in found))
        assert len(found[0])
    rounded = statistics.curves(both, ["bits"]).query("task == 'mmlu'")
    assert rounded["bits"].value_counts().to_dict() == {"Q4_0": 6}, "and is there where it is asked for"


@pytest.mark.parametrize(
    ("shares", "ruined", "largest"),
    [([0.75, 0.7, 0.26], True, 1), ([0.75, 0.3, 0.7], False, 0), ([0.3, 0.3, 0.2], False, None)],
)
def test_a_cut_is_judged_by_what_the_whole_model_can(shares, ruined, largest):
    """Surely ruined is a task where the whole model is surely above guessing, and less than half of that is left."""
    (score,) = find_scores(made(curve(shares)), Cut(1, 2))
    assert (score.whole[0], score.pruned[0], score.guessing) == (shares[0], shares[2], 0.25)
    assert (score.ruined, score.largest, score.rule) == (ruined, largest, "similarity")


def test_guessing_is_at_random_or_always_the_same_whichever_is_better():
    """Of a group over the right choices of all its subjects, from the widest limit that was measured."""
    law, art = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1])
    usual = {"cut": "0,0", "outcome": np.ones(4)}
    rows = [
        usual | {"subject": "law", "chosen": law, "target": None},
        usual | {"subject": "art", "chosen": 1 - art, "target": art},
        usual | {"subject": "art", "chosen": art[:2], "target": art[:2] * 0, "outcome": np.ones(2)},
    ]
    assert pairing.score_guessing(made(rows)) == 5 / 8
    half_known = [rows[0] | {"outcome": np.array([1, 1, 0, 0])}, rows[1] | {"target": None, "outcome": np.zeros(4)}]
    assert pairing.score_guessing(made(half_known)) == 0.25, "2 of 8 are known, which is what chance gives"
    levels = [
        ({"chance": 0.25, "commonest": 0.4}, 0.4),
        ({"chance": 0.5, "commonest": 0.4}, 0.5),
        ({"chance": np.nan}, 0),
    ]
    for level, wanted in levels:
        assert pairing.score_guessing(made([usual | level])) == wanted
    narrow = usual | {"outcome": np.ones(3), "commonest": 1.0}
    assert pairing.score_guessing(made([usual | {"commonest": 0.4}, narrow])) == 0.4
    limited = [
        row | {"limit": len(row["outcome"])} for row in (usual | {"commonest": 0.4}, narrow | {"rule": "simple"})
    ]
    found = {of.place[2]: of.guessing for of in pairing.find_measurements(made(limited))}
    assert found == {"similarity": 0.4, "simple": 1.0}, "of the items that were asked"


def test_lengths_tell_stopping_from_being_wrong():
    whole = {"cut": "0,0", "outcome": np.array([1, 1, 1, 0]), "written": [10, 20, 30, 40], "ended": np.ones(4)}
    cut = {"cut": "6,2", "outcome": np.array([1, 0, 0, 0]), "written": [30, 50, 90, 90], "ended": np.arange(4) < 2}
    scores = made([row | {"task": "gsm8k"} for row in (whole, cut)])
    lengths = statistics.lengths(scores)
    found = lengths[["value", "at_most", "gap", "ended", "of_ended", "tokens", "times"]].values.tolist()
    assert found == [[0.75, 0.75, 0, 1, 0.75, 25, 1], [0.25, 0.75, 0, 0.5, 0.5, 70, 2.8]]
    assert (lengths["gap_low"] < 0).all() and (lengths["gap_high"] > 0).all()
    (said,) = describe_lengths(scores, Cut(6, 2))
    assert "70 tokens (median), 2.8 times" in said and "; 50% are cut off" in said


# ---- what is published -----------------------------------------------------------------------------------------------


def test_headline_numbers_of_what_is_published():
    scores, distances = published()
    qwen = scores[scores["model"] == QWEN]
    last = statistics.kept_by_place(qwen).query("start == 24").set_index("task")["kept"]
    assert last["mmlu"] > 1 > 0.35 > last["written_facts"]
    half = statistics.half_gone_table(qwen[qwen["rule"] == "similarity"]).set_index("task")
    assert half.loc["mmlu", ["value", "low", "high"]].tolist() == [3, 2, 4] and half.loc["gsm8k", "value"] == 2
    regret = which_layers.regret_table(scores[scores["task"] == "c4"], distances[distances["corpus"] == "c4"])
    assert (regret.loc[regret["start"] == regret["best"], "place"] == 1).all()
    mean = regret[regret["size"] == 0].set_index("model")[["value", "low", "high"]].round(2)
    regrets = [[0.01, -0.01, 0.01], [0.67, 0.39, 1.3], [1.07, 0.96, 1.18]]
    assert mean.loc[[QWEN, SMOLLM, GEMMA]].values.tolist() == regrets
    recovered = statistics.recovery_table(qwen[qwen["task"] == "c4"]).query(
        "no_value_reason == '' and rule == 'similarity'"
    )
    assert recovered["cut"].str.fullmatch(r"\d+,\d+").all()
    by_rate = recovered.groupby("learning_rate")["value"].agg(["min", "max"]).round(2)
    assert by_rate.values.tolist() == [[-0.10, -0.03], [-0.06, 0.06], [0.07, 0.30]]
    mmlu = qwen[qwen["task"] == "mmlu"]
    first = statistics.flips(mmlu[mmlu["rule"] == "similarity"])[["lost", "gained", "changed", "p"]].iloc[0]
    assert first.tolist() == pytest.approx([49, 45, 0.143, 0.757], abs=1e-3)
    apart = statistics.rules_compared(mmlu).set_index("size")["value"]
    assert apart[[1, 4]].round(3).tolist() == [0.078, -0.090] and 0 not in apart, "there both drop nothing"
    nearest = statistics.nearest(distances).set_index(["model", "corpus", "size"]).loc[(QWEN, "c4", 2)]
    assert nearest[["start", "low", "high"]].tolist() == [15] * 3 and nearest["agrees"] == pytest.approx(
        0.99, abs=0.001
    )
    twice = measured.asked_twice(scores).query("task == 'mmlu'")
    assert twice["differ"].agg(["min", "max"]).tolist() == [14, 70] and twice["turned"].max() == 46


def test_readme_tells_what_was_measured():
    """Every number of its findings and its table, computed anew; and it stays short."""
    scores, distances = published()
    text = " ".join((places.AROUND / "README.md").read_text(encoding="utf-8").split())
    assert len(text.split()) <= 750
    qwen, on_c4 = scores[scores["model"] == QWEN], distances.query("corpus == 'c4'")
    gone = statistics.half_gone_table(qwen[qwen["rule"] == "similarity"]).set_index("task")
    earlier = statistics.kept_by_place(qwen).query("start == 23").set_index("task")
    kept = earlier["kept"].map("{:.0%}".format)
    facts = letters_or_words.costs(scores).query("task == 'written_facts'").pivot(index="model", columns="place")
    facts = facts["value"][["middle", "late"]].map("{:.0%}".format)
    forms = last_layers.kept_by_form(scores).pivot(index=["model", "asked"], columns="place", values="value")
    forms = forms[["the last layers", "the most similar layers"]].map("{:.0%}".format)
    depth = statistics.depth_at_quarter(on_c4).set_index("model")["depth"].map("{:.2f}".format)
    of_paper = paper.depth_at_quarter()["depth"]
    single = which_layers.regret_table(qwen.query("task == 'c4'"), on_c4).query("size == 1").iloc[0].to_dict()
    loss = statistics.recovery_table(qwen.query("task == 'c4'"))
    loss = loss.query("rule == 'similarity' and learning_rate == 0.005")
    loss = loss[loss["tokens"] == loss["tokens"].min()].dropna(subset="value").sort_values("value")
    least, most = loss.iloc[[0, -1]].to_dict("records")
    first = four_kinds.judge(qwen).query("number.str.startswith('1.') and prompt == 'question'")
    outlived, outcome = first["value"].tolist(), first["verdict"].iloc[0]
    preferred = names.join_verdicts(four_kinds.judge(scores).query("number.str.startswith('2.')"))
    sentences = [
        f"half is gone at {gone.loc['gsm8k', 'gone_at']} to {gone.loc['capitals', 'gone_at']} of 28 layers, by task",
        f"depth {depth[QWEN]} (SmolLM2-135M {depth[SMOLLM]}, Gemma-3-270m {depth[GEMMA]})",
        f"in the paper's models at {of_paper.min():.2f} to {of_paper.max():.2f}",
        "{} is kept without the last 1 to 8 layers, {} without the most similar".format(*forms.loc[(QWEN, "written")]),
        "Letters fall alike ({} and {})".format(*forms.loc[(QWEN, "letters")]),
        "SmolLM2 keeps {} and {} of writing".format(*forms.loc[(SMOLLM, "written")]),
        "of writing, Gemma {} and {}.".format(*forms.loc[(GEMMA, "written")]),
        "third {} of written facts are kept, without four of the last third, the last layer kept, {}.".format(
            *facts.loc[QWEN]
        ),
        "Gemma keeps {} and {}".format(*facts.loc[GEMMA]),
        "SmolLM2 {} and {}".format(*facts.loc[SMOLLM]),
        f"number {single['place']} of {single['blocks']} and costs {names.format_number(single)} nats",
        f"closed {names.format_number(least, as_share=True)} to {most['value']:.0%} of the gap",
        f"{kept['mmlu']} of MMLU's letters ({earlier.loc['mmlu', 'items']} questions) are kept",
        f"are kept and {kept['written_facts']} of written facts.",
        f"on {len(answers())} new items: without its last five layers {outlived[0]:.0%} of choosing the right letter",
        f"{outlived[1]:.0%} of writing. {outcome.capitalize()}; at floor in the smaller models.",
        f"That tasks prefer the last layer dropped is {preferred}.",
    ]
    for task in ("gsm8k", "mmlu", "mmlu_continuation", "boolq", "capitals"):
        sentences.append(f"| {gone.loc[task, 'items']:,} | {gone.loc[task, 'words']} |")
    assert [sentence for sentence in sentences if sentence not in text] == []


def test_a_column_of_the_leaderboard_compares_rules_that_were_healed_alike():
    """Similarity was healed last at another rate, which would flatter it."""
    loss = {"task": "c4", "metric": "loss", "chance": 9.0}

    def healed(rule: str, cut: str, rate: float, value: float, day: int) -> dict:
        run = {"rank": 8, "seed": 0, "learning_rate": rate, "tokens": 64, "text": "c4", "auxiliary": 0.0}
        told = {"healing": json.dumps(run | {"adapters": "all", "quantization": None}), "measured": f"2026-1{day}"}
        return loss | told | {"rule": rule, "cut": cut, "outcome": np.full(4, value)}

    rows = [healed("similarity", "0,0", rate, 3.0 - rate, 0) for rate in (0.1, 0.2)]
    rows += [healed("similarity", "2,4", 0.1, 3.5, 0), healed("simple", "5,4", 0.1, 4.5, 0)]
    rows += [healed("similarity", "2,4", 0.2, 3.1, 2), healed("similarity", "2,6", 0.2, 3.3, 2)]
    alike = which_layers.select_healed_alike(made(rows)).set_index("rule")["rise"]
    assert alike.round(6).to_dict() == {"similarity": 0.6, "simple": 1.6}
    board = which_layers.leaderboard(*published())
    (column,) = [name for name in board if name.startswith("healed, Qwen")]
    assert column == "healed, Qwen2.5-Coder-1.5B (n = 4, rate 0.005, 61,440 tokens)"
    assert board.set_index("rule")[column].dropna().round(3).to_dict() == {"similarity": 0.115, "simple": 0.596}


def test_a_rule_that_was_healed_alone_has_its_column():
    scores, distances = published()
    alone = scores.query("model == @QWEN and (healing.isna() or rule == 'similarity')")
    (column,) = which_layers.leaderboard(alone, distances).set_index("rule").filter(like="healed, Qwen").items()
    assert column[1].dropna().index.tolist() == ["similarity"]


def test_what_was_measured_again_stands_beside_the_published_score_of_the_same_question():
    first = curve([0.75, 0.5]) + curve([0.9, 0.9], healing="{}") + curve([0.8, 0.8], task="c4", metric="loss")
    again = curve([0.74, 0.25]) + curve([0.6], task="boolq") + curve([0.8], task="c4", metric="loss")
    table = measured.published_again(made(first), made(again)).set_index("size")
    assert table[["published", "again"]].to_dict("index") == {
        0: {"published": 0.75, "again": 0.74}, 1: {"published": 0.5, "again": 0.25},
    }  # fmt: skip
    assert table["within"].tolist() == [True, False] and set(table["topic"]) == {"MMLU by letter"}
    assert (table["published_low"] < table["published"]).all() and (table["published"] < table["published_high"]).all()


def test_random_picks_are_drawn_anew_for_their_interval():
    rules = which_layers.rules(published()[0].query("model == @QWEN")).set_index("rule")
    random = rules.loc["random, mean of 5 draws", ["value", "low", "high"]].round(1)
    assert random.tolist() == [1.1, 0.3, 1.8]


def test_one_depth_is_told_of_the_paper_s_models_and_of_ours():
    found = statistics.depth_at_quarter(published()[1].query("corpus in ['c4', 'wikipedia']"))
    assert found.groupby("model")["depth"].unique().map(lambda depths: depths.round(2).tolist()).to_dict() == {
        QWEN: [0.48], GEMMA: [0.81], SMOLLM: [0.5],
    }  # fmt: skip
    assert set(paper.cliffs()["value"]) == {0, 1}, "a line over the whole height"
    of_paper = paper.depth_at_quarter().set_index("model")["depth"].round(2)
    assert of_paper[["meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1"]].tolist() == [0.78, 0.78]


def test_the_regret_of_the_most_similar_block_is_told_with_its_interval():
    costs = {"Gemma-3-270m": (1.07, 0.96, 1.18), "SmolLM2-135M-Instruct": (0.01, -0.01, 0.02)}
    means = pd.DataFrame(
        [{"model": model} | dict(zip(["value", "low", "high"], ends)) for model, ends in costs.items()]
    )
    told = str(which_layers.tell_regret(means))
    assert "1.07 (0.96 to 1.18) in Gemma-3-270m and 0.01 (-0.01 to 0.02) in SmolLM2-135M." in told
    assert str(which_layers.tell_regret(means[:0])) == "Not measured."


def test_healing_is_told_beside_the_paper_s_tokens_and_names_what_surely_gains_nothing():
    healed = {"rule": "similarity", "tokens": round(paper.HEALING_TOKENS / 1000), "topic": "C4", "gained_low": np.nan}
    rows = [
        healed | {"model": model, "task": "c4", "metric": "loss", "value": value}
        for model, value in (("a", 0.1), ("a", 0.3), ("b", 0.82))
    ]
    for task, topic, low in (("mmlu", "MMLU by letter", -0.1), ("gsm8k", "GSM8K", 0.1)):
        rows.append(
            healed | {"model": "a", "task": task, "topic": topic, "metric": "acc", "value": 0.2, "gained_low": low}
        )
    told = str(findings.tell_recovery(pd.DataFrame(rows)))
    assert told == (
        "With 0.10% of the paper's tokens healing closes 10% to 30% of a's gap in loss, and returns no sure part of "
        "MMLU by letter. In b, with 0.10%, it closes 82%."
    )
    assert str(findings.tell_recovery(pd.DataFrame(rows)[:0])) == "Not measured."


def test_mmlu_s_fall_is_told_beside_the_paper_s():
    line = {"model": "m", "task": "mmlu", "rule": "similarity", "layers": 20}
    kept = {1: 0.9, 2: 0.45, 3: 0.1}
    curves = pd.DataFrame(
        [
            line | {"size": size, "kept": kept, "kept_low": kept - 0.1, "kept_high": kept + 0.1}
            for size, kept in kept.items()
        ]
    )
    cliffs = pd.Series([0.2, 0.55])
    told = str(findings.tell_fall(curves, cliffs))
    assert "m keeps 45% (35% to 55%)" in told and "its 2 most similar layers of 20" in told and "20% to 55%" in told
    assert "its 1 most similar" in str(findings.tell_fall(curves[:1], cliffs)), "where half is never gone, the last cut"
    assert str(findings.tell_fall(curves[:0], cliffs)) == "Not measured."


def test_rules_and_measures_are_judged_by_the_regret_of_what_they_pick():
    scores, distances = (table[table["model"] == GEMMA] for table in published())
    rules = which_layers.rules(scores).set_index("rule")["value"]
    assert rules.is_monotonic_increasing and {"simple", "greedy", "random, mean of 5 draws"} <= set(rules.index)
    measures = which_layers.geometry().query("model == @GEMMA")
    picks = which_layers.picks(scores, measures, distances).groupby("measure")["value"].mean().round(2)
    assert picks["output without a layer (KL)"] == 0.36 and picks["angular distance, on C4"] == 1.07
    board = which_layers.leaderboard(scores, distances).set_index("rule")
    regrets = board["regret, Gemma-3-270m"]
    assert [regrets["greedy"], regrets["similarity"]] == pytest.approx([rules["greedy"], 1.07], abs=0.01)
    assert regrets.isna().any() and "ReplaceMe" in board.loc["streamline", "published"]


def test_every_task_of_results_has_words_and_a_data_set_and_every_run_its_costs():
    scores, _ = published()
    assert set(scores["task"]) - {"llama.cpp"} <= set(names.TOPICS)
    assert not measured.data(scores).query("data != 'Wikipedia'")["asked"].eq(0).any()
    assert scores.loc[scores["task"] == "mmlu", "subject"].nunique() == 57
    hours = measured.hours()
    assert hours["runs"].sum() == len(results.runs()) and hours["what"].notna().all() and hours["watt_hours"].sum() > 0


# ---- figures ---------------------------------------------------------------------------------------------------------


def drawn() -> list:
    rows = statistics.curves(made(curve(FALLING) + curve([0.75, 0.6, 0.4, 0.2], rule="simple")))
    distances = distances_of(np.random.default_rng(0).uniform(0.1, 0.4, (4, 9)))
    losses = statistics.losses(made(curve([0.75, 0.5, 0.3], task="c4", metric="loss", chance=2.0)))
    return [
        figures.curves(rows, over=paper.cliffs()),
        figures.in_rows(statistics.half_gone_table(made(curve(FALLING))), y="topic", x="share"),
        figures.distance_curves(distances),
        figures.heat_maps(distances),
        figures.best_starts(statistics.nearest(distances)),
        figures.curves(losses, hue="line", stroke="rule", apart="healed"),
    ]


def test_a_figure_is_complete_self_contained_and_drawn_twice_the_same():
    for figure, other in zip(drawn(), drawn(), strict=True):
        text = figure._repr_html_()
        assert figure.svg() == other.svg() and text == other._repr_html_()
        assert not re.search(r'(src|href)="(?!data:)', text) and figure.alt and "nan" not in figure.caption
        plot = json.loads(re.search(r'figure-data">(.*?)</script>', text)[1].replace("\\u003c", "<"))
        assert plot["panels"] and all(panel["items"] and panel["height"] for panel in plot["panels"])
        rows = base64.b64decode(re.search(r'text/csv;charset=utf-8;base64,(.*?)"', text)[1])
        assert len(pd.read_csv(io.BytesIO(rows))) == len(figure.data)


def test_what_is_missing_is_a_gap_and_no_zero_and_a_rule_has_one_colour():
    rows = statistics.curves(made(curve(FALLING) + curve([0.75, 0.4], rule="simple")))
    rows.loc[1, ["low", "high"]] = np.nan

    def traces(rows: pd.DataFrame, name: str) -> list[dict]:
        items = figures.curves(rows).live["panels"][0]["items"]
        colours = {item["colour"] for item in items if item.get("label") == name}
        return [item for item in items if item.get("colour") in colours]

    colours = {traces(of, "simple heuristic")[-1]["colour"] for of in (rows, rows[rows["rule"] == "simple"])}
    bands = [item for item in traces(rows, "similarity-informed") if item["kind"] == "band"]
    drawn = [height for band in bands for height in band["y"]]
    assert len(colours) == 1 and len(bands) == 2 and None not in drawn and 0 not in drawn
    assert "Not measured" in figures.curves(rows[:0])._repr_html_()
    of_two = pd.concat([rows, rows.assign(model="org/m")], ignore_index=True)
    assert len(figures.curves(of_two).live["panels"]) == 2, "models of one title are two"
    table = figures.table(rows, columns=["rule", "value"]).to_html()
    assert all(said in table for said in ("0.750 (0.686 to 0.805)", "similarity-informed"))
    at_floor = rows[:1].assign(kept=np.nan, no_value_reason="at floor")
    assert "no better than guessing" in figures.curves(at_floor, y="kept")._repr_html_()


def test_runs_and_sizes_are_told_in_the_units_of_their_columns(monkeypatch):
    run = {"measured": "2026-01-02T03:04:05", "commit": None, "seconds": 7200.0, "memory": 8e9}
    devices = ["x86_64 processor (AVX2), 2 threads", "x86_64 processor (AVX2), 1 thread", "NVIDIA H100"]
    table = pd.DataFrame([run | {"device": device} for device in devices])
    monkeypatch.setattr(results, "runs", lambda folder: table.copy())
    found = measured.runs()
    assert found["hours"].tolist() == [2] * 3 and found["processor_hours"].tolist() == [4, 2, 0]
    watts = 2 * 12.0 + 8 * 0.3725
    assert found["watt_hours"].tolist()[0] == pytest.approx(2 * watts * 1.67) and found["watt_hours"].isna()[2]
    assert set(found["commit"]) == {"unknown"} and set(found["measured"]) == {"2026-01-02"}
    assert found["GiB"].tolist() == pytest.approx([8e9 / 2**30] * 3)
    rounded = made(curve([0.75, 0.5], task="boolq", bytes=3_500_000, bits="Q4_0") + curve([0.75, 0.5], bytes=7_000_000))
    sizes = measured.sizes(rounded)[["bits", "size", "MB", "topic"]].values.tolist()
    assert [row[:3] for row in sizes] == [
        ["Q4_0", 0, 3.5], ["Q4_0", 1, 3.5], ["as published", 0, 7], ["as published", 1, 7],
    ]  # fmt: skip


def test_answers_took_the_time_of_their_file():
    written = measured.written_answers()
    assert len(written) and (written["tokens"] <= 512).all()
    took = written["seconds_an_answer"] * written["answers"] * written["models"]
    seconds = results.runs()["seconds"]
    assert all(np.isclose(seconds, one, rtol=0.01).any() for one in took)


def test_captions_state_what_is_found_and_notes_mark_cliff_and_return():
    rows = statistics.curves(made(curve(FALLING) + curve([0.75, 0.3, 0.3, 0.7], rule="simple")))
    found = figures.curves(rows)
    assert found.caption == (
        "In m, the most similar layers dropped, half is gone at 2 or 3 of 10 layers on MMLU by letter. Bands: 95%."
    )
    notes = [item["text"] for item in found.live["panels"][0]["items"] if item["kind"] == "note"]
    assert notes[0].startswith("half gone at ") and notes[1:] == ["back at 3"]
    assert ", steepest before " in found.alt
    uneven = findings.describe_shape(np.array([0, 1, 2, 3]), np.array([1.0, 0.2, 0.9, 0.5]))
    assert uneven == "falls from 1 at 0 to 0.5 at 3, steepest before 1; least 0.2 at 1"
    assert findings.describe_shape(np.array([0, 1]), np.array([0.5, 0.5])) == "stays near 0.5"


def test_colours_with_a_meaning_are_given_to_nothing_else():
    looks = panels.choose_looks(["similarity", "something", "another", "letters"])
    assert looks["similarity"]["colour"] == panels.PURPLE and looks["letters"]["colour"] == panels.RED
    assert not {*panels.FREE} - {panels.INK} & {looks[name]["colour"] for name in ("similarity", "letters")}
    assert {looks[name]["colour"] for name in ("something", "another")} <= {*panels.FREE}
    markers = [look["marker"] for look in looks.values()]
    assert markers[0] == "diamond" and len(set(markers)) == len(markers)


# ---- captions and agreement -----------------------------------------------------------------------------------------


def test_captions_state_what_is_seen_and_no_axes():
    table = made(curve(FALLING) + curve([0.75, 0.74, 0.72], task="gsm8k") + curve([0.75, 0.4, 0.4], rule="simple"))
    kept = statistics.curves(table[table["rule"] == "similarity"])
    drawn = figures.curves(kept, y="kept", hue="topic", row=None)
    assert drawn.caption.startswith("In m half is gone at 2 or 3 of 10 layers on MMLU by letter. 9")
    assert "is still kept at 2 on GSM8K." in drawn.caption
    assert "half gone at 2 or 3" in json.dumps(drawn.live)
    rules = statistics.rules_compared(made(curve(FALLING) + [row | {"cut": "2,1"} for row in curve([0.1])]))
    assert findings.state_differences(rules) == ""
    lines = pd.DataFrame({"model": "m", "corpus": "c4", "share": [0.1, 0.2, 0.3], "value": [4, 2, 1]})
    drawn = figures.curves(lines, hue="corpus", row=None, joined=False)
    assert "against" not in drawn.caption and "C4 falls from 4 at 0.1 to 1 at 0.3" in drawn.caption
    assert not any(item.get("line") for item in drawn.live["panels"][0]["items"])


@pytest.mark.quick
def test_distance_predicts_agreement_by_spearmans_correlation_with_sequences_drawn_anew():
    random = np.random.default_rng(0)
    drawn, compared = random.random((5, 12)), random.random((6, 8, 3))
    rows = [{"cut": f"{start},1", "outcome": random.random(8)} for start in range(6)]
    for row, measured_row in zip(rows, compared):
        row |= dict(zip(("agreement", "overlap", "kl"), measured_row.mean(axis=0))) | {"compared": measured_row}
    whole = {"cut": "0,0", "outcome": random.random(8), "agreement": 1.0, "overlap": 1.0, "kl": 0.0}
    usual = {"task": "c4", "metric": "loss", "rule": "blocks of 1", "chance": 5.0}
    table = made([row | usual for row in [*rows, whole | {"compared": np.ones((8, 3))}]], layers=6)
    found = which_layers.agreement(table, distances_of(np.vstack([drawn, np.ones(12)])))
    assert found["start"].tolist() == [0, 1, 2, 3, 4], "the block with the last layer is no pick"
    predicted = which_layers.predicted_agreement(found).set_index("measure")
    for number, measure in enumerate(("agreement", "overlap", "KL")):
        true = spearmanr(drawn.mean(axis=1), compared[:5, :, number].mean(axis=1)).statistic
        assert predicted.loc[measure, "value"] == pytest.approx(true)
        assert -1 <= predicted.loc[measure, "low"] < predicted.loc[measure, "high"] <= 1
    assert which_layers.predicted_agreement(which_layers.agreement(table[:0], distances_of(drawn))).empty
