"""The page where a slider removes layers: what results/ hold of every cut of every model, as data for explorer.js."""

import collections
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.measured import not_measured
from book.extension.outdated import made_of
from book.extension.pages import ROOT
from deeper_layers.cuts import Cut
from deeper_layers.healing.presets import PRESETS
from deeper_layers.models.packaged import EMBEDDED
from deeper_layers.report.figures import paper_figures
from deeper_layers.report.names import as_html, visible
from deeper_layers.report.questions import rivals
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.evidence import Answers, Evidence
from deeper_layers.report.statistics.topics import described_as, topic_of
from deeper_layers.results.units import Unit, all_units, whole_units
from deeper_layers.rules.choosing import REGISTERED, RULES

MEASURED = ROOT / "benchmarks" / "measured"
# the paper's settings and ours; a healing with others is a comparison, for a page of its own
SETTINGS = [
    {**preset.settings, "save_every": None, "quantization": None}
    for preset in PRESETS.values()
    if preset.objective == "text"
]


def explored(folder: Path = ROOT / "results") -> list[dict]:
    """Every model with its layers and, for each rule and size, what was measured; what was not is absent.

    The model that knows most comes first: on its scales layers matter most.
    """
    by_model: dict[str, list[Unit]] = {}
    for unit in all_units(folder):
        by_model.setdefault(unit.key["model"]["name"], []).append(unit)
    return sorted(filter(None, itertools.starmap(_model, by_model.items())), key=_known, reverse=True)


def _known(model: dict) -> int:
    """On how many tasks the whole model is surely better than guessing."""
    guessing = {task["key"]: task["guessing"] for task in model["tasks"]}
    whole = {t: low for steps in model["rules"].values() for t, (_, low, *_) in steps[0]["accuracy"].items()}
    return sum(low > guessing[task] for task, low in whole.items())


def _model(name: str, units: list[Unit]) -> dict | None:
    plain = [unit for unit in units if unit.kind == "sweep" and unit.key["quantization"] is None]
    if not plain:
        return None
    units = sorted(units, key=lambda unit: unit.key.get("quantization") is not None)  # distances of the weights as are
    evidence = Evidence(plain)
    if not evidence.topics:
        return None
    gained = gained_by_size(name, evidence.layers)
    rules, tasks = {}, {}
    for rule in RULES:
        answers = {topic: found for topic in evidence.topics if (found := evidence.answers(topic, rule))}
        for topic, found in answers.items():
            tasks[topic] = {"key": topic, "title": visible(found.described), "guessing": _short(found.guessing)}
        sizes = sorted({cut.size for found in answers.values() for cut in found.cuts})
        if sizes:
            steps = [_step(answers, size, evidence.layers, units) | gained.get(size, {}) for size in sizes]
            rules[paper_figures.RULES[rule]] = steps
    whole = next(iter(rules.values()), [{}])[0]
    rules |= _of_other_rules(evidence, units, whole, tasks, gained)
    weights, name = visible(plain[0].details["weights"]), visible(name)
    about = {paper_figures.RULES.get(rule, rule): f"{made.words} ({made.source})" for rule, made in REGISTERED.items()}
    return {
        "name": name, "layers": evidence.layers, "weights": weights, "tasks": list(tasks.values()), "rules": rules,
        "about": {rule: about[rule] for rule in rules},
    }  # fmt: skip


def _step(answers: dict[str, Answers], size: int, layers: int, units: list[Unit]) -> dict:
    """One pruned model: its cut as most tasks have it, accuracies with intervals, flips, distance, losses."""
    of_size = {topic: cut for topic, found in answers.items() for cut in found.cuts if cut.size == size}
    ((cut, _),) = collections.Counter(of_size.values()).most_common(1)
    step = {"start": cut.start, "size": size, "kept": cut.describe(layers), "accuracy": {}}
    for topic, own in of_size.items():
        found = answers[topic]
        row = found.cuts.index(own)
        value = float(found.right[row].mean())
        low, high = curves.wilson_interval(value, found.right.shape[1])
        flipped = None if found.flipped is None else float(found.flipped[row])
        # a task that was measured for another cut of this size, after other distances, says so by its start
        other = [] if own == cut else [own.start]
        step["accuracy"][topic] = [*map(_short, (value, low, high, flipped)), *other]
    return step | _beside(cut, units)


