"""One table of all results: every published number stands in it, and a reader's question is a short query."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.cuts import Cut
from deeper_layers.results import frames, places, rows
from deeper_layers.results.packing import unpack_halves
from deeper_layers.rules.choosing import REGISTERED

pytestmark = pytest.mark.quick

RESULTS = places.AROUND / "results"
QWEN = "Qwen2.5-Coder-1.5B-Instruct"


@pytest.fixture(scope="module")
def scores():
    return results.scores(RESULTS)


@pytest.fixture(scope="module")
def distances():
    return results.distances(RESULTS)


@pytest.fixture(scope="module")
def files():
    """Every published unit as its file has it, by its path below the results."""
    found = {path.relative_to(RESULTS).as_posix(): json.loads(path.read_bytes()) for path in RESULTS.glob("*/*.json")}
    return {path: content for path, content in found.items() if "kind" in content}


def named(row) -> str:
    """A task as lm-eval and the files call it."""
    return row.task if pd.isna(row.subject) else row.task.replace("mmlu", f"mmlu_{row.subject}", 1)


def cut_of(row: dict) -> str:
    if "layers" in row:
        return Cut.of(row["layers"], row["attention"], row["mlp"]).name
    return row.get("cut") or f"{row['start']},{row['size']}"


def test_every_published_score_stands_in_the_table_unchanged(scores, files):
    have, of_group, missing = {}, {}, []
    for row in scores.itertuples():
        have.setdefault((row.path, named(row), row.cut, row.metric), []).append((row.value, row.items))
        if not pd.isna(row.subject):
            of_group.setdefault((row.path, row.task, row.cut, row.metric), {})[row.subject] = (row.value, row.items)
    checked = 0
    for path, content in files.items():
        if content["kind"] not in rows.SCORES:
            assert content["kind"] in ("similarity", "distances", "geometry"), "a kind that no table holds"
            continue
        folder, _, name = path.partition("/")
        parts = [f"{folder}/{part}" for part in content["details"].get("units", [name])]
        for row in content["rows"]:
            wanted, cut = (row["value"], row["items"]), cut_of(row)
            if row["metric"] == "bytes":
                found = row["value"] in set(scores.loc[scores["path"] == path, "bytes"])
            elif rows.MMLU_FIELD.fullmatch(row["task"]):
                continue  # of some subjects: no more than the mean of their items
            elif row["task"] in ("mmlu", "mmlu_continuation"):
                metric, _, macro = row["metric"].partition(",")
                of_parts = [of_group.get((part, row["task"], cut, metric), {}) for part in parts]
                values, items = zip(*{name: one for part in of_parts for name, one in part.items()}.values())
                mean = np.average(values, weights=None if macro else items)
                found = math.isclose(mean, row["value"], abs_tol=1e-12) and sum(items) == row["items"]
            else:
                found = any(wanted in have.get((part, row["task"], cut, row["metric"]), []) for part in parts)
            checked += 1
            missing += [] if found else [(path, row)]
    assert checked > 20_000 and missing == []


def test_what_was_kept_item_by_item_has_the_score_as_its_mean(scores):
    kept = scores[scores["outcome"].notna()]
    assert len(kept) > 20_000 and (kept["outcome"].map(len) == kept["items"]).all()
    alike = kept[kept["length"].fillna(1) != 0]  # of sequences of several lengths the score is the mean over tokens
    assert len(kept) - len(alike) < 100
    assert np.allclose(alike["outcome"].map(np.mean), alike["value"], rtol=0, atol=1e-5)  # losses are kept to 5 digits
    chosen = kept[kept["target"].notna() & (kept["metric"] == "acc")]
    assert len(chosen) > 3000 and all(
        ((a == b) == c).all() for a, b, c in chosen[["chosen", "target", "outcome"]].values
    )
    assert all(row.logprobs.shape[0] == row.items for row in kept[kept["logprobs"].notna()].itertuples())
    # one vector is taken from another without wrapping around
    assert {vector.dtype for vector in kept["outcome"]} == {np.dtype(float)}


def test_every_distance_stands_in_its_table_unchanged(distances, files):
    number = 0
    for path, content in files.items():
        if content["kind"] in ("similarity", "distances"):
            own, number = distances[distances["path"] == path], number + len(content["rows"])
            for name in ("start", "size", "distance", "samples"):
                assert own[name].tolist() == [row[name] for row in content["rows"]]
            if packed := content["details"].get("by_sequence"):
                assert (
                    np.stack(list(own["by_sequence"])).T == unpack_halves(packed, content["rows"][0]["samples"])
                ).all()
    assert number == len(distances) > 4000 and list(distances) == list(frames.OF_DISTANCES)


def test_columns_are_those_that_are_described_whatever_is_there(scores, tmp_path):
    assert list(scores) == list(frames.COLUMNS) and list(results.scores(tmp_path)) == list(frames.COLUMNS)
    assert (results.scores(tmp_path).dtypes == scores.dtypes).all() and results.distances(tmp_path).empty
    assert set(results.scores(RESULTS, QWEN)["model"]) == {QWEN}
    assert rows.CHANGED.keys() == {name for name, rule in REGISTERED.items() if rule.changes}


def test_a_reader_asks_in_three_lines(scores):
    asked = scores.query("task == 'mmlu' and rule == 'similarity' and limit == 20 and healing.isna() and repeat == 0")
    asked = asked.assign(right=asked["value"] * asked["items"]).groupby(["model", "size"])[["right", "items"]].sum()
    curve = asked["right"] / asked["items"]
    assert curve[QWEN, 0] == pytest.approx(578 / 1140) and len(curve[QWEN]) == 27


def test_a_curve_of_each_rule_begins_with_the_whole_model(scores):
    rows = scores.query("model == 'Gemma-3-270m' and task == 'capitals' and limit == 120 and repeat == 0")
    rules = rows[rows["bits"].isna() & rows["healing"].isna()].groupby("rule")
    assert {"similarity", "simple", "window-cosine", "llm-drop-attention"} <= set(rules.groups)
    assert all(own["size"].is_unique and own["size"].min() == 0 for _, own in rules)
    dropped = rules.get_group("llm-drop-attention").set_index("size").loc[4]
    assert dropped["cut"].startswith("attention ") and pd.isna(dropped["start"]) and dropped["share"] == 4 / 18


def test_what_was_measured_twice_is_told_apart(scores):
    asked = scores.query(f"model == '{QWEN}' and task == 'mmlu' and subject == 'virology' and cut == '24,1'")
    asked = asked[(asked["limit"] == 20) & asked["healing"].isna() & (asked["rule"] == "similarity")]
    assert sorted(asked["repeat"]) == [0, 1] and asked.set_index("repeat")["path"].str.contains("sweep")[0]
    first = scores[scores["repeat"] == 0]
    assert not first.duplicated([*frames.QUESTION, *frames.CUT]).any()


def test_a_damaged_file_is_named_and_the_rest_shown(tmp_path):
    folder = tmp_path / "Gemma-3-270m"
    folder.mkdir()
    whole, damaged = sorted((RESULTS / folder.name).glob("cuts-capitals-*.json"))[:2]
    shutil.copy(whole, folder)
    (folder / damaged.name).write_bytes(damaged.read_bytes()[:-200])
    with pytest.warns(UserWarning, match=damaged.name) as warned:
        shown = results.scores(tmp_path)
    assert len(warned) == 1 and set(shown["path"]) == {f"{folder.name}/{whole.name}"} and len(shown) == 4
