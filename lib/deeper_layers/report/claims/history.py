"""What changed in how claims are judged, and why; when each threshold was set; how sure verdicts are: for readers.

Words and dates of what was stand here; every number is read from units, from thresholds.py or from what
`python -m benchmarks.verdicts` drew.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from deeper_layers.report.claims.claims import CLAIMS, Rulings, verdict_of
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS
from deeper_layers.report.names import as_html, as_table
from deeper_layers.report.statistics.evidence import by_model
from deeper_layers.report.thresholds import AUDIT, THRESHOLDS
from deeper_layers.results.units import Unit

LOWEST, HIGHEST = 0.935, 0.965  # of 95% intervals that hold the truth, to be called that
WRONG = 0.05  # of verdicts of either kind, at most
QWEN, SMOL, GEMMA = "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct", "Gemma-3-270m"
# the verdicts before: "-" stands for "can't be tested here", the one word for three states
ONCE, MERGED = {"+": AGREES, "/": DIFFERS, "-": "can't be tested here"}, "can't be tested here"
BEFORE = {
    "plateau": "/--", "plateau-healed": "/--", "boolq": "/--", "boolq-healing": "---", "healed-loss": "-+-",
    "unhealed-loss": "/--", "simple-unhealed": "+--", "simple-healed": "/++", "deep-blocks": "//-",
    "last-layer": "///", "shot-order": "+--", "more-shots": "/--", "seeds": "---", "ranks": "/++", "reasoning": "+--",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A judgement that was replaced: of which claims or pages, what it was, what it is now, why, and on which day."""

    of: str
    was: str
    now: str
    why: str
    on: str = AUDIT[1].partition("T")[0]


CHANGES = [
    Change("simple-healed", "the gap between the losses of the two rules after healing, over that before",
           "the gap after healing itself, in nats a token, at sizes at which the rules drop different layers and "
           "healing has a gap to close",
           "it divided by losses that had exploded beyond guessing, and counted cuts that the two rules share"),
    Change("healed-loss", "no verdict where the loss rises by less than 1 nat without healing",
           "no such guard; the rises are subtracted and not divided, and a loss counts up to ln V",
           "the guard was set after the healings of one model were known, and spared it a verdict"),
    Change("healed-loss", "a straight line explains 95% of the healed loss",
           "the parabola through it hangs little from its chord",
           "a straight line explains more than that of a curve as bent as x^1.5"),
    Change("all curves", "the largest cut up to which each interval reaches the whole model's accuracy",
           "for each size two one-sided paired tests with a margin of 5 points, and how many items would decide",
           "the blocks of two sizes are not nested, and with few items every interval reaches"),
    Change("simple-unhealed", "where the curve first crosses one half",
           "every larger cut, tested by itself; where half is gone for good stands beside where it first is",
           "a curve that falls and rises again has not collapsed"),
    Change("all tasks", "“what it knows”", "accuracy above guessing in the answer format of the task",
           "another format of the same question may give another answer"),
    Change("MMLU", "guessing is chance", "guessing is chance or always naming one letter, whichever scores more",
           "models that name one letter passed as surely better than guessing"),
    Change("last-layer", "the place among all blocks of a size", "the place among those that do not begin at layer 0",
           "blocks with the first layer set the range, whatever the last layer does"),
    Change("all claims of two parts", "one part that agrees was enough where the other could not be tested",
           "all parts have to agree", "half a claim is not the claim"),
    Change("ranks, seeds", "known was tested on other questions than those that decide",
           "healed models have to be above guessing on the items that decide",
           "what is not known can't get better or worse"),
    Change("plateau-healed", "a cliff between three sizes could differ", "from fewer than five sizes nothing is said",
           "its place was interpolated over a gap as wide as the claim"),
    Change("more-shots, shot-order", "pooled over all cuts", "the whole model and the cuts that still answer",
           "beyond the cliff nothing can change"),
    Change("plateau, boolq, reasoning", "flat and sharp were told of any cliff",
           "only of one that lies beyond the second cut", "nearer than that they are what interpolation makes them"),
    Change("boolq", "guessing is the commonest answer", "that and the paper's line at one half: both have to say the "
           "same", "the paper reads its curves beside one half"),
    Change("depth or bits", "intervals that lie apart, of tasks not named beside the verdict",
           "the interval of the difference, of the tasks that are named; these units hold no items, so not in pairs",
           "intervals may meet where a difference is sure, and only tasks that survive were asked"),
    Change("unhealed-loss", "the steepest step over the mean one", "the shortest part of the way within which half of "
           "the rise lies", "a step is as steep as the sizes that were measured lie dense"),
    Change("written answers", "“chosen against written” as the reason why reasoning falls early",
           "the task and its number of steps as measured, chosen and written side by side",
           "two-digit sums that are written outlast MMLU's letters"),
    Change("all claims", "“can't be tested here”", "not measured, nothing to lose, or inconclusive with the items "
           "that would decide", "the three ask for different things"),
    Change("all claims", "no correction for how many tests there are", "Holm's, in each claim over tasks and models",
           "of many tests some are passed by chance"),
    Change("what healing gives back of the loss", "the share of the way back to the unpruned model, of all losses",
           "the way back to the unpruned model healed alike, and none of losses above ln V",
           "the unpruned model gets used to the text too, and the more a rule ruins the more it seemed to get back",
           "2026-11-29"),
    Change("rules side by side, on tasks", "better or worse wherever the difference is sure",
           "only where the better one of both is surely above guessing",
           "to be less wrong than a guess is no knowledge", "2026-11-29"),
    Change("regret in accuracy", "beside the first of the blocks that tie, and below 0 where chance had it so",
           "beside the mean of those that tie, and not below 0", "no block is better than the best", "2026-11-29"),
    Change("intervals of paired outcomes on pages", "normal, of no width where all items agree",
           "t, with one item won and one lost added, as claims have had it", "few items that agree leave doubt",
           "2026-11-29"),
]  # fmt: skip


