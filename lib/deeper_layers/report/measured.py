"""What was measured, how long it took, on what data, and what it weighs: small tables of result files.

Energy is estimated from seconds, processors and memory, not measured with a meter. Source: Lannelongue et al. 2021
(Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x what a
data centre takes beside. The watts are that work's defaults for a processor that is not known better, all of it in use;
of accelerators none are known here.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers import results
from deeper_layers.report.estimates import Estimate, means, wilson
from deeper_layers.report.names import put_in_order, topic
from deeper_layers.report.pairing import gives, one_rule
from deeper_layers.results.frames import QUESTION
from deeper_layers.results.schema import KINDS

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
DATA = Path(__file__).with_name("data_sets.csv")  # its last column: a pattern of the tasks that are asked of it
LICENCES = {
    "Qwen2.5-Coder-1.5B-Instruct": "Apache-2.0",
    "SmolLM2-135M-Instruct": "Apache-2.0",
    "Gemma-3-270m": "Gemma terms of use",
}


def runs(folder: Path | None = None) -> pd.DataFrame:
    """Every file of results and what it took: the columns of `results.runs`, and hours, processors, processor_hours,
    GiB, watt_hours. What a group of tasks took is that of its tasks."""
    found = results.runs(folder)
    found["measured"], found["commit"] = found["measured"].str[:10], found["commit"].fillna("unknown").str[:10]
    found["hours"] = found["seconds"] / 3600
    found["processors"] = found["device"].str.extract(r"processor.*, (\d+) threads?", expand=False).astype(float)
    found["processor_hours"] = found["hours"] * found["processors"].fillna(0)
    watts = found["processors"] * WATTS + found["memory"] / 1e9 * WATTS_OF_GB
    return found.assign(watt_hours=found["hours"] * watts * BESIDE, GiB=found["memory"] / 2**30)


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Runs added up: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (at most)."""
    added = {name: (name, "sum") for name in ("hours", "processor_hours", "watt_hours")}
    found = runs(folder).assign(what=lambda of: [KINDS[kind].words for kind in of["kind"]])
    found = found.groupby(["model", "kind", "what"], sort=False)
    return found.agg(runs=("kind", "size"), **added, GiB=("GiB", "max")).reset_index()


def written_answers(folder: Path | None = None) -> pd.DataFrame:
    """How long answers took to write, all pruned models of a file together: model, dtype, topic, models, answers (of
    each), tokens (an answer, mean), seconds_an_answer, tokens_a_second, device."""
    rows = results.scores(folder).query("outcome.notna()").drop_duplicates(["path", "task", "cut"])
    own = rows[rows["written"].notna().groupby(rows["path"]).transform("all")]
    own = own.assign(sum=own["written"].map(np.sum), topic=own["task"].map(topic))
    added = {"models": ("cut", "nunique"), "answers": ("items", "max"), "all": ("items", "sum"), "sum": ("sum", "sum")}
    found = own.groupby(["path", "topic"], sort=False).agg(**added).reset_index()
    found = found.merge(results.runs(folder), on="path")
    found = found.assign(tokens=found["sum"] / found["all"], seconds_an_answer=found["seconds"] / found["all"])
    found["tokens_a_second"] = found["sum"] / found["seconds"]
    names = ["model", "dtype", "topic", "models", "answers", "tokens", "seconds_an_answer", "tokens_a_second", "device"]
    return put_in_order(found)[names]


@gives("trainer version model dropped steps first last")
def trained_elsewhere(content: dict) -> Iterator[dict]:
    """What benchmarks/measured/training.json holds; first and last are the mean loss of five steps."""
    for name, one in content["trainers"].items():
        ends = {"first": np.mean(one["losses"][:5]), "last": np.mean(one["losses"][-5:])}
        yield content | ends | {"trainer": name, "version": one["versions"][name], "steps": len(one["losses"])}


