"""Damaged units, each the same for its number, and what comes of reading and drawing them.

`python -m tests.fuzz.unit_cases` tries many, see trying.py.
"""

import collections
import copy
import functools
import json
import random
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.report import statistics
from deeper_layers.results.frames import distances_of, scores_of
from deeper_layers.results.places import AROUND
from deeper_layers.results.units import Unit, content_hash, read_unit, slug, unit_path
from deeper_layers.rules.similarity import distance_matrix
from tests.fuzz import trying

ODD = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**64, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x",
    "5", "../../x", "0,0", "<script>alert(1)</script>", "a\\qb", "=1+1", "x" * 10_000, "\ud800", "nu\0ll", "٣", [], {},
    [[]], [0], [0, 0], [0, 1, 2], ["a"], {"a": 1}, [None], [[0, 0]] * 3,
]  # fmt: skip
PARTS = ("key", "rows", "details", "provenance", "kind", "name")  # damage is done to one of them first
DEEP = "nested too deep"  # stands for lists in lists


@functools.cache
def published() -> list[tuple[Path, dict]]:
    """The smallest published unit of each kind and model, and two of a sweep."""
    kinds: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted((AROUND / "results").glob("*/*.json"), key=lambda path: path.stat().st_size):
        kinds[f"{path.parent.name} {path.name.split('-')[0]}"].append(path)
    return [(path, json.loads(path.read_text())) for paths in kinds.values() for path in paths[:2]]


def places(content, path: tuple) -> list[tuple]:
    """Where every value of a unit is, those of long lists and tables by a few."""
    found = [path]
    if len(path) > 12:
        return found
    if isinstance(content, dict):
        entries = list(content.items())
    elif isinstance(content, list):
        entries = list(enumerate(content))
    else:
        return found
    for key, value in entries[:40] + entries[40:][-2:]:
        found += places(value, (*path, key))
    return found


def damaged(number: int, folder: Path) -> Path:
    """A unit with something odd in it: the path of it, in a folder of results."""
    draw = random.Random(number)
    path, content = draw.choice(published())
    content = copy.deepcopy(content)
    signed = draw.random() < 0.3  # as a new unit is, by who damaged it or before
    if signed and draw.random() < 0.5:
        content["sha256"] = content_hash(content)
    way = draw.random()
    if way > 0.1:
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            part = draw.choice(PARTS)
            if part in content:
                change(content, draw.choice(places(content[part], (part,))), draw)
    if signed and "sha256" not in content:
        content["sha256"] = content_hash(content)
    target = path
    try:  # most by the name that belongs to them
        if draw.random() < 0.9:
            target = unit_path(content["kind"], content["name"], content["key"])
    except Exception:  # a name that no unit can have
        pass
    name = target.name if len(target.name.encode()) < 255 else path.name
    out = folder / slug(path.parent.name) / name
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content).encode()
    text = text.replace(json.dumps(DEEP).encode(), b"[" * 50_000 + b"]" * 50_000)
    if way <= 0.1:
        text = torn(text, draw)
    out.write_bytes(text)
    return out


def change(content: dict, place: tuple, draw: random.Random) -> None:
    """Put something odd in a place, or take away what is there, or double it."""
    *above, last = place
    for step in above:
        content = content[step]
    way = draw.random()
    if way < 0.2:
        content.pop(last)
    elif way < 0.3 and isinstance(content, list):
        content.insert(last, copy.deepcopy(content[last]))
    elif way < 0.4:
        content[last] = copy.deepcopy(draw.choice(list(content.values()) if isinstance(content, dict) else content))
    elif way < 0.5 and isinstance(content, dict):
        content[draw.choice(("x", "", "0,0", "99,99", "__proto__"))] = content[last]
    elif way < 0.6 and isinstance(content[last], str) and content[last]:
        at = draw.randrange(len(content[last]))
        content[last] = content[last][:at] + draw.choice("A/=0é") + content[last][at + draw.randrange(3) :]
    elif way < 0.7 and isinstance(content[last], int | float):
        content[last] = draw.choice((-content[last], content[last] + 1, content[last] * 1000, str(content[last])))
    elif way < 0.71:
        content[last] = DEEP
    else:
        content[last] = copy.deepcopy(draw.choice(ODD))


def torn(text: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(text))
    return draw.choice((
        text[:at], text[at:], b"", text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :], text + text, text[::-1],
        b"[" * 60_000, b"\xff\xfe" + text, b"NaN", b"1" * 5000, text.replace(b"0.", b"Infinity", 1),
    ))  # fmt: skip


def drawn(unit: Unit) -> None:
    """What pages ask of units, but for the drawing itself."""
    if unit.kind == "similarity":
        distance_matrix(unit.rows)
    scores = scores_of([unit])
    statistics.nearest(distances_of([unit]))
    statistics.curves(scores), statistics.half_gone_table(scores), statistics.losses(scores)
    statistics.recovery_table(scores), statistics.maps(scores), statistics.kept_by_place(scores)


def outcome(number: int, folder: Path) -> str:
    """What comes of a damaged unit: "clear" (one warning that names it), "harmless" (read and drawn), or what broke."""
    path = damaged(number, folder)
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            unit = read_unit(path)
        said = [str(warning.message) for warning in caught]
        if unit is None:
            one = (
                len(said) == 1 and str(path) in said[0] and "\n" not in said[0] and len(said[0]) < 1000 + len(str(path))
            )
            return "clear" if one else f"said {said}"
        if said:
            return f"read, and said {said}"
        try:
            with warnings.catch_warnings(action="ignore"):
                drawn(unit)
        except InputError:
            return "clear"
        return "harmless"
    except Exception:
        return traceback.format_exc()
    finally:
        path.unlink()


def outcomes(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what was damaged, and what came of it."""
    for number in numbers:
        yield number, "unit", outcome(number, folder)


if __name__ == "__main__":
    trying.main(outcomes)
