"""All results as tables: `scores`, a row for each pruned model and task; distances, losses while healing, geometry.

Whatever the book says is a query of these; columns.py says what each column holds, and in what unit.

- A task of the group "mmlu" is a row of the task "mmlu" with its subject. What lm-eval makes of all subjects has no
  row: it is the mean over their items. Other groups, such as "sums", have no score; their tasks stand by their own
  names.
- A cut that several rules choose has one row for each of them, and the whole model one under every rule of what was
  asked alike. So `query("rule == 'similarity'")` is a whole curve; whoever counts models drops duplicates of `cut`.
- Of two measurements of one thing both have rows. `repeat == 0` is the one that counts: that of the file with more
  cuts, then the later one.

`scores["size"]` and `scores["items"]`: as attributes these names are pandas' own, as is `row.dtype` of a single row.
"""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.results.columns import (
    COLUMNS,
    COUNTS,
    NUMBERS,
    OF_ANSWERS,
    OF_DISTANCES,
    OF_GEOMETRY,
    OF_HEALING,
    OF_RUNS,
    VECTORS,
    WHOLE_NUMBERS,
)
from deeper_layers.results.packing import ITEM_BY_ITEM, unpack, unpack_halves
from deeper_layers.results.schema import GIVEN, UNHEALED, UNROUNDED
from deeper_layers.results.store import Result, all_results, cut_names, left_out

if TYPE_CHECKING:  # slow
    import pandas as pd

# rows alike in these are of one question to models of one kind, those alike in CUT too of one thing
QUESTION = "model dtype bits healing task subject shots order limit length engine metric".split()
CUT = ["cut", "rule", "changed"]
OWN_SHOTS = {"gsm8k": 5}  # by lm-eval, where nobody asked for another number
# rules that change weights too; their cut alone is not their model
CHANGED = dict.fromkeys(("laco", "laco-code"), "merged")
CHANGED |= dict.fromkeys(("replaceme", "replaceme-cosine", "prune-and-comp", "streamline"), "bridged")
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
    return scores_of(all_results(folder, "scores", model))


def scores_of(results: Iterable[Result]) -> "pd.DataFrame":
    """The same of some files alone."""
    rows = _put_whole_under_rules(_rows(_of_scores, (one for one in results if one.kind == "scores")))
    found = _frame(rows, COLUMNS | {"cuts": ""})
    # of two measurements of one thing that of the file with more cuts counts, then the later one
    by_worth = found.sort_values(["cuts", "measured"], ascending=False, kind="stable")
    found["repeat"] = by_worth.groupby([*QUESTION, *CUT], dropna=False).cumcount()
    return found.drop(columns="cuts")


