"""`deeper-layers heal`: a pruned model fine-tuned with adapters, which are kept, and scored."""

from deeper_layers import results
from deeper_layers.command.options import Answer, cut_options, records, subcommand, typed_cut
from deeper_layers.cuts import Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.choosing import choose_cuts_of_rule
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.healings import Healing
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.export.pruned_checkpoint import cut_as_json
from deeper_layers.results.schema import GIVEN
from deeper_layers.rules.choosing import DROPPING, REGISTERED

UNKNOWN_BEFORE = (
    "recovery is not known: results hold nothing from before, on weights opened alike, in which the whole model is "
    "surely above guessing; `deeper-layers sweep` with the same --dtype and --quantization measures it"
)
AT_MOST = "at most: what of it is getting used to the text is told once the whole model is healed alike, by --drop 0"
# of what recovery is known by, on the same sequences or items
TOLD = ["topic", "items", "whole", "whole_healed", "pruned", "healed", "recovered", "low", "high", "untold"]
COURSE = ("tokens", "distinct_tokens", "trained_parameters", "seconds")
OF_LAYERS = [rule for rule in DROPPING if not REGISTERED[rule].drops_sublayers]  # what heals lacks whole layers


@subcommand(HealingParameters, "Fine-tune a pruned model, keep the adapters, score it.", but=("sizes", "rules"))
@cut_options(OF_LAYERS, ("layers",))
def heal(parameters: HealingParameters, drop: int | None, start: int | None, rule: str, layers: str | None) -> Answer:
    """Drop layers, let the others get used to it by a short fine-tune of low-rank adapters, and score the result.

    What that gives back is said where results hold the scores from before, as `deeper-layers sweep` measures them in
    the same --dtype and --quantization, and notebook 03 the loss.

    The adapters are kept, and where they are is printed: `deeper-layers prune MODEL OUT --adapter FOLDER` adds them to
    a checkpoint. An interrupted training goes on where it stopped.

    \b
    deeper-layers heal embedded --drop 3 --text wikipedia --tasks capitals
    deeper-layers heal ORGANISATION/NAME --drop 8 --preset "Llama-2 7B"
    deeper-layers heal embedded --drop 3 --objective distill
    deeper-layers heal embedded --layers "5, 12-14"
    """
    typed, experiment, config = typed_cut(drop, start, layers=layers), Experiment(parameters), parameters.make_config()
    name, depth = experiment.source.name, experiment.source.num_layers
    (typed or Cut(0, drop or 0)).check(depth)
    cut = typed or choose_cuts_of_rule(rule, [drop or 0], depth, experiment, any_dtype=True)[0]
    healing = Healing(cut, config, experiment)
    if (found := healing.heal_and_score([GIVEN if typed else rule])) is None:
        raise NotMeasuredError(f"not measured: {name} healed, {cut.describe(depth)}")
    run, unit = found
    from deeper_layers.report.statistics import recovered_by  # slow

    # what others measured comes without adapters: they are trained here
    adapters = str(healing.find_adapters()) if parameters.measure else None
    record = {"losses": [row["loss"] for row in run.records]} | {of: run.details[of] for of in COURSE}
    head = (
        f"{name}: {cut.describe(depth)}\n"
        f"{'distilled' if config.objective == 'distill' else 'healed'} on {record['tokens']:,} tokens of "
        f"{parameters.text} in {record['seconds']:.0f} s: adapters of rank {config.rank}, {config.steps} steps; the "
        f"training loss went from {record['losses'][0]:.3f} to {record['losses'][-1]:.3f} nats a token"
    )
    rows, back = records(unit.rows), recovered_by(unit.place, results.scores(parameters.folder, name))
    scores = [{of: row[of] for of in ("task", "metric", "value", "stderr", "items")} for row in rows]
    before = records(back.rename(columns={"value": "recovered"})[TOLD])
    if not before:
        before = UNKNOWN_BEFORE if cut.size else "nothing was dropped, and nothing is to be given back"
    note = AT_MOST if (back["untold"] == "at most").any() else None
    end = f"adapters: {adapters or 'leave out --no-measure to have them, trained where this machine has not'}"
    content = {"model": name, "layers": depth, "cut": cut_as_json(cut), "adapters": adapters}
    content |= {"unit": str(unit.path), "healing": record, "rows": rows, "given_back": records(back)}
    return Answer(content, [head, scores, before, note, f"{unit.path}\n{end}"])
