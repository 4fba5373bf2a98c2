"""The rows of one file of scores or losses, as the table of all results has them: one small function a kind of file.

Each yields what differs from row to row, by the names of `frames.COLUMNS`; `rows_of` adds what holds of all the file.
Of the kinds of today nothing else knows but the schema.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import Cut, measured_cuts
from deeper_layers.results.packing import LOGPROBS, unpack, unpack_halves
from deeper_layers.results.units import Unit

if TYPE_CHECKING:  # slow
    import pandas as pd

OWN_SHOTS = {"gsm8k": 5}  # by lm-eval, where nobody asked for another number
PAPER = ("similarity", "simple")  # the paper's two rules
# rules that change weights too; their cut alone is not their model
CHANGED = dict.fromkeys(("laco", "laco-code"), "merged") | dict.fromkeys(
    ("replaceme", "replaceme-cosine", "streamline"), "bridged"
)
# as lm-eval names them; others than these begin with "mmlu_" too
MMLU_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security
    conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
    high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
    high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
    logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
    moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions
""".split()
MMLU_FIELD = re.compile("mmlu(_continuation:)?[:_](stem|humanities|social[_ ]sciences|other)")  # of several subjects

named = functools.lru_cache(maxsize=8192)(Cut.named)


# ---- one function for each kind of file of today: what differs from row to row ------------------------------------


def _of_task(unit: Unit) -> Iterator[dict]:
    """Scores of pruned models on one task, by cut."""
    outcomes = unit.details.get("outcomes", {})
    for row in records(unit.rows):
        cut = _cut_of(row)
        yield {"cut": cut, **_score(row), **_vectors(outcomes.get(cut, {}).get(row["task"], {}), row["metric"])}


def _of_prompt(unit: Unit) -> Iterator[dict]:
    """The same under one of several prompts: of a group the rows are those of all its tasks, the outcomes by task."""
    for cut, of_cut in unit.details["outcomes"].items():
        for task, packed in of_cut.items():
            for metric in (name for name in packed if name not in ("chosen", "target", LOGPROBS)):
                vectors = _vectors(packed, metric)
                right = vectors["outcome"]
                found = {"cut": cut, "task": task, "metric": metric, "value": float(right.mean()), "items": len(right)}
                yield found | vectors


def _of_text(unit: Unit) -> Iterator[dict]:
    """Losses on text of pruned models, by cut; of a map of blocks each under the rule that all of its size are."""
    for row in records(unit.rows):
        found = {"cut": _cut_of(row)} | _score(row) | _loss(unit)
        found["outcome"] = _array(unit.details.get("by_sequence", {}).get(found["cut"]))
        yield found | ({"rule": (f"blocks of {row['size']}",)} if unit.kind == "blocks" and row["size"] else {})


def _of_choice(unit: Unit) -> Iterator[dict]:
    """The loss of what a rule leaves, by size."""
    for row in records(unit.rows):
        losses = _array(unit.details["by_sequence"][str(row["size"])])
        cut = Cut.of(row["layers"], row["attention"], row["mlp"]).name
        found = {"cut": cut, "size": row["size"], "rule": (unit.key["rule"],), "outcome": losses}
        yield found | _score(row) | _loss(unit)


def _of_healed(unit: Unit) -> Iterator[dict]:
    """The loss and the scores of one healed model."""
    name, loss = Cut.of_key(unit.key["cut"]).name, unit.key["loss"]
    for row in records(unit.rows):
        found = {"cut": name, "healing": settings_of_healing(unit), **_score(row)}
        if row["metric"] == "loss":
            of_loss = {"limit": loss["sequences"], "length": loss["sequence_length"], "shots": None}
            yield found | _loss(unit) | of_loss | {"outcome": _array(unit.details["by_sequence"])}
        else:
            yield found | _vectors(unit.details["outcomes"].get(row["task"], {}), row["metric"])


def _of_bits(unit: Unit) -> Iterator[dict]:
    """Scores of pruned models of which the weights are counted too, in bytes."""
    for row in records(unit.rows):
        yield {"cut": _cut_of(row), "bytes": row["bytes"], "bits": unit.key["bits"], **_score(row)}


def _of_files(unit: Unit) -> Iterator[dict]:
    """Scores of the checkpoints of one cut: the whole model, sliced, healed, and rounded to a type of llama.cpp's."""
    rows = records(unit.rows)
    size = {row["variant"]: int(row["value"]) for row in rows if row["metric"] == "bytes"}
    of_variant = {"healed": {"healing": settings_of_healing(unit)}}
    of_variant["rounded"] = of_variant["healed"] | {"bits": unit.key["type"]}
    for row in (row for row in rows if row["metric"] != "bytes"):
        how = {"bytes": size[row["variant"]]} | of_variant.get(row["variant"], {})
        engine = {"engine": row["task"]} if row["task"] == "llama.cpp" else {}
        yield {"cut": _cut_of(row), **_score(row), **how, **engine}


SCORES: dict[str, Callable[[Unit], Iterator[dict]]] = {
    "sweep": _of_task,
    "scan": _of_task,
    "cuts": _of_task,
    "changed": _of_task,
    "shots": _of_prompt,
    "loss": _of_text,
    "blocks": _of_text,
    "candidates": _of_text,
    "choice": _of_choice,
    "healing": _of_healed,
    "bits": _of_bits,
    "take-away": _of_files,
}


# ---- what they share ----------------------------------------------------------------------------------------------


