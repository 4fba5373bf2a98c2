"""`deeper-layers results`: what a folder of results holds, before it is sent, or when it came."""

import warnings
from pathlib import Path

import click

from deeper_layers.command.options import Answer, answering, records

CARD = ["model", "layers", "weights", "dtype", "device", "kind"]  # what a measurement rests on


@click.group(
    short_help="What a folder of results holds, and whether it is whole.",
    help="""Folders of results: what they hold.

    \b
    deeper-layers results check results
    """,
)
def results() -> None:
    pass


@results.command(
    help="""
    Say what a folder of results holds, which of its files are damaged, and which claims of the paper it touches.

    `deeper-layers report MODEL --results FOLDER` makes such a folder; CONTRIBUTING.md says where to send it.
    The exit status is 1 where a file is no whole result.

    \b
    deeper-layers results check results
    """
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@answering
def check(folder: Path) -> Answer:
    from deeper_layers import results as kept  # slow, as is the next
    from deeper_layers.report import claims

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs, scores, distances = kept.runs(folder), kept.scores(folder), kept.distances(folder)
    odd = list(dict.fromkeys(str(warning.message) for warning in caught))
    if runs.empty:
        return Answer({"runs": [], "claims": [], "odd": odd}, ["\n".join([f"{folder}: no results", *odd])], status=1)
    found = claims.claims_table(scores, distances)
    tested = found[found["verdict"] != claims.NOT_TESTED]
    of_claims = records(tested[["model", "claim", "verdict", "value", "low", "high"]])
    content = {"runs": records(runs), "claims": of_claims, "odd": odd}
    worked = runs.assign(hours=runs["seconds"] / 3600, gigabytes=runs["memory"] / 1e9).groupby(CARD, dropna=False)
    cards = worked.agg(
        files=("path", "size"), hours=("hours", "sum"), gigabytes=("gigabytes", "max"), last=("measured", "max")
    )
    touched = records(tested[["title", "model", "verdict", "value", "low", "high"]])
    said = "\n".join(["no whole results", *odd] if odd else ["all files are whole"])
    return Answer(content, [records(cards.reset_index()), touched, said], status=1 if odd else 0)
