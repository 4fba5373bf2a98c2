"""The page where a slider removes layers: what results/ hold of every cut of every model, as data for explorer.js."""

import dataclasses
import html
import json
import math
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.measured import not_measured
from lib import curves, figures
from lib.presets import PRESETS
from lib.pruning import Cut
from lib.results import RESULTS, ROOT, Unit, all_units, whole_units
from lib.selection import RULES

# the paper's settings and ours; a healing with others is a comparison, for a page of its own
SETTINGS = [{**dataclasses.asdict(preset), "save_every": None, "quantization": None} for preset in PRESETS.values()]


def explored(folder: Path = RESULTS) -> list[dict]:
    """Every model with its layers and, for each rule and size, what was measured; what was not is absent."""
    by_model: dict[str, list[Unit]] = {}
    for unit in all_units(folder):
        by_model.setdefault(unit.key["model"]["name"], []).append(unit)
    return [found for name, units in by_model.items() if (found := _model(name, units))]


def _model(name: str, units: list[Unit]) -> dict | None:
    sweeps = [unit for unit in units if unit.kind == "sweep" and unit.key["quantization"] is None]
    sweeps = whole_units(sweeps)
    if not sweeps:
        return None
    layers = sweeps[0].details["num_layers"]
    levels = {task: level for unit in sweeps for task, level in curves.levels_of(unit).items()}
    tables = {rule: curves.of_all_models(sweeps, rule) for rule in RULES}
    rules = {}
    for rule, table in tables.items():
        steps = [_step(table[table["size"] == size], size, layers, units) for size in sorted(set(table["size"]))]
        if steps:
            rules[figures.RULES[rule]] = steps
    everything = pd.concat(tables.values())
    # of two tasks of one name, a sample and the complete set, the one with more items
    items = everything.groupby("task", sort=False)["items"].max().sort_values(kind="stable")
    items = items[~items.index.map(lambda task: curves.TITLES.get(task, task)).duplicated(keep="last")]
    items = items.reindex([task for task in everything["task"].unique() if task in items.index])
    tasks = [
        {
            "key": task,
            "title": curves.TITLES.get(task, task),
            "guessing": _short(max(levels.get(task, {}).values(), default=None)),
            "items": int(number),
        }
        for task, number in items.items()
    ]
    return {"name": name, "layers": layers, "weights": sweeps[0].details["weights"], "tasks": tasks, "rules": rules}


def _step(rows, size: int, layers: int, units: list[Unit]) -> dict:
    """One pruned model: its cut as most tasks have it, accuracies with intervals, distance, losses."""
    start = int(rows["start"].mode().iloc[0])
    step = {"start": start, "size": size, "kept": Cut(start, size).describe(layers), "accuracy": {}}
    for row in rows.itertuples():
        # a task that was measured for another cut of this size, after other distances, says so by its start
        values = [_short(row.value), _short(row.low), _short(row.high)]
        step["accuracy"][row.task] = values + ([int(row.start)] if row.start != start else [])
    for unit in units:
        if "start" not in unit.rows or unit.rows.empty:
            continue
        of_cut = unit.rows[(unit.rows["start"] == start) & (unit.rows["size"] == size)]
        if unit.kind == "similarity" and len(of_cut) and "distance" not in step:
            step["distance"] = _short(of_cut["distance"].iloc[0])
        loss = of_cut[of_cut["metric"] == "loss"] if "metric" in of_cut else of_cut.iloc[:0]
        name = {"loss": "loss", "healing": "healed"}.get(unit.kind)
        if len(loss) and name and name not in step and (name == "loss" or _is_preset(unit)):
            how = unit.key["quantization"] or "not quantized"
            step[name] = [_short(loss["value"].iloc[0]), f"{unit.key['text'].upper()}, {how}, {unit.key['dtype']}"]
    return step


def _is_preset(unit: Unit) -> bool:
    return unit.key["healing"] | {"save_every": None, "quantization": None} in SETTINGS


def _short(value) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(f"{value:.4g}")


class Explorer(SphinxDirective):
    """The controls and an empty place for what they show, which explorer.js fills."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        models = explored(ROOT / "results")
        if not models:
            return [not_measured("results/ holds no sweep.")]
        data = json.dumps(models, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        options = "".join(f"<option>{html.escape(model['name'])}</option>" for model in models)
        page = f"""<div class="explorer" id="explorer">
<noscript><p>This page needs scripts. The same numbers stand on the pages of figures.</p></noscript>
<form>
<label for="explorer-model">Model</label><select id="explorer-model">{options}</select>
<label for="explorer-rule">Rule</label><select id="explorer-rule"></select>
<label for="explorer-size">Layers to drop</label>
<input id="explorer-size" type="range" min="0" max="1" value="0" step="1">
</form>
<p class="explorer-cut" aria-live="polite"></p>
<div class="explorer-stack" role="img" aria-label=""></div>
<div class="explorer-tasks"></div>
<dl class="explorer-facts"></dl>
<script type="application/json" class="explorer-data">{data}</script>
</div>"""
        return [nodes.raw("", page, format="html")]


def load_explorer(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if 'class="explorer"' in context.get("body", ""):
        app.add_css_file("explorer.css")
        app.add_js_file("explorer.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", load_explorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
