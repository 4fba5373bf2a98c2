"""Whether key, rows and details of a unit, each of the right types (schema.py), are of one measurement."""

import collections
import functools
from collections.abc import Iterator

from deeper_layers.cuts import Cut
from deeper_layers.results.packing import LOGPROBS, packed_length, unpack

MOST_ITEMS = 2**24  # of a task
MOST_BYTES = 2**27  # of numbers of 16 bits, packed
ACCURACIES = ("acc", "acc_norm", "exact_match")  # what shares of items are called
PARTS = ("layers", "attention", "mlp")  # of what a rule drops
_named = functools.lru_cache(maxsize=8192)(Cut.named)  # many rows of many units are of one cut


def disagreements(name: str, key: dict, rows: list[dict], details: dict) -> Iterator[str]:
    """In what key, rows and details, each of the right types, are not of one measurement."""
    layers = details["num_layers"]
    if "sizes" in key:
        yield from _about_choices(name, key, rows, details)
        return
    cuts = {_name(cut) for cut in [*key.get("cuts", []), *([key["cut"]] if "cut" in key else [])]}
    columns = ("variant", "task", "metric", "start", "size", "cut")
    if len({tuple(row.get(name) for name in columns) for row in rows}) < len(rows):
        yield "two rows are of one thing"
    if any(row.get("metric") in ACCURACIES and not 0 <= (row["value"] or 0) <= 1 for row in rows):
        yield "an accuracy is not from 0 to 1"
    if "pairs" in details:
        yield from _about_geometry(rows, details["pairs"], layers)
        return
    if "corpus" in key:  # every block there is
        if len(rows) != layers * (layers + 1) // 2:  # before as many are counted as a number says
            yield f"it has {len(rows)} rows, and {layers} layers"
        elif "by_sequence" in details:
            wanted = 2 * len(rows) * rows[0]["samples"]
            if wanted > MOST_BYTES or packed_length(details["by_sequence"], wanted) != wanted:
                yield "its distances by sequence are not as many as its sequences and rows"
        cuts = {f"{start},{size}" for size in range(1, layers + 1) for start in range(layers - size + 1)}
    if "variant" in rows[0]:
        cuts.add("0,0")
    if any(_reach(cut) > layers for cut in cuts):
        yield f"its cuts reach past the {layers} layers of its model"
    of_rows = collections.defaultdict(set)
    for row in rows:
        of_rows[row.get("task"), row.get("metric")].add(_of_row(row))
    if any(places - cuts or ("variant" not in rows[0] and cuts - places) for places in of_rows.values()):
        yield "its rows are not of the cuts of its key"
    if isinstance(details.get("by_sequence"), dict):
        yield from _about_sequences(rows, details["by_sequence"], cuts)
    if (by_cut := details.get("outcomes")) is not None:
        yield from _about_outcomes(rows, dict.fromkeys(cuts, by_cut) if "cut" in key else by_cut, cuts)
    if "num_fewshot" in key and "order" not in key:
        one = by_cut is not None and "calibration" not in key  # what changes weights has the tasks of a group in one
        if name != key["task"] or (one and not all(name in of_cut for of_cut in by_cut.values())):
            yield "its name is not that of its task"
        if (details.get("units") is None) == (by_cut is None):
            yield "it holds both outcomes and the units of a group, or neither"


def _about_geometry(rows: list[dict], pairs: dict[str, list[list]], layers: int) -> Iterator[str]:
    of_metric = collections.defaultdict(list)
    for row in rows:
        of_metric[row["metric"]].append((row["size"], row["start"]))
    of_layers, of_states = [(1, at) for at in range(layers)], [(0, at) for at in range(layers + 1)]
    if any(sorted(found) not in (of_layers, of_states) for found in of_metric.values()):
        yield f"its rows are not of the {layers} layers of its model, or of what lies between them"
    triangles = [list(range(size, 0, -1)) for size in (layers - 1, layers)]
    if any([len(row) for row in found] not in triangles for found in pairs.values()):
        yield f"its pairs are not of the {layers} layers of its model, or of what lies between them"


def _about_choices(name: str, key: dict, rows: list[dict], details: dict) -> Iterator[str]:
    if name != key["rule"]:
        yield "its name is not that of its rule"
    if not [row["size"] for row in rows] == key["sizes"] == sorted(set(key["sizes"])):
        yield "its rows are not of the sizes of its key"
    if any(layer >= details["num_layers"] for row in rows for part in PARTS for layer in row[part]):
        yield f"its cuts reach past the {details['num_layers']} layers of its model"
    if {size: len(losses) for size, losses in details["by_sequence"].items()} != {
        str(row["size"]): row["items"] for row in rows
    }:
        yield "its losses are not as many as its rows have items"


def _name(cut: list[int] | str) -> str:
    """A cut of a key as `Cut.name` calls it."""
    return cut if isinstance(cut, str) else f"{cut[0]},{cut[1]}"


def _of_row(row: dict) -> str:
    """The cut of a row; where it is named, its place must be that of its name."""
    place = f"{row['start']},{row['size']}"
    if "cut" not in row:
        return place
    cut = _named(row["cut"])
    return row["cut"] if (cut.start, cut.size) == (row["start"], row["size"]) else place


def _reach(name: str) -> int:
    """The layer after the last one that a cut is of."""
    cut = _named(name)
    return max(cut.stop, *(index + 1 for index in (*cut.attention, *cut.mlp)), 0)


def _about_sequences(rows: list[dict], by_sequence: dict[str, list], cuts: set[str]) -> Iterator[str]:
    if by_sequence.keys() != cuts:
        yield "its losses of sequences are not of its cuts"
    elif any(len(by_sequence[_of_row(row)]) != row["items"] for row in rows):
        yield "its losses are not as many as its rows have items"


def _about_outcomes(rows: list[dict], by_cut: dict[str, dict], cuts: set[str]) -> Iterator[str]:
    """In what outcomes are not those of the rows: a task has as many of each kind as its row has items."""
    if by_cut.keys() != cuts:
        yield "its outcomes are not of its cuts"
        return
    items = {(_of_row(row), row["task"]): row["items"] for row in rows}
    values = {(_of_row(row), row["task"], row["metric"]): row["value"] for row in rows}
    tasks = {tuple(of_cut) for of_cut in by_cut.values()}
    lengths: dict[str, int] = {}
    for cut, of_cut in by_cut.items():
        for task, packed in of_cut.items():
            for name, text in packed.items():
                length = lengths.setdefault(task, items.get((cut, task), packed_length(text, MOST_ITEMS)))
                if name == LOGPROBS:
                    found = packed_length(text, MOST_BYTES)
                    right = 0 < found <= MOST_BYTES and length and found % (2 * length) == 0
                else:
                    right = packed_length(text, length) == length
                if not right:
                    yield f"its outcomes of {task} are not as many as there are items"
                elif name in ACCURACIES and (value := values.get((cut, task, name))) is not None:
                    if abs(value - (mean := unpack(text).mean())) > 1e-9:
                        yield f"its {name} of {task} is {value}, and that of its outcomes {mean}"
    if len(tasks) > 1:
        yield "its outcomes are of other tasks for some cuts"
