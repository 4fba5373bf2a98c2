"""`deeper-layers sweep`: every pruned model of a family on some tasks, or one cut of any shape."""

from deeper_layers.command.options import Answer, records, subcommand
from deeper_layers.command.scores import answer_scores
from deeper_layers.experiments.parameters import SweepParameters


@subcommand(
    SweepParameters,
    "Score the pruned models on tasks of lm-eval.",
    """
    Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    deeper-layers sweep embedded --tasks capitals --rules greedy --sizes 0-3 --samples 8 --sequence-length 128
    deeper-layers sweep embedded --tasks capitals --layers "3, 7-9" --mlp 12
    """,
)
def sweep(parameters: SweepParameters) -> Answer:
    source = parameters.source()
    if parameters.given_cut:
        parameters.given_cut.check(source.num_layers)
    from deeper_layers.experiments.scoring import sweep_tasks  # slow: what is above may refuse

    cuts, found = sweep_tasks(parameters, source)
    rows = []
    for task, unit in found.items():
        for rule, own in cuts[task].items() if unit else ():  # a cut that several rules chose stands under each
            rows += records(unit.rows[unit.rows["cut"].isin([cut.name for cut in own])].assign(rule=rule))
    return answer_scores(parameters, source, cuts, found, rows)
