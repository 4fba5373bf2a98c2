"""Damaged results, each the same for its number, and what comes of reading and drawing them.

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

from deeper_layers import results
from deeper_layers.results.places import AROUND
from deeper_layers.results.store import result_path, text_of
from tests.fuzz import trying

ODD = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**64, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x",
    "5", "../../x", "0,0", "<script>alert(1)</script>", "a\\qb", "=1+1", "x" * 10_000, "\ud800", "nu\0ll", "٣", [], {},
    [[]], [0], [0, 0], [0, 1, 2], ["a"], {"a": 1}, [None], [[0, 0]] * 3,
]  # fmt: skip
PARTS = ("key", "rows", "details", "provenance", "kind", "version")  # damage is done to one of them first
DEEP = "nested too deep"  # stands for lists in lists


@functools.cache
def published() -> list[tuple[Path, dict]]:
    """The smallest published results of each kind and model."""
    kinds: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted((AROUND / "results").glob("*/*.json"), key=lambda path: path.stat().st_size):
        kinds[f"{path.parent.name} {path.name.split('-')[0]}"].append(path)
    return [(path, json.loads(path.read_text())) for paths in kinds.values() for path in paths[:4]]


def places(content, path: tuple) -> list[tuple]:
    """Where every value of a unit is, those of long lists and tables by a few."""
    found = [path]
    entries = list(
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in entries[:40] + entries[40:][-2:] if len(path) <= 12 else ():
        found += places(value, (*path, key))
    return found


def damaged(number: int, folder: Path) -> Path:
    """A result with something odd in it: the path of it, in a folder of results."""
    draw = random.Random(number)
    path, content = draw.choice(published())
    content = copy.deepcopy(content)
    signed, way = draw.random() < 0.5, draw.random()  # as by somebody who means it
    if way > 0.1:
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            part = draw.choice(PARTS)
            if part in content:
                change(content, draw.choice(places(content[part], (part,))), draw)
    out = folder / path.parent.name / path.name
    if signed:
        sha256 = content.pop("sha256")
        try:
            text, out = text_of(content), result_path(content["kind"], content["key"], folder)
        except Exception:  # what no result can be written of
            text = json.dumps(content | {"sha256": sha256}).encode()
    else:
        text = json.dumps(content).encode()
    if way <= 0.1:
        text = torn(text, draw)
    out = out if len(out.name.encode()) < 255 else out.with_name(path.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(text.replace(json.dumps(DEEP).encode(), b"[" * 50_000 + b"]" * 50_000))
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


def outcome(number: int, folder: Path) -> str:
    """What comes of a damaged result: "clear" (one warning that names it), "harmless" (in a table), or what broke."""
    path = damaged(number, folder)
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            rows = [table(folder) for table in (results.scores, results.distances, results.healing, results.geometry)]
        said = {str(warning.message) for warning in caught}
        if not said:
            return "harmless" if any(map(len, rows)) else "in no table"
        one = len(said) == 1 and path.name in min(said) and "\n" not in min(said) and len(min(said)) < 2000
        return "clear" if one and not any(map(len, rows)) else f"said {said}"
    except Exception:
        return traceback.format_exc()
    finally:
        path.unlink()


def outcomes(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what was damaged, and what came of it."""
    for number in numbers:
        yield number, "result", outcome(number, folder)


if __name__ == "__main__":
    trying.main(outcomes)
