"""The figure that takes layers away: what each task keeps without any block that results hold, for explorer.js.

The data are two files beside the site's scripts: cuts.js, which a page opened as a file may load, and cuts.csv. Where
scripts are off a picture of the cut that the figure opens on stands in its place.
"""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book.extension.first_picture import draw_picture
from book.extension.running import EXPLORER, list_loaded
from deeper_layers.files import write_file
from deeper_layers_companion import results
from deeper_layers_companion.report import estimates, names, pairing, statistics
from deeper_layers_companion.report.names import as_html
from deeper_layers_companion.studies.by_place import find_places

RULES = ("similarity", "simple")
# The lines of the first figure: a colour, and the tasks that it may show, each in words. A cut shows the first task of
# a line that was measured without it.
LINES = {
    "letters": {"mmlu": "MMLU's letters", "embedded_mmlu": "packaged MMLU's letters"},
    "easy": {"lettered_capitals": "capitals' letters", "facts_by_letter": "new facts' letters"},
    "words": {"capitals": "capitals in words", "facts_in_words": "new facts in words"},
    "written": {"written_facts": "written facts", "facts_written": "new written facts"},
    "text": {"c4": "C4", "wikipedia": "Wikipedia"},
}
SCRIPT = "window.CUTS = "
PAGE = """<figure class="explorer{kind}" id="first-figure"><form>
<label class="model">Model <select></select></label>
<span class="size"><button type="button" class="less" aria-label="one layer less">\u2212</button>
<span><output></output> layers dropped</span>
<button type="button" class="more" aria-label="one layer more">+</button></span>
<span class="marks" role="group" aria-label="Cuts with a name"></span></form>
<div class="both"><div class="drawing"><div class="strip"><div class="block" role="slider" tabindex="0"
aria-label="Dropped block; shift and arrows resize it"></div></div><svg class="chart" role="img"></svg></div>
<div><p class="over"></p><div class="bars"></div></div></div>
<img class="still" src="_static/first-figure.svg" alt="{said}">
<p class="cut" aria-live="polite">{said}</p>{tasks}
<figcaption>{finding}{how}
<span class="downloads"><a href="_static/cuts.csv" download>data (CSV)</a>
<a href="_static/first-figure.svg" download>picture (SVG)</a></span></figcaption></figure>"""
NUMBER = '<a class="number" href="#first-figure">Figure 1.</a>'
TASKS = '<div class="tasks"></div><p class="others"></p>'
HOW = """ Drag the block, or use the arrow keys, with shift to resize it. Lines: what is kept above guessing without the
block around each place; of a text, how likely its tokens stay."""
COLOURS = """ On every page: <b style="color: var(--letters)">■</b> <b style="color: var(--easy)">■</b> letters,
<b style="color: var(--words)">■</b> words, <b style="color: var(--written)">■</b> written,
<b style="color: var(--text)">■</b> texts; <b style="color: var(--similar)">◆</b> similarity-informed rule,
<b style="color: var(--simple)">▲</b> simple heuristic."""
COLUMNS = ("model", "start", "size", "task", "items", "kept", "low", "high", "score")


