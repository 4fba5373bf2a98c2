"""What figures share: the panels of a frame, colours, ranges of axes, words for hover and for those who can't see."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from deeper_layers.report import paper
from deeper_layers.report.drawing import GREY, MARKERS, PALETTE, Picture
from deeper_layers.report.names import in_order, model_title, rule_title, say, topic, visible

BLUE, RED, GREEN, PINK, YELLOW, SKY = PALETTE
# letters are warm, words and what is written cool
COLOURS = {
    "similarity": BLUE,
    "simple": RED,
    topic("mmlu"): RED,
    topic("lettered_capitals"): YELLOW,
    topic("capitals"): BLUE,
    topic("written_facts"): GREEN,
    topic("mmlu_continuation"): SKY,
    topic("gsm8k"): PINK,
}


def panels_of(rows: pd.DataFrame, col: str, row: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and rows for each panel: rows of panels are of one `row`, their columns of one `col`; none is empty."""
    cols = in_order(rows[col].astype(str).unique())
    floors = rows["untold"] == "at floor" if "untold" in rows else pd.Series(False, index=rows.index)
    heads = list(dict.fromkeys(rows[row].astype(str))) if row else [None]
    for head in heads:
        own = rows if head is None else rows[rows[row].astype(str) == head]
        for one in cols:
            if not (found := own[own[col].astype(str) == one]).empty:
                title = visible(model_title(one) if col == "model" else one)
                title += ", only guesses" if floors[found.index].all() else ""
                yield (title if head is None else f"{visible(rule_title(head))}\n{title}"), found


def columns_of(rows: pd.DataFrame, col: str, panels: list) -> int:
    of_row = rows[col].nunique()
    return of_row if of_row in (2, 3) and len(panels) % of_row == 0 else min(2, len(panels))


def looks_of(names: Iterable[str]) -> dict[str, dict]:
    """A colour and a marker for each name: its own where it has one, else one that none here has."""
    names = list(names)
    free = [colour for colour in PALETTE if colour not in {COLOURS.get(name) for name in names}] or PALETTE
    others = [name for name in names if name not in COLOURS]
    looks = {}
    for number, name in enumerate(names):
        colour = COLOURS.get(name) or free[others.index(name) % len(free)]
        looks[name] = {"colour": colour, "marker": MARKERS[number % len(MARKERS)]}
    return looks


def levels_of(own: pd.DataFrame, y: str) -> dict[str, float]:
    """Heights to compare with: of guessing and of the whole model, where all lines of a panel have the same."""
    if y == "kept":
        return {"the whole model": 1.0, "guessing": 0.0}
    if y != "value":
        return {}
    names = {"guessing": "guessing", "whole": "the whole model"}
    found = {label: own[name].dropna().round(4) for name, label in names.items() if name in own}
    return {label: float(values.iloc[0]) for label, values in found.items() if values.nunique() == 1}


def mark_cliffs(picture: Picture, panel: int):
    """Where MMLU of the paper's models falls to guessing."""
    bottom, top = picture.ranges[panel]["y"]
    for (family, ends), stroke in zip(paper.CLIFFS.items(), ("solid", "dash", "dashdot", "dot"), strict=True):
        places = dict.fromkeys(ends)
        label = f"the paper's {family}, " + " to ".join(f"{end:.0%}" for end in places)
        x = [value for place in places for value in (place, place, np.nan)]
        look = {"colour": GREY, "line": stroke, "width": 1, "panel": panel, "label": label, "hover": [label] * len(x)}
        picture.line(x, [bottom, top, np.nan] * len(places), **look)


def span(values: Sequence[pd.Series], *, zero: bool = False) -> list[float]:
    """A range that holds all values, with some room; from 0 on where `zero`, and up to 1 for shares near it."""
    every = np.concatenate([np.asarray(one, dtype=float) for one in values])
    every = every[np.isfinite(every)]
    low, high = (0.0, 1.0) if not len(every) else (float(every.min()), float(every.max()))
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return [0.0 if zero and low >= 0 else low - room, high + room]


def hover_text(label: str, of: dict, x: str, y: str, low: str, high: str) -> str:
    said = [label] + (
        [f"n = {of['size']}" + (f", l = {of['start']}" if pd.notna(of.get("start")) else "")] if "size" in of else []
    )
    if x and x not in ("size", "share"):
        said.append(f"{x} {cell_text(of[x])}")
    said.append(say(of[y], of.get(low), of.get(high), digits=3))
    return "\n".join(said + ([f"{of['items']} items"] if "items" in of else []))


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def digits_of(values: pd.Series) -> int:
    largest = values.replace([np.inf, -np.inf], np.nan).abs().max()
    return 2 if pd.notna(largest) and largest >= 10 else 3


def cell_text(value) -> str:
    if isinstance(value, str):
        return rule_title(value) if value in ("similarity", "simple") else value
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def plain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without vectors: what is downloaded."""
    return rows.drop(columns=["by_sequence", "outcome", "chosen", "target", "logprobs"], errors="ignore")


def alt_text(panels: list, hue: str, x: str, y: str, *, few: bool = False) -> str:
    """The first and the last point of each line in words."""
    said = []
    for title, own in panels:
        lines = [("", own)] if few else own.groupby(own[hue].astype(str), sort=False)
        for label, line in lines:
            ends = line.sort_values(x)[[x, y]].astype(float).iloc[[0, -1]] if not few else None
            course = f"{line[y].astype(float).min():.2g} to {line[y].astype(float).max():.2g}"
            if ends is not None:
                (a, b), (c, d) = ends.to_numpy()
                course = f"{b:.2g} at {a:.2g}, {d:.2g} at {c:.2g}"
            said.append(", ".join(filter(None, [title.replace("\n", ", "), rule_title(label), course])))
    return "; ".join(said) + "."
