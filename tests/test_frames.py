"""One table of all results: every published number stands in it, and a reader's question is a short query."""

import collections
import json

import numpy as np
import pandas as pd
import pytest

from deeper_layers.packing import pack
from deeper_layers.presets import PRESETS
from deeper_layers_companion import results
from deeper_layers_companion.jobs import listing
from deeper_layers_companion.jobs.notebook_options import (
    QuestionAnsweringParameters,
    ScanParameters,
    SimilarityParameters,
)
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.report.pairing import find_measurements, score_guessing
from deeper_layers_companion.results import frames, places
from deeper_layers_companion.results.contradictions import find_contradictions
from deeper_layers_companion.results.schema import KINDS
from deeper_layers_companion.results.store import read_results, write_result
from deeper_layers_companion.rules.table import DESCRIBED, END_MAPS

pytestmark = pytest.mark.quick

RESULTS = places.AROUND / "results"


@pytest.fixture(scope="module")
def scores():
    return results.scores(RESULTS)


@pytest.fixture(scope="module")
def files():
    """Every published result as its file has it, by its path below the results."""
    return {path.relative_to(RESULTS).as_posix(): json.loads(path.read_bytes()) for path in RESULTS.glob("*/*.json")}


def test_every_published_score_stands_in_the_table_unchanged(scores, files):
    names = ("task", "cut", "metric", "value", "items")
    wanted = {
        (path, *map(row.get, names))
        for path, content in files.items()
        for row in content["rows"]
        if content["kind"] == "scores" and row["task"] not in content["details"].get("groups", {})
    }
    subject = "mmlu_" + scores["subject"]
    tasks = scores["task"].where(subject.isna(), subject + scores["task"].str.removeprefix("mmlu"))
    known = scores.assign(task=tasks)[scores["value"].notna()]
    assert wanted == {*zip(*(known[name] for name in ("path", *names)))} and len(wanted) > 15_000
    assert {content["kind"] for content in files.values()} == KINDS.keys()


def test_no_published_result_contradicts_itself_or_another(scores):
    assert list(find_contradictions(read_results(RESULTS), scores)) == []


def test_what_was_kept_item_by_item_has_the_score_as_its_mean(scores):
    kept = scores[scores["outcome"].notna()]
    assert len(kept) > 20_000 and (kept["outcome"].map(len) == kept["items"]).all()
    assert {vector.dtype for vector in kept["outcome"]} == {np.dtype(float)}, "no difference wraps around"
    alike = kept[kept["length"].fillna(1) != 0]  # of sequences of several lengths the score is the mean over tokens
    assert len(kept) - len(alike) < 100
    assert np.allclose(alike["outcome"].map(np.mean), alike["value"], rtol=0, atol=1e-5)  # losses are kept to 5 digits
    chosen = kept[kept["target"].notna() & (kept["metric"] == "acc")][["chosen", "target", "outcome"]].values
    assert len(chosen) > 3000 and all(((a == b) == c).all() for a, b, c in chosen)
    assert (kept["logprobs"].dropna().map(len) == kept["items"][kept["logprobs"].notna()]).all()


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


def test_columns_are_the_same_whatever_is_there(tmp_path):
    for name, wanted in frames.TABLES.items():
        full, empty = (getattr(results, name)(folder) for folder in (RESULTS, tmp_path))
        assert list(full) == list(empty) == wanted.split() and (full.dtypes == empty.dtypes).all() and empty.empty
    assert frames.CHANGED.keys() == {name for name, rule in DESCRIBED.items() if rule.changes} | {*END_MAPS}


def test_a_curve_of_each_rule_begins_with_the_whole_model_and_what_was_measured_twice_is_told_apart(scores):
    assert not scores[scores["repeat"] == 0].duplicated([*frames.QUESTION, *frames.CUT]).any()
    asked = "model == 'Qwen2.5-Coder-1.5B-Instruct' and subject == 'virology' and cut == '24,1' and limit == 20"
    asked = scores.query(f"{asked} and task == 'mmlu' and healing.isna() and rule == 'similarity'")
    assert sorted(asked["repeat"]) == [0, 1]
    rows = scores.query("model == 'Gemma-3-270m' and task == 'capitals' and limit == 120 and repeat == 0")
    rules = rows[rows["bits"].isna() & rows["healing"].isna()].groupby("rule")
    assert {"similarity", "simple", "window-cosine", "llm-drop-attention"} <= set(rules.groups)
    assert all(own["size"].is_unique and own["size"].min() == 0 for _, own in rules)
    dropped = rules.get_group("llm-drop-attention").set_index("size").loc[4]
    assert dropped["cut"].startswith("attention ") and pd.isna(dropped["start"]) and dropped["share"] == 4 / 18