def collect_models(scores: pd.DataFrame) -> list[dict]:
    """Every model of results.scores with its tasks and, for each block "start,size", what each task keeps without it.

    Of a task: [measurement, share kept above guessing, low, high (95%), score]. Of a loss guessing is that among all
    tokens, ln V. Of a place (`find_places`): [items, mean over its blocks, low, high], where all of them were measured.
    What was not measured is absent.
    """
    rows = pairing.select_best(pairing.drop_third_study(scores))
    rows = rows.query("outcome.notna() and changed.isna() and engine.isna() and (start.notna() or cut == '0,0')")
    models = []
    for name in names.sort_models(rows["model"].unique()):
        of_model = rows[rows["model"] == name]
        chosen = of_model.query("rule in @RULES and cut != '0,0'").groupby("rule")
        model = {
            "name": names.escape_invisible(name),
            "layers": int(of_model["layers"].iloc[0]),
            "asked": [],
            "cuts": {},
            "places": {},
        }
        model["rules"] = {rule: cuts["cut"].unique().tolist() for rule, cuts in chosen}
        cuts: dict[str, dict] = {}
        extents: dict[tuple[str, str], tuple[int, int]] = {}
        of_part = {f"embedded_{task}" for task in of_model["task"].unique()}  # a few items of what is asked in full
        of_model = of_model[~of_model["task"].isin(of_part)]
        for (task, *_), answers in of_model.groupby(["task", *pairing.PROMPT, "metric"], dropna=False):
            answers = answers.drop_duplicates(["cut", "subject"])
            if not (answers["cut"] == "0,0").any():
                continue
            order, outcomes = pairing.pair_outcomes(answers)
            number, title = len(model["asked"]), names.escape_invisible(names.task_title(task))
            facts, kept = _estimate_kept(outcomes, pairing.score_guessing(answers), answers["metric"].iloc[0] == "loss")
            model["asked"].append({"task": task, "title": title, "items": outcomes.shape[1]} | facts)
            for place, mean in _average_by_place(order, outcomes, kept, model["layers"], facts["loss"]).items():
                told = model["places"].setdefault(place, {})
                if outcomes.shape[1] > told.get(task, [0])[0]:
                    told[task] = [outcomes.shape[1], *map(_round, (mean.value, mean.low, mean.high))]
            # of two measurements that with more blocks of this size, so that a slider stays on the same items, then
            # that with more items
            blocks = order.groupby("size")["cut"].transform("size")
            numbers = np.broadcast_arrays(kept.value, kept.low, kept.high, outcomes.mean(axis=1))
            for cut, blocks_alike, *of_cut in zip(order["cut"], blocks, *numbers, strict=True):
                extent = blocks_alike, outcomes.shape[1]
                if extent > extents.get((cut, task), (0, 0)):
                    extents[cut, task] = extent
                    cuts.setdefault(cut, {})[task] = [number, *map(_round, of_cut)]
        whole = cuts.pop("0,0", {})
        model["cuts"] = cuts
        model["tasks"] = sorted(whole, key=lambda task: (_sort_key(task), model["asked"][whole[task][0]]["title"]))
        model["lines"] = _find_lines(cuts)
        model["opens"] = _choose_first_cut(model)
        models.append(model)
    return models


def _find_lines(cuts: dict[str, dict]) -> dict[str, dict[str, str]]:
    """LINES, without tasks that no cut has."""
    asked = {task for told in cuts.values() for task in told}
    lines = {colour: {task: words for task, words in tasks.items() if task in asked} for colour, tasks in LINES.items()}
    return {colour: tasks for colour, tasks in lines.items() if tasks}


def _choose_first_cut(model: dict) -> str:
    """The most similar block of statistics.SIZE layers, else another cut of the same size, of a rule, or at all."""
    size = f",{statistics.SIZE}"
    by_rule = [cut for rule in RULES for cut in model["rules"].get(rule, [])]
    choices = [cut for cut in [*by_rule, *model["cuts"]] if cut.endswith(size)]
    return next(iter([*choices, *by_rule, *model["cuts"]]), "")


def _estimate_kept(outcomes: np.ndarray, guessing: float, is_loss: bool) -> tuple[dict, estimates.Estimate]:
    """What holds of a task, and for each cut the share kept with its interval; nan where nothing can be seen."""
    facts = {"whole": _round(outcomes[0].mean()), "guessing": _round(guessing), "loss": is_loss}
    if is_loss:
        above = guessing - estimates.resample(outcomes)
        return facts | {"floor": False}, estimates.Estimate.of(above / above[:, :1])
    kept = estimates.shares_kept(outcomes, guessing)
    return facts | {"floor": bool(kept.no_value_reason)}, kept


def _average_by_place(
    order: pd.DataFrame, outcomes: np.ndarray, kept: estimates.Estimate, layers: int, is_loss: bool
) -> dict[str, estimates.Estimate]:
    """The mean over the blocks of statistics.SIZE layers of each place that has all of them: of the shares kept, or of
    losses less that of the whole model."""
    starts = order["start"].where(order["size"] == statistics.SIZE)
    means = {}
    for place, of_place in find_places(layers).items():
        is_there = starts.isin(of_place).to_numpy()
        if not of_place or is_there.sum() < len(of_place):
            continue
        if is_loss:
            means[place] = estimates.Estimate.of(estimates.resample(outcomes[is_there].mean(axis=0) - outcomes[0]))
        else:
            means[place] = kept.mean_over(is_there)
    return means


def _sort_key(task: str) -> int:
    """The headline's tasks first, text last."""
    return [*statistics.HEADLINE, task].index(task) + 100 * ("c4" in task or "solutions" in task)


