"""The first registered study is judged by its text alone, on drawn answers whose truth is known, and as published."""

import numpy as np
import pytest

from deeper_layers_companion.report.estimates import AT_FLOOR, NOT_TESTED, SUPPORTED
from deeper_layers_companion.studies import by_place, letters_or_words
from deeper_layers_companion.studies.letters_or_words import (
    CONFIRMED,
    HOLDS,
    KNOWLEDGE,
    LATE,
    LETTERS,
    MIDDLE,
    OPEN,
    REFUTED,
    SIZE,
    C,
    D,
    W,
    classify_places,
    compare_judgements,
    costs,
    judge_as_registered,
    judge_models,
    judge_now,
    keep_latest,
)
from tests.test_report import GEMMA, QWEN, SMOLLM, made, published

LAYERS, ITEMS, WHOLE, CHANCE = 24, 600, 0.9, 0.25
HARD = (np.arange(ITEMS) + 0.5) / ITEMS  # an item is right where its hardness is below a model's accuracy
STARTS = range(LAYERS - SIZE + 1)
EXPECTED = {("lettered_capitals", MIDDLE): 0.4, ("capitals", LATE): 0.4}


def scan(kept: dict[tuple[str, str], float], whole: float = WHOLE, **more) -> list[dict]:
    """Every block of two tasks: what it keeps above chance, by task and place; of all others nothing is lost."""
    rows, places = [], classify_places(STARTS, LAYERS)
    for task in ("lettered_capitals", "capitals"):
        shared = {"task": task, "rule": f"blocks of {SIZE}", "commonest": CHANCE} | more
        rows.append(shared | {"cut": "0,0", "outcome": (HARD < whole).astype(float)})
        for start, place in zip(STARTS, places):
            accuracy = CHANCE + kept.get((task, place), 1.0) * (whole - CHANCE)
            rows.append(shared | {"cut": f"{start},{SIZE}", "outcome": (HARD < accuracy).astype(float)})
    return rows


def curve_of_mmlu(letters: float, words: float, **more) -> list[dict]:
    """MMLU in both forms under one rule, at 1 to 8 layers: what is kept above chance of each."""
    rows = []
    for task, metric, kept in (("mmlu", "acc", letters), ("mmlu_continuation", "acc_norm", words)):
        for size in range(9):
            accuracy = CHANCE + (kept if size else 1.0) * (WHOLE - CHANCE)
            row = {"task": task, "metric": metric, "cut": f"{8},{size}" if size else "0,0", "limit": 20}
            rows.append(row | {"outcome": (HARD < accuracy).astype(float), "commonest": CHANCE} | more)
    return rows


@pytest.mark.parametrize(
    ("kept", "verdict"),
    [
        (EXPECTED, CONFIRMED),
        ({}, REFUTED),
        ({("capitals", MIDDLE): 0.4, ("lettered_capitals", LATE): 0.4}, REFUTED),
        (EXPECTED | {("capitals", LATE): 0.92}, OPEN),  # 0.08: surely above 0, and not surely below the limit
    ],
)
def test_a_finding_is_confirmed_refuted_or_open_by_the_registered_rule(kept, verdict):
    table = made(scan(kept), LAYERS)
    judged = judge_as_registered(table)
    of_d = judged[judged["number"] == D]
    assert of_d["verdict"].tolist() == [verdict] * 2 and judge_models(judged)["verdict"].tolist() == [verdict]
    gap = kept.get(("lettered_capitals", LATE), 1) - kept.get(("capitals", LATE), 1)
    assert of_d["value"].iloc[1] == pytest.approx(gap, abs=0.01)


def test_a_level_counts_the_numbers_that_can_be_told_and_words_are_guessed_at_chance():
    table = made(scan(EXPECTED) + scan(EXPECTED, whole=0.28, model="guesses"), LAYERS)
    judged = judge_as_registered(table).set_index(["model", "number"]).sort_index()
    assert judged.loc[("m", D), "level"].tolist() == [0.975] * 2, "two numbers of one model, none of the other"
    assert judged.loc[("m", W), ["level", "verdict"]].tolist() == [0.95, HOLDS]
    assert judged.loc[("guesses", D), "verdict"].tolist() == [AT_FLOOR] * 2
    verdicts = judge_models(judged.reset_index()).set_index("model")["verdict"]
    assert verdicts.to_dict() == {"m": CONFIRMED, "guesses": NOT_TESTED}
    wide, narrow = (
        judged.loc[("m", D)].query("place == @LATE").iloc[0],
        judge_now(table).query("model == 'm' and number == @D").iloc[1],
    )
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    constant = made(scan(EXPECTED, commonest=0.4), LAYERS)  # the best constant answer: it counts for letters only
    late = [
        judge(constant).query("number == @D and place == @LATE")["value"].item()
        for judge in (judge_now, judge_as_registered)
    ]
    kept_of_words = [(CHANCE + 0.4 * (WHOLE - CHANCE) - guessing) / (WHOLE - guessing) for guessing in (0.4, CHANCE)]
    assert late == pytest.approx([1 - kept for kept in kept_of_words], abs=0.01)


