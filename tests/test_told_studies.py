"""Sentences and tables of the registered studies, and a caption's ends, from frames made by hand; then as published."""

import numpy as np
import pandas as pd
import pytest

from deeper_layers_companion.report import findings, statistics
from deeper_layers_companion.report.estimates import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, SUPPORTED
from deeper_layers_companion.report.names import task_title
from deeper_layers_companion.studies import by_place, last_layers, letters_or_words
from deeper_layers_companion.studies.letters_or_words import CONFIRMED, LATE, MIDDLE, OPEN, C, D
from tests.test_last_layers import answers
from tests.test_report import GEMMA, QWEN, SMOLLM, published

LAYERS, SIZE = 10, 2
LAST, BEFORE = LAYERS - SIZE, LAYERS - SIZE - 1  # the first layer of the last block, and of that before it


def tabulate_blocks(kept: list[tuple], model: str = "m") -> pd.DataFrame:
    """Rows as those of `statistics.kept_by_place`, from task, first layer, share kept and half of its interval."""
    names = ["task", "start", "kept", "half"]
    rows = pd.DataFrame(kept, columns=names).assign(model=model, layers=LAYERS, size=SIZE)
    return rows.assign(kept_low=rows["kept"] - rows["half"], kept_high=rows["kept"] + rows["half"])


def tabulate_costs(values: list[tuple], model: str = "m") -> pd.DataFrame:
    return pd.DataFrame(values, columns=["task", "place", "value"]).assign(model=model)


def join(function, *parts):
    """The same function of several arguments, its frames below each other."""
    return pd.concat([function(*part) for part in parts], ignore_index=True)


@pytest.mark.quick
def test_places_are_told_of_models_that_show_both_tasks_and_a_crossing_is_named():
    middle = {
        "org/m-Instruct": [("mmlu", 0.2), ("written_facts", 0.7)],
        "even": [("mmlu", 0.5), ("written_facts", 0.5)],
        "alone": [("mmlu", 0.2)],
    }
    last = {
        "org/m-Instruct": [("mmlu", 0.9), ("written_facts", 0.1)],
        "even": [("mmlu", 0.4), ("written_facts", 0.3)],
        "alone": [("mmlu", 0.9), ("written_facts", 0.1)],
    }
    costs = join(
        tabulate_costs, *(([(task, MIDDLE, value) for task, value in of], model) for model, of in middle.items())
    )
    kept = join(
        tabulate_blocks, *(([(task, LAST, value, 0.05) for task, value in of], model) for model, of in last.items())
    )
    told = by_place.tell_places(costs, kept)
    assert told.sentences == [
        "Without 2 middle layers even keeps 50% of MMLU's letters and 50% of written facts; without the 2 at the very "
        "end, 40% and 30%.",
        "What is lost depends on where. Without 2 middle layers m keeps 20% of MMLU's letters and 70% of "
        "written facts; without the 2 at the very end, 90% and 10%.",
    ]
    assert str(by_place.tell_places(costs, kept[:0])) == "Not measured."


ENDS = [
    ("mmlu", LAST, 0.8, 0.1),
    ("mmlu", BEFORE, 0.3, 0.1),
    ("capitals", LAST, 0.2, 0.1),
    ("capitals", BEFORE, 0.9, 0),
]
BACK = "In m letters come back at the end, words and writing do not."


@pytest.mark.quick
@pytest.mark.parametrize(
    ("kept", "is_back"),
    [
        (ENDS, True),
        ([("mmlu", LAST, 0.55, 0.1), *ENDS[1:]], False),  # its interval holds half
        ([*ENDS[:2], ("capitals", LAST, 0.45, 0.1), ENDS[3]], False),
        (ENDS[2:], False),  # no letters
    ],
)
def test_the_last_block_is_told_beside_the_one_before_it(kept, is_back):
    told = by_place.state_ends(tabulate_blocks([*kept, ("boolq", LAST, 0.5, 0.1)]))
    assert (BACK in told) == is_back
    words, earlier = f"{kept[0][2]:.0%} of MMLU by letter", "30%"
    if len(kept) == 2:
        words, earlier = "20% of capitals in words", "90%"
    said = f"Without the last 2 layers m keeps {words}; without the block one layer earlier, {earlier}."
    assert told.removeprefix(BACK).strip() == said, "of boolq no block before the last was measured"
    assert by_place.state_ends(tabulate_blocks([])) == ""


