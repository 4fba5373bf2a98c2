"""`deeper-layers heal`: a pruned model fine-tuned with adapters, which are kept, and scored."""

import functools
import math
import shlex
from typing import TYPE_CHECKING

import click

from deeper_layers import files, models
from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.cutting import check_fits, check_typed, chosen_cut, cut_options, list_options
from deeper_layers.command.options import MODEL, asking
from deeper_layers.command.preview import as_json
from deeper_layers.cuts import UNPRUNED
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import HealingParameters, cut_of_lists
from deeper_layers.package_index import cache_folder
from deeper_layers.rules.choosing import DROPPING, REGISTERED

if TYPE_CHECKING:  # slow
    import pandas as pd

UNKNOWN_BEFORE = (
    "not told what healing gives back: results hold nothing from before it, of these tasks on weights opened alike, "
    "in which the unpruned model is surely above guessing"
)
AT_MOST = (
    "at most, if this healing does not make the unpruned model worse on the text: to get used to a text repairs "
    "nothing; how much of it is that is told once the unpruned model was healed alike, by the same command with "
    "--drop 0"
)
# typed options that a sweep has too, beside those that are always named
OF_SWEEP = ("results", "datasets", "corpus", "samples", "sequence_length", "seed", "num_fewshot")
OF_LAYERS = [rule for rule in DROPPING if not REGISTERED[rule].drops_sublayers]  # what heals lacks whole layers


@click.command(
    help=f"""
    Drop layers, let the others get used to it by a short fine-tune of low-rank adapters, and score the result.

    What that gives back is said where results hold the scores from before, as `deeper-layers sweep` measures them in
    the same --dtype and --quantization, and notebook 03 the loss.

    The adapters are kept, and where they are is printed: `deeper-layers prune MODEL OUT --adapter FOLDER` adds them to
    a checkpoint. An interrupted training goes on where it stopped.

    \b
    deeper-layers heal embedded --drop 3 --text wikipedia --tasks capitals
    deeper-layers heal ORGANISATION/NAME --drop 8 --preset "Llama-2 7B"
    deeper-layers heal embedded --drop 3 --objective distill
    deeper-layers heal embedded --layers "5, 12-14"

    {MODEL}
    """
)
@cut_options(rules=OF_LAYERS)
@list_options("layers")
@asking(HealingParameters, but=("sizes", "rules"))
@answering
def heal(given: dict, drop: int | None, start: int | None, rule: str, layers: str | None) -> Answer:
    given_cut = cut_of_lists(layers, None, None)
    check_typed(drop, start, given_cut)
    if drop is None and given_cut is None:
        raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
    parameters = HealingParameters(**given)
    if parameters.measure:
        if (depth := models.stated_layers(models.stated_config(parameters.model, parameters.revision))) is not None:
            check_fits(drop or 0, start, depth, given_cut)
        files.check_writable(cache_folder())  # where the adapters are kept
    # slow: what is above may refuse
    from deeper_layers import results
    from deeper_layers.experiments.healings import adapter_folder, healing_unit
    from deeper_layers.report.statistics import recovery_table

    source, config = parameters.source(), parameters.config()
    opened = functools.cache(lambda: parameters.open(source))
    check_fits(drop or 0, start, source.num_layers, given_cut)
    cut = given_cut or chosen_cut(drop or 0, start, rule, source.num_layers, lambda: (parameters, source, opened))
    unit = healing_unit(cut, config, parameters, source, opened)
    if unit is None:
        raise NotMeasuredError(f"not measured: {source.name} healed, {cut.describe(source.num_layers)}")
    # what others measured comes without adapters: they are trained here
    adapters = adapter_folder(cut, config, parameters, source, opened) if parameters.measure else None
    scores = results.scores(parameters.results and parameters.results_folder, source.name)
    own = scores["path"] == f"{unit.path.parent.name}/{unit.path.name}"
    scores.loc[own, "repeat"] = 0  # whatever else was measured of the same
    alike = scores["healing"].isin(scores.loc[own, "healing"]) & (scores["cut"] == UNPRUNED.name)
    back = recovery_table(scores[own | alike | scores["healing"].isna()])
    if len(back):  # losses last: below them stands what "at most" means
        back = back[back["cut"] == cut.name].sort_values("metric", key=lambda metric: metric == "loss", kind="stable")
    record = unit.details["healing"]
    rows = [
        {"task": row.task, "metric": row.metric, "healed": f"{row.value:.3f}", "stderr": f"{row.stderr:.3f}",
         "items": f"{row.items:.0f}"}
        for row in unit.rows.itertuples()
    ]  # fmt: skip
    did = "distilled" if config.objective == "distill" else "healed"
    head = (
        f"{source.name}: {cut.describe(source.num_layers)}\n"
        f"{did} on {record['tokens']:,} tokens of {parameters.text} in {record['seconds']:.0f} s: adapters of rank "
        f"{config.rank}, {config.steps} steps; the training loss went from {record['losses'][0]:.3f} to "
        f"{record['losses'][-1]:.3f} nats a token"
    )
    end = f"adapters: {adapters or 'leave out --no-measure to have them, trained where this machine has not'}"
    content = {
        "model": source.name, "layers": source.num_layers, "cut": as_json(cut),
        "adapters": str(adapters) if adapters else None, "unit": str(unit.path), "healing": record,
        "rows": records(unit.rows), "given_back": records(back),
    }  # fmt: skip
    before = _before(back) if len(back) else UNKNOWN_BEFORE
    if len(back) and (back["untold"] == "at most").any():
        before += f"\n\n{AT_MOST}"
    if not cut.size:
        before = "nothing was dropped, and nothing is to be given back"
    elif not len(back) and drop and start is None:
        asked = {
            "dtype": parameters.dtype, "quantization": parameters.quantization or "none", "tasks": parameters.tasks,
            "limit": parameters.limit or "none", "rules": rule, "sizes": drop,
        }  # fmt: skip
        asked |= {name.replace("_", "-"): given[name] for name in OF_SWEEP if given.get(name) is not None}
        words = [parameters.model, *(word for name, value in asked.items() for word in (f"--{name}", f"{value}"))]
        before += f"; measured by: deeper-layers sweep {shlex.join(words)}"
    return Answer(f"{head}\n\n{table(rows)}\n\n{before}\n\n{unit.path}\n{end}", content)


def _before(back: "pd.DataFrame") -> str:
    """Of the same sequences and items what models had before healing, and what it gives back."""
    from deeper_layers.report.names import say  # slow

    def shown(row) -> str:
        return f"at most {row.high:.0%}" if row.untold == "at most" else row.untold or say(*row.ends, as_share=True)

    ends = list(zip(back["value"], back["low"], back["high"], strict=True))
    return table([
        {
            "of the same items": f"{row.topic} ({row.items:,})",
            "unpruned": f"{row.whole:.3f}",
            "unpruned, healed": "" if math.isnan(row.whole_healed) else f"{row.whole_healed:.3f}",
            "not healed": f"{row.pruned:.3f}", "healed": f"{row.healed:.3f}", "recovered": shown(row),
        }
        for row in back.assign(ends=ends, items=back["items"]).rename(columns=str).itertuples()
    ])  # fmt: skip
