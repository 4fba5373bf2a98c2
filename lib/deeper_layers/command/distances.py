"""`deeper-layers distances`: which blocks of layers turn the residual least."""

import click

from deeper_layers.command.options import Answer, records, subcommand
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.rules.similarity import distance_matrix, similarity_cut


@subcommand(Parameters, "Which layers are alike: every angular distance.")
@click.option(
    "--by-sequence",
    is_flag=True,
    help="keep the distances of every sequence too, and say how surely each block is the most similar",
)
def distances(parameters: Parameters, by_sequence: bool) -> Answer:
    """Measure the angular distance between the input and the output of every block of layers, in one pass over text.

    Shown is the most similar block of each size, the one that the paper's rule drops. --json has every block.

    \b
    deeper-layers distances embedded
    deeper-layers distances ORGANISATION/NAME --samples 64 --json > distances.json
    """
    experiment = Experiment(parameters)
    unit = experiment.required(measure_distances(experiment, by_sequence=by_sequence), "the distances")
    matrix, source = distance_matrix(unit.rows), experiment.source
    best = [similarity_cut(matrix, size) for size in range(1, source.num_layers)]
    rows = [
        {"n": cut.size, "l*": cut.start, "distance": matrix[cut.size - 1, cut.start]}
        | {"is": cut.describe(source.num_layers)}
        for cut in best
    ]
    if by_sequence:
        from deeper_layers.report.statistics import nearest  # slow, as is the next
        from deeper_layers.results.frames import distances_of

        for row, found in zip(rows, nearest(distances_of([unit])).itertuples(), strict=False):
            row |= {"resamples": f"{found.agrees:.0%}", "l* of 95%": f"{found.low:.0f} to {found.high:.0f}"}
    content = {"model": source.name, "layers": source.num_layers, "dtype": source.dtype, "unit": str(unit.path)}
    content |= {"most_similar": [{"start": cut.start, "size": cut.size} for cut in best], "rows": records(unit.rows)}
    head = (
        f"{source.described(None)}: the most similar block of n layers begins at layer l*, counted from 0; distances "
        f"in units of pi, mean of {int(unit.rows['samples'].max())} sequences of {unit.name}"
    )
    return Answer(content, [head, rows, str(unit.path)])
