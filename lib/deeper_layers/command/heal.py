"""`deeper-layers heal`: a pruned model fine-tuned with adapters, which are kept, and scored."""

import functools
import math
import shlex
from typing import TYPE_CHECKING

import click

from deeper_layers import files, models
from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.cutting import check_fits, check_typed, choose, cut_options
from deeper_layers.command.options import MODEL, asking, flags
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import HealingParameters, SweepParameters, cut_of_lists
from deeper_layers.export.pruned_checkpoint import cut_as_json
from deeper_layers.package_index import cache_folder
from deeper_layers.results.schema import GIVEN
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
@cut_options(OF_LAYERS, ("layers",))
@asking(HealingParameters, but=("sizes", "rules"))
@answering
def heal(given: dict, drop: int | None, start: int | None, rule: str, layers: str | None) -> Answer:
    listed = cut_of_lists(layers, None, None)
    check_typed(drop, start, listed)
    if drop is None and listed is None:
        raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
    parameters = HealingParameters(**given)
    if parameters.measure:
        if (depth := models.stated_layers(models.stated_config(parameters.model, parameters.revision))) is not None:
            check_fits(drop or 0, start, listed, depth)
        files.check_writable(cache_folder())  # where the adapters are kept
    # slow: what is above may refuse
    from deeper_layers import results
    from deeper_layers.experiments.healings import adapter_folder, course_of, heal_and_score

    source, config = parameters.source(), parameters.config()
    opened, depth = functools.cache(lambda: parameters.open(source)), source.num_layers
    check_fits(drop or 0, start, listed, depth)
    if listed is not None or start is not None:
        cut = listed or Cut(start or 0, drop or 0)
    else:
        cut = choose(rule, drop or 0, depth, lambda: (parameters, source, opened))
    rules = [rule] if listed is None and start is None else [GIVEN]
    if (found := heal_and_score(cut, config, parameters, source, opened, rules)) is None:
        raise NotMeasuredError(f"not measured: {source.name} healed, {cut.describe(depth)}")
    run, unit = found
    # what others measured comes without adapters: they are trained here
    adapters = adapter_folder(cut, config, parameters, source, opened) if parameters.measure else None
    scores = results.scores(parameters.results and parameters.results_folder, source.name)
    back = _given_back(scores, unit.place, cut)
    before = "nothing was dropped, and nothing is to be given back" if not cut.size else UNKNOWN_BEFORE
    if cut.size and len(back):
        before = _before(back) + (f"\n\n{AT_MOST}" if (back["untold"] == "at most").any() else "")
    elif drop and start is None:
        fields = SweepParameters.model_fields
        asked = {name: value for name, value in parameters if name in fields and value != fields[name].default}
        words = ["sweep", asked.pop("model"), *flags(asked | {"rules": rule, "sizes": drop})]
        before += f"; measured by: deeper-layers {shlex.join(words)}"
    record = course_of(run)
    rows = [
        {
            "task": row.task,
            "metric": row.metric,
            "healed": f"{row.value:.3f}",
            "stderr": f"{row.stderr:.3f}",
            "items": f"{row.items:.0f}",
        }
        for row in unit.rows.itertuples()
    ]
    did = "distilled" if config.objective == "distill" else "healed"
    head = (
        f"{source.name}: {cut.describe(depth)}\n"
        f"{did} on {record['tokens']:,} tokens of {parameters.text} in {record['seconds']:.0f} s: adapters of rank "
        f"{config.rank}, {config.steps} steps; the training loss went from {record['losses'][0]:.3f} to "
        f"{record['losses'][-1]:.3f} nats a token"
    )
    end = f"adapters: {adapters or 'leave out --no-measure to have them, trained where this machine has not'}"
    content = {
        "model": source.name,
        "layers": depth,
        "cut": cut_as_json(cut),
        "adapters": str(adapters) if adapters else None,
        "unit": str(unit.path),
        "healing": record,
        "rows": records(unit.rows),
        "given_back": records(back),
    }
    return Answer(f"{head}\n\n{table(rows)}\n\n{before}\n\n{unit.path}\n{end}", content)


def _given_back(scores: "pd.DataFrame", path: str, cut: Cut) -> "pd.DataFrame":
    """What the healing in a file of results recovers, by task; losses last, as below them stands what "at most" means.

    `scores` are of its model: beside its own those of models that were not healed, and of the whole one healed alike.
    """
    from deeper_layers.report.statistics import recovery_table  # slow

    own = scores["path"] == path
    scores.loc[own, "repeat"] = 0  # whatever else was measured of the same
    alike = scores["healing"].isin(scores.loc[own, "healing"]) & (scores["cut"] == UNPRUNED.name)
    back = recovery_table(scores[own | alike | scores["healing"].isna()])
    if back.empty:
        return back
    return back[back["cut"] == cut.name].sort_values("metric", key=lambda metric: metric == "loss", kind="stable")


def _before(back: "pd.DataFrame") -> str:
    """Of the same sequences and items what models had before healing, and what it gives back."""
    from deeper_layers.report.names import say  # slow

    rows = []
    for row in back.to_dict("records"):
        share = row["untold"] or say(row["value"], row["low"], row["high"], as_share=True)
        rows.append({"of the same items": f"{row['topic']} ({row['items']:,})", "unpruned": f"{row['whole']:.3f}"})
        mended = "" if math.isnan(row["whole_healed"]) else f"{row['whole_healed']:.3f}"
        rows[-1] |= {"unpruned, healed": mended, "not healed": f"{row['pruned']:.3f}", "healed": f"{row['healed']:.3f}"}
        rows[-1]["recovered"] = f"at most {row['high']:.0%}" if row["untold"] == "at most" else share
    return table(rows)
