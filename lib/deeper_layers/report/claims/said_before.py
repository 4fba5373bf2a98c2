"""Sentences and tables that pages had before everything published was recomputed, beside what stands there now.

Of what has no verdict: verdicts stand in history.py. What stood there was read at its commit (`RECOMPUTED` there), what
stands there now is read from units, as the pages themselves do it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from deeper_layers.report.claims.deciding import HALF
from deeper_layers.report.statistics import curves, outcomes
from deeper_layers.report.statistics.evidence import Evidence
from deeper_layers.results.units import Unit

MODEL = "Qwen2.5-Coder-1.5B-Instruct"  # of which pages said it


@dataclass(frozen=True)
class Said:
    """What a page said that is no verdict: where, what stood there, in “” word for word, and what stands there now.

    The latter is read from units of any model; "" where they do not hold what it is read from.
    """

    where: str
    once: str
    now: Callable[[list[Unit]], str]


def sizes_kept(units: list[Unit]) -> str:
    """At which sizes the model keeps its accuracy on two tasks."""
    held, told = Evidence([unit for unit in units if unit.key["model"]["name"] == MODEL and unit.kind == "sweep"]), []
    for topic in ("Capitals", "PIQA"):
        if answers := held.answers(topic, "similarity"):
            unit = next(one for one, *_ in reversed(held.sweeps(topic)) if "similarity" in one.key["rule"].split(", "))
            table = outcomes.kept(unit, [cut for cut in answers.cuts if cut.size])
            seen = {what: outcomes.sizes_seen(table, what) for what in ("kept", "lost", "undecided")}
            sizes = ", ".join(f"{what} at n = {sizes}" for what, sizes in seen.items() if sizes != "none")
            told.append(f"{topic} {sizes} ({answers.right.shape[1]:,} items)")
    return "; ".join(told)


def worth_their_bytes(units: list[Unit]) -> str:
    """How many pruned models are worse or better than whole ones that are no larger, task by task."""
    kinds = [unit for unit in units if unit.kind == "bits" and unit.key["model"]["name"] == MODEL]
    if not kinds:
        return ""
    counts = curves.beside_whole(curves.by_bytes(kinds))
    return "; ".join(
        f"{curves.title(row.task)} {row.worse} worse, {row.better} better, {row.close} too close to tell"
        for row in counts.itertuples()
    )


SIZES_KEPT = Said(
    f"{MODEL}, layers dropped by similarity",
    "“Nothing is surely lost at any cut up to this share of the layers”: Capitals 0% (120 items); PIQA 46% (120 items)",
    sizes_kept,
)
HALF_GONE = Said(
    "the number that decides these claims", "“half of what it knows is gone at this share of its layers”",
    lambda units: f"“{HALF}”",
)  # fmt: skip
WORTH_THEIR_BYTES = Said(
    f"{MODEL}, pruned models beside whole ones that are no larger",
    "Capitals 2 worse, 4 better, 9 too close to tell; Sums, one digit 0 worse, 0 better, 15 too close to tell; "
    "Sums, two digits 1 worse, 0 better, 14 too close to tell",
    worth_their_bytes,
)
NOT_ALL = "That it is written is not all there is to it"
WRITTEN = Said(
    "the page on reasoning",
    "“Writing an answer, token by token, is another thing: every step has to be right, and reasoning takes many.”",
    lambda units: f"“{NOT_ALL}”",
)
