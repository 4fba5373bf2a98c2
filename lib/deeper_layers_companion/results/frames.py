"""All results as tables: `scores`, one row for each pruned model and task; distances, losses while healing, geometry.

Every number of the book is a query of these. A table reads one folder of results, or the default folder and the
published results; and one model or all. A damaged file is left out, and a warning names it.

- A task of the group "mmlu" is a row of the task "mmlu" with its subject. lm-eval's score of the whole group has no
  row: it is the mean over all items. Other groups, such as "sums", have no score; their tasks stand by their own
  names.
- A cut that several rules choose has one row for each of them. The whole model has one row for every rule under the
  same question. So `query("rule == 'similarity'")` is a whole curve; to count models, drop duplicates of `cut`.
- If one thing was measured twice, both measurements have rows. `repeat == 0` is the one that counts: that of the file
  with more cuts, then the later one.

Write `scores["size"]` and `scores["items"]`: as attributes these names are pandas' own, like `row.dtype` of one row.
"""

import functools
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.packing import ITEM_BY_ITEM, unpack, unpack_halves
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.results.store import Result, cut_names, read_results, warn_left_out

if TYPE_CHECKING:  # slow to import
    import pandas as pd

TABLES = {
    "scores": "model layers dtype bits cut start size share rule changed healing task subject shots order limit "
    "drawn length engine metric items value outcome chosen target logprobs written ended agreement overlap kl compared "
    "chance commonest bytes repeat measured path",
    "distances": "model layers dtype bits start size share corpus samples length seed distance stderr by_sequence "
    "measured path",
    "healing": "model layers dtype bits cut start size share healing step tokens loss measured path",
    "geometry": "model layers dtype bits corpus measure of place other value measured path",
    "runs": "model layers weights hash dtype vocabulary kind name cuts measured seconds memory device commit path",
    "answers": "model cut size variant prompt answer path",
}
VECTORS = "outcome chosen target logprobs written ended compared by_sequence".split()
COMPARED = "agreement overlap kl".split()
TYPES = dict.fromkeys("layers items repeat samples seed step place cuts memory".split(), "int64")
# whole numbers that may be missing
TYPES |= dict.fromkeys(
    "start size shots order limit drawn length bytes vocabulary other".split(), "Int64"
)
TYPES |= dict.fromkeys(
    "share value chance commonest distance stderr tokens loss seconds".split(), "float64"
)
TYPES |= dict.fromkeys(COMPARED, "float64")
TYPES |= dict.fromkeys(VECTORS, "object")  # all others are text
# rows that agree in these are of one question to models of one kind; rows that agree in CUT, too, are of one model
QUESTION = (
    "model dtype bits healing task subject shots order limit drawn length engine metric".split()
)
CUT = ["cut", "rule", "changed"]
OWN_SHOTS = {"gsm8k": 5}  # lm-eval's number of examples, where the key names none
# rules that also change weights, so that their cut does not determine their model
CHANGED = dict.fromkeys(("laco", "laco-code"), "merged")
CHANGED |= dict.fromkeys(
    ("replaceme", "replaceme-cosine", "prune-and-comp", "streamline"), "bridged"
)
CHANGED |= dict.fromkeys(("reverse-affine", "reverse-low-rank"), "mapped")  # rules/end_maps.py
_parse_cut = functools.lru_cache(maxsize=8192)(Cut.named)


