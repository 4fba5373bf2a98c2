"""What is kept by where layers go, as a table of the first page: a row for each third of the layers, and for their end.

The numbers are those of the explorer (explorer.py): means over the blocks of four layers that lie in a third. A row
names the rules of the paper whose block lies there.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.explorer import RULES, read_models
from book.extension.running import EXPLORER
from deeper_layers_companion.report import statistics
from deeper_layers_companion.report.names import as_html, model_title, rule_title
from deeper_layers_companion.studies.by_place import END, FIRST_THIRD, find_places
from deeper_layers_companion.studies.letters_or_words import LATE, MIDDLE

SIZE = statistics.SIZE
TEXT = "text"  # the explorer's line of a loss
LETTERS = "letters"
LINES = (LETTERS, "written", TEXT)
UNITS = {LETTERS: "questions", "written": "facts", TEXT: "passages"}  # what the items of a line are
SIGNS = {"similarity": ("similar", "\u25c6"), "simple": ("simple", "\u25b2")}  # as the explorer marks the rules' cuts
PLACES = {
    FIRST_THIRD: "the first third",
    MIDDLE: "the middle third",
    LATE: "the last third, the last layer kept",
    END: "the very end, the last layer with it",
}
CAPTION = (
    "What {model} keeps above guessing without {size} layers, by where they lie: means over the blocks of each place, "
    "with 95% intervals. In small: the block of each of the paper's rules, and what it leaves."
)
SPIKE = 0.25  # by how much a rule's block keeps more, or less, than both its blocks of a layer less and more


def tabulate_places(model: dict) -> list[dict]:
    """A row for each place: its words, for each line what is kept over its blocks ([items, mean, low, high], or None
    where a block lacks it), and for each of the paper's rules that cuts there its first layer and what its own block
    leaves. [] where no line was measured."""
    tasks = {line: next(iter(model["lines"].get(line, {})), None) for line in LINES}
    rows = []
    for place, starts in find_places(model["layers"]).items():
        told = model["places"].get(place, {})
        means = {line: told.get(task) for line, task in tasks.items()}
        found = {rule: _find_start(model, rule, SIZE) for rule in RULES}
        there = {rule: start for rule, start in found.items() if start in starts}
        own = {}
        for rule, start in there.items():
            own[rule] = {line: _find_kept(model, f"{start},{SIZE}", task) for line, task in tasks.items()}
        rows.append({"place": PLACES[place], "means": means, "rules": there, "own": own})
    is_measured = any(mean is not None for row in rows for mean in row["means"].values())
    return rows if is_measured else []


def describe_spikes(model: dict) -> str:
    """Each rule whose block of SIZE layers keeps far more, or far less, of letters than its blocks of a layer less and
    more do, in a sentence; "" where there is none."""
    task, words = next(iter(model["lines"].get(LETTERS, {}).items()), (None, ""))
    sentences = []
    for rule in RULES:
        kept = []
        items = []
        for size in (SIZE - 1, SIZE, SIZE + 1):
            cut = f"{_find_start(model, rule, size)},{size}"
            kept.append(_find_kept(model, cut, task))
            items.append(_count_items(model, cut, task))
        if None in kept:
            continue
        less, own, more = kept
        if min(own - less, own - more) > SPIKE or max(own - less, own - more) < -SPIKE:
            sentences.append(
                f"At {SIZE} layers the {rule_title(rule)} keeps {own:.0%} of {words} ({items[1]:,} {UNITS[LETTERS]}); "
                f"at {SIZE - 1} and {SIZE + 1} layers {less:.0%} and {more:.0%} ({items[0]:,} and {items[2]:,})."
            )
    return " ".join(sentences)


def describe_letters(model: dict) -> str:
    """What the blocks of the middle third keep of another task's letters, in a sentence; "" where it is unknown."""
    task, words = next(iter(model["lines"].get("easy", {}).items()), (None, ""))
    told = model["places"].get(MIDDLE, {}).get(task)
    if told is None or told[1] is None:
        return ""
    _, mean, low, high = told
    kept = f"{mean:.0%} ({low:.0%} to {high:.0%})"
    return f"By letter, too, it depends on the task: of {words} the middle third keeps {kept}."


def _find_start(model: dict, rule: str, size: int) -> int | None:
    """The first layer of the block of a size that a rule drops."""
    for cut in model["rules"].get(rule, []):
        start, of_cut = map(int, cut.split(","))
        if of_cut == size:
            return start
    return None


def _find_kept(model: dict, cut: str, task: str | None) -> float | None:
    """What a cut keeps of a task; of a text its loss less that of the whole model. None where it was not measured, or
    the whole model only guesses."""
    told = model["cuts"].get(cut, {}).get(task)
    if told is None:
        return None
    number, share, _, _, score = told
    asked = model["asked"][number]
    return score - asked["whole"] if asked["loss"] else share


def _count_items(model: dict, cut: str, task: str | None) -> int:
    """The items of a task that a cut was asked."""
    told = model["cuts"].get(cut, {}).get(task)
    return model["asked"][told[0]]["items"] if told else 0


def draw_table(model: dict, rows: list[dict]) -> str:
    """The table as HTML."""
    lines = {line: next(iter(model["lines"][line].values())) for line in LINES if line in model["lines"]}
    heads = "".join(f'<th scope="col">{as_html(_title(line, words, rows))}</th>' for line, words in lines.items())
    body = []
    for row in rows:
        marks = "".join(
            _mark(rule, f"{rule_title(rule)}: {start} to {start + SIZE - 1}") for rule, start in row["rules"].items()
        )
        cells = "".join(_draw_cell(line, row) for line in lines)
        body.append(f'<tr><th scope="row">{as_html(row["place"])}{marks}</th>{cells}</tr>')
    caption = CAPTION.format(model=model_title(model["name"]), size=SIZE)
    caption = as_html(" ".join(filter(None, [caption, describe_letters(model), describe_spikes(model)])))
    head = f'<th scope="col">without {SIZE} layers of</th>{heads}'
    return (
        f'<table class="places" id="places"><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _title(line: str, words: str, rows: list[dict]) -> str:
    """The head of a column: what is kept, in what unit, of how many items."""
    items = [row["means"][line][0] for row in rows if row["means"][line]]
    number = f" ({max(items):,} {UNITS[line]})" if items else ""
    if line == TEXT:
        return f"loss on {words}, nats a token more{number}"
    return f"{words} kept{number}"


def _mark(rule: str, text: str) -> str:
    """A rule's sign and a text, in small letters."""
    name, sign = SIGNS[rule]
    return f'<small><span style="color:var(--{name})" aria-hidden="true">{sign}</span> {as_html(text)}</small>'


def _draw_cell(line: str, row: dict) -> str:
    """The mean of a place with its interval, and what the blocks of its rules leave."""
    own = "".join(_mark(rule, _write(line, kept[line])) for rule, kept in row["own"].items())
    mean = row["means"][line]
    if mean is None:
        return f"<td>unknown{own}</td>"
    _, value, low, high = mean
    told = f"{_write(line, value)} <small>{_write(line, low)} to {_write(line, high)}</small>"
    look = ""
    if line != TEXT:
        look = f' class="share" style="--colour:var(--{line});--kept:{min(max(value, 0), 1):.2f}"'
    return f"<td{look}>{told}{own}</td>"


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
