"""Small tables of result files: what was measured, how long it took, on which data, and the size of the weights.

Energy is estimated from seconds, processors and memory, not measured. Source: Lannelongue et al. 2021 (Green
Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x overhead of a
data centre. The watts are that work's defaults for an unknown processor in full use; accelerators are not included.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers_companion import results
from deeper_layers_companion.report.estimates import differ, wilson_interval
from deeper_layers_companion.report.names import (
    Sentences,
    join_words,
    put_in_order,
    task_title,
    title_within,
)
from deeper_layers_companion.report.pairing import pick_rules, returns
from deeper_layers_companion.results.frames import QUESTION
from deeper_layers_companion.results.schema import KINDS

WATTS_OF_PROCESSOR = 12.0
WATTS_OF_GB = 0.3725
OVERHEAD = 1.67
DATA = Path(__file__).with_name(
    "data_sets.csv"
)  # its last column is a pattern of the tasks with items of a data set
LICENCES = {
    "Qwen2.5-Coder-1.5B-Instruct": "Apache-2.0",
    "SmolLM2-135M-Instruct": "Apache-2.0",
    "Gemma-3-270m": "Gemma terms of use",
}


def runs(folder: Path | None = None) -> pd.DataFrame:
    """Every file of results and its cost: the columns of `results.runs`, and hours, processors, processor_hours, GiB,
    watt_hours. The cost of a group is that of all its tasks."""
    rows = results.runs(folder)
    rows["measured"] = rows["measured"].str[:10]
    rows["commit"] = rows["commit"].fillna("unknown").str[:10]
    rows["hours"] = rows["seconds"] / 3600
    rows["processors"] = (
        rows["device"].str.extract(r"processor.*, (\d+) threads?", expand=False).astype(float)
    )
    rows["processor_hours"] = rows["hours"] * rows["processors"].fillna(0)
    watts = rows["processors"] * WATTS_OF_PROCESSOR + rows["memory"] / 1e9 * WATTS_OF_GB
    rows["watt_hours"] = rows["hours"] * watts * OVERHEAD
    rows["GiB"] = rows["memory"] / 2**30
    return rows


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Sums of runs: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (the maximum)."""
    sums = {name: (name, "sum") for name in ("hours", "processor_hours", "watt_hours")}
    rows = runs(folder).assign(what=lambda table: [KINDS[kind].words for kind in table["kind"]])
    rows = rows.groupby(["model", "kind", "what"], sort=False)
    return rows.agg(runs=("kind", "size"), **sums, GiB=("GiB", "max")).reset_index()


@returns("model dtype topic models answers tokens seconds_an_answer tokens_a_second device")
def written_answers(folder: Path | None = None) -> Iterator[pd.DataFrame]:
    """The time to write answers, by all pruned models of a file together: model, dtype, topic, models, answers (of each
    model), tokens (mean of an answer), seconds_an_answer, tokens_a_second, device."""
    rows = results.scores(folder).query("outcome.notna()").drop_duplicates(["path", "task", "cut"])
    is_written = rows["written"].notna().groupby(rows["path"]).transform("all")
    written = rows[is_written].copy()
    written["sum"] = written["written"].map(np.sum)
    written["topic"] = written["task"].map(task_title)
    by_file = written.groupby(["path", "topic"], sort=False)
    times = by_file.agg(
        models=("cut", "nunique"),
        answers=("items", "max"),
        all=("items", "sum"),
        sum=("sum", "sum"),
    )
    times = times.reset_index().merge(results.runs(folder), on="path")
    times["tokens"] = times["sum"] / times["all"]
    times["seconds_an_answer"] = times["seconds"] / times["all"]
    times["tokens_a_second"] = times["sum"] / times["seconds"]
    yield put_in_order(times)


@returns("trainer version model dropped steps first last")
def trained_elsewhere(content: dict) -> Iterator[dict]:
    """The content of benchmarks/measured/training.json; first and last are mean losses of five steps."""
    for name, record in content["trainers"].items():
        ends = {"first": np.mean(record["losses"][:5]), "last": np.mean(record["losses"][-5:])}
        yield (
            content
            | ends
            | {"trainer": name, "version": record["versions"][name], "steps": len(record["losses"])}
        )


def data(scores: pd.DataFrame) -> pd.DataFrame:
    """The data sets: data, source, licence, splits, asked (the most items or sequences measured with one model)."""
    by_subject = scores.groupby(["model", "task", "subject"], dropna=False)["items"].max()
    items_by_task = by_subject.groupby(["model", "task"]).sum().groupby("task").max()
    sets = pd.read_csv(DATA)
    items = [
        items_by_task[items_by_task.index.str.fullmatch(tasks)].max() for tasks in sets["tasks"]
    ]
    return sets.drop(columns="tasks").assign(asked=pd.Series(items).fillna(0).astype(int))


def models(folder: Path | None = None) -> pd.DataFrame:
    """The models: model, layers, weights (type in which they are published), hash, dtype, vocabulary, licence."""
    names = ["layers", "weights", "hash", "dtype", "vocabulary"]
    table = results.runs(folder).query("kind == 'scores'")
    table = table.iloc[
        table["dtype"].map(-table["dtype"].value_counts()).argsort(kind="stable")
    ]  # the usual first
    table = table.groupby("model")[names].first().reset_index()
    return table.assign(
        hash=table["hash"].str[:23], licence=table["model"].map(LICENCES).fillna("")
    )


