"""Where half of each model's accuracy above guessing is gone: one picture, a row for each task, and in words.

From the rulings of claims.py; the paper's own numbers stand below.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from deeper_layers.report import paper
from deeper_layers.report.claims.deciding import FOR_GOOD
from deeper_layers.report.claims.verdicts import Finding, Ruling
from deeper_layers.report.figures.drawing import GREY, INK, Figure, Picture, details_of, styles_of
from deeper_layers.report.names import as_html, as_plotly
from deeper_layers.report.statistics.topics import TOPICS

CLAIMS = ("plateau", "boolq", "reasoning")  # whose first finding is where half is gone
LEAST = 0.6  # of the layers, that the picture shows
HEIGHT = 20  # of a line of words in the picture, in pixels; what follows is in units of it
MARK, ROOM, HEADING = 0.7, 0.3, 1.4  # heights of a line of markers, of the room around a row, and of a heading
OURS, THEIRS = "Measured here, not healed: half is gone", "The paper, healed: accuracy kept up to here"


class Band(NamedTuple):
    """A row of the picture: how far down it begins, its name and its markers stand, and it ends."""

    top: float
    name: float
    lines: list[float]
    bottom: float


@dataclass(frozen=True)
class Half:
    """Where half is gone, as a share of the layers."""

    topic: str
    beside: str  # the line of guessing, where there is more than one
    model: str
    finding: Finding
    for_good: Finding | None = None  # where a curve that rises again has lost it for good, if that was looked for

    @property
    def rises(self) -> bool:
        """Whether the curve rises again after half is first gone."""
        return self.for_good is not None and self.for_good.value != self.finding.value

    @property
    def shown(self) -> str:
        """Where half is first gone and, of a curve that rises again, where it is for good; of how many items."""
        later = f"; for good at {self.for_good.shown}" if self.rises else ""
        beside = f" {self.beside}" if self.beside else ""
        return f"{self.finding.shown}{beside}{later}, {self.finding.items:,} items"

    @property
    def row(self) -> str:
        return f"{self.topic}, {self.beside}" if self.beside else self.topic


def halves(rulings: Mapping[str, Mapping[str, list[Ruling]]]) -> list[Half]:
    """All that is known, task by task in the order of TOPICS."""

    def known() -> Iterator[Half]:
        for claim in CLAIMS:
            for model, found in rulings[claim].items():
                for ruling in found:
                    if ruling.findings:
                        _, beside, line = ruling.about.rpartition(", beside ")
                        for_good = next((one for one in ruling.findings if one.what == FOR_GOOD), None)
                        about = f"beside {line}" if beside else ""
                        yield Half(ruling.topic, about, model, ruling.findings[0], for_good)

    return sorted(known(), key=lambda half: TOPICS.index(half.topic))


def in_words(rulings: Mapping[str, Mapping[str, list[Ruling]]]) -> str:
    """HTML: the earliest, MMLU and what surely lasts longest, of the model of which most can be said.

    "" where there are not two, or where the earliest lies beyond the last cut.
    """
    found = halves(rulings)
    model = next(iter(rulings[CLAIMS[0]]))
    own = sorted((half for half in found if half.model == model), key=lambda half: half.finding.value)
    if len(own) < 2:
        return ""
    longest = max(own, key=lambda half: half.finding.low)
    told = [half for half in own if half in (own[0], longest) or half.topic == "MMLU"]
    first, *others = told
    if not others or math.isinf(first.finding.value):
        return ""
    said = [f"on {_of_items(half)} it takes {half.finding.shown}" for half in others]
    text = (
        f"Drop {first.finding.shown} of the layers of {model}, and half of what it scores above guessing on "
        f"{_of_items(first)} is gone; {', '.join(said)}. How many it can lose depends on what it is asked, and on how "
        "it is to answer."
    )
    rest = (
        "Dropped are the blocks that the paper's rule chooses (similarity-informed). Shares of the layers are read off "
        "the line between two cuts; nothing was healed."
    )
    return f'<div id="finding"><p><strong>{as_html(text)}</strong> {as_html(rest)}</p></div>'


def _of_items(half: Half) -> str:
    return f"{half.row} ({half.finding.items:,} items)"


def _bands(lines: Mapping[str, int], top: float) -> dict[str, Band]:
    """Rows one below the other, each with so many lines of markers below its name."""
    found = {}
    for row, count in lines.items():
        name = top + ROOM / 2 + 1
        bottom = name + MARK * count + ROOM / 2
        found[row] = Band(top, name, [name + MARK * (line + 0.5) for line in range(count)], bottom)
        top = bottom
    return found


def half_gone(rulings: Mapping[str, Mapping[str, list[Ruling]]], *, provenance: str = "") -> Figure | None:
    """The picture: share of the layers across, a row for each task, the earliest on top; None where nothing is known.

    A row is a band: its name, and below it a line for each model that is known. Set apart below them are the paper's
    families, whose models were larger, and healed.
    """
    found = halves(rulings)
    if not found:
        return None
    models = list(dict.fromkeys(half.model for half in found))
    # by name among all, whatever is known of them: a model looks alike on every page that gives it such a place
    known = sorted({model for of_models in rulings.values() for model in of_models})
    styles = dict(zip(known, styles_of(known)))
    first = {half.row: half.finding.value for half in reversed(found)}
    first |= {half.row: half.finding.value for half in found if half.model == models[0]}
    rows = sorted(first, key=lambda row: (first[row], row))
    data = pd.DataFrame(
        {
            "row": half.row, "model": half.model, "value": half.finding.value, "low": half.finding.low,
            "high": half.finding.high, "items": half.finding.items,
        }
        for half in found
    )  # fmt: skip
    end = max([LEAST, *(value + 0.05 for value in data[["value", "low", "high"]].stack() if math.isfinite(value))])
    families = {f"MMLU, {family}": cliff for family, cliff in paper.CLIFFS.items()}
    # a line for each model that has one, in the same order everywhere
    of_row = {row: sorted(set(data[data["row"] == row]["model"]), key=models.index) for row in rows}
    ours = _bands({row: len(of_row[row]) for row in rows}, HEADING)
    divided = ours[rows[-1]].bottom
    theirs = _bands(dict.fromkeys(families, 1), divided + HEADING)
    names = {row: band.name for row, band in (ours | theirs).items()}
    bottom = max(band.bottom for band in theirs.values())
    picture = Picture("Layers dropped, n / L", None, percent=True, inches=(6.6, 1.2 + 0.18 * bottom))
    for bands in (ours, theirs):
        for band in list(bands.values())[::2]:
            picture.band(band.top, band.bottom)
    picture.words(OURS, 0, HEADING - ROOM / 2, bold=True)
    picture.words(THEIRS, 0, divided + HEADING - ROOM / 2, bold=True)
    picture.line([0, end], [divided, divided], colour=INK, width=1)
    for model in models:
        own, style = data[data["model"] == model], styles[model]
        y = [ours[row].lines[of_row[row].index(model)] for row in own["row"]]
        hover = (
            f"{as_plotly(model)}, %{{customdata[0]}}<br>%{{customdata[1]}}, "
            "95% interval %{customdata[2]} to %{customdata[3]}"
        )
        details = details_of(own, "row", "value", "low", "high")
        look = {"label": model, "line": None, "size": 6, "details": details, "hover": hover}
        picture.line(own["value"].where(own["value"] <= end), y, **{**style, **look})
        for place, low, high in zip(y, own["low"], own["high"]):
            look = {"colour": style["colour"], "label": model, "width": 1.5}
            picture.line([low, min(high, end)], [place, place], **look, hover=None)
    told = []
    for row, (low, high) in families.items():
        told.append(f"{row} {low:.0%}" + (f" to {high:.0%}" if high > low else ""))
        look = {"colour": GREY, "width": 3, "marker": "circle", "hover": f"The paper, healed: {told[-1]}"}
        picture.line([low, high], theirs[row].lines * 2, **look)
    picture.caption = (
        "Above the line: share of its layers at which a model has first lost half of its accuracy above guessing, in "
        "the answer format of each task, with 95% intervals: similarity-informed pruning, not healed. A curve may rise "
        "again: the table says where half is gone for good. Below it, grey: up to where the paper's models, of 2.7 to "
        "70 billion parameters, healed, keep their accuracy, which is not where half of it is gone."
    )
    words = "; ".join(f"{half.model}, {half.row}: {half.finding.shown}" for half in found)
    picture.alt = (
        f"Where half of the accuracy above guessing is gone, as a share of the layers. {words}. Set apart, up to where "
        f"the paper's models, healed, keep their accuracy: {'; '.join(told)}."
    )
    ends = {"x": [0, end], "y": [bottom, 0]}
    return picture.finish("half-gone", provenance, data, **ends, named_rows=names, row_height=HEIGHT)
