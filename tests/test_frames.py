"""One table of all results: every published number stands in it, and a reader's question is a short query."""

import collections
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.cuts import Cut
from deeper_layers.results import columns, frames, places
from deeper_layers.results.packing import pack
from deeper_layers.results.schema import KINDS
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED

pytestmark = pytest.mark.quick

RESULTS = places.AROUND / "results"
QWEN = "Qwen2.5-Coder-1.5B-Instruct"


def made_up(task: str, right: dict[str, np.ndarray], layers: int = 6, rule: str = "simple") -> Result:
    """Scores of a task: by cut which items were right."""
    rows = [
        {"task": task, "metric": "acc", "cut": cut, "value": float(np.mean(items)), "stderr": 0.1}
        | {"items": len(items), "outcome": pack(items)}
        for cut, items in right.items()
    ]
    key = {"model": {"name": "m", "weights": "w"}, "dtype": "float32", "data": "d", "cuts": {rule: list(right)}}
    key |= {"tasks": {task: {"shots": None, "limit": None}}}
    return Result("scores", key, {"measured": "2026"}, rows, {"num_layers": layers, "weights": "none"})


@pytest.fixture(scope="module")
def scores():
    return results.scores(RESULTS)


@pytest.fixture(scope="module")
def files():
    """Every published result as its file has it, by its path below the results."""
    return {path.relative_to(RESULTS).as_posix(): json.loads(path.read_bytes()) for path in RESULTS.glob("*/*.json")}


def test_every_published_score_stands_in_the_table_unchanged(scores, files):
    tasks = [
        task if pd.isna(subject) else task.replace("mmlu", f"mmlu_{subject}", 1)
        for task, subject in zip(scores["task"], scores["subject"], strict=True)
    ]
    have = set(zip(*(scores[name] for name in ("path", "cut", "metric", "value", "items")), tasks, strict=True))
    names = ("cut", "metric", "value", "items", "task")
    of_scores = {path: content for path, content in files.items() if content["kind"] == "scores"}
    wanted = {
        (path, *(row[name] for name in names))
        for path, content in of_scores.items()
        for row in content["rows"]
        if row["task"] not in content["details"].get("groups", {})
    }
    assert (
        wanted == {found for found in have if found[3] is not None and not pd.isna(found[3])} and len(wanted) > 15_000
    )
    assert {content["kind"] for content in files.values()} == KINDS.keys()
    for path, content in of_scores.items():  # of all subjects lm-eval makes the mean of their items
        is_group = "mmlu" in content["details"].get("groups", {})
        own = scores[(scores["path"] == path) & scores["subject"].notna()] if is_group else scores[:0]
        for row in (row for row in content["rows"] if row["task"] == "mmlu" and is_group):
            metric, _, macro = row["metric"].partition(",")
            of_cut = own[(own["cut"] == row["cut"]) & (own["metric"] == metric)].drop_duplicates("subject")
            mean = np.average(of_cut["value"], weights=None if macro else of_cut["items"])
            assert mean == pytest.approx(row["value"]) and of_cut["items"].sum() == row["items"]


def test_what_was_kept_item_by_item_has_the_score_as_its_mean(scores):
    kept = scores[scores["outcome"].notna()]
    assert len(kept) > 20_000 and (kept["outcome"].map(len) == kept["items"]).all()
    alike = kept[kept["length"].fillna(1) != 0]  # of sequences of several lengths the score is the mean over tokens
    assert len(kept) - len(alike) < 100
    assert np.allclose(alike["outcome"].map(np.mean), alike["value"], rtol=0, atol=1e-5)  # losses are kept to 5 digits
    chosen = kept[kept["target"].notna() & (kept["metric"] == "acc")]
    right = [((a == b) == c).all() for a, b, c in chosen[["chosen", "target", "outcome"]].values]
    assert len(chosen) > 3000 and all(right)
    assert all(row.logprobs.shape[0] == row.items for row in kept[kept["logprobs"].notna()].itertuples())
    # one vector is taken from another without wrapping around
    assert {vector.dtype for vector in kept["outcome"]} == {np.dtype(float)}


def test_distances_losses_and_geometry_stand_in_their_tables(files):
    for kind, name in (("distances", "distance"), ("healing", "loss")):
        of_path = getattr(results, kind)(RESULTS).groupby("path")[name].agg(list)
        wanted = {path: [row[name] for row in of["rows"]] for path, of in files.items() if of["kind"] == kind}
        assert of_path.to_dict() == wanted
    runs, geometry, answers = (getattr(results, name)(RESULTS) for name in ("runs", "geometry", "answers"))
    assert runs["kind"].value_counts().to_dict() == collections.Counter(of["kind"] for of in files.values())
    pairs = geometry.query("model == 'Gemma-3-270m' and measure == 'cka'")
    assert len(pairs) == 19 * 18 // 2 and (pairs["other"] > pairs["place"]).all() and set(pairs["of"]) == {"state"}
    assert (runs["seconds"] > 0).all() and set(answers["variant"]) == {"whole", "sliced", "healed", "rounded"}


def test_columns_are_those_that_are_described_whatever_is_there(tmp_path):
    described = {"scores": columns.COLUMNS, "distances": columns.OF_DISTANCES, "healing": columns.OF_HEALING}
    described |= {"geometry": columns.OF_GEOMETRY, "runs": columns.OF_RUNS, "answers": columns.OF_ANSWERS}
    for name, wanted in described.items():
        full, empty = (getattr(results, name)(folder) for folder in (RESULTS, tmp_path))
        assert list(full) == list(empty) == list(wanted) and (full.dtypes == empty.dtypes).all() and empty.empty
    assert set(results.scores(RESULTS, QWEN)["model"]) == {QWEN}
    assert frames.CHANGED.keys() == {name for name, rule in REGISTERED.items() if rule.changes}


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
    assert sorted(asked["repeat"]) == [0, 1]
    assert not scores[scores["repeat"] == 0].duplicated([*frames.QUESTION, *frames.CUT]).any()


def test_what_nobody_chose_has_no_rule_and_sublayers_are_counted_as_their_rule_does():
    whole, cut = np.ones(4), Cut.of([1], attention=[3])
    given = frames.scores_of([made_up("a", {"0,0": whole, "2,1": whole}, rule="given")])
    assert given["rule"].isna().all() and given["size"].tolist() == [0, 1]
    dropped = made_up("a", {"0,0": whole, cut.name: whole}, rule="llm-drop")
    unknown = frames.scores_of([dropped])
    assert pd.isna(unknown["size"][1]) and set(unknown["rule"]) == {"llm-drop"}
    dropped.details["sizes"] = {cut.name: 2}
    assert frames.scores_of([dropped])["size"].tolist() == [0, 2]


def test_a_damaged_file_is_named_and_the_rest_shown(tmp_path):
    folder = tmp_path / "Gemma-3-270m"
    folder.mkdir()
    whole, damaged = sorted((RESULTS / folder.name).glob("scores-capitals-*.json"))[:2]
    shutil.copy(whole, folder)
    (folder / damaged.name).write_bytes(damaged.read_bytes()[:-200])
    with pytest.warns(UserWarning, match=damaged.name) as warned:
        shown = results.scores(tmp_path)
    assert len(warned) == 1 and set(shown["path"]) == {f"{folder.name}/{whole.name}"} and len(shown) >= 4