@pytest.mark.quick
def test_places_are_a_table_with_a_row_for_each_and_gaps_where_nothing_is_kept():
    costs = tabulate_costs([("mmlu", MIDDLE, 0.25), ("mmlu", LATE, 0.5), ("capitals", MIDDLE, 0.75)])
    kept = tabulate_blocks([("mmlu", LAST, 0.1, 0), ("mmlu", BEFORE, 0.9, 0), ("capitals", LAST, np.nan, 0)])
    table = by_place.tabulate_places(costs, kept)
    assert table["dropped"].tolist() == ["a middle block", "a late block, the last layer kept", "the last layers"]
    assert set(table["model"]) == {"m"} and len(table.columns) == 2 + len(by_place.SHOWN)
    assert table[task_title("mmlu")].tolist() == [0.25, 0.5, 0.1]
    assert table[task_title("capitals")].tolist() == pytest.approx([0.75, np.nan, np.nan], nan_ok=True)
    assert by_place.tabulate_places(costs[:0], kept[:0]).empty


def judge(model: str, number: str, value: float, verdict: str, about: str = "", place: str = "") -> dict:
    """A row as those of both `judge_as_registered`; an empty text is none."""
    row = {"model": model, "number": number, "value": value, "low": value - 0.1, "high": value + 0.1}
    return row | {"verdict": verdict, "about": about or None, "place": place or None}


@pytest.mark.quick
def test_registered_numbers_of_both_studies_stand_in_one_table_of_a_column_a_model():
    first = pd.DataFrame(
        [
            judge("org/z", C, -0.25, OPEN, "similarity", "1 to 8 layers"),
            judge("org/z", D, 0.5, CONFIRMED, "MMLU", LATE),
            judge("a", D, np.nan, NOT_TESTED, "MMLU", LATE),
        ]
    )
    second = pd.DataFrame([judge("org/z", "Y", 0.3, SUPPORTED), judge("org/z", "X", 0.7, SUPPORTED)])
    table = last_layers.tabulate_registered(first, second)
    assert table.to_dict("list") == {
        "registered number": [
            f"{D}, MMLU, late",
            f"{C}, similarity-informed",
            "X, letters' lead over writing, late less similar",
            "Y, writing, similar less late",
        ],
        "a": [NOT_TESTED, "", "", ""],
        "z": [
            "0.50 (0.40 to 0.60): confirmed",
            "-0.25 (-0.35 to -0.15): open",
            "0.70 (0.60 to 0.80): supported",
            "0.30 (0.20 to 0.40): supported",
        ],
    }
    assert last_layers.tabulate_registered(first[:0], second[:0]).columns.tolist() == ["registered number"]


def test_halves_are_listed_under_the_rule_that_judges_them_and_x_is_told_with_both():
    scores = answers({("written", "late"): 0.3})
    halves = last_layers.list_halves(scores)
    registered, now = (halves[halves["judged"] == rule].set_index("number") for rule in dict.fromkeys(halves["judged"]))
    assert list(registered.index) == ["X", "Y"] and list(now.index) == [
        last_layers.WRITING_HALF,
        last_layers.LETTERS_HALF,
    ]
    # writing keeps 0.3 without the last layers and all without the similar ones; letters keep all of both
    assert now["value"].tolist() == pytest.approx([0.7, 0.0], abs=0.05)
    assert registered["value"].tolist() == pytest.approx([0.7, 0.7], abs=0.05)
    (row,) = last_layers.split_x(scores).to_dict("records")
    x, writing, letters = registered["value"]["X"], *now["value"]
    assert (row["value"], row["writing"], row["letters"]) == (x, writing, letters)
    assert row["x"] == f"{x:.2f} ({registered['low']['X']:.2f} to {registered['high']['X']:.2f})"
    assert (row["verdict"], row["writing_verdict"]) == (SUPPORTED, SUPPORTED)
    assert row["letters_verdict"] in (CONTRADICTED, INCONCLUSIVE)
    assert last_layers.split_x(scores[:0]).empty


