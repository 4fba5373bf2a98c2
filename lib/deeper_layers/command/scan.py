"""`deeper-layers scan`: every block of so many layers, at every start, on some tasks, and as loss."""

import click

from deeper_layers.command.options import Answer, is_typed, records, subcommand
from deeper_layers.command.scores import answer_scores
from deeper_layers.experiments.notebook_parameters import ScanParameters


@subcommand(
    ScanParameters,
    "Score every block of so many layers, at every start.",
    """
    Score the model without every block of so many layers in turn, from the first to the last.

    Of tasks that are chosen the log-probability of every choice is kept; of texts and solutions the loss is measured.
    With --blocks none the cuts are those of the rules, as `deeper-layers sweep` has them.

    \b
    deeper-layers scan embedded --tasks capitals@20 --dry-run
    deeper-layers scan ORGANISATION/NAME --tasks "mmlu:5@10, mmlu_continuation:5@10, c4@32, gsm8k_solutions@32"
    """,
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="say what each would cost on this machine, less what results hold; the "
    "model is opened, and run on one small batch",
)
def scan(parameters: ScanParameters, dry_run: bool) -> Answer:
    for name in ("starts",) if parameters.blocks is None else ("rules", "sizes"):
        if is_typed(name):
            raise click.UsageError(f"--{name} and --blocks {parameters.blocks or 'none'} exclude each other: leave it")
    source = parameters.source()
    from deeper_layers.experiments import losses  # slow: what is above may refuse
    from deeper_layers.experiments.experiment import Experiment

    experiment = Experiment(parameters, source)
    cuts = losses.scan_cuts(experiment)
    if dry_run:
        plans = losses.plan_scan(cuts, experiment)
        names = {"seconds": "seconds", "layer_steps": "layer_steps", "to_generate": "generated"}
        units = [{"name": name} | {key: getattr(plan, of) for key, of in names.items()} for name, plan in plans.items()]
        said = [f"{name}: {plans.get(name, 'in results already')}" for name in cuts]
        return Answer({"units": units}, ["\n".join(said)])
    found = losses.scan(cuts, experiment)
    rows = [row for unit in found.values() if unit for row in records(unit.rows)]
    return answer_scores(parameters, source, cuts, found, rows)