def tell_missing(scores: pd.DataFrame, tasks: Iterable[str]) -> Sentences | None:
    """Which tasks of a page no model was asked; None where all were. The book then shows no other sentence about it."""
    asked = {*scores["task"]}
    missing = [title_within(task_title(task)) for task in tasks if task not in asked]
    if not missing:
        return None
    return Sentences(
        [f"Not measured: {join_words(missing)}. What they show joins this page once they are."],
        "missing",
    )


@returns("model task topic cut size shots items answers differ turned value low high")
def asked_twice(scores: pd.DataFrame) -> Iterator[dict]:
    """Repeated measurements of the same models and items: differ (other choices), turned (items right in only one of
    them), value (accuracy of the second minus the first)."""
    rows = pick_rules(
        scores.query("chosen.notna() and outcome.notna() and metric == 'acc' and repeat <= 1")
    )
    key = [*QUESTION, "cut", "changed"]
    rows = rows.drop_duplicates([*key, "repeat"])
    rows = rows[rows.groupby(key, dropna=False)["repeat"].transform("nunique") == 2]
    columns = [
        "model",
        "task",
        "cut",
        "size",
        "shots",
        "limit",
        "order",
        "dtype",
        "bits",
        "healing",
    ]
    for place, both in rows.sort_values("subject", kind="stable").groupby(
        columns, dropna=False, sort=False
    ):
        first = both.query("repeat == 1")
        second = both.query("repeat == 0")
        chosen = [np.concatenate(list(run["chosen"])) for run in (first, second)]
        right = [np.concatenate(list(run["outcome"])) for run in (first, second)]
        row = dict(zip(columns, place, strict=True)) | {"topic": task_title(place[1])}
        row |= (
            dict.fromkeys(("items", "answers"), len(right[0]))
            | differ(right[1], right[0]).columns()
        )
        yield row | {
            "differ": (chosen[0] != chosen[1]).sum(),
            "turned": (right[0] != right[1]).sum(),
        }


@returns("model task topic size start items published published_low published_high again within")
def published_again(published: pd.DataFrame, again: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Published scores beside those of a new measurement: model, task, topic, size, start, items, published with
    published_low and published_high (Wilson's), again, within (whether it lies in that interval)."""
    key = ["model", "task", "subject", "metric", "cut", "shots", "limit"]
    published = published.query("repeat == 0 and healing.isna() and bits.isna()")
    old = published.query("outcome.notna() and metric != 'loss'").drop_duplicates(key)
    new = again.query("outcome.notna() and metric != 'loss'").drop_duplicates(key)
    rows = with_wilson(new.rename(columns={"value": "again"}).merge(old[[*key, "value"]], on=key))
    rows = rows.assign(
        within=rows["again"].between(rows["low"], rows["high"]), topic=rows["task"].map(task_title)
    )
    yield rows.rename(
        columns={"value": "published", "low": "published_low", "high": "published_high"}
    )


@returns("model bits size share bytes MB task topic items value low high")
def sizes(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Bytes and scores by type of weights: model, bits, size, share, bytes, MB, task, topic, items, value low, high."""
    rows = scores.query("bytes.notna() and metric == 'acc' and healing.isna() and repeat == 0")
    rows = rows.drop_duplicates(["model", "bits", "cut", "task", "subject"]).fillna(
        {"bits": "as published"}
    )
    rows = with_wilson(rows).assign(topic=rows["task"].map(task_title), MB=rows["bytes"] / 1e6)
    yield put_in_order(rows.sort_values(["bits", "size", "task"]))


def with_wilson(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of accuracies, with low and high."""
    low, high = wilson_interval(rows["value"] * rows["items"], rows["items"])
    return rows.assign(low=low, high=high)


def drafts(benchmarks: Path) -> pd.DataFrame:
    """Each measured draft, from the files draft-*.json of a folder: model, prompts, tokens (after each), ahead (tokens
    proposed at once), start, size, cost (of a token beside one of the whole model, by layers), taken (share of the
    proposed tokens), acceptance, break_even, expected and times_faster (beside no draft, computed and measured).

    Source: Leviathan et al. 2023. Where each token is accepted with probability a, a round of k proposed tokens gives
    1 + a + ... + a^k and costs k c + 1. So `acceptance` is the a that leaves this share taken, and `break_even` the
    least a with which a round gives as many tokens as it costs.
    """
    contents = [json.loads(path.read_text()) for path in sorted(benchmarks.glob("draft-*.json"))]
    rows = pd.json_normalize(contents, "drafts", ["model", "prompts", "tokens", "ahead"])
    rows = rows.rename(
        columns={"cost_of_layers": "cost", "times_faster_than_without": "times_faster"}
    )
    rows["acceptance"] = [
        find_acceptance(*pair) for pair in zip(rows["taken"], rows["ahead"], strict=True)
    ]
    rows["break_even"] = [
        find_acceptance(*pair) for pair in zip(rows["cost"], rows["ahead"], strict=True)
    ]
    rows["expected"] = (rows["ahead"] * rows["taken"] + 1) / (rows["ahead"] * rows["cost"] + 1)
    return rows


def find_acceptance(share: float, ahead: int) -> float:
    """The a between 0 and 1 with (a + ... + a^k) / k = `share`, for k = `ahead`: the probability with which each token
    is accepted if this share of the tokens is, as those after a refused one are refused."""
    roots = np.roots([*[1.0] * ahead, -ahead * share])
    (found,) = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real >= 0)]
    return float(found)
