"""All results as tables: `scores`, a row for each pruned model and task; distances, losses while healing, geometry.

Whatever the book says is a query of these. Every table is of a folder of results, or of the default one and the
published ones, and of one model or all. A damaged file is named and left out.

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
from deeper_layers.results.packing import ITEM_BY_ITEM, unpack, unpack_halves
from deeper_layers.results.schema import GIVEN, UNHEALED, UNROUNDED
from deeper_layers.results.store import Result, all_results, cut_names, left_out

if TYPE_CHECKING:  # slow
    import pandas as pd

TABLES = {
    "scores": "model layers dtype bits cut start size share rule changed healing task subject shots order limit "
    "length engine metric items value outcome chosen target logprobs written ended chance commonest bytes repeat "
    "measured path",
    "distances": "model layers dtype bits start size share corpus samples length seed distance stderr by_sequence "
    "measured path",
    "healing": "model layers dtype bits cut start size share healing step tokens loss measured path",
    "geometry": "model layers dtype bits corpus measure of place other value measured path",
    "runs": "model layers weights hash dtype vocabulary kind name cuts measured seconds memory device commit path",
    "answers": "model cut size variant prompt answer path",
}
VECTORS = "outcome chosen target logprobs written ended by_sequence".split()
TYPES = dict.fromkeys("layers items repeat samples seed step place cuts memory".split(), "int64")
# whole numbers that may be missing
TYPES |= dict.fromkeys("start size shots order limit length bytes vocabulary other".split(), "Int64")
TYPES |= dict.fromkeys("share value chance commonest distance stderr tokens loss seconds".split(), "float64")
TYPES |= dict.fromkeys(VECTORS, "object")  # all others are text
# rows alike in these are of one question to models of one kind, those alike in CUT too of one thing
QUESTION = "model dtype bits healing task subject shots order limit length engine metric".split()
CUT = ["cut", "rule", "changed"]
OWN_SHOTS = {"gsm8k": 5}  # by lm-eval, where nobody asked for another number
# rules that change weights too; their cut alone is not their model
CHANGED = dict.fromkeys(("laco", "laco-code"), "merged")
CHANGED |= dict.fromkeys(("replaceme", "replaceme-cosine", "prune-and-comp", "streamline"), "bridged")
_named = functools.lru_cache(maxsize=8192)(Cut.named)


def scores(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every score and every loss, a row for each pruned model, rule and task.

    Args:
        folder: of results; the default one and the published ones where none is named. InputError where it is none.
        model: the one network by this name; all where none is named.

    Returns:
        A table with these columns; what is not known, or does not apply, is missing.

        - model, layers, dtype: name of the network, its number of layers L, the number format in which it computes
        - bits: type to which its weights were rounded (nf4, Q2_K)
        - cut: what was dropped, as `Cut.name` has it: "13,4" are 4 layers from layer 13 (0-based), "0,0" is none
        - start, size, share: of a block the first dropped layer; how many were dropped, n, as the rule counts; n / L
        - rule: whose choice the cut was; "blocks of 4" where every block of 4 was tried
        - changed: what the rule did to the weights of the layers that stay: merged, or bridged
        - healing: settings, text and tokens of the healing, as JSON
        - task, subject: task of lm-eval, or group of which this is one task; of losses the text; of MMLU the subject
        - shots, order: examples in the prompt; seed of their order
        - limit: at most so many items, the first ones, were asked of each task, or sequences of a text
        - length: of losses: tokens in a sequence; 0 where each is as long as it is
        - engine: what else than this library's own forward pass answered
        - metric: what was counted: "acc", "exact_match", ..., or "loss" (nats a token)
        - items, value: how many items or sequences, I; the score: a share of them, or the loss over all tokens
        - outcome: the score of each item, [I]: 0 or 1, or of each sequence, nats a token
        - chosen, target: numbers of the choice that each item was answered with, and of the right one, [I]
        - logprobs: log-probability of each choice, nats, [I, K], nan where an item has fewer
        - written, ended: of each answer that was generated the tokens, and 0 where it was cut off at the most, [I]
        - chance, commonest: what guessing at random scores, for losses ln V of V tokens; always the commonest answer
        - bytes: of weights, where they were counted
        - repeat: 0 for the measurement that counts; 1, 2, ... for others of the same thing
        - measured, path: when, in UTC, ISO 8601; file below the folder of results

    Example:
        >>> from deeper_layers import results
        >>> asked = results.scores().query("task == 'boolq' and rule == 'similarity' and healing.isna()")
        >>> curve = asked.groupby(["model", "share"])["value"].first()
    """
    return scores_of(all_results(folder, "scores", model))


