"""`deeper-layers results`: check a folder of results, before it is sent or after it was received."""

import warnings
from pathlib import Path

import click

from deeper_layers.errors import one_line
from deeper_layers_companion.command.check import describe_report
from deeper_layers_companion.command.options import Answer, as_dicts, print_answer
from deeper_layers_companion.results.check_report import read_check_report

ESTIMATE = ["verdict", "value", "low", "high"]
TABLES = ("runs", "scores", "distances", "healing", "geometry", "answers")


@click.group(
    short_help="What a folder of results holds, and whether it is whole.",
    help="Folders of results.\n\n\b\ndeeper-layers results check results",
)
def results() -> None:
    pass


@results.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@print_answer
def check(folder: Path) -> Answer:
    """Say what a folder of results holds, which of its files are damaged, and which claims of the paper it touches. Of
    a file that `deeper-layers check --report` wrote: whether the numbers of that machine are right.

    `deeper-layers report MODEL --results FOLDER` makes such a folder; CONTRIBUTING.md says where to send it.
    The exit status is 1 where a file is no whole result, or contradicts itself or another.
    """
    if folder.is_file():
        report = read_check_report(folder)
        return Answer(
            report.model_dump(), describe_report(report), status=0 if report.agrees else 1
        )
    from deeper_layers_companion import results as stored  # slow to import, as is the next
    from deeper_layers_companion.report import claims, measured
    from deeper_layers_companion.results.contradictions import find_contradictions
    from deeper_layers_companion.results.store import find_misplaced

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tables = {table: getattr(stored, table)(folder) for table in TABLES}
        runs = tables["runs"]
        scores = tables["scores"]
        spent = [] if runs.empty else as_dicts(measured.hours(folder))
    odd = [str(warning.message) for warning in caught]
    # of files that are damaged, which have been told
    with warnings.catch_warnings(action="ignore"):
        odd += find_misplaced(folder)
        odd += find_contradictions(stored.read_results(folder), scores)
    odd = list(dict.fromkeys(map(one_line, odd)))
    if runs.empty:
        return Answer(
            {"runs": [], "claims": [], "odd": odd},
            ["\n".join([f"{folder}: no results", *odd])],
            status=1,
        )
    table = claims.claims_table(scores, tables["distances"])
    tested = table[table["verdict"] != claims.NOT_TESTED]
    content = {
        "runs": as_dicts(runs),
        "claims": as_dicts(tested[["model", "claim", *ESTIMATE]]),
        "odd": odd,
    }
    summary = (
        "\n".join(["not all files are whole results:", *odd]) if odd else "all files are whole"
    )
    parts = [spent, as_dicts(tested[["title", "model", *ESTIMATE]]), summary]
    return Answer(content, parts, status=1 if odd else 0)