def measured(unit: Unit) -> dict:
    """What holds of all rows of a file."""
    path = f"{unit.path.parent.name}/{unit.path.name}" if unit.path else None
    return {
        "model": unit.key["model"]["name"],
        "layers": unit.details["num_layers"],
        "dtype": unit.key["dtype"],
        "bits": unit.key.get("quantization"),
        "measured": unit.provenance["measured"],
        "path": path,
    }


def rows_of(unit: Unit, read: Callable[[Unit], Iterator[dict]]) -> list[dict]:
    """The rows of a file with all that is said of them, without those of groups; `rule` has all that are known."""
    key, levels = unit.key, unit.details.get("levels", {})
    stated = _stated_rules(key, unit.details["num_layers"])
    shared = measured(unit) | {"engine": key.get("engine"), "order": key.get("order")}
    shared |= {"changed": CHANGED.get(key.get("rule", "")), "number of cuts": len(key.get("cuts", []))}
    rows = list(read(unit))
    asked = {task: _task_and_subject(task) for task in dict.fromkeys(row["task"] for row in rows)}
    of_task = {}
    for name, (task, subject) in asked.items():
        if name in levels or not _is_group(name, asked):
            level = levels.get(name, {})
            guessed = {"chance": level.get("chance"), "commonest": level.get("majority") or None}
            of_task[name] = shared | {"task": task, "subject": subject} | guessed | _limits(key, name, task)
    found = []
    for row in rows:
        if (known := of_task.get(row.pop("task"))) is not None:
            found.append(known | {"rule": stated.get(row["cut"])} | row)
    return found


def _limits(key: dict, name: str, group: str) -> dict:
    """How many examples and items were asked for of a task, by its own name or that of its group."""
    of_all = key.get("tasks", {})
    groups = (one for one in of_all if name.startswith(f"{one}_"))
    asked = next((one for one in (name, group, *groups) if one in of_all), None)
    shots = key["num_fewshot"] if "num_fewshot" in key else of_all.get(asked)
    limit = key.get("limits", {}).get(asked, key.get("limit"))
    return {"shots": OWN_SHOTS.get(name) if shots is None else shots, "limit": limit}


def records(table: "pd.DataFrame") -> list[dict]:
    """Rows as dictionaries, in a quarter of the time of `to_dict`."""
    names, columns = list(table), [table[name].tolist() for name in table]
    return [dict(zip(names, values)) for values in zip(*columns, strict=True)]


def _score(row: dict) -> dict:
    return {name: row[name] for name in ("task", "metric", "value", "items")}


def _loss(unit: Unit) -> dict:
    """Of which sequences losses are, and the loss of guessing, where it is known."""
    key, vocabulary = unit.key, unit.details.get("vocabulary")
    chance = math.log(vocabulary) if vocabulary else None
    return {"limit": key.get("sequences", key.get("samples")), "length": key.get("sequence_length"), "chance": chance}


def _vectors(packed: dict[str, str], metric: str) -> dict:
    """What came out of each item, unpacked."""
    names = {"outcome": metric, "chosen": "chosen", "target": "target"}
    vectors = {name: _unpacked(packed[kept]) for name, kept in names.items() if kept in packed}
    if "outcome" in vectors:
        vectors["outcome"] = vectors["outcome"].astype(float)  # whoever subtracts bytes from each other gets 255 for -1
    if LOGPROBS in packed and vectors:
        vectors["logprobs"] = unpack_halves(packed[LOGPROBS], len(next(iter(vectors.values()))))
    return vectors


@functools.lru_cache(maxsize=4096)
def _unpacked(text: str) -> np.ndarray:
    """The right choices are the same under every cut."""
    return unpack(text)


def _array(values: list | None) -> np.ndarray | None:
    return None if values is None else np.array(values, dtype=float)


def _cut_of(row: dict) -> str:
    return row["cut"] if "cut" in row else f"{row['start']},{row['size']}"


def settings_of_healing(unit: Unit) -> str:
    """How a model was healed, as text that is the same where all of it is."""
    how = unit.key["healing"] | {"text": unit.key["text"], "tokens": unit.details["healing"]["tokens"]}
    return json.dumps(how, sort_keys=True)


@functools.cache
def _task_and_subject(name: str) -> tuple[str, str | None]:
    subject = name.removeprefix("mmlu_").removesuffix("_continuation")
    if not name.startswith("mmlu_") or subject not in MMLU_SUBJECTS:
        return name, None
    return name.replace(f"_{subject}", "", 1), subject


def _is_group(task: str, asked: dict[str, tuple]) -> bool:
    """Whether a task is what lm-eval makes of others that were asked."""
    if MMLU_FIELD.fullmatch(task):
        return True
    return any(other != task and (of == task or other.startswith(f"{task}_")) for other, (of, _) in asked.items())


def _stated_rules(key: dict, layers: int) -> dict[str, tuple[str, ...]]:
    """The rules that a file states for the cuts of its key, by cut; empty where it states none."""
    if not {"rule", "cuts"} <= key.keys():
        return {}
    names = tuple(cut if isinstance(cut, str) else f"{cut[0]},{cut[1]}" for cut in key["cuts"])
    return _rules_by_cut(tuple(key["rule"].split(", ")), names, layers)


@functools.cache
def _rules_by_cut(rules: tuple[str, ...], names: tuple[str, ...], layers: int) -> dict[str, tuple[str, ...]]:
    if not set(rules) <= set(PAPER):
        return dict.fromkeys(names, rules)
    of_rule = measured_cuts(rules, list(map(named, names)), layers)
    return {name: tuple(rule for rule in rules if named(name) in of_rule[rule]) for name in names}
