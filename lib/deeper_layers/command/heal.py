"""`deeper-layers heal`: a pruned model fine-tuned with adapters, which are kept, and scored."""

import functools
import shlex

import click

from deeper_layers import files, models, results
from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.cutting import Wanted, cut_options
from deeper_layers.command.options import MODEL, asking, flags
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import HealingParameters, SweepParameters
from deeper_layers.export.pruned_checkpoint import cut_as_json
from deeper_layers.package_index import cache_folder
from deeper_layers.results.schema import GIVEN
from deeper_layers.rules.choosing import DROPPING, REGISTERED

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
def heal(given: dict, **typed) -> Answer:
    wanted = Wanted.typed(**typed)
    wanted.check(None)
    parameters = HealingParameters(**given)
    if parameters.measure:
        wanted.check(models.stated_layers(models.stated_config(parameters.model, parameters.revision)))
        files.check_writable(cache_folder())  # where the adapters are kept
    from deeper_layers.experiments.healings import adapter_folder, course_of, heal_and_score  # slow
    from deeper_layers.report.statistics import recovered_by

    source, config = parameters.source(), parameters.config()
    opened, depth = functools.cache(lambda: parameters.open(source)), source.num_layers
    wanted.check(depth)
    cut = wanted.choose(depth, lambda: (parameters, source, opened))
    rules = [wanted.rule if wanted.given is None else GIVEN]
    if (found := heal_and_score(cut, config, parameters, source, opened, rules)) is None:
        raise NotMeasuredError(f"not measured: {source.name} healed, {cut.describe(depth)}")
    run, unit = found
    # what others measured comes without adapters: they are trained here
    adapters = adapter_folder(cut, config, parameters, source, opened) if parameters.measure else None
    back = recovered_by(unit.place, results.scores(parameters.folder, source.name))
    if not cut.size:
        before = "nothing was dropped, and nothing is to be given back"
    elif len(back):
        before = table([_before(row) for row in back.to_dict("records")])
        before += f"\n\n{AT_MOST}" if (back["untold"] == "at most").any() else ""
    else:
        before = UNKNOWN_BEFORE + (f"; measured by: {_sweep(parameters, wanted)}" if wanted.given is None else "")
    record = course_of(run)
    did = "distilled" if config.objective == "distill" else "healed"
    head = (
        f"{source.name}: {cut.describe(depth)}\n"
        f"{did} on {record['tokens']:,} tokens of {parameters.text} in {record['seconds']:.0f} s: adapters of rank "
        f"{config.rank}, {config.steps} steps; the training loss went from {record['losses'][0]:.3f} to "
        f"{record['losses'][-1]:.3f} nats a token"
    )
    forms = {"task": "{}", "metric": "{}", "value": "{:.3f}", "stderr": "{:.3f}", "items": "{:.0f}"}
    scores = [
        {"healed" if name == "value" else name: form.format(row[name]) for name, form in forms.items()}
        for row in unit.rows.to_dict("records")
    ]
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
    return Answer(f"{head}\n\n{table(scores)}\n\n{before}\n\n{unit.path}\n{end}", content)


def _sweep(parameters: HealingParameters, wanted: Wanted) -> str:
    """The command that measures what stands beside the scores of a healed model."""
    fields = SweepParameters.model_fields
    asked = {name: value for name, value in parameters if name in fields and value != fields[name].default}
    model = asked.pop("model")
    return shlex.join(["deeper-layers", "sweep", model, *flags(asked | {"rules": wanted.rule, "sizes": wanted.drop})])


def _before(row: dict) -> dict[str, str]:
    """What models had before healing on the same sequences or items, and what it gives back."""
    from deeper_layers.report.names import say  # slow

    forms = {"unpruned": "whole", "unpruned, healed": "whole_healed", "not healed": "pruned", "healed": "healed"}
    numbers = {head: f"{row[name]:.3f}".replace("nan", "") for head, name in forms.items()}
    share = row["untold"] or say(row["value"], row["low"], row["high"], as_share=True)
    share = f"at most {row['high']:.0%}" if share == "at most" else share
    return {"of the same items": f"{row['topic']} ({row['items']:,})"} | numbers | {"recovered": share}