def test_the_statistics_are_also_given_without_the_two_blocks_known_before(monkeypatch):
    monkeypatch.setattr(letters_or_words, "KNOWN_BLOCKS", {"m": (8, 17)})
    rows = scan({})
    for row in rows:
        if row["cut"] == f"17,{SIZE}" and row["task"] == "capitals":
            row["outcome"] = np.zeros(ITEMS)  # all that words lose, they lose here
    (compared,) = compare_judgements(made(rows, LAYERS)).query("place == @LATE").to_dict("records")
    assert compared["registered"] > 0.2 and compared["without_known"] == pytest.approx(0, abs=1e-9)
    assert compared["registered"] == pytest.approx(compared["now"])


@pytest.mark.parametrize(
    ("letters", "words", "verdict"), [(0.2, 0.8, LETTERS), (0.5, 0.5, KNOWLEDGE), (0.42, 0.5, OPEN)]
)
def test_a_cliff_is_of_letters_or_of_knowledge(letters, words, verdict):
    table = made(scan({}) + curve_of_mmlu(letters, words), LAYERS)
    (judged,) = judge_as_registered(table).query("number == @C").to_dict("records")
    assert judged["value"] == pytest.approx(letters - words, abs=0.01) and judged["level"] == 0.975
    assert judged["verdict"] == verdict


def test_what_each_place_leaves_of_written_facts_is_one_sentence():
    rows = [row | {"task": "written_facts"} for row in scan({("capitals", LATE): 0.4}) if row["task"] == "capitals"]
    table = made([row | {"chance": 0.0, "commonest": 0.0} for row in rows], LAYERS)
    late = (CHANCE + 0.4 * (WHOLE - CHANCE)) / WHOLE
    told = str(by_place.tell_written(costs(table)))
    assert told == (
        f"Of written facts m keeps 100% without 4 middle layers and {late:.0%} without 4 late ones, the last layer "
        "kept."
    )
    assert str(by_place.tell_written(costs(table[:0]))) == "Not measured."


def test_of_two_measurements_the_latest_counts_for_the_cliff():
    known = curve_of_mmlu(0.9, 0.5, measured="2026-11-25", repeat=0)
    asked = curve_of_mmlu(0.1, 0.5, measured="2026-11-30", repeat=1)
    table = made(known[:9] + asked, LAYERS)
    assert len(keep_latest(table)) == 18
    (judged,) = judge_as_registered(table).query("number == @C").to_dict("records")
    assert judged["value"] == pytest.approx(-0.4, abs=0.01)


def test_what_is_published_by_the_registered_rule_and_by_today_s():
    table = compare_judgements(published()[0]).set_index(["model", "number", "about", "place"]).sort_index()
    of_qwen = table.loc[QWEN].sort_index()
    ends = ["registered", "registered_low", "registered_high"]
    told = {
        (D, "Capitals", LATE): ([0.083, -0.028, 0.194], OPEN),
        (D, "MMLU", LATE): ([0.074, -0.158, 0.330], OPEN),
        (C, "similarity", "1 to 8 layers"): ([-0.342, -0.475, -0.205], LETTERS),
        (C, "simple", "1 to 8 layers"): ([-0.100, -0.244, 0.043], OPEN),
    }
    for place, (numbers, verdict) in told.items():
        row = of_qwen.loc[place]
        assert row["registered"] == pytest.approx(numbers[0], abs=5e-4) and row["registered_verdict"] == verdict
        assert row[ends].tolist() == pytest.approx(numbers, abs=0.012), "drawn anew, with another seed"
    assert of_qwen.loc[D, "level"].eq(0.9875).all() and of_qwen.loc[C, "level"].eq(0.975).all()
    assert of_qwen.loc[W, "registered_verdict"].eq(HOLDS).all() and len(of_qwen.loc[W]) == 5
    assert of_qwen.loc[(D, "Capitals", LATE), ["now", "now_verdict"]].tolist() == [
        pytest.approx(0.132, abs=5e-4),
        SUPPORTED,
    ]
    models = judge_models(judge_as_registered(published()[0])).set_index("model")["verdict"]
    assert models[[QWEN, GEMMA, SMOLLM]].tolist() == [OPEN, NOT_TESTED, NOT_TESTED]