def _beside(cut: Cut, units: list[Unit]) -> dict:
    """What is known of a cut besides scores: its distance, losses on text, healing."""
    step, losses = {}, {}
    for unit in units:
        if "start" not in unit.rows or unit.rows.empty or not (cut.is_block or "cut" in unit.rows):
            continue
        of_cut = curves.of_cut(unit.rows, cut)
        if unit.kind == "similarity" and len(of_cut) and "distance" not in step:
            step["distance"] = _short(of_cut["distance"].iloc[0])
        loss = of_cut[of_cut["metric"] == "loss"] if "metric" in of_cut else of_cut.iloc[:0]
        if not len(loss) or unit.kind not in ("loss", "healing"):
            continue
        opened = unit.key["quantization"] or "not quantized"
        how = visible(f"{unit.key['text'].upper()}, {opened}, {unit.key['dtype']}")
        value = _short(loss["value"].iloc[0])
        if unit.kind == "loss":
            losses.setdefault(how, [value, how])
        elif "healed" not in step and _is_preset(unit):
            step["healed"] = [value, how]
            record = unit.details["healing"]
            step["healing"] = [record["tokens"], record["trained_parameters"], round(record["seconds"])]
    if losses:  # beside a healing that of the same weights, else the first
        step["loss"] = losses.get(step.get("healed", ["", ""])[1], next(iter(losses.values())))
    return step


def _of_other_rules(
    evidence: Evidence, units: list[Unit], whole: dict, tasks: dict[str, dict], gained: dict[int, dict]
) -> dict[str, list[dict]]:
    """The steps of every rule beyond the paper's of which results hold what it drops, the whole model first.

    Tasks on which only these were scored are added to `tasks`.
    """
    chosen: dict[str, Unit] = {}
    for unit in sorted((unit for unit in units if unit.kind == "choice"), key=lambda unit: len(unit.rows)):
        if unit.key["quantization"] is None and unit.name in REGISTERED and unit.name not in RULES:
            chosen[unit.name] = unit
    found, keys = {}, {task["title"]: topic for topic, task in tasks.items()}
    for rule, unit in sorted(chosen.items(), key=lambda pair: list(REGISTERED).index(pair[0])):
        steps, changes = [whole], REGISTERED[rule].changes
        for size, choice in rivals.choices_of(unit).items():
            step = _dropped(choice.cut, size, evidence.layers) | {"accuracy": {}}
            if changes:  # whose weights and time were not measured, nor was it healed
                step["kept"] += f", and changes weights that stay ({changes})"
            else:
                step |= _beside(choice.cut, units) | (gained.get(size, {}) if choice.cut.is_of_layers else {})
            how = f"{unit.key['text'].upper()}, not quantized, {unit.key['dtype']}"
            step["loss"] = [_short(float(choice.losses.mean())), visible(how)]
            for scored in _scored(rule, choice.cut, unit, units):
                if (of_task := _accuracy(evidence, scored, choice.cut)) is None:
                    continue
                described, guessing, values = of_task
                key = keys.setdefault(described, described)
                tasks.setdefault(key, {"key": key, "title": described, "guessing": guessing})
                step["accuracy"][key] = values
            steps.append(step)
        found[rule] = steps
    return found


def _dropped(cut: Cut, size: int, layers: int) -> dict:
    """What a rule asked for so many layers drops, as explorer.js draws it."""
    found = {"start": cut.start, "size": size, "kept": cut.describe(layers)}
    if not cut.is_block:
        found |= {"layers": cut.dropped, "halves": sorted({*cut.attention, *cut.mlp})}
    return found


