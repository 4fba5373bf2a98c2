"""What is kept by where layers go, as a table of the first page: a row for each third of the layers, and for their end.

The numbers are those of the explorer (explorer.py): means over the blocks of four layers that lie in a third. A row
names the rules of the paper whose block lies there.
"""

from collections.abc import Sequence

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.explorer import RULES, read_models
from book.extension.running import EXPLORER
from deeper_layers_companion.report import statistics
from deeper_layers_companion.report.names import as_html, model_title, rule_title
from deeper_layers_companion.studies.letters_or_words import LATE, MIDDLE, classify_places

SIZE = statistics.SIZE
TEXT = "text"  # the explorer's line of a loss
LINES = ("letters", "written", TEXT)
SIGNS = {"similarity": ("similar", "\u25c6"), "simple": ("simple", "\u25b2")}  # as the explorer marks the rules' cuts
PLACES = {
    "first": "the first third",
    MIDDLE: "the middle third",
    LATE: "the last third, the last layer kept",
    "end": "the very end, the last layer with it",
}
CAPTION = (
    "What {model} keeps above guessing without {size} layers, by where they lie: means over the blocks of each place. "
    "In small: the block of each of the paper's rules, and what it leaves."
)


def find_places(layers: int) -> dict[str, list[int]]:
    """The first layers of the blocks of SIZE layers that lie in each place; page 06 means the same blocks by middle and
    late."""
    starts = np.arange(layers - SIZE + 1)
    of_study = classify_places(starts, layers, SIZE)
    return {
        "first": starts[3 * (starts + SIZE - 1) < layers].tolist(),
        MIDDLE: starts[of_study == MIDDLE].tolist(),
        LATE: starts[of_study == LATE].tolist(),
        "end": starts[-1:].tolist(),
    }


def tabulate_places(model: dict) -> list[dict]:
    """A row for each place: its words, the mean of each line over its blocks, and for each of the paper's rules that
    cuts there its first layer and what its own block leaves. [] where no line was measured."""
    rows = []
    for place, starts in find_places(model["layers"]).items():
        rules = {rule: _find_start(model, rule) for rule in RULES}
        there = {rule: start for rule, start in rules.items() if start in starts}
        own = {rule: _average_lines(model, [start]) for rule, start in there.items()}
        rows.append({"place": PLACES[place], "means": _average_lines(model, starts), "rules": there, "own": own})
    is_measured = any(mean is not None for row in rows for mean in row["means"].values())
    return rows if is_measured else []


def _find_start(model: dict, rule: str) -> int | None:
    """The first layer of the block of SIZE layers that a rule drops."""
    for cut in model["rules"].get(rule, []):
        start, size = map(int, cut.split(","))
        if size == SIZE:
            return start
    return None


def _average_lines(model: dict, starts: Sequence[int]) -> dict[str, float | None]:
    """The mean over blocks of the first task of each line; of a text the loss, less that of the whole model. None where
    a block lacks it, or the whole model only guesses."""
    means = {}
    for line in LINES:
        task = next(iter(model["lines"].get(line, {})), None)
        told = [model["cuts"].get(f"{start},{SIZE}", {}).get(task) for start in starts]
        if not told or None in told:
            means[line] = None
            continue
        values = [fact[1] for fact in told]
        if line == TEXT:
            values = [fact[4] - model["asked"][fact[0]]["whole"] for fact in told]
        means[line] = None if None in values else sum(values) / len(values)
    return means


def draw_table(model: dict, rows: list[dict]) -> str:
    """The table as HTML."""
    lines = {line: next(iter(model["lines"][line].values())) for line in LINES if line in model["lines"]}
    titles = {
        line: f"loss on {words}, nats a token" if line == TEXT else f"{words} kept" for line, words in lines.items()
    }
    heads = "".join(f'<th scope="col">{as_html(title)}</th>' for title in titles.values())
    body = []
    for row in rows:
        marks = "".join(
            _mark(rule, f"{rule_title(rule)}: {start} to {start + SIZE - 1}") for rule, start in row["rules"].items()
        )
        cells = "".join(_draw_cell(line, row) for line in lines)
        body.append(f'<tr><th scope="row">{as_html(row["place"])}{marks}</th>{cells}</tr>')
    caption = as_html(CAPTION.format(model=model_title(model["name"]), size=SIZE))
    head = f'<th scope="col">without {SIZE} layers of</th>{heads}'
    return (
        f'<table class="places" id="places"><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _mark(rule: str, text: str) -> str:
    """A rule's sign and a text, in small letters."""
    name, sign = SIGNS[rule]
    return f'<small><span style="color:var(--{name})" aria-hidden="true">{sign}</span> {as_html(text)}</small>'


def _draw_cell(line: str, row: dict) -> str:
    """The mean of a place, and what the blocks of its rules leave."""
    mean = row["means"][line]
    own = "".join(_mark(rule, _write(line, means[line])) for rule, means in row["own"].items())
    look = ""
    if line != TEXT and mean is not None:
        look = f' class="share" style="--colour:var(--{line});--kept:{min(max(mean, 0), 1):.2f}"'
    return f"<td{look}>{_write(line, mean)}{own}</td>"


def _write(line: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:+.2f}" if line == TEXT else f"{value:.0%}"


class Places(SphinxDirective):
    """The table of the first model that shows a number; nothing where none does."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXPLORER))
        for model in read_models():
            if rows := tabulate_places(model):
                return [nodes.raw("", draw_table(model, rows), format="html")]
        return []


def setup(app: Sphinx) -> dict:
    app.add_directive("places", Places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
