"""All results as tables: `scores`, a row for each pruned model and task; distances, losses while healing, geometry.

Whatever the book says is a query of these; `COLUMNS` and the others say what each column holds, and in what unit.

- A task of MMLU is a row of the task "mmlu" with its subject. What lm-eval makes of all subjects has no row: it is the
  mean over their items. Other groups, such as "sums", have no score of their own; their tasks stand by their own names.
- A cut that several rules choose has one row for each of them, and the whole model one under every rule of what was
  asked alike. So `query("rule == 'similarity'")` is a whole curve; whoever counts models drops duplicates of `cut`.
- A file that names no rule, of losses or healed models, has those of files in which rules chose its cuts, the paper's
  before others.
- Of two measurements of one thing both have rows. `repeat == 0` is the one that counts: that of the file with more
  cuts, then the later one.

`scores["size"]` and `scores["items"]`: as attributes these names are pandas' own, as is `row.dtype` of a single row.

How each kind of file of today is read stands in rows.py.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.results.packing import unpack_halves
from deeper_layers.results.rows import PAPER, SCORES, measured, named, records, rows_of, settings_of_healing
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
    "value": "the score: a share of the items, or the loss over all tokens, nats a token",
    "outcome": "the score of each item, [I]: 0 or 1, or of each sequence, nats a token; missing where none was kept",
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
OF_HEALING = {
    name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits", "cut", "start", "size", "share", "healing")
} | {
    "step": "update of the adapters, from 1",
    "tokens": "tokens seen up to it",
    "loss": "training loss of the step, nats a token",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
OF_GEOMETRY = {name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits")} | {
    "corpus": "text whose residuals were looked at",
    "measure": "what was measured of them",
    "of": '"layer", or "state" for the residual that enters a layer, or leaves the last one',
    "place": "which one, from 0",
    "other": "of a measure of pairs: the second one, further up; else missing",
    "value": "the measure",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
OF_RUNS = {
    "model": COLUMNS["model"],
    "layers": COLUMNS["layers"],
    "weights": "type of the weights as they are published: Q4_1, or a data type; missing where it is not known",
    "hash": "of the weights, or their commit on a hub",
    "dtype": COLUMNS["dtype"],
    "vocabulary": "tokens; missing where the file does not say",
    "kind": "of the file: distances, scores, healing or geometry",
    "name": "of what was measured: tasks, text, rule or cut",
    "cuts": "pruned models in it",
    "measured": COLUMNS["measured"],
    "seconds": "that it took",
    "memory": "bytes held at most",
    "device": "processor or accelerator, in words",
    "commit": "of the code that measured it; missing where it is not known",
    "path": COLUMNS["path"],
}
OF_ANSWERS = {
    "model": COLUMNS["model"],
    "cut": COLUMNS["cut"],
    "size": COLUMNS["size"],
    "variant": '"whole", "sliced", "healed" or "rounded"',
    "prompt": "text that it goes on from",
    "answer": "what llama.cpp wrote",
    "path": COLUMNS["path"],
}
WHOLE_NUMBERS = ("start", "size", "shots", "order", "limit", "length", "bytes", "vocabulary", "other")  # may be missing
COUNTS = ("layers", "items", "repeat", "samples", "seed", "step", "place", "cuts", "memory")
NUMBERS = ("share", "value", "chance", "commonest", "distance", "stderr", "tokens", "loss", "seconds")
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
DISTANCES = ("similarity", "distances")  # kinds of files


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
    return scores_of(unit for kind in SCORES for unit in all_units(folder, kind, model))


def scores_of(units: Iterable[Unit]) -> "pd.DataFrame":
    """The same of some files alone: of a group of tasks those of its tasks are to be among them."""
    rows = []
    for unit in units:
        if unit.kind in SCORES and "units" not in unit.details:
            rows += rows_of(unit, SCORES[unit.kind])
    rows = _count_repeats(_put_whole_under_rules(_give_rules(rows)))
    return _frame(rows, COLUMNS)


def distances(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every angular distance, a row for each block: the columns are those of `OF_DISTANCES`; see `scores`."""
    return distances_of(unit for kind in DISTANCES for unit in all_units(folder, kind, model))