def _scored(rule: str, cut: Cut, chosen: Unit, units: list[Unit]) -> Iterator[Unit]:
    """The units that have the scores of what a rule leaves, those of a group as its own."""
    same = {name: chosen.key[name] for name in ("dtype", "quantization")} | {"engine": None}
    if changes := REGISTERED[rule].changes:
        same |= {name: chosen.key[name] for name in ("rule", "calibration")}
    for unit in whole_units(units):
        if unit.kind == ("changed" if changes else "cuts") and cut.name in unit.key["cuts"]:
            if all(unit.key[name] == value for name, value in same.items()):
                yield unit


def _accuracy(evidence: Evidence, unit: Unit, cut: Cut) -> tuple[str, float | None, list] | None:
    """What a unit asks, the accuracy of guessing, and of a cut the accuracy with its interval; None without items."""
    right = rivals.right_items(unit, cut)
    if right is None:
        return None
    names = sorted(unit.details["levels"]) or [unit.name]
    levels = evidence.levels([unit], names)
    described = described_as(topic_of(unit.name), names, unit.key["num_fewshot"], len(right))
    value = float(right.mean())
    values = [*map(_short, (value, *curves.wilson_interval(value, len(right)))), None]
    return visible(described), _short(max(levels.values())), values


def gained_by_size(name: str, layers: int, folder: Path = MEASURED) -> dict[int, dict]:
    """What dropping so many layers of a model gains, as benchmarks/gained.py measured it; nothing where it did not.

    "weights": parameters, bytes, number format; "time": for reading a prompt and for writing, the share of the whole
    model's time (median, least, most) and how many tokens. Where every layer has as many parameters, those of the
    sizes between are known without measuring; a time is not.
    """
    for path in sorted(folder.glob("gained-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if name != (EMBEDDED.name if found["model"] == "embedded" else found["model"]):
            continue
        rows = {row["size"]: row for row in found["rows"]}
        sizes = sorted(rows)
        weights = {size: (rows[size]["parameters"], rows[size]["bytes"]) for size in sizes}
        of_layer = {
            tuple((before - after) / (b - a) for before, after in zip(weights[a], weights[b], strict=True))
            for a, b in itertools.pairwise(sizes)
        }
        if len(of_layer) == 1 and sizes[0] == 0:
            (each,) = of_layer
            whole = weights[0]
            weights = {n: [round(w - n * one) for w, one in zip(whole, each, strict=True)] for n in range(layers)}
        tokens = {"prefill": found["prompt"], "decode": found["tokens"]}
        times = {
            size: {"time": {way: [*map(_short, row["share_of_time"][way]), tokens[way]] for way in tokens}}
            for size, row in rows.items()
        }
        return {
            size: {"weights": [*of_size, found["dtype"]], **times.get(size, {})} for size, of_size in weights.items()
        }
    return {}


def _is_preset(unit: Unit) -> bool:
    return unit.key["healing"] | {"save_every": None, "quantization": None} in SETTINGS


def _short(value) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(f"{value:.4g}")


class Explorer(SphinxDirective):
    """The controls and an empty place for what they show, which explorer.js fills."""

    def run(self) -> list[nodes.Node]:
        made_of(self.env, ROOT / "results", MEASURED)
        models = explored(ROOT / "results")
        if not models:
            return [not_measured("results/ holds no sweep.")]
        data = json.dumps(models, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        options = "".join(f"<option>{as_html(model['name'])}</option>" for model in models)
        page = f"""<div class="explorer" id="explorer">
<noscript><p>This page needs scripts. The same numbers stand on the pages of figures.</p></noscript>
<form>
<label for="explorer-model">Model</label><select id="explorer-model">{options}</select>
<label for="explorer-rule">Rule</label><select id="explorer-rule"></select>
<label for="explorer-size">Layers to drop</label>
<input id="explorer-size" type="range" min="0" max="1" value="0" step="1">
</form>
<p class="explorer-about"></p>
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