def scores(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every score and every loss, one row for each pruned model, rule and task.

    Args:
        folder: a folder of results; None: the default one and the published ones. InputError where it can be none.
        model: the name of one network; None: all.

    Returns:
        A table with these columns. A value is missing where it is not known or does not apply.

        - model, layers, dtype: name of the network, its number of layers L, the number format in which it computes
        - bits: type to which its weights were rounded (nf4, Q2_K)
        - cut: what was dropped, by `Cut.name`: "13,4" are 4 layers from layer 13 (0-based), "0,0" is none
        - start, size, share: first dropped layer of a block; number of dropped layers, n, by the rule's count; n / L
        - rule: the rule that chose the cut; "blocks of 4" where every block of 4 was tried
        - changed: what the rule did to the weights of the layers that stay: merged, or bridged, or mapped: with a map
          in the place of the last layers
        - healing: settings, text and tokens of the healing, as JSON
        - task, subject: task of lm-eval, or its group; for losses the text; for MMLU the subject
        - shots, order: examples in the prompt; seed of their order
        - limit: the most items of each task, or sequences of a text, that were scored, from the first on
        - drawn: the seed of the random order of items, where asking may have stopped early: limit is then how many
          were asked of the task or group, and the vectors have them in this order; missing elsewhere
        - length: for losses: tokens in a sequence; 0 where each has its own length
        - engine: the engine that answered, if not this library's own forward pass
        - metric: "acc", "exact_match", ..., or "loss" (nats a token)
        - items, value: number of items or sequences, I; the score: a share of them, or the loss over all tokens
        - outcome: the score of each item, [I]: 0 or 1; or the loss of each sequence, nats a token
        - chosen, target: index of the chosen and of the right choice of each item, [I]
        - logprobs: log-probability of each choice, nats, [I, K], nan where an item has fewer
        - written, ended: tokens of each generated answer; 0 if it was cut off at the limit, else 1, [I]
        - agreement, overlap, kl: of losses, beside the whole model: share of tokens whose most likely one is the same;
          mean of the sum of min(p, q); divergence of the cut from the whole model, nats a token
        - compared: these three of each sequence, [I, 3]
        - chance, commonest: the score of guessing at random (for losses ln V of V tokens); of the commonest answer
        - bytes: size of the weights, where it was measured
        - repeat: 0 for the measurement that counts; 1, 2, ... for others of the same thing
        - measured, path: time in UTC, ISO 8601; file below the folder of results

    Example:
        >>> from deeper_layers_companion import results
        >>> asked = results.scores().query("task == 'boolq' and rule == 'similarity' and healing.isna()")
        >>> curve = asked.groupby(["model", "share"])["value"].first()
    """
    return tabulate_scores(read_results(folder, "scores", model))


def tabulate_scores(results: Iterable[Result]) -> "pd.DataFrame":
    """The table of `scores` for these results alone."""
    rows = _read_rows(_read_scores, (one for one in results if one.kind == "scores"))
    rules = defaultdict(dict)
    expanded = []
    repeats = defaultdict(itertools.count)
    for row in rows:
        rules[_values(row, QUESTION)] |= {row["rule"]: None} if row["rule"] else {}
    for row in rows:  # the whole model once under each rule of the same question
        rules_of_whole = rules[_values(row, QUESTION)] if row["cut"] == UNPRUNED.name else {}
        expanded += [row | {"rule": rule} for rule in rules_of_whole or [row["rule"]]]
    for row in sorted(expanded, key=lambda row: (row["cuts"], row["measured"]), reverse=True):
        row["repeat"] = next(repeats[_values(row, QUESTION + CUT)])
    return _to_frame(expanded, "scores")


def distances(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every angular distance, one row for each block.

    Columns beside those of `scores`: corpus; samples, their number S, length in tokens at most, and seed; distance
    between input and output of the block, in units of pi, mean over sequences; stderr over sequences; by_sequence,
    [S], the distance of each sequence, within 0.05%.
    """
    return tabulate_distances(read_results(folder, "distances", model))


def tabulate_distances(results: Iterable[Result]) -> "pd.DataFrame":
    """The table of `distances` for these results alone."""
    return _to_frame(
        _read_rows(_read_distances, (one for one in results if one.kind == "distances")),
        "distances",
    )


def healing(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """The training loss of every healing by step, from 1: tokens seen so far, loss in nats a token."""
    return _to_frame(_read_rows(_read_healing, read_results(folder, "healing", model)), "healing")


def geometry(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Measures `of` a "layer", or a "state", the residual that enters one; `other` is the second place of a pair."""
    return _to_frame(
        _read_rows(_read_geometry, read_results(folder, "geometry", model)), "geometry"
    )


def runs(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """One row for each result file: what was measured, when, for how long, and on which device."""
    return _to_frame(_read_rows(_read_run, read_results(folder, model=model)), "runs")


def answers(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """The answers of checkpoints in llama.cpp: one row for each checkpoint and prompt."""
    return _to_frame(_read_rows(_read_answers, read_results(folder, "scores", model)), "answers")


def _values(row: dict, columns: Iterable[str]) -> tuple:
    return tuple(map(row.get, columns))


def _to_frame(rows: list[dict], table: str) -> "pd.DataFrame":
    """A table whose columns have their types even without rows or values."""
    import pandas as pd  # slow to import

    types = {name: TYPES.get(name, "str") for name in TABLES[table].split()}
    columns = {}
    for name, dtype in types.items():
        columns[name] = pd.Series([row.get(name) for row in rows], dtype=dtype)
    return pd.DataFrame(columns)


# ---- the rows of one file ---------------------------------------------------------------------------------------


def _read_rows(read: Callable[[Result], Iterator[dict]], results: Iterable[Result]) -> list[dict]:
    """The rows of all results, with the columns that all kinds share. A result with an inconsistency is left out."""
    rows: list[dict] = []
    for result in results:
        shared = {
            "model": result.key["model"]["name"],
            "layers": result.details["num_layers"],
            "dtype": result.key["dtype"],
            "bits": result.key.get("quantization"),
            "path": result.place,
            "measured": result.provenance["measured"],
        }
        try:
            rows += [shared | row for row in read(result)]
        except Exception as error:
            # zlib and numpy raise many types for packed numbers that do not fit
            warn_left_out(result.path, error)
    return rows


def _read_scores(result: Result) -> Iterator[dict]:
    """A row for each score and rule that chose its cut; rows of the whole model have no rule."""
    key = result.key
    details = defaultdict(dict, result.details)
    first_rows = {}
    rules_by_cut = defaultdict(list)
    for rule, cuts in (key.get("cuts") or details["cuts"]).items():
        for cut in cuts:
            rules_by_cut[cut].append(None if rule == GIVEN else rule)
    rules_by_cut[UNPRUNED.name] = [None]
    healing = _healing_as_json(key, details["healed_tokens"]) if key.get("healing") else None
    of_task = functools.cache(functools.partial(_read_task, result))
    for row in (row for row in result.records if row["task"] not in details["groups"]):
        variant = row.get("variant")
        items = row["items"]
        outcome = row.get("outcome")
        line = of_task(row["task"], items) | _read_cut(row["cut"], details)
        line |= {
            name: row[name]
            for name in ("metric", "items", "value", "bytes", "engine", *COMPARED)
            if name in row
        }
        if outcome is not None:  # as floats: in unsigned bytes 0 - 1 is 255
            outcome = unpack(outcome, items) if isinstance(outcome, str) else outcome
            line["outcome"] = np.array(outcome, dtype=float).reshape(items)
        item_row = first_rows.setdefault((row["task"], row["cut"], variant), row)
        line |= {
            name: read(item_row[name], items)
            for name, read in ITEM_BY_ITEM.items()
            if name in item_row
        }
        if row["metric"] == "loss":
            line["chance"] = math.log(details["vocabulary"]) if details["vocabulary"] else None
        if variant not in ("whole", "sliced"):
            line["healing"] = healing
        if key.get("bits") and variant in (None, "rounded"):
            line["bits"] = key["bits"]
        for rule in rules_by_cut[row["cut"]]:
            yield line | {"rule": rule, "changed": CHANGED.get(rule or "")}


def asked_group(result: Result, task: str) -> str:
    """The group under which the key asks for a task, or the task's own name."""
    groups = result.details.get("groups", {})
    return next(
        (name for name, tasks in groups.items() if task in tasks and name in result.key["tasks"]),
        task,
    )


def _read_task(result: Result, name: str, items: int) -> dict:
    """The columns that all rows of a task share. The tasks of the group MMLU become one task with several subjects."""
    key = result.key
    details = defaultdict(dict, result.details)
    run = defaultdict(dict, result.provenance)
    group = asked_group(result, name)
    settings = key["tasks"].get(group, {})
    in_mmlu = group != name and group.startswith("mmlu")
    level = details["levels"].get(name, {})
    if in_mmlu:
        level = details["levels"].get(group, level)
    subject = name.removeprefix("mmlu_").removesuffix("_continuation") if in_mmlu else None
    shots = settings.get("shots")
    target = details["targets"].get(name)
    return {
        "task": name.replace(f"_{subject}", "", 1) if subject else name,
        "subject": subject,
        "shots": OWN_SHOTS.get(name) if shots is None else shots,
        **{entry: settings.get(entry) for entry in ("order", "length")},
        "limit": details["stopping"]["items"] if details["stopping"] else settings.get("limit"),
        "drawn": settings.get("seed"),
        "engine": key.get("engine"),
        "cuts": len(cut_names(key)),  # no column: by it repeated measurements are put in order
        "target": target and unpack(target, items),
        "chance": level.get("chance"),
        "commonest": level.get("majority") or None,
        "measured": run["parts"].get(name, run)["measured"],
    }


def _read_cut(name: str, details: dict) -> dict:
    cut = _parse_cut(name)
    size = details.get("sizes", {}).get(name, cut.size if cut.is_of_layers else None)
    share = None if size is None else size / details["num_layers"]
    return {"cut": name, "start": cut.start if cut.is_block else None, "size": size, "share": share}


def _healing_as_json(key: dict, tokens: int) -> str:
    return json.dumps(key["healing"] | {"text": key["text"], "tokens": tokens}, sort_keys=True)


def _read_distances(result: Result) -> Iterator[dict]:
    key = result.key
    rows = result.records
    packed = result.details.get("by_sequence")
    text = {"corpus": key["corpus"], "seed": key["seed"], "length": key["sequence_length"]}
    vectors = unpack_halves(packed, rows[0]["samples"]).T if packed else [None] * len(rows)
    for row, vector in zip(rows, vectors, strict=True):
        yield (
            text
            | row
            | {"by_sequence": vector, "share": row["size"] / result.details["num_layers"]}
        )


def _read_healing(result: Result) -> Iterator[dict]:
    key = result.key
    tokens = result.details["tokens"]
    shared = _read_cut(key["cut"], result.details) | {"healing": _healing_as_json(key, tokens)}
    for row in result.records:
        yield shared | row | {"tokens": row["step"] * tokens / len(result.records)}


def _read_geometry(result: Result) -> Iterator[dict]:
    shared = {"corpus": result.key["corpus"]}
    for row in result.records:
        place = {"of": "layer" if row["size"] else "state", "place": row["start"]}
        yield shared | place | {"measure": row["metric"], "value": row["value"]}
    for measure, triangle in result.details["pairs"].items():
        of = "layer" if len(triangle) < result.details["num_layers"] else "state"
        for place, values in enumerate(triangle):
            for other, value in enumerate(values, start=place + 1):
                yield shared | {
                    "of": of,
                    "measure": measure,
                    "place": place,
                    "other": other,
                    "value": value,
                }


def _read_run(result: Result) -> Iterator[dict]:
    run = result.provenance
    key = result.key
    details = result.details
    cuts = cut_names(key) or set(itertools.chain.from_iterable(details.get("cuts", {}).values()))
    yield {
        "kind": result.kind,
        "name": result.name,
        "vocabulary": details.get("vocabulary"),
        "cuts": len(cuts) or int("cut" in key),
        "weights": details["weights"],
        "hash": key["model"]["weights"],
        "seconds": run["seconds"] + run.get("seconds_in_earlier_runs", 0),
        "device": run["device"],
        "memory": run["peak_memory_bytes"],
        "commit": run["commit"],
    }


def _read_answers(result: Result) -> Iterator[dict]:
    for variant, texts in result.details.get("answers", {}).items():
        (cut,) = cut_names(result.key) - {UNPRUNED.name}
        for prompt, answer in zip(result.key["prompts"], texts, strict=True):
            yield {
                "cut": cut,
                "size": _parse_cut(cut).size,
                "variant": variant,
                "prompt": prompt,
                "answer": answer,
            }