def scores_of(results: Iterable[Result]) -> "pd.DataFrame":
    """The same of some files alone."""
    rows = _rows(_of_scores, (one for one in results if one.kind == "scores"))
    rules: dict[tuple, dict] = defaultdict(dict)  # of each question
    for row in rows:
        rules[_question(row)] |= {row["rule"]: row} if row["rule"] else {}
    expanded = []  # the whole model once under each rule of what was asked alike
    for row in rows:
        of_whole = rules[_question(row)] if row["cut"] == UNPRUNED.name else {}
        expanded += [row | {"rule": rule} for rule in of_whole or [row["rule"]]]
    found = _frame(expanded, "scores", " cuts")
    by_worth = found.sort_values(["cuts", "measured"], ascending=False, kind="stable")
    found["repeat"] = by_worth.groupby([*QUESTION, *CUT], dropna=False).cumcount()
    return found.drop(columns="cuts")


def distances(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Every angular distance, a row for each block.

    Beside columns as those of `scores`: corpus, its number of samples S, the most tokens of one (length), the seed that
    drew them; distance of what enters the block and what leaves it, in units of pi, mean over sequences, stderr over
    sequences, and by_sequence, [S], within 0.05%.
    """
    return distances_of(all_results(folder, "distances", model))


def distances_of(results: Iterable[Result]) -> "pd.DataFrame":
    """The same of some files alone."""
    return _frame(_rows(_of_distances, (one for one in results if one.kind == "distances")), "distances")


def healing(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """The loss of every healing by step of the adapters, from 1: tokens seen up to it, loss in nats a token."""
    return _frame(_rows(_of_healing, all_results(folder, "healing", model)), "healing")


def geometry(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """Measures, each of a "layer" or a "state", the residual that enters one: its place, of pairs the other's too."""
    return _frame(_rows(_of_geometry, all_results(folder, "geometry", model)), "geometry")


def runs(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What was measured when, how long it took and on what: a row for each file."""
    return _frame(_rows(_of_run, all_results(folder, model=model)), "runs")


def answers(folder: Path | None = None, model: str | None = None) -> "pd.DataFrame":
    """What checkpoints wrote in llama.cpp: a row for each checkpoint and prompt."""
    return _frame(_rows(_of_answers, all_results(folder, "scores", model)), "answers")


def _question(row: dict) -> tuple:
    return tuple(map(row.get, QUESTION))


def _frame(rows: list[dict], table: str, more: str = "") -> "pd.DataFrame":
    """A table, each column of one type even where it has no row or nothing in it."""
    import pandas as pd  # slow

    names = f"{TABLES[table]}{more}".split()
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=TYPES.get(name, "str")) for name in names}
    )


# ---- the rows of one file ---------------------------------------------------------------------------------------


def _rows(read: Callable[[Result], Iterator[dict]], results: Iterable[Result]) -> list[dict]:
    """Those of some files, with what holds of each of them; one in which something does not fit is left out whole."""
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
        except Exception as error:  # what zlib and numpy say of packed numbers that do not fit has no end
            left_out(result.path, error)
    return rows


def _of_scores(result: Result) -> Iterator[dict]:
    """A row for each rule that chose a cut, and score; of the whole model one without a rule."""
    key, details, first = result.key, defaultdict(dict, result.details), {}
    chose = defaultdict(list)
    for rule, cuts in (key.get("cuts") or details["cuts"]).items():
        for cut in cuts:
            chose[cut].append(None if rule == GIVEN else rule)
    chose[UNPRUNED.name] = [None]
    healing = _healing_in_json(key, details["healed_tokens"]) if key.get("healing") else None
    of_task = functools.cache(functools.partial(_of_task, result))
    for row in (row for row in result.records if row["task"] not in details["groups"]):
        variant, items, outcome = row.get("variant"), row["items"], row.get("outcome")
        found = of_task(row["task"], items) | _place(row["cut"], details) | {"cuts": len(cut_names(key)), "repeat": 0}
        found |= {name: row[name] for name in ("metric", "items", "value", "bytes", "engine") if name in row}
        if outcome is not None:  # as numbers: whoever subtracts bytes from each other gets 255 for -1
            outcome = unpack(outcome, items) if isinstance(outcome, str) else outcome
            found["outcome"] = np.array(outcome, dtype=float).reshape(items)
        of_items = first.setdefault((row["task"], row["cut"], variant), row)
        found |= {name: read(of_items[name], items) for name, read in ITEM_BY_ITEM.items() if name in of_items}
        if row["metric"] == "loss":
            found["chance"] = math.log(details["vocabulary"]) if details["vocabulary"] else None
        if variant not in UNHEALED:
            found["healing"] = healing
        if key.get("bits") and variant not in UNROUNDED:
            found["bits"] = key["bits"]
        for rule in chose[row["cut"]]:
            yield found | {"rule": rule, "changed": CHANGED.get(rule or "")}


def _of_task(result: Result, name: str, items: int) -> dict:
    """What holds of all rows of one task of a file; those of the group MMLU are one task of several subjects."""
    key, details, ran = result.key, defaultdict(dict, result.details), defaultdict(dict, result.provenance)
    group = next((of for of, names in details["groups"].items() if name in names and of in key["tasks"]), name)
    asked, level = key["tasks"].get(group, {}), details["levels"].get(name, {})
    in_mmlu = group != name and group.startswith("mmlu")
    subject = name.removeprefix("mmlu_").removesuffix("_continuation") if in_mmlu else None
    shots, target = asked.get("shots"), details["targets"].get(name)
    return {
        "task": name.replace(f"_{subject}", "", 1) if subject else name,
        "subject": subject,
        "shots": OWN_SHOTS.get(name) if shots is None else shots,
        **{entry: asked.get(entry) for entry in ("limit", "order", "length")},
        "engine": key.get("engine"),
        "target": target and unpack(target, items),
        "chance": level.get("chance"),
        "commonest": level.get("majority") or None,
        "measured": ran["parts"].get(name, ran)["measured"],
    }


def _place(name: str, details: dict) -> dict:
    cut = _named(name)
    size = details.get("sizes", {}).get(name, cut.size if cut.is_of_layers else None)
    share = None if size is None else size / details["num_layers"]
    return {"cut": name, "start": cut.start if cut.is_block else None, "size": size, "share": share}


def _healing_in_json(key: dict, tokens: int) -> str:
    return json.dumps(key["healing"] | {"text": key["text"], "tokens": tokens}, sort_keys=True)


def _of_distances(result: Result) -> Iterator[dict]:
    key, rows, packed = result.key, result.records, result.details.get("by_sequence")
    asked = {"corpus": key["corpus"], "seed": key["seed"], "length": key["sequence_length"]}
    vectors = unpack_halves(packed, rows[0]["samples"]).T if packed else [None] * len(rows)
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
    yield {
        "kind": result.kind,
        "name": result.name,
        "vocabulary": details.get("vocabulary"),
        "cuts": len(cuts) or int("cut" in key),
        "weights": details["weights"],
        "hash": key["model"]["weights"],
        "seconds": ran["seconds"] + ran.get("seconds_in_earlier_runs", 0),
        "device": ran["device"],
        "memory": ran["peak_memory_bytes"],
        "commit": ran["commit"],
    }


def _of_answers(result: Result) -> Iterator[dict]:
    for variant, said in result.details.get("answers", {}).items():
        (cut,) = cut_names(result.key) - {UNPRUNED.name}
        for prompt, answer in zip(result.key["prompts"], said, strict=True):
            yield {"cut": cut, "size": _named(cut).size, "variant": variant, "prompt": prompt, "answer": answer}