def _round(value: float) -> float | None:
    # five digits: a page rounds to two, and of three it would round twice
    return None if np.isnan(value) else float(f"{value:.5g}")


def list_rows(models: list[dict]) -> list[tuple]:
    """What explorer.js shows, as rows of COLUMNS."""
    rows = []
    for model in models:
        for cut, told in model["cuts"].items():
            for task, (number, *values) in told.items():
                rows.append((model["name"], *cut.split(","), task, model["asked"][number]["items"], *values))
    return rows


def draw_explorer(target: Path) -> list[str]:
    """Write the data of the explorer and the first picture; returns the files that they are made by."""
    models = [model for model in collect_models(results.scores()) if model["cuts"]]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *list_rows(models)])
    write_file(target.with_suffix(".csv"), table.getvalue().encode())
    if models:
        write_file(target.with_name("first-figure.svg"), draw_picture(models[0]))
    text = json.dumps(models, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    write_file(target, f"{SCRIPT}{text};\n".encode())
    return list_loaded()


def read_models() -> list[dict]:
    """What draw_explorer wrote."""
    return json.loads(EXPLORER.read_text(encoding="utf-8").removeprefix(SCRIPT).rstrip(";\n"))


def describe_cut(model: dict, cut: str) -> str:
    """A cut in one sentence, for pages without scripts and for who can't see the picture; explorer.js says the same."""
    start, size = map(int, cut.split(","))
    told, kept = model["cuts"][cut], []
    for tasks in model["lines"].values():
        task = next((task for task in tasks if task in told), None)
        if task is None:
            continue
        number, share, _, _, score = told[task]
        whole = model["asked"][number]["whole"]
        if model["asked"][number]["loss"]:
            kept.append(f"{tasks[task]}'s perplexity goes from {math.exp(whole):.3g} to {math.exp(score):.3g}")
        elif share is not None:
            kept.append(f"{share:.0%} of {tasks[task]}")
    those = f"layers {start} to {start + size - 1}" if size > 1 else f"layer {start}"
    return f"{model['name']} without {those} keeps, above guessing: {'; '.join(kept)}."


def describe_peaks(model: dict) -> str:
    """Which block of statistics.SIZE layers each line misses least; "" where none was measured."""
    size = statistics.SIZE
    starts = range(model["layers"] - size + 1)
    parts = []
    for colour in ("letters", "words", "written"):
        task, words = next(iter(model["lines"].get(colour, {}).items()), ("", ""))
        told = [(start, model["cuts"].get(f"{start},{size}", {}).get(task)) for start in starts]
        shares = {start: fact[1] for start, fact in told if fact and fact[1] is not None}
        if shares:
            best = max(shares, key=lambda start: shares[start])
            parts.append(f"{best} to {best + size - 1} for {words} ({shares[best]:.0%} kept)")
    return f"The block of {size} layers to miss least depends on the task: {'; '.join(parts)}." if parts else ""


class Explorer(SphinxDirective):
    """The figure, and on a page of its own every task."""

    small = False

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXPLORER))
        models = read_models()
        if not models:
            return [nodes.note("", nodes.paragraph("", "Not measured: results/ holds no pruned model."))]
        said = as_html(describe_cut(models[0], models[0]["opens"]))
        finding = as_html(describe_peaks(models[0]))
        kind, tasks = (" small", "") if self.small else ("", TASKS)
        caption = f"{NUMBER} <strong>{finding}</strong>" if self.small else ""
        page = PAGE.format(kind=kind, said=said, finding=caption, tasks=tasks, how=HOW + COLOURS * self.small)
        return [nodes.raw("", page, format="html")]


class SmallExplorer(Explorer):
    """The figure alone: the strip of layers, the lines and the bars of the first figure."""

    small = True


def load_script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if 'class="explorer' in context.get("body", ""):
        for script in ("drawing.js", EXPLORER.name, "explorer.js"):
            app.add_js_file(script, loading_method="defer")


def ship_data(app: Sphinx, config: Config) -> None:
    EXPLORER.parent.mkdir(parents=True, exist_ok=True)
    config.html_static_path.append(str(EXPLORER.parent))


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", ship_data)
    app.add_directive("explorer", Explorer)
    app.add_directive("explorer-small", SmallExplorer)
    app.connect("html-page-context", load_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
