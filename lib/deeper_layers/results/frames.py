"""All results as one table: `scores`, a row for each pruned model and task, and `distances`, a row for each block.

Whatever the book says is a query of these; `COLUMNS` and `OF_DISTANCES` say what each column holds, and in what unit.

- A task of MMLU is a row of the task "mmlu" with its subject. What lm-eval makes of all subjects has no row: it is the
  mean over their items. Other groups, such as "sums", have no score of their own; their tasks stand by their own names.
- A cut that several rules choose has one row for each of them, and the whole model one under every rule of what was
  asked alike. So `query("rule == 'similarity'")` is a whole curve; whoever counts models drops duplicates of `cut`.
- A file that names no rule, of losses or healed models, has those of files in which rules chose its cuts, the paper's
  before others.
- Of two measurements of one thing both have rows. `repeat == 0` is the one that counts: that of the file with more
  cuts, then the later one.

How each kind of file of today is read stands in `SCORES`, one small function a kind.
"""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut, measured_cuts
from deeper_layers.results.packing import LOGPROBS, unpack, unpack_halves
from deeper_layers.results.units import Unit, all_units

if TYPE_CHECKING:  # slow
    import pandas as pd

COLUMNS = {
    "model": "name of the network, as results know it",
    "layers": "how many layers the whole network has, L",
    "dtype": "number format in which it computes",
    "bits": "type to which its weights were rounded (nf4, Q2_K); missing where they are as published",
    "cut": 'what was dropped, as `Cut.name` has it: "13,4" are 4 layers from layer 13 (0-based), "0,0" is none',
    "start": "first dropped layer, from 0; missing where the cut is no block",
    "size": "how many layers were dropped, n; of sublayers as the rule counts them, missing where no rule is known",
    "share": "size / layers",
    "rule": 'whose choice the cut was; "blocks of 4" where every block of 4 was tried; missing where nobody chose it',
    "changed": "what the rule did to the weights of the layers that stay: merged, or bridged; missing for nothing",
    "healing": "settings, text and tokens of the healing, as JSON; missing where the model was not healed",
    "task": "task of lm-eval, or group of which this is one task; of losses the text",
    "subject": "of the tasks of MMLU the subject; else missing",
    "shots": "examples in the prompt; missing for the task's own number",
    "order": "seed of the order of these examples; missing for the usual one",
    "limit": "at most so many items, the first ones, were asked of each task, or sequences of a text; missing for all",
    "length": "of losses: tokens in a sequence; 0 where each is as long as it is",
    "engine": "what else than this library's own forward pass answered; else missing",
    "metric": 'what was counted: "acc", "exact_match", ..., or "loss" (nats a token)',
    "items": "how many items or sequences were counted, I",
    "value": "the score: a share of the items, or for losses the mean over sequences, nats a token",
    "outcome": "the score of each item, [I]: 0 or 1, or nats a token; missing where none was kept",
    "chosen": "number of the choice that each item was answered with, [I]; missing where none was kept",
    "target": "number of the right choice of each item, [I]; missing where none was kept",
    "logprobs": "log-probability of each choice, nats, [I, K], nan where an item has fewer; else missing",
    "chance": "what guessing at random scores; for losses ln V, that of guessing among all V tokens, nats a token",
    "commonest": "what always naming the commonest answer of the task scores; missing where it is not known",
    "bytes": "of weights, where they were counted",
    "repeat": "0 for the measurement that counts; 1, 2, ... for others of the same thing",
    "measured": "when, in UTC, ISO 8601",
    "path": "file below the folder of results",
}
OF_DISTANCES = {name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits", "start", "size", "share")} | {
    "corpus": "text on which the residuals were compared",
    "samples": "sequences of it, S",
    "length": "tokens in a sequence, at most",
    "seed": "with which they were drawn",
    "distance": "angular distance of what enters a block and what leaves it, units of pi, mean over sequences",
    "stderr": "its standard error over sequences",
    "by_sequence": "distance of each sequence, [S], within 0.05%; missing where none was kept",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
WHOLE_NUMBERS = ("start", "size", "shots", "order", "limit", "length", "bytes")  # that may be missing
COUNTS = ("layers", "items", "repeat", "samples", "seed")
NUMBERS = ("share", "value", "chance", "commonest", "distance", "stderr")
VECTORS = ("outcome", "chosen", "target", "logprobs", "by_sequence")
# rows alike in these are of one question to models of one kind, those alike in CUT too of one thing
QUESTION = (
    "model",
    "dtype",
    "bits",
    "healing",
    "task",
    "subject",
    "shots",
    "order",
    "limit",
    "length",
    "engine",
    "metric",
)
CUT = ("cut", "rule", "changed")
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
MMLU_FIELDS = [f"mmlu_{name}" for name in ("stem", "humanities", "social_sciences", "other")]  # of several subjects

_named = functools.lru_cache(maxsize=8192)(Cut.named)


def scores(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every score and every loss, a row for each pruned model, rule and task: the columns are those of `COLUMNS`.

    Args:
        folder: of results; the default one and the published ones where none is named.
        model: the one network by this name; all where none is named.

    A file that is damaged is named in a warning and left out. Raises InputError where `folder` is no folder.

    Example:
        >>> from deeper_layers import results
        >>> asked = results.scores().query("task == 'boolq' and rule == 'similarity' and healing.isna()")
        >>> curve = asked.groupby(["model", "share"])["value"].first()
    """
    rows = []
    for kind, read in SCORES.items():
        for unit in all_units(folder, kind, model):
            if "units" not in unit.details:  # of a group: its tasks have files of their own
                rows += _rows(unit, read)
    rows = _count_repeats(_put_whole_under_rules(_give_rules(rows)))
    return _frame(rows, COLUMNS)


def distances(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every angular distance, a row for each block: the columns are those of `OF_DISTANCES`; see `scores`."""
    rows = []
    for unit in (unit for kind in ("similarity", "distances") for unit in all_units(folder, kind, model)):
        asked = {name: unit.key[name] for name in ("corpus", "seed")} | {"length": unit.key["sequence_length"]}
        table = unit.rows
        vectors = [None] * len(table)
        if "by_sequence" in unit.details:
            vectors = list(unpack_halves(unit.details["by_sequence"], int(table["samples"].iloc[0])).T)
        for row, vector in zip(_records(table), vectors, strict=True):
            rows.append(_measured(unit) | asked | row | {"by_sequence": vector})
            rows[-1]["share"] = row["size"] / unit.details["num_layers"]
    return _frame(rows, OF_DISTANCES)


# ---- one function for each kind of file of today: what differs from row to row ------------------------------------


def _of_task(unit: Unit) -> Iterator[dict]:
    """Scores of pruned models on one task, by cut."""
    outcomes = unit.details.get("outcomes", {})
    for row in _records(unit.rows):
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
    for row in _records(unit.rows):
        found = {"cut": _cut_of(row)} | _score(row) | _loss(unit)
        found["outcome"] = _array(unit.details.get("by_sequence", {}).get(found["cut"]))
        yield found | ({"rule": (f"blocks of {row['size']}",)} if unit.kind == "blocks" and row["size"] else {})


def _of_choice(unit: Unit) -> Iterator[dict]:
    """The loss of what a rule leaves, by size."""
    for row in _records(unit.rows):
        losses = _array(unit.details["by_sequence"][str(row["size"])])
        cut = Cut.of(row["layers"], row["attention"], row["mlp"]).name
        found = {"cut": cut, "size": row["size"], "rule": (unit.key["rule"],), "outcome": losses}
        yield found | _score(row) | _loss(unit)


def _of_healed(unit: Unit) -> Iterator[dict]:
    """The loss and the scores of one healed model."""
    name, loss = Cut.of_key(unit.key["cut"]).name, unit.key["loss"]
    for row in _records(unit.rows):
        found = {"cut": name, "healing": _healing(unit), **_score(row)}
        if row["metric"] == "loss":
            of_loss = {"limit": loss["sequences"], "length": loss["sequence_length"], "shots": None}
            yield found | _loss(unit) | of_loss | {"outcome": _array(unit.details["by_sequence"])}
        else:
            yield found | _vectors(unit.details["outcomes"].get(row["task"], {}), row["metric"])


def _of_bits(unit: Unit) -> Iterator[dict]:
    """Scores of pruned models of which the weights are counted too, in bytes."""
    for row in _records(unit.rows):
        yield {"cut": _cut_of(row), "bytes": row["bytes"], "bits": unit.key["bits"], **_score(row)}


def _of_files(unit: Unit) -> Iterator[dict]:
    """Scores of the checkpoints of one cut: the whole model, sliced, healed, and rounded to a type of llama.cpp's."""
    rows = _records(unit.rows)
    size = {row["variant"]: int(row["value"]) for row in rows if row["metric"] == "bytes"}
    of_variant = {"healed": {"healing": _healing(unit)}}
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


def _measured(unit: Unit) -> dict:
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


def _rows(unit: Unit, read: Callable[[Unit], Iterator[dict]]) -> list[dict]:
    """The rows of a file with all that is said of them, without those of groups; `rule` has all that are known."""
    key, levels = unit.key, unit.details.get("levels", {})
    stated = _stated_rules(key, unit.details["num_layers"])
    shared = _measured(unit) | {"engine": key.get("engine"), "order": key.get("order")}
    shared |= {"changed": CHANGED.get(key.get("rule", "")), "number of cuts": len(key.get("cuts", []))}
    rows = list(read(unit))
    asked = {task: _task_and_subject(task) for task in dict.fromkeys(row["task"] for row in rows)}
    groups = {task for task in asked if task not in levels and _is_group(task, asked)}
    found = []
    for row in (row for row in rows if row["task"] not in groups):
        task, subject = asked[row["task"]]
        level = levels.get(row["task"], {})
        found.append(
            {
                **shared,
                "task": task,
                "subject": subject,
                "chance": level.get("chance"),
                "commonest": level.get("majority") or None,
                "rule": stated.get(row["cut"]),
                **_limits(key, row["task"], task),
                **{name: row[name] for name in row if name != "task"},
            }
        )
    return found


def _limits(key: dict, name: str, group: str) -> dict:
    """How many examples and items were asked for of a task, by its own name or that of its group."""
    of_all = key.get("tasks", {})
    asked = next((one for one in (name, group, *of_all) if one in of_all and name.startswith(one)), None)
    shots = key["num_fewshot"] if "num_fewshot" in key else of_all.get(asked)
    limit = key.get("limits", {}).get(asked, key.get("limit"))
    return {"shots": OWN_SHOTS.get(name) if shots is None else shots, "limit": limit}


def _records(table: "pd.DataFrame") -> list[dict]:
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


def _healing(unit: Unit) -> str:
    how = unit.key["healing"] | {"text": unit.key["text"], "tokens": unit.details["healing"]["tokens"]}
    return json.dumps(how, sort_keys=True)


@functools.cache
def _task_and_subject(name: str) -> tuple[str, str | None]:
    subject = name.removeprefix("mmlu_").removesuffix("_continuation")
    if name == subject or subject not in MMLU_SUBJECTS:
        return name, None
    return name.replace(f"_{subject}", "", 1), subject


def _is_group(task: str, asked: dict[str, tuple]) -> bool:
    """Whether a task is what lm-eval makes of others that were asked."""
    if task.removesuffix("_continuation") in MMLU_FIELDS:
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
    of_rule = measured_cuts(rules, list(map(_named, names)), layers)
    return {name: tuple(rule for rule in rules if _named(name) in of_rule[rule]) for name in names}


def _give_rules(rows: list[dict]) -> list[dict]:
    """One row for each rule that chose a cut: as its file states, else as other files have it; start, size and share.

    A file without a rule that holds all that some rule chose, and nothing else, is of that one; else a cut is the
    paper's where its rules chose it, and of all others that did where they did not.
    """
    chose: dict[tuple, dict[str, int]] = defaultdict(dict)  # of a model and cut: rules, and the size of their choice
    of_rule, in_file = defaultdict(set), defaultdict(set)
    for row in rows:
        in_file[row["path"]].add(row["cut"])
        for rule in () if row["changed"] else row["rule"] or ():
            if not rule.startswith("blocks of"):
                chose[row["model"], row["cut"]].setdefault(rule, row.get("size", _named(row["cut"]).size))
                if "size" in row:  # of a choice
                    of_rule[row["model"], rule].add(row["cut"])
    found = []
    for row in rows:
        cut, known = _named(row["cut"]), chose[row["model"], row["cut"]]
        rules = row["rule"]
        if rules is None:
            own = in_file[row["path"]] - {UNPRUNED.name}
            rules = [rule for rule in known if of_rule[row["model"], rule] == own]
            rules = rules or [rule for rule in known if rule in PAPER] or list(known)
        plain = None if cut.attention or cut.mlp else cut.size
        for rule in rules if rules and cut != UNPRUNED else (None,):
            size = row.get("size", known.get(rule, plain))
            place = {"start": cut.start if cut.is_block else None, "size": size, "rule": rule}
            found.append(row | place | {"share": None if size is None else size / row["layers"]})
    return found


def _put_whole_under_rules(rows: list[dict]) -> list[dict]:
    """The whole model once under each rule of what was asked alike; under none where there is none."""
    rules: dict[tuple, dict] = defaultdict(dict)
    for row in rows:
        if row["rule"] is not None:
            rules[_of(row, QUESTION)][row["rule"], row["changed"]] = None
    found = []
    for row in rows:
        if row["cut"] != UNPRUNED.name:
            found.append(row)
            continue
        for rule, changed in rules[_of(row, QUESTION)] or {(None, None): None}:
            found.append(row | {"rule": rule, "changed": changed})
    return found


def _count_repeats(rows: list[dict]) -> list[dict]:
    count: dict[tuple, int] = defaultdict(int)
    by_time = sorted(rows, key=lambda row: row["measured"], reverse=True)
    for row in sorted(by_time, key=lambda row: -row["number of cuts"]):
        own = _of(row, (*QUESTION, *CUT))
        row["repeat"] = count[own]
        count[own] += 1
    return rows


def _of(row: dict, names: tuple[str, ...]) -> tuple:
    return tuple(map(row.get, names))


def _frame(rows: list[dict], columns: dict[str, str]) -> "pd.DataFrame":
    """A table with these columns, each of one type even where it has no row or nothing in it."""
    import pandas as pd  # slow

    kinds = dict.fromkeys(WHOLE_NUMBERS, "Int64") | dict.fromkeys(COUNTS, "int64")
    kinds |= dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(VECTORS, "object")
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=kinds.get(name, "str")) for name in columns}
    )
