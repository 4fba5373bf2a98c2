"""`deeper-layers results`: what a folder of results holds, before it is sent, or when it came."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers.command.answers import Answer, answering, records, table

if TYPE_CHECKING:  # slow
    import pandas as pd

CARD = ["model", "layers", "weights", "dtype", "device"]  # what a measurement rests on


@click.group(
    help="""Folders of results: what they hold.

    \b
    deeper-layers results check results
    """
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
        return Answer("\n".join([f"{folder}: no results", *odd]), {"runs": [], "claims": [], "odd": odd}, status=1)
    found = claims.claims_table(scores, distances)
    tested = found[found["verdict"] != claims.NOT_TESTED]
    parts = [table(_cards(runs))]
    parts += ["claims of the paper that it touches\n" + table(_verdicts(tested))] if len(tested) else []
    parts += ["no whole results\n" + "\n".join(odd)] if odd else ["all files are whole"]
    of_claims = records(tested[["model", "claim", "verdict", "value", "low", "high"]])
    content = {"runs": records(runs), "claims": of_claims, "odd": odd}
    return Answer("\n\n".join(parts), content, status=1 if odd else 0)


def _cards(runs: "pd.DataFrame") -> list[dict[str, str]]:
    """A line for each model, precision and machine: what was measured there, and for how long."""
    lines = []
    for card, own in runs.groupby(CARD, dropna=False, sort=False):
        kinds = ", ".join(f"{count} {kind}" for kind, count in own["kind"].value_counts(sort=False).items())
        line = {name: str(value) for name, value in zip(CARD, card, strict=True)}
        line |= {
            "files": kinds,
            "hours": f"{own['seconds'].sum() / 3600:.1f}",
            "GB": f"{own['memory'].max() / 1e9:.1f}",
        }
        lines.append(line | {"last": max(own["measured"])[:10]})
    return lines


def _verdicts(tested: "pd.DataFrame") -> list[dict[str, str]]:
    from deeper_layers.report.names import say

    lines = []
    for of in tested.to_dict("records"):
        line = {"claim": of["title"], "model": of["model"], "verdict": of["verdict"], "number": ""}
        if math.isfinite(of["value"]):
            line["number"] = say(of["value"], of["low"], of["high"], as_share=of["as_share"])
        lines.append(line)
    return lines