def distances_of(units: Iterable[Unit]) -> "pd.DataFrame":
    """The same of some files alone."""
    rows = []
    for unit in (unit for unit in units if unit.kind in DISTANCES):
        asked = {name: unit.key[name] for name in ("corpus", "seed")} | {"length": unit.key["sequence_length"]}
        table = unit.rows
        vectors = [None] * len(table)
        if "by_sequence" in unit.details:
            vectors = list(unpack_halves(unit.details["by_sequence"], int(table["samples"].iloc[0])).T)
        for row, vector in zip(records(table), vectors, strict=True):
            rows.append(measured(unit) | asked | row | {"by_sequence": vector})
            rows[-1]["share"] = row["size"] / unit.details["num_layers"]
    return _frame(rows, OF_DISTANCES)


def healing(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """The loss of every healing by step: the columns are those of `OF_HEALING`; see `scores`."""
    rows = []
    for unit in all_units(folder, "healing", model):
        cut, course = Cut.of_key(unit.key["cut"]), unit.details["healing"]
        found = measured(unit) | {"cut": cut.name, "start": cut.start if cut.is_block else None, "size": cut.size}
        found |= {"share": cut.size / unit.details["num_layers"], "healing": settings_of_healing(unit)}
        a_step = course["tokens"] / len(course["losses"])
        for step, loss in enumerate(course["losses"], start=1):
            rows.append(found | {"step": step, "tokens": step * a_step, "loss": loss})
    return _frame(rows, OF_HEALING)


def geometry(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Measures of every layer and residual, and of pairs of them: the columns are those of `OF_GEOMETRY`."""
    rows = []
    for unit in all_units(folder, "geometry", model):
        found = measured(unit) | {"corpus": unit.key["corpus"]}
        for row in records(unit.rows):
            place = {"of": "layer" if row["size"] else "state", "place": row["start"]}
            rows.append(found | place | {"measure": row["metric"], "value": row["value"]})
        for measure, triangle in unit.details["pairs"].items():
            of = "layer" if len(triangle) < found["layers"] else "state"
            for place, values in enumerate(triangle):
                for other, value in enumerate(values, start=place + 1):
                    rows.append(found | {"of": of, "measure": measure, "place": place, "other": other, "value": value})
    return _frame(rows, OF_GEOMETRY)


def runs(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What was measured when, how long it took and on what: a row for each file, the columns are `OF_RUNS`."""
    rows = []
    for unit in (unit for unit in all_units(folder, model=model) if "units" not in unit.details):
        ran, key = unit.provenance, unit.key
        cuts = len(key["cuts"]) if "cuts" in key else 1 if "cut" in key else len(key.get("sizes", []))
        kind = (
            unit.kind if unit.kind in ("healing", "geometry") else "distances" if unit.kind in DISTANCES else "scores"
        )
        found = {"kind": kind, "name": unit.name, "cuts": cuts, "vocabulary": unit.details.get("vocabulary")}
        found |= {"weights": unit.details.get("weights"), "hash": key["model"]["weights"]}
        found |= {"seconds": ran["seconds"] + (ran.get("seconds_in_earlier_runs") or 0), "device": ran["device"]}
        found |= {"memory": ran.get("peak_memory_bytes") or 0, "commit": ran["commit"]}
        rows.append(measured(unit) | found)
    return _frame(rows, OF_RUNS)


def answers(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What checkpoints wrote in llama.cpp: a row for each checkpoint and prompt, the columns are `OF_ANSWERS`."""
    rows = []
    for unit in all_units(folder, "take-away", model):
        cut = Cut.of_key(unit.key["cut"])
        for variant, said in unit.details["answers"].items():
            for prompt, answer in zip(unit.key["prompts"], said, strict=False):  # after them the number of tokens
                place = {"cut": cut.name, "size": cut.size, "variant": variant}
                rows.append(measured(unit) | place | {"prompt": prompt, "answer": answer})
    return _frame(rows, OF_ANSWERS)


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
                chose[row["model"], row["cut"]].setdefault(rule, row.get("size", named(row["cut"]).size))
                if "size" in row:  # of a choice
                    of_rule[row["model"], rule].add(row["cut"])
    found = []
    for row in rows:
        cut, known = named(row["cut"]), chose[row["model"], row["cut"]]
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
            rules[_of(row, QUESTION)][row["rule"]] = None
    found = []
    for row in rows:
        if row["cut"] != UNPRUNED.name:
            found.append(row)
            continue
        for rule in rules[_of(row, QUESTION)] or (None,):
            found.append(row | {"rule": rule})
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
