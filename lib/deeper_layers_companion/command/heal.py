"""`deeper-layers heal`: fine-tune a pruned model with adapters, keep them, and score it."""

from deeper_layers.cuts import Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers_companion import results
from deeper_layers_companion.command.options import (
    Answer,
    as_dicts,
    cut_options,
    read_cut,
    subcommand,
)
from deeper_layers_companion.jobs.healings import find_adapters
from deeper_layers_companion.jobs.job import healed_job
from deeper_layers_companion.jobs.options import HealingParameters
from deeper_layers_companion.jobs.pruned_checkpoint import cut_as_json
from deeper_layers_companion.jobs.select_cuts import select_cuts
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.rules.table import DROPPING, REGISTERED

UNKNOWN_BEFORE = (
    "recovery is not known: results hold nothing from before, on weights opened alike, in which the whole model is "
    "surely above guessing; `deeper-layers sweep` with the same --dtype and --quantization measures it"
)
AT_MOST = "upper bound: part of it is adaptation to the text; `--drop 0` measures that part"
# columns of the table of recoveries, which compares models on the same sequences or items
RECOVERY_COLUMNS = [
    "topic",
    "items",
    "whole",
    "whole_healed",
    "pruned",
    "healed",
    "recovered",
    "low",
    "high",
    "no_value_reason",
]
RUN_DETAILS = ("tokens", "distinct_tokens", "trained_parameters", "seconds")
LAYER_RULES = [
    rule for rule in DROPPING if not REGISTERED[rule].drops_sublayers
]  # healing needs whole layers dropped


@subcommand(
    HealingParameters,
    "Fine-tune a pruned model, keep the adapters, score it.",
    but=("sizes", "rules"),
)
@cut_options(LAYER_RULES, ("layers",))
def heal(
    parameters: HealingParameters,
    drop: int | None,
    start: int | None,
    rule: str,
    layers: str | None,
) -> Answer:
    """Drop layers, fine-tune the rest with low-rank adapters, and score the result. The preset head-and-last-3 trains
    the head and the last three layers in place of adapters.

    Recovery is printed if results hold the unhealed scores, as `deeper-layers sweep` measures them in the same --dtype
    and --quantization, and notebook 03 the loss.

    The adapters are kept, and where they are is printed: `deeper-layers prune MODEL OUT --adapter FOLDER` adds them to
    a checkpoint. An interrupted training goes on where it stopped.

    \b
    deeper-layers heal embedded --drop 3 --text wikipedia --tasks capitals
    deeper-layers heal ORGANISATION/NAME --drop 8 --preset "Llama-2 7B"
    deeper-layers heal embedded --drop 3 --objective distill
    deeper-layers heal embedded --start 26 --drop 4 --preset head-and-last-3
    deeper-layers heal embedded --layers "5, 12-14"
    """
    given = read_cut(drop, start, layers=layers)
    session = Session(parameters)
    config = parameters.make_config()
    name = session.source.name
    depth = session.source.num_layers
    (given or Cut(0, drop or 0)).check(depth)
    cut = given or select_cuts(rule, [drop or 0], session, any_dtype=True)[0]
    healed = healed_job(session.source, parameters, cut, config, [GIVEN if given else rule])
    (healing,) = healed.needs
    run = session.get(healing)
    scored = session.get(healed)
    if run is None or scored is None:
        nearest = session.describe_nearest(healed if run else healing)
        raise NotMeasuredError(f"not measured: {name} healed, {cut.describe(depth)}{nearest}")
    from deeper_layers_companion.report.statistics import find_recovery  # slow to import

    # published results come without adapters: train them here, unless nothing is to be measured
    adapters = str(find_adapters(healing, session)) if parameters.measure else None
    record = {"losses": [row["loss"] for row in run.records]}
    record |= {key: run.details[key] for key in RUN_DETAILS}
    learnt = f"adapters of rank {config.rank}"
    if config.last_layers:
        learnt = f"all weights of {run.details['tuned']}"
    head = (
        f"{name}: {cut.describe(depth)}\n"
        f"{'distilled' if config.objective == 'distill' else 'healed'} on {record['tokens']:,} tokens of "
        f"{parameters.text} in {record['seconds']:.0f} s: {learnt}, {config.steps} steps; the "
        f"training loss went from {record['losses'][0]:.3f} to {record['losses'][-1]:.3f} nats a token"
    )
    rows = as_dicts(scored.rows)
    scores = as_dicts(scored.rows[["task", "metric", "value", "stderr", "items"]])
    recovery = find_recovery(scored.place, results.scores(parameters.folder, name))
    recovery_rows = as_dicts(recovery.rename(columns={"value": "recovered"})[RECOVERY_COLUMNS])
    if not recovery_rows:
        recovery_rows = (
            UNKNOWN_BEFORE if cut.size else "nothing was dropped, so there is nothing to recover"
        )
    note = AT_MOST if (recovery["no_value_reason"] == "at most").any() else None
    end = f"adapters: {adapters or 'leave out --no-measure to have them, trained where this machine has not'}"
    content = {"model": name, "layers": depth, "cut": cut_as_json(cut), "adapters": adapters}
    content |= {
        "unit": str(scored.path),
        "healing": record,
        "rows": rows,
        "recovery": as_dicts(recovery),
    }
    return Answer(content, [head, scores, recovery_rows, note, f"{scored.path}\n{end}"])