# ---- made-up results: what the published ones could hide, as their numbers would be recorded again under a fault ----

KEY = {"model": {"name": "m", "weights": "1"}, "dtype": "float32", "tasks": {"a": {"shots": 2, "limit": 4}}}
KEY |= {"data": "first", "cuts": {"simple": ["0,0", "3,1"]}}
LEVELS = {"a": {"chance": 0.25, "majority": 0.5}}


def write_made_up(folder, right: int = 2, measured: str = "2026-01-02T00:00:00", details: dict | None = None, **key):
    """A result in which so many of 4 items are right under every cut; its file below the folder of results."""
    key = KEY | key
    outcome = pack(np.arange(4) < right)
    row = {"task": "a", "metric": "acc", "value": right / 4, "stderr": None, "items": 4, "outcome": outcome}
    cuts = dict.fromkeys(cut for cuts in key["cuts"].values() for cut in cuts)
    run = {"measured": measured, "device": "", "commit": None, "seconds": 1.0, "peak_memory_bytes": 1}
    details = {"num_layers": 5, "weights": "none", "levels": LEVELS} | (details or {})
    return write_result("scores", key, run, [row | {"cut": cut} for cut in cuts], details, folder).place


def test_of_what_was_measured_twice_more_cuts_count_then_the_later_one(tmp_path):
    later = write_made_up(tmp_path, 3, "2026-01-03T00:00:00", data="second")
    earlier = write_made_up(tmp_path)
    more = write_made_up(tmp_path, 1, "2026-01-01T00:00:00", data="third", cuts={"simple": ["0,0", "3,1", "2,2"]})
    other = write_made_up(tmp_path, 4, quantization="nf4")
    table = results.scores(tmp_path)
    for cut in ("0,0", "3,1"):
        repeats = table[table["cut"] == cut].set_index("path")["repeat"].to_dict()
        assert repeats == {more: 0, later: 1, earlier: 2, other: 0}, "of other weights it is no repeat"
    assert table.set_index("path")["bits"].dropna().to_dict() == {other: "nf4"}
    (measured,) = (one for one in find_measurements(table) if one.place[2] == "simple")
    assert measured.cuts["size"].tolist() == [0, 1, 2] and measured.outcomes.mean() == 1 / 4


def test_guessing_is_the_better_of_two_ways_and_what_is_healed_or_asked_otherwise_is_apart(tmp_path):
    write_made_up(tmp_path)
    settings = PRESETS["small"].settings
    healed = {"healing": settings, "text": "c4", "cuts": {"simple": ["3,1"]}}
    write_made_up(tmp_path, 3, details={"healed_tokens": 7}, **healed)
    write_made_up(tmp_path, 1, tasks={"a": {"shots": 2, "limit": 4, "order": 1}}, data="second")
    write_made_up(tmp_path, 0, details={"levels": {"a": {"chance": 0.25, "majority": 0.0}}}, dtype="bfloat16")
    table = results.scores(tmp_path)
    assert (table["repeat"] == 0).all() and len(table) == 7
    first = table.query("dtype == 'float32'")
    assert set(first["chance"]) == {0.25} and set(first["commonest"]) == {0.5}
    assert table.query("dtype == 'bfloat16'")["commonest"].isna().all(), "a majority of nothing is not known"
    assert json.loads(first["healing"].dropna().item()) == settings | {"text": "c4", "tokens": 7}
    assert score_guessing(first) == 0.5 and score_guessing(table.query("dtype == 'bfloat16'")) == 0.25


def test_another_quantization_is_another_measurement(tiny_folder):
    """Every key of every notebook has it, so that no result of rounded weights answers for others."""
    for kind in (SimilarityParameters, QuestionAnsweringParameters, ScanParameters):
        parameters = kind(model=str(tiny_folder), quantization="nf4", results="/nowhere")
        session = Session(parameters, planning=True)
        listing.get_all(kind.notebook, session)
        keys = [job.key for job in session.missing.values()]
        assert keys and {key["quantization"] for key in keys} == {"nf4"}