@pytest.mark.quick
def test_the_order_says_where_half_is_gone_by_place_and_form():
    rows = [
        ("facts_by_letter", "reverse", "2", ""),
        ("facts_written", "reverse", "1 or 2", ""),
        ("facts_by_letter", "similarity", "more than 2", ""),
        ("facts_in_words", "similarity", "", "at floor"),
        ("facts_by_letter", "simple", "1", ""),
    ]
    table = pd.DataFrame(rows, columns=["task", "rule", "gone_at", "no_value_reason"])
    table = table.assign(model="org/m-Instruct", layers=LAYERS)
    assert last_layers.state_order(table) == (
        "In m without the last layers half is gone at 2 of 10 layers by letter and at 1 or 2 in writing. In m without "
        "the most similar layers half is gone at more than 2 of 10 layers by letter."
    )
    assert last_layers.state_order(table[:0]) == ""


@pytest.mark.quick
def test_a_caption_names_the_least_and_the_most_of_the_first_model():
    rows = pd.DataFrame(
        {"model": ["a", "a", "a", "b"], "of": ["c4", "mmlu", "laco", "c4"], "n": [0.5, 0.25, 2, np.inf]}
    )
    assert findings.state_ends(rows, "of", "n", "Regret") == (
        "Regret: 0.25 (mmlu) to 2 (LaCo) in a; more than was measured in b."
    )
    shares = rows.assign(n=[0.5, 0.1, np.nan, 0.2])
    assert findings.state_ends(shares, "of", "n", "Share kept") == "Share kept: 10% (mmlu) to 50% (C4) in a; 20% in b."
    assert findings.state_ends(rows.assign(n=np.nan), "of", "n", "Regret") == "Regret."


def test_what_is_published_is_told_in_these_words():
    scores = published()[0]
    costs, kept = letters_or_words.costs(scores), statistics.kept_by_place(scores)
    assert str(by_place.tell_places(costs, kept)) == (
        "What is lost depends on where. Without 4 middle layers Qwen2.5-Coder-1.5B keeps 21% of MMLU's "
        "letters and 97% of written facts; without the 4 at the very end, 106% and 28%."
    )
    assert by_place.state_ends(kept).startswith(
        "In Qwen2.5-Coder-1.5B letters come back at the end, words and writing do not. Without the last 4 layers "
        "Qwen2.5-Coder-1.5B keeps 106% of MMLU by letter and 28% of written facts; without the block one layer "
        "earlier, 73% and 11%."
    )
    table = by_place.tabulate_places(costs, kept).set_index(["model", "dropped"])[task_title("written_facts")]
    late = by_place.PLACE_TITLES[LATE]
    assert table.xs(late, level="dropped").round(2).to_dict() == {
        "Qwen2.5-Coder-1.5B": 0.1,
        "Gemma-3-270m": 0.04,
        "SmolLM2-135M": 0.03,
    }


def test_the_second_study_is_told_as_published():
    scores = published()[0]
    judged = last_layers.judge_as_registered(scores)
    assert judged["model"].isin([QWEN, GEMMA, SMOLLM]).all()
    of_y = (
        last_layers.tabulate_registered(letters_or_words.judge_as_registered(scores[:0]), judged)
        .set_index("registered number")
        .iloc[1]
    )
    verdicts = {"Qwen2.5-Coder-1.5B": SUPPORTED, "Gemma-3-270m": CONTRADICTED, "SmolLM2-135M": CONTRADICTED}
    assert {model: cell.rpartition(": ")[2] for model, cell in of_y.items()} == verdicts
    rows = scores[(scores["model"] == QWEN) & scores["task"].isin(last_layers.ASKED)]
    told = last_layers.state_order(statistics.half_gone_table(rows))
    assert told == (
        "In Qwen2.5-Coder-1.5B without the last layers half is gone at 6 of 28 layers by letter, at 4 in words and at "
        "2 or 3 in writing. In Qwen2.5-Coder-1.5B without the most similar layers half is gone at 6 of 28 layers by "
        "letter, at more than 8 in words and at 8 in writing."
    )