def data(scores: pd.DataFrame) -> pd.DataFrame:
    """Data sets: data, source, licence, splits, asked (most items or sequences that were asked of any model)."""
    own = scores.drop_duplicates(["model", "task", "subject", "items"])
    by_subject = own.groupby(["model", "task", "subject"], dropna=False)["items"].max()
    asked, sets = by_subject.groupby(["model", "task"]).sum().groupby("task").max(), pd.read_csv(DATA)
    most = [asked[asked.index.str.fullmatch(tasks)].max() for tasks in sets["tasks"]]
    return sets.drop(columns="tasks").assign(asked=pd.Series(most).fillna(0).astype(int))


def models(folder: Path | None = None) -> pd.DataFrame:
    """The models: model, layers, weights (how they are published), hash, dtype, vocabulary (tokens), licence."""
    names = ["layers", "weights", "hash", "dtype", "vocabulary"]
    every = results.runs(folder).query("kind == 'scores'")
    of_most = every.sort_values("dtype", key=lambda of: -of.map(of.value_counts()), kind="stable")  # the usual type
    found = of_most.groupby("model")[names].first().reset_index()
    return found.assign(hash=found["hash"].str[:23], licence=found["model"].map(LICENCES).fillna(""))


@gives("model task topic cut size shots items answers differ turned value low high")
def asked_twice(scores: pd.DataFrame) -> Iterator[dict]:
    """Same models, same items, asked twice: differ (answers chosen otherwise), turned (right in one of them only),
    value (accuracy the second time less the first)."""
    own = one_rule(scores.query("chosen.notna() and outcome.notna() and metric == 'acc' and repeat <= 1"))
    key = [*QUESTION, "cut", "changed"]
    own = own.drop_duplicates([*key, "repeat"])
    own = own[own.groupby(key, dropna=False)["repeat"].transform("nunique") == 2]
    asked = ["model", "task", "cut", "size", "shots", "limit", "order", "dtype", "bits", "healing"]
    for place, found in own.sort_values("subject", kind="stable").groupby(asked, dropna=False, sort=False):
        first, second = found.query("repeat == 1"), found.query("repeat == 0")
        chosen, right = ([np.concatenate(list(of[name])) for of in (first, second)] for name in ("chosen", "outcome"))
        row = dict(zip(asked, place, strict=True)) | {"topic": topic(place[1])}
        row |= dict.fromkeys(("items", "answers"), len(right[0])) | Estimate.of(means(right[1] - right[0])).columns()
        yield row | {"differ": (chosen[0] != chosen[1]).sum(), "turned": (right[0] != right[1]).sum()}


def published_again(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside the same measured now: model, task, topic, size, start, items, published with
    published_low and published_high (Wilson's), again, within (that interval)."""
    key = ["model", "task", "subject", "metric", "cut", "shots", "limit"]
    old, new = (
        one.query("outcome.notna() and metric != 'loss'").drop_duplicates(key)
        for one in (published.query("repeat == 0 and healing.isna() and bits.isna()"), again)
    )
    known = with_wilson(new.rename(columns={"value": "again"}).merge(old[[*key, "value"]], on=key))
    known = known.assign(within=known["again"].between(known["low"], known["high"]), topic=known["task"].map(topic))
    known = known.rename(columns={"value": "published", "low": "published_low", "high": "published_high"})
    return known["model task topic size start items published published_low published_high again within".split()]


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Weights and answers by type: model, bits, size, share, bytes, MB, task, topic, items, value with low and high."""
    own = scores.query("bytes.notna() and metric == 'acc' and healing.isna() and repeat == 0")
    own = with_wilson(own.drop_duplicates(["model", "bits", "cut", "task", "subject"]))
    own = own.assign(bits=own["bits"].fillna("as published"), topic=own["task"].map(topic), MB=own["bytes"] / 1e6)
    names = ["model", "bits", "size", "share", "bytes", "MB", "task", "topic", "items", "value", "low", "high"]
    return put_in_order(own[names].sort_values(["bits", "size", "task"]))


def with_wilson(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of shares of items that are right, with low and high."""
    low, high = wilson(rows["value"] * rows["items"], rows["items"])
    return rows.assign(low=low, high=high)
