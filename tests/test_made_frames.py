"""The table of all results, of results made by hand: repeats, bits, the whole model, guessing."""

import json

import numpy as np
import pytest

from deeper_layers.packing import pack
from deeper_layers.presets import PRESETS
from deeper_layers_companion.results import frames, places, store
from deeper_layers_companion.results.schema import check_content

pytestmark = pytest.mark.quick

RESULTS = places.AROUND / "results"


# ---- results made by hand: what holds of a table whatever is published -----------------------------------------------

WHOLE, RIGHT = "0,0", np.array([1, 1, 0, 1])
HEALED = {"healing": PRESETS["small"].settings, "text": "c4", "healed_tokens": 64}
IN_DETAILS = ("groups", "levels", "targets", "sizes", "vocabulary", "healed_tokens")


def made(tasks=None, cuts=None, rows=None, file="a", measured="2026-01-01", kind="scores", **more) -> store.Result:
    """A result of a small model. What is not said is as it mostly is: `more` are entries of the key, or details."""
    tasks, cuts = tasks or {"boolq": {"shots": 0, "limit": 4}}, cuts or {"simple": [WHOLE, "2,1"]}
    key = {"model": {"name": "m", "weights": "0"}, "dtype": "bfloat16", "data": "d", "tasks": tasks, "cuts": cuts}
    names = dict.fromkeys(cut for of_rule in cuts.values() for cut in of_rule)
    details = {"num_layers": 4, "weights": "none"}
    details |= {name: more.pop(name) for name in IN_DETAILS if name in more}
    rows = rows or [{"task": task, "cut": cut} for cut in names for task in tasks]
    usual = {"metric": "acc", "value": 0.75, "stderr": None, "items": 4, "outcome": pack(RIGHT)}
    run = {"measured": f"{measured}T00:00:00", "device": "p", "commit": None, "seconds": 1.0, "peak_memory_bytes": 1}
    content = {"kind": kind, "version": 3, "key": key | more, "provenance": run, "details": details}
    checked = check_content(content | {"rows": [usual | row for row in rows]})
    return store.Result(*checked, RESULTS / "m" / f"scores-{file}.json")


def columns(results_, *names) -> list[tuple]:
    rows = frames.tabulate_scores(results_)[[*names]].astype(object)
    return sorted(rows.where(rows.notna(), None).itertuples(index=False, name=None), key=str)


def test_of_two_measurements_that_with_more_cuts_counts_then_the_later():
    wide = made(cuts={"simple": [WHOLE, "2,1", "1,2"]}, file="wide")
    early, late = (made(file=day, measured=f"2026-02-0{day}") for day in "12")
    wanted = [
        ("1,2", 0, "m/scores-wide.json"),
        *((cut, place, f"m/scores-{file}.json") for cut in (WHOLE, "2,1") for place, file in enumerate(["wide", 2, 1])),
    ]
    for order in ([wide, early, late], [late, early, wide]):
        assert columns(order, "cut", "repeat", "path") == sorted(wanted, key=str)


ANOTHER = {
    "shots": {"tasks": {"boolq": {"shots": 5, "limit": 4}}},
    "order": {"tasks": {"boolq": {"shots": 0, "limit": 4, "order": 1}}},
    "limit": {"tasks": {"boolq": {"shots": 0, "limit": 3}}},
    "weights in nf4": {"quantization": "nf4"},
    "weights rounded": {"bits": "Q4_0"},
    "data type": {"dtype": "float32"},
    "engine": {"engine": "vllm"},
    "rule": {"cuts": {"similarity": [WHOLE, "2,1"]}},
    "healed": HEALED,
    "metric": {"rows": [{"task": "boolq", "cut": cut, "metric": "acc_norm"} for cut in (WHOLE, "2,1")]},
}


@pytest.mark.parametrize("another", ANOTHER)
def test_what_differs_in_its_question_is_no_repeat(another):
    twice = [made(), made(file="b", measured="2026-03-03", **ANOTHER[another])]
    table = frames.tabulate_scores(twice).query("cut == '2,1'")
    assert table["repeat"].tolist() == [0, 0] and table["path"].nunique() == 2
    assert frames.tabulate_scores([twice[1], made(file="c", **ANOTHER[another])])["repeat"].max() == 1


