"""What contradicts itself or another file in a folder of results, though every file is whole and signed.

`deeper-layers results check` asks for it. Whoever only reads results does not: all rows of all files are compared.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deeper_layers_companion.results.frames import CHANGED, asked_group
from deeper_layers_companion.results.store import Result, cut_names

if TYPE_CHECKING:  # slow to import
    import pandas as pd

ROUNDED = 1e-4  # a value and the mean of its items differ by less
# by kind, what tells the rows of one file apart
IDENTITY = {
    "scores": ("task", "metric", "cut", "variant", "engine"),
    "distances": ("start", "size"),
    "healing": ("step",),
    "geometry": ("start", "size", "metric"),
}
# How far two measurements of one thing lie apart at most, where they round otherwise, by whether they are in float32:
# of a share the items that may turn and the share of all items that may besides, of a loss a share of it. In bfloat16
# MMLU measured twice turned 29 of 1,140 answers, at most 3 of the 20 of a subject, and no loss changed by more than
# 0.001; in float32 nothing changed.
TURNED = {True: (0, 0.01), False: (2, 0.1)}
LOSS = {True: 0.001, False: 0.02}


def find_contradictions(results: Iterable[Result], scores: "pd.DataFrame") -> Iterator[str]:
    """Yield a line for each contradiction of these results, whose table is `scores`: a row that is there twice, cuts
    that the key asks for and no row has, or the other way round, a value that its items do not have, and two files that
    answer one question otherwise."""
    answers = defaultdict(list)
    for result in results:
        yield from _find_repeated_rows(result)
        if result.kind == "scores":
            yield from _find_wrong_cuts(result)
            for question, row in _describe_questions(result):
                answers[question].append((result, row))
    yield from _find_wrong_values(scores)
    yield from _find_unlike_files(answers.values())


def _find_repeated_rows(result: Result) -> Iterator[str]:
    names = IDENTITY[result.kind]
    counts = Counter(tuple(row.get(name) for name in names) for row in result.records)
    for values, count in counts.items():
        if count > 1:
            what = ", ".join(
                f"{name} {value}" for name, value in zip(names, values) if value is not None
            )
            yield f"{result.place}: {count} rows are of {what}, expected one: leave the file out"


def _find_wrong_cuts(result: Result) -> Iterator[str]:
    asked = cut_names(result.key).union(*result.details.get("cuts", {}).values())
    measured = {row["cut"] for row in result.records}
    for cut in sorted(measured - asked):
        yield f"{result.place}: a row is of the cut {cut}, for which the key does not ask: leave the file out"
    for cut in sorted(asked - measured):
        yield f"{result.place}: the key asks for the cut {cut}, and no row is of it: leave the file out"


def _find_wrong_values(scores: "pd.DataFrame") -> Iterator[str]:
    """Yield a line for each score that is not the mean of its items. The loss is a mean over tokens: where sequences
    have lengths of their own, it lies between the least and the most."""
    kept = scores[scores["outcome"].notna()]
    of_one_row = ["path", "task", "subject", "cut", "metric", "bits", "healing", "engine"]
    for row in kept.drop_duplicates(of_one_row).itertuples():
        lowest = highest = row.outcome.mean()
        if row.metric == "loss" and row.length == 0:
            lowest = row.outcome.min()
            highest = row.outcome.max()
        if row.value < lowest - ROUNDED or row.value > highest + ROUNDED:
            of_items = f"the mean of its items is {lowest}"
            if lowest < highest:
                of_items = f"its items are from {lowest} to {highest}"
            what = f"{row.path}: {row.metric} of {row.task}, cut {row.cut}"
            yield f"{what}, is {row.value}, and {of_items}: leave the file out"


def _describe_questions(result: Result) -> Iterator[tuple[str, dict]]:
    """Yield each row with a text that is the same for rows of one question: all of the key that bears on the row, and
    the rules of its cut that change weights."""
    others = ("cuts", "tasks", "data", "by_sequence")
    key = json.dumps(
        {name: value for name, value in result.key.items() if name not in others}, sort_keys=True
    )
    changing = {
        rule: cuts for rule, cuts in (result.key.get("cuts") or {}).items() if rule in CHANGED
    }
    for row in result.records:
        # the mean over its tasks, which are compared
        if row["task"] in result.details.get("groups", {}):
            continue
        settings = result.key["tasks"].get(asked_group(result, row["task"]))
        rules = [rule for rule, cuts in changing.items() if row["cut"] in cuts]
        of_row = [settings, sorted(rules), *(row.get(name) for name in IDENTITY["scores"])]
        yield key + json.dumps(of_row, sort_keys=True), row


def _find_unlike_files(answers: Iterable[list[tuple[Result, dict]]]) -> Iterator[str]:
    """Yield a line for two files that answer the same questions otherwise."""
    unlike = defaultdict(list)
    for of_question in answers:
        for (first, row), (second, other) in itertools.combinations(of_question, 2):
            if (
                first is not second
                and _are_comparable(first, second)
                and not _agree(first, row, other)
            ):
                unlike[first.place, second.place].append((row, other))
    for (first, second), pairs in unlike.items():
        row, other = pairs[0]
        what = f"{row['metric']} of {row['task']}, cut {row['cut']}, is"
        values = [f"{one['value']} on {one['items']} items" for one in (row, other)]
        more = f"; {len(pairs) - 1} more rows differ" if len(pairs) > 1 else ""
        yield f"{first} and {second} contradict each other: {what} {' and '.join(values)}{more}: leave one of them out"


def _are_comparable(first: Result, second: Result) -> bool:
    """Whether two files asked the same items, as far as their keys tell: data of other tasks have other fingerprints,
    and asking may stop anywhere where it stops early."""
    may_stop = first.details.get("stopping") or second.details.get("stopping")
    same_tasks = first.key["tasks"] == second.key["tasks"]
    return not may_stop and not (same_tasks and first.key["data"] != second.key["data"])


def _agree(result: Result, row: dict, other: dict) -> bool:
    """Whether two rows of one question differ by no more than rounding makes them differ."""
    values = row["value"], other["value"]
    if row["items"] != other["items"]:
        return False
    if None in values:
        return values == (None, None)
    exact = result.key["dtype"] == "float32"
    difference = abs(values[0] - values[1])
    if row["metric"] == "loss":
        return difference <= LOSS[exact] * max(1, *values)
    few, share = TURNED[exact]
    return difference <= few / row["items"] + share