def distances(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every angular distance, a row for each block: the columns are those of `OF_DISTANCES`; see `scores`."""
    return distances_of(all_results(folder, "distances", model))


def distances_of(results: Iterable[Result]) -> "pd.DataFrame":
    """The same of some files alone."""
    return _frame(_rows(_of_distances, (one for one in results if one.kind == "distances")), OF_DISTANCES)


def healing(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """The loss of every healing by step: the columns are those of `OF_HEALING`; see `scores`."""
    return _frame(_rows(_of_healing, all_results(folder, "healing", model)), OF_HEALING)


def geometry(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Measures of every layer and residual, and of pairs of them: the columns are those of `OF_GEOMETRY`."""
    return _frame(_rows(_of_geometry, all_results(folder, "geometry", model)), OF_GEOMETRY)


def runs(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What was measured when, how long it took and on what: a row for each file, the columns are `OF_RUNS`."""
    return _frame(_rows(_of_run, all_results(folder, model=model)), OF_RUNS)


def answers(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What checkpoints wrote in llama.cpp: a row for each checkpoint and prompt, the columns are `OF_ANSWERS`."""
    return _frame(_rows(_of_answers, all_results(folder, "scores", model)), OF_ANSWERS)


# ---- the rows of one file ---------------------------------------------------------------------------------------


def _rows(read: Callable[[Result], Iterator[dict]], results: Iterable[Result]) -> list[dict]:
    """Those of some files, with what holds of each of them; one in which something does not fit is left out whole."""
    rows: list[dict] = []
    for result in results:
        shared = {"model": result.key["model"]["name"], "layers": result.details["num_layers"]}
        shared |= {"dtype": result.key["dtype"], "bits": result.key.get("quantization"), "path": result.place}
        shared["measured"] = result.provenance["measured"]
        try:
            rows += [shared | row for row in read(result)]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            left_out(result.path, error)
    return rows


def _of_scores(result: Result) -> Iterator[dict]:
    """A row for each rule that chose a cut, and score; of the whole model one without a rule."""
    key, details = result.key, result.details
    groups = details.get("groups", {})
    chose = defaultdict(list, {UNPRUNED.name: [None]})
    for rule, cuts in (key.get("cuts") or details["cuts"]).items():
        for cut in cuts:
            if cut != UNPRUNED.name:
                chose[cut].append(None if rule == GIVEN else rule)
    healing = _healing_in_json(key, details["healed_tokens"]) if key.get("healing") else None
    shared = {"engine": key.get("engine"), "cuts": len(cut_names(key)), "repeat": 0}
    of_task, first = {}, {}
    for row in (row for row in result.records if row["task"] not in groups):
        name, metric, items = row["task"], row["metric"], row["items"]
        if name not in of_task:
            group = next((group for group, leaves in groups.items() if name in leaves and group in key["tasks"]), name)
            of_task[name] = shared | _of_task(result, name, group)
        of_choices = first.setdefault((name, row["cut"], row.get("variant")), row)
        found = of_task[name] | _place(row["cut"], details) | {"metric": metric, "items": items, "value": row["value"]}
        found["outcome"] = _vector(row.get("outcome"), items)
        for kept, read in ITEM_BY_ITEM.items():
            if kept in of_choices:
                found[kept] = read(of_choices[kept], items)
        if metric == "loss":
            found["chance"] = math.log(details["vocabulary"]) if details.get("vocabulary") else None
        elif name in details.get("targets", {}):
            found["target"] = unpack(details["targets"][name], items)
        if (variant := row.get("variant")) not in UNHEALED:
            found["healing"] = healing
        if key.get("bits") and variant not in UNROUNDED:
            found["bits"] = key["bits"]
        found |= {name: row[name] for name in ("bytes", "engine") if name in row}
        for rule in chose[row["cut"]]:
            yield found | {"rule": rule, "changed": CHANGED.get(rule or "")}


def _of_task(result: Result, name: str, group: str) -> dict:
    """What holds of all rows of one task of a file; those of the group MMLU are one task of several subjects."""
    asked, level = result.key["tasks"].get(group, {}), result.details.get("levels", {}).get(name, {})
    found = {name: asked.get(name) for name in ("limit", "order", "length", "shots")} | {"task": name}
    if group != name and group.startswith("mmlu"):
        found["subject"] = name.removeprefix("mmlu_").removesuffix("_continuation")
        found["task"] = name.replace(f"_{found['subject']}", "", 1)
    if found["shots"] is None:
        found["shots"] = OWN_SHOTS.get(name)
    found |= {"chance": level.get("chance"), "commonest": level.get("majority") or None}
    measured = result.provenance.get("parts", {}).get(name, {}).get("measured")
    return found | ({"measured": measured} if measured else {})


def _place(name: str, details: dict) -> dict:
    cut = _named(name)
    size = details.get("sizes", {}).get(name, None if cut.attention or cut.mlp else cut.size)
    share = None if size is None else size / details["num_layers"]
    return {"cut": name, "start": cut.start if cut.is_block else None, "size": size, "share": share}


def _vector(kept: str | list | None, items: int) -> np.ndarray | None:
    """Outcomes as numbers: whoever subtracts bytes from each other gets 255 for -1."""
    if isinstance(kept, str):
        return unpack(kept, items).astype(float)
    if kept is not None and len(kept) != items:
        raise ValueError(f"losses are of {len(kept)} sequences, expected {items}")
    return None if kept is None else np.array(kept, dtype=float)


def _healing_in_json(key: dict, tokens: int) -> str:
    return json.dumps(key["healing"] | {"text": key["text"], "tokens": tokens}, sort_keys=True)


def _of_distances(result: Result) -> Iterator[dict]:
    key, rows = result.key, result.records
    asked = {"corpus": key["corpus"], "seed": key["seed"], "length": key["sequence_length"]}
    vectors: Iterable = [None] * len(rows)
    if packed := result.details.get("by_sequence"):
        vectors = unpack_halves(packed, rows[0]["samples"]).T
    for row, vector in zip(rows, vectors, strict=True):
        yield asked | row | {"by_sequence": vector, "share": row["size"] / result.details["num_layers"]}


def _of_healing(result: Result) -> Iterator[dict]:
    key, tokens = result.key, result.details["tokens"]
    shared = _place(key["cut"], result.details) | {"healing": _healing_in_json(key, tokens)}
    for row in result.records:
        yield shared | row | {"tokens": row["step"] * tokens / len(result.records)}


def _of_geometry(result: Result) -> Iterator[dict]:
    shared = {"corpus": result.key["corpus"]}
    for row in result.records:
        place = {"of": "layer" if row["size"] else "state", "place": row["start"]}
        yield shared | place | {"measure": row["metric"], "value": row["value"]}
    for measure, triangle in result.details["pairs"].items():
        of = "layer" if len(triangle) < result.details["num_layers"] else "state"
        for place, values in enumerate(triangle):
            for other, value in enumerate(values, start=place + 1):
                yield shared | {"of": of, "measure": measure, "place": place, "other": other, "value": value}


def _of_run(result: Result) -> Iterator[dict]:
    ran, key, details = result.provenance, result.key, result.details
    cuts = cut_names(key) or {cut for cuts in details.get("cuts", {}).values() for cut in cuts}
    found = {"kind": result.kind, "name": result.name, "vocabulary": details.get("vocabulary")}
    found |= {"cuts": len(cuts) or int("cut" in key), "weights": details["weights"], "hash": key["model"]["weights"]}
    found |= {"seconds": ran["seconds"] + ran.get("seconds_in_earlier_runs", 0), "device": ran["device"]}
    yield found | {"memory": ran["peak_memory_bytes"], "commit": ran["commit"]}


def _of_answers(result: Result) -> Iterator[dict]:
    for variant, said in result.details.get("answers", {}).items():
        (cut,) = cut_names(result.key) - {UNPRUNED.name}
        for prompt, answer in zip(result.key["prompts"], said, strict=True):
            yield {"cut": cut, "size": _named(cut).size, "variant": variant, "prompt": prompt, "answer": answer}


# ---- what is between files --------------------------------------------------------------------------------------


def _put_whole_under_rules(rows: list[dict]) -> list[dict]:
    """The whole model once under each rule of what was asked alike; under none where there is none."""
    rules: dict[tuple, dict] = defaultdict(dict)
    questions = [tuple(map(row.get, QUESTION)) for row in rows]
    for row, question in zip(rows, questions, strict=True):
        if row["rule"] is not None:
            rules[question][row["rule"]] = None
    found = []
    for row, question in zip(rows, questions, strict=True):
        is_whole = row["cut"] == UNPRUNED.name
        found += [row | {"rule": rule} for rule in rules[question] or (None,)] if is_whole else [row]
    return found


def _frame(rows: list[dict], columns: dict[str, str]) -> "pd.DataFrame":
    """A table with these columns, each of one type even where it has no row or nothing in it."""
    import pandas as pd  # slow

    kinds = dict.fromkeys(WHOLE_NUMBERS, "Int64") | dict.fromkeys(COUNTS, "int64")
    kinds |= dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(VECTORS, "object")
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=kinds.get(name, "str")) for name in columns}
    )
