"""`deeper-layers sweep`: every pruned model of a family on some tasks, or one cut of any shape."""

import click

from deeper_layers.command.answers import Answer, answering, records
from deeper_layers.command.options import MODEL, asking
from deeper_layers.command.scores import CutsOf, answer_scores
from deeper_layers.experiments.parameters import SweepParameters, check_given
from deeper_layers.results.store import Result


@click.command(
    help=f"""
    Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    deeper-layers sweep embedded --tasks capitals --rules greedy --sizes 0-3 --samples 8 --sequence-length 128
    deeper-layers sweep embedded --tasks capitals --layers "3, 7-9" --mlp 12

    {MODEL}
    """
)
@asking(SweepParameters)
@answering
def sweep(given: dict) -> Answer:
    parameters = SweepParameters(**given)
    source = parameters.source()
    if (cut := parameters.given_cut) is not None:
        check_given(cut, source.num_layers)
    from deeper_layers.experiments.scoring import sweep_tasks  # slow: what is above may refuse

    cuts, found = sweep_tasks(parameters, source)
    rows = [row for task, unit in found.items() if unit for row in _rows(unit, cuts[task])]
    return answer_scores(parameters, source, cuts, found, rows)


def _rows(unit: Result, cuts_of: CutsOf) -> list[dict]:
    """Every row of a result under the rule that chose its cut; under each, where several did."""
    found = []
    for rule, cuts in cuts_of.items():
        found += records(unit.rows[unit.rows["cut"].isin([cut.name for cut in cuts])].assign(rule=rule))
    return found