def test_weights_of_few_bits_are_told_of_the_key_and_of_what_was_rounded():
    variants = (WHOLE, "whole"), ("2,1", "sliced"), ("2,1", "healed"), ("2,1", "rounded")
    healed = HEALED | {"rows": [{"task": "boolq", "cut": cut, "variant": variant} for cut, variant in variants]}
    found = columns([made(bits="Q4_0", **healed)], "cut", "bits", "healing")
    run = json.dumps(HEALED["healing"] | {"text": "c4", "tokens": 64}, sort_keys=True)
    assert found == sorted(
        [(WHOLE, None, None), ("2,1", None, None), ("2,1", None, run), ("2,1", "Q4_0", run)], key=str
    )
    assert (WHOLE, "nf4") in columns([made(quantization="nf4", bits="Q4_0", **healed)], "cut", "bits")
    assert columns([made(quantization="int8")], "cut", "bits") == [(WHOLE, "int8"), ("2,1", "int8")]


def test_the_whole_model_stands_under_every_rule_of_its_question_and_a_given_cut_under_none():
    of_rules = {"simple": [WHOLE, "2,1"], "similarity": ["1,1"], "given": ["0,1"], "laco": ["2,1"]}
    both = [made(cuts=of_rules), made(quantization="nf4", cuts={"simple": ["2,1"], "given": [WHOLE]}, file="b")]
    wanted = [(WHOLE, rule, None, None) for rule in ("simple", "similarity", "laco")]
    wanted += [("2,1", "simple", None, None), ("1,1", "similarity", None, None), ("0,1", None, None, None)]
    wanted += [("2,1", "laco", None, "merged"), (WHOLE, "simple", "nf4", None), ("2,1", "simple", "nf4", None)]
    assert columns(both, "cut", "rule", "bits", "changed") == sorted(wanted, key=str)


def test_guessing_subjects_shots_and_places_are_those_of_the_file():
    group = made(
        tasks={"mmlu_continuation": {"limit": 4}},
        groups={"mmlu_continuation": ["mmlu_law_continuation", "mmlu_virology_continuation"]},
        rows=[{"task": f"mmlu{of}_continuation", "cut": "2,1"} for of in ("", "_law", "_virology")],
        levels={
            "mmlu_law_continuation": {"chance": 0.25, "majority": 0.5}, "mmlu_virology_continuation": {"majority": 0.0},
        },
        targets={"mmlu_law_continuation": pack(np.array([3, 0, 1, 1]))},
    )  # fmt: skip
    law, virology = frames.tabulate_scores([group]).sort_values("subject").to_dict("records")
    assert [(row["task"], row["subject"]) for row in (law, virology)] == [
        ("mmlu_continuation", of) for of in ("law", "virology")
    ]
    assert (law["chance"], law["commonest"], law["target"].tolist()) == (0.25, 0.5, [3, 0, 1, 1])
    assert np.isnan([virology["chance"], virology["commonest"]]).all() and virology["target"] is None, "0 is not known"
    cuts = {"gsm8k": "layers 0 2", "sums": "attention 1 2", "c4": "1,3"}
    loss = {"metric": "loss", "outcome": [2.0, 2.5, 3.0, 3.5], "value": 2.75}
    asked = made(
        tasks={"gsm8k": {"limit": 4}, "sums": {"shots": 0}, "c4": {"limit": 4, "length": 9}}, vocabulary=100,
        cuts={"simple": [*cuts.values()]}, sizes={"attention 1 2": 2},
        rows=[{"task": task, "cut": cut} | (loss if task == "c4" else {}) for task, cut in cuts.items()],
    )  # fmt: skip
    table = frames.tabulate_scores([asked]).set_index("task").astype(object)
    assert table["shots"].fillna(-1).to_dict() == {"gsm8k": 5, "sums": 0, "c4": -1}
    assert table[["start", "size", "share"]].fillna(-1).T.to_dict("list") == {
        "gsm8k": [-1, 2, 0.5],
        "sums": [-1, 2, 0.5],
        "c4": [1, 3, 0.75],
    }
    assert table.loc["c4", "chance"] == np.log(100) and table.loc["c4", "outcome"].tolist() == [2.0, 2.5, 3.0, 3.5]
    assert table.loc["c4", ["limit", "length"]].tolist() == [4, 9] and np.isnan(table.loc["sums", "chance"])