def changes(rulings: Rulings) -> str:
    """HTML, folded: what changed and why, and the verdicts that became others."""
    what = [(change.on, change.of, change.was, change.now, change.why) for change in CHANGES]
    heads = ["on", "about", "before", "now", "why"]
    models = [model for model in (QWEN, SMOL, GEMMA) if model in next(iter(rulings.values()))]
    turned = []
    for claim in CLAIMS:
        for model in models:
            once = ONCE[BEFORE[claim.identifier][(QWEN, SMOL, GEMMA).index(model)]]
            now = verdict_of(rulings[claim.identifier][model])
            if once != now and not (once == MERGED and now not in (AGREES, DIFFERS)):
                turned.append((claim.title, model, once, now))
    date = AUDIT[1].partition("T")[0]
    said = f"What changed, and on which day: on {date} after an independent recomputation of everything published"
    return folded("What changed and why", pd.DataFrame(what, columns=heads), said) + folded(
        f"Verdicts that turned: {len(turned)}",
        pd.DataFrame(turned, columns=["claim", "model", "before", "now"]),
        "Verdicts that turned with it; those that were not there and are not there now have three words instead of one",
    )


def thresholds(units: Iterable[Unit]) -> str:
    """HTML, folded: each threshold, when it was set, and when the data that it judges were measured."""
    units = list(units)
    # claims about healed models judge the way of healing that most cuts have; other seeds and ranks came later
    judged = [id(unit) for held in by_model(units).values() for unit in next(iter(held.ways.values()), {}).values()]
    measured: dict[str, list[tuple[str, str]]] = {}
    for unit in units:
        if unit.kind == "healing" and id(unit) not in judged:
            continue
        commit = (unit.provenance["commit"] or "unknown")[:7]
        measured.setdefault(unit.kind, []).append((unit.provenance["measured"], commit))
    rows = []
    for name, threshold in THRESHOLDS.items():
        data = sorted(when for kind in threshold.kinds for when in measured.get(kind, []))
        rows.append({
            "name": name, "value": f"{threshold:.3g}", "means": threshold.meaning,
            "set": f"{_minute(threshold.date)}, commit {threshold.commit}",
            "data it judges": f"{_at(data[0])} to {_at(data[-1])}" if data else "not measured",
            "first came": came_first(threshold.date, [when for when, _ in data]),
        })  # fmt: skip
    said = "Every threshold, the commit that set it, and when the data that it judges were measured"
    return folded("Thresholds, and which came first", pd.DataFrame(rows), said)


def came_first(set_on: str, measured: list[str]) -> str:
    """Whether a threshold is older than all data, younger than all, or neither."""
    if not measured or set_on < min(measured):
        return "the threshold"
    return "the data" if set_on > max(measured) else "some data; the rest later"


def reliability(drawn: dict | None) -> str:
    """HTML: how often intervals hold the truth and verdicts are wrong, in words and, folded, in numbers."""
    if drawn is None:
        return "<p>Not measured: python -m benchmarks.verdicts</p>"
    intervals, decided = pd.DataFrame(drawn["intervals"]), pd.DataFrame(drawn["decisions"])
    within = intervals["held"].between(LOWEST, HIGHEST)
    at_limits = decided[decided["truth"].str.contains("exactly")]
    worst = at_limits[[AGREES, DIFFERS]].max(axis=1)
    lead = (
        f"On {drawn['data_sets']:,} drawn data sets of each kind, {within.sum()} of {len(intervals)} kinds of 95% "
        f"interval hold the truth in {LOWEST:.1%} to {HIGHEST:.1%} of them; the others are named below with what they "
        f"do. Of {len(at_limits)} models drawn to lie exactly on a limit of a claim, {drawn['draws']:,} times each, "
        f"{(worst <= WRONG).sum()} get “{AGREES}” in at most {WRONG:.0%} of draws, and “{DIFFERS}” in at most as many; "
        f"the most of either is {worst.max():.1%}. "
        "Holm's correction, which makes verdicts rarer still, is not counted in. "
        f"Resampled were {drawn['resamples']:,} times, on the pages 2,000."
    )
    intervals["held"] = [f"{held:.1%}{'' if fine else ' (not 95%)'}" for held, fine in zip(intervals["held"], within)]
    titles = {claim.identifier: claim.title for claim in CLAIMS}
    decided["claim"] = [
        titles[claim.partition(",")[0]] + "".join(claim.partition(",")[1:]) for claim in decided["claim"]
    ]
    form = {AGREES: "{:.1%}", DIFFERS: "{:.1%}", "items": "{:,}", "draws": "{:,}"}
    command = f"{drawn['command']}, commit {drawn['provenance']['commit'][:7]}"
    return (
        f"<p>{as_html(lead)}</p>"
        + folded("Intervals", intervals, f"How often intervals hold the truth ({command})", {"items": "{:,}"})
        + folded("Verdicts", decided, f"How often verdicts are given, by the truth ({command})", form)
    )


def folded(summary: str, rows: pd.DataFrame, caption: str, form=None) -> str:
    """A table that opens when its title is clicked."""
    table = as_table(rows, caption, form).to_html() if len(rows) else "<p>None.</p>"
    return (
        f'<div class="claims scrolls"><details><summary><strong>{as_html(summary)}</strong></summary>{table}'
        "</details></div>"
    )


def _minute(date: str) -> str:
    return date[:16].replace("T", " ")


def _at(when: tuple[str, str]) -> str:
    return f"{_minute(when[0])} ({when[1]})"
