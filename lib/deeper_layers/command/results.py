"""`deeper-layers results`: check a folder of results, before it is sent or after it was received."""

import warnings
from pathlib import Path

import click

from deeper_layers.command.options import Answer, as_dicts, print_answer

ESTIMATE = ["verdict", "value", "low", "high"]


@click.group(
    short_help="What a folder of results holds, and whether it is whole.",
    help="Folders of results.\n\n\b\ndeeper-layers results check results",
)
def results() -> None:
    pass


@results.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@print_answer
def check(folder: Path) -> Answer:
    """Say what a folder of results holds, which of its files are damaged, and which claims of the paper it touches.

    `deeper-layers report MODEL --results FOLDER` makes such a folder; CONTRIBUTING.md says where to send it.
    The exit status is 1 where a file is no whole result.
    """
    from deeper_layers import results as stored  # slow to import, as is the next
    from deeper_layers.report import claims, measured

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs, scores, distances = stored.runs(folder), stored.scores(folder), stored.distances(folder)
        spent = [] if runs.empty else as_dicts(measured.hours(folder))
    odd = list(dict.fromkeys(str(warning.message) for warning in caught))
    if runs.empty:
        return Answer({"runs": [], "claims": [], "odd": odd}, ["\n".join([f"{folder}: no results", *odd])], status=1)
    table = claims.claims_table(scores, distances)
    tested = table[table["verdict"] != claims.NOT_TESTED]
    content = {"runs": as_dicts(runs), "claims": as_dicts(tested[["model", "claim", *ESTIMATE]]), "odd": odd}
    summary = "\n".join(["no whole results", *odd] if odd else ["all files are whole"])
    parts = [spent, as_dicts(tested[["title", "model", *ESTIMATE]]), summary]
    return Answer(content, parts, status=1 if odd else 0)
