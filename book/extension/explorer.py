"""Sliders that take layers away: what each task keeps without any block that results hold, for explorer.js."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.running import EXPLORER, select_ours
from deeper_layers.files import write_file
from deeper_layers_companion import results
from deeper_layers_companion.report import estimates, names, pairing, statistics

RULES = {"similarity": "whose ends are most alike", "simple": "by the simple heuristic"}


def collect_models(scores: pd.DataFrame) -> list[dict]:
    """Every model of results.scores with its tasks and, for each block "start,size", what each task keeps without it.

    Of a task: [measurement, share kept above guessing, low, high (95%), score]. Of a loss guessing is that among all
    tokens, ln V. What was not measured is absent.
    """
    rows = pairing.select_best(scores)
    rows, models = (
        rows.query("outcome.notna() and changed.isna() and engine.isna() and (start.notna() or cut == '0,0')"),
        [],
    )
    for name in names.sort_names(rows["model"].unique()):
        of_model = rows[rows["model"] == name]
        chosen = of_model.query("rule in @RULES and cut != '0,0'").groupby("rule")
        model = {
            "name": names.escape_invisible(name),
            "layers": int(of_model["layers"].iloc[0]),
            "asked": [],
            "cuts": {},
        }
        model["rules"] = {RULES[rule]: cuts["cut"].unique().tolist() for rule, cuts in chosen}
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
        models.append(model)
    return models


def _estimate_kept(outcomes: np.ndarray, guessing: float, is_loss: bool) -> tuple[dict, estimates.Estimate]:
    """What holds of a task, and for each cut the share kept with its interval; nan where nothing can be seen."""
    facts = {"whole": _round(outcomes[0].mean()), "guessing": _round(guessing), "loss": is_loss}
    if is_loss:
        above = guessing - estimates.resample(outcomes)
        return facts | {"floor": False}, estimates.Estimate.of(above / above[:, :1])
    kept = estimates.shares_kept(outcomes, guessing)
    return facts | {"floor": bool(kept.untold)}, kept


def _sort_key(task: str) -> int:
    """The headline's tasks first, text last."""
    return [*statistics.HEADLINE, task].index(task) + 100 * ("c4" in task or "solutions" in task)


def _round(value: float) -> float | None:
    # five digits: a page rounds to two, and of three it would round twice
    return None if np.isnan(value) else float(f"{value:.5g}")


def draw_explorer(target: Path) -> list[str]:
    """Write the data of the explorer; returns the files that it is made by."""
    text = json.dumps(collect_models(results.scores()), separators=(",", ":"), allow_nan=False)
    write_file(target, text.encode())
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("deeper_layers")]
    return sorted(select_ours([__file__, *filter(None, (getattr(module, "__file__", None) for module in ours))]))


class Explorer(SphinxDirective):
    """Controls, and a place for what they show."""

    small = False

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXPLORER))
        models = json.loads(EXPLORER.read_text(encoding="utf-8"))
        if self.small:
            models = models[:1]
            for model in models:
                model["cuts"] = {
                    cut: facts for cut, facts in model["cuts"].items() if cut.endswith(f",{statistics.SIZE}")
                }
                model["tasks"] = [task for task in model["tasks"] if task in statistics.HEADLINE]
        if not any(model["cuts"] for model in models):
            return [nodes.note("", nodes.paragraph("", "Not measured: results/ holds no pruned model."))]
        data = json.dumps(models, separators=(",", ":")).replace("<", "\\u003c")
        page = f"""<div class="explorer{" small" if self.small else ""}"><form>
<label class="model">Model <select></select></label>
<label class="size">Layers dropped: <output></output><input type="range" min="0" value="0"></label>
<label class="start">First dropped layer: <output></output><input type="range" min="0" value="0"></label>
<fieldset class="rule"><legend>Which block</legend></fieldset></form>
<noscript><p>Sliders need scripts. The same numbers stand on the pages of figures.</p></noscript>
<p class="cut" aria-live="polite"></p><div class="stack" role="img"></div><div class="tasks"></div>
<p class="others"></p>
<script type="application/json">{data}</script></div>"""
        return [nodes.raw("", page, format="html")]


class SmallExplorer(Explorer):
    """One slider: the place of a block of statistics.SIZE layers of the first model, and the headline's tasks."""

    small = True


def load_script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if 'class="explorer' in context.get("body", ""):
        app.add_js_file("explorer.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.add_directive("explorer", Explorer)
    app.add_directive("explorer-small", SmallExplorer)
    app.connect("html-page-context", load_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
