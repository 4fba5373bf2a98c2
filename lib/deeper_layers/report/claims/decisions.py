"""The paper's claims about accuracy and distances as decisions: what results hold of one model in, rulings out.

Source: Gromov et al., arXiv 2403.17887, its text and figures 1 to 9. Each claim is a few numbers and the range in
which each must lie: thresholds.py. What stands in the way of a verdict: deciding.py. Claims about healed models and
losses: healing_decisions.py.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from deeper_layers.report import paper
from deeper_layers.report.claims.deciding import (
    HALF,
    OF_PAPER,
    apart,
    both_alike,
    cliffs,
    fall,
    half_left,
    not_known,
    not_measured,
    on_tasks,
)
from deeper_layers.report.claims.verdicts import FINE, NOTHING, Finding, Obstacle, Ruling
from deeper_layers.report.statistics import outcomes, stability
from deeper_layers.report.statistics.evidence import Answers, Evidence
from deeper_layers.report.statistics.outcomes import crossing
from deeper_layers.report.statistics.topics import TOPICS
from deeper_layers.report.thresholds import ALIKE, AT_ONCE, DEEP, EARLIEST, LAST
from deeper_layers.results.units import Unit
from deeper_layers.rules.similarity import distance_matrix

FEWEST = 4  # layers of which blocks of several sizes have a place among others


def plateau(evidence: Evidence) -> list[Ruling]:
    return on_tasks(evidence, ("MMLU", *TOPICS[2:-1]), "similarity", fall)


def plateau_boolq(evidence: Evidence) -> list[Ruling]:
    """By the paper's line of guessing, one half, and by the commonest answer: both have to say the same."""
    answers = evidence.answers("BoolQ", "similarity")
    if answers is None:
        return on_tasks(evidence, ("BoolQ",), "similarity", fall)
    half = dataclasses.replace(answers, levels={"chance": answers.levels["chance"]})
    lines = {"the commonest answer": answers, "the paper's line": half}
    return both_alike([
        dataclasses.replace(
            fall("BoolQ", of_line, not_known(of_line, "BoolQ")),
            about=f"{answers.described}, beside {line} at {of_line.guessing:.0%}",
        )
        for line, of_line in lines.items()
    ])  # fmt: skip


def simple_collapses(evidence: Evidence) -> list[Ruling]:
    return on_tasks(evidence, TOPICS[:-1], "simple", _down)


def _down(topic: str, answers: Answers | None, obstacle: Obstacle | None) -> Ruling:
    """Whether no cut beyond a tenth of the layers keeps more than half; a curve may rise again."""
    of_paper = topic in OF_PAPER
    if answers is None or obstacle:
        return Ruling(answers.described if answers else topic, [], obstacle, of_paper=of_paper, topic=topic)
    larger = [place for place, fraction in enumerate(answers.fractions) if fraction > AT_ONCE]
    if not larger:
        return Ruling(answers.described, [], not_measured(f"cuts of more than {AT_ONCE:.0%}"), of_paper=of_paper)
    worst = Finding.of_all(half_left(answers, larger, more=False))
    what = f"{worst.what}, of {len(larger)} cuts of more than {AT_ONCE:.0%} the one that speaks most against the claim"
    worst = dataclasses.replace(worst, what=what)
    return Ruling(answers.described, [worst], of_paper=of_paper, topic=topic)


def reasoning(evidence: Evidence) -> list[Ruling]:
    steps = evidence.answers("GSM8K", "similarity")
    if obstacle := not_known(steps, "GSM8K"):
        return [Ruling(steps.described if steps else "GSM8K", obstacle=obstacle)]
    others = [answers for topic in TOPICS[:-1] if (answers := evidence.answers(topic, "similarity"))]
    known = next((answers for answers in others if answers.known), None)
    if known is None:
        what = "on no task of knowledge is the model surely above guessing, to compare with"
        return [Ruling(steps.described, obstacle=Obstacle(NOTHING, what))]
    gone, last, items = cliffs(steps), float(steps.fractions[-1]), steps.right.shape[1]
    # a cliff of knowledge beyond the last cut counts as there: reasoning that falls before it falls earlier
    means = outcomes.resampled_means(known.right.astype(float), seed=1)  # other items, drawn by themselves
    other = np.minimum(crossing(means, known.fractions, known.guessing), known.fractions[-1])
    early = dataclasses.replace(
        Finding.of_draws(HALF, gone, nearest=np.minimum(gone, last), ceiling=float(EARLIEST), items=items),
        **_at_most_half(steps, EARLIEST),
    )
    what = f"its cliff less that of {known.described}"
    earlier = Finding.of_draws(what, gone - other, nearest=np.minimum(gone, last) - other, ceiling=0.0, form="{:+.0%}",
                               items=items)  # fmt: skip
    return [Ruling(steps.described, [early, earlier], topic="GSM8K")]


def _at_most_half(answers: Answers, fraction: float) -> dict[str, float]:
    """Whether all cuts from a share of the layers on keep at most half, as the two p-values of a finding."""
    places = np.flatnonzero(answers.fractions >= fraction).tolist()
    tested = Finding.of_all(half_left(answers, places or [len(answers.cuts) - 1], more=False))
    return {"p_agrees": tested.p_agrees, "p_differs": tested.p_differs if places else 1.0}


# ---- examples in the prompt ------------------------------------------------------------------------------------


def shot_order(evidence: Evidence) -> list[Ruling]:
    by_order = evidence.by_prompt("MMLU", "order")
    limits = {"floor": -ALIKE, "ceiling": ALIKE}
    how = f"{len(by_order) - 1} of all possible shuffles" if len(by_order) > 1 else ""
    return _by_prompt(evidence, by_order, "another order of the examples in the prompt", "shuffle", limits, how)


def more_shots(evidence: Evidence) -> list[Ruling]:
    ways = evidence.by_shots("MMLU", "similarity"), evidence.by_prompt("MMLU", "num_fewshot")
    by_shots = max(ways, key=len)
    ends = {shots: by_shots[shots] for shots in sorted(by_shots) if shots in (min(by_shots), max(by_shots))}
    limits = {"floor": 0.0, "ceiling": ALIKE}
    return _by_prompt(evidence, ends, "MMLU with another number of examples", "examples", limits, "")


def _by_prompt(evidence, ways: dict[int, Answers], what: str, name: str, limits: dict, how: str) -> list[Ruling]:
    """Whether prompts are alike at each of the cuts that all have and that still answer.

    Cut by cut: what helps one model and harms another is not nothing.
    """
    obstacle = not_known(evidence.answers("MMLU", "similarity"), "MMLU")
    if obstacle or len(ways) < 2:
        return [Ruling("MMLU", obstacle=obstacle or not_measured(what))]
    common = [cut for cut in next(iter(ways.values())).cuts if all(cut in answers.cuts for answers in ways.values())]
    every = list(ways.values())
    right = {value: answers.of(common).astype(float) for value, answers in ways.items()}
    compared, over = apart(right, max(answers.guessing for answers in every), name)
    found = [
        Finding.of_all([
            Finding.of_pairs(
                f"accuracy, {what}, without {common[place].size} layers"
                + (f" (of {len(of_cuts)} models the one most against the claim)" if len(of_cuts) > 1 else ""),
                of_cut, **limits,
            )
            for place, of_cut in of_cuts.items()
        ])
        for what, of_cuts in compared.items()
    ]  # fmt: skip
    about = ", ".join(part for part in (every[-1].described, over, how) if part)
    nothing = Obstacle(NOTHING, "with none of these prompts any of these models is surely better than guessing")
    return [Ruling(about, found, None if found else nothing)]


# ---- distances -------------------------------------------------------------------------------------------------


def resampled_distances(evidence: Evidence, statistic: Callable) -> tuple[np.ndarray, str, int] | None:
    """A statistic of the distances [n, l], then of distances drawn anew; what they are of, and of how many sequences.

    How often such intervals hold the truth is among what `python -m benchmarks.verdicts` draws.
    """
    unit = evidence.distances()
    if unit is None:
        return None
    distances = distance_matrix(unit.rows)
    drawn, how = _drawn_anew(unit, distances)
    found = np.concatenate([statistic(distances[None]), statistic(drawn)])
    corpus = unit.key["corpus"]
    beside = "" if corpus == paper.CORPUS else "; the paper's are on C4"
    about = f"distances on {corpus.title()}, {unit.rows['samples'].max():,} sequences, {how}{beside}"
    return found, about, int(unit.rows["samples"].max())


def _drawn_anew(unit: Unit, distances: Float[np.ndarray, "N L"]) -> tuple[Float[np.ndarray, "R N L"], str]:
    """The same distances of sequences drawn anew, where those of each sequence are kept; about their means.

    Else of standard errors, each block by itself, though all are of the same sequences. And which of the two, in words.
    """
    if unit.kind != "distances":
        errors = distance_matrix(unit.rows.assign(distance=unit.rows["stderr"]))
        draws = np.random.default_rng(0).standard_normal((outcomes.RESAMPLES, *distances.shape))
        return distances + errors * draws, "each block drawn by itself"
    means = outcomes.resampled_means(stability.of_sequences(unit).T)
    drawn = np.full((len(means) - 1, *distances.shape), np.nan)
    # those of sequences are kept in 16 bits: what is drawn lies about the means that are published
    drawn[:, unit.rows["size"] - 1, unit.rows["start"]] = means[1:] - means[0]
    drawn += distances
    return drawn, "all blocks drawn together"


def deep_blocks(evidence: Evidence) -> list[Ruling]:
    return _of_distances(
        evidence, depth, "depth of the middle of the most similar block, mean over sizes up to a quarter of the layers",
        DEEP,
    )  # fmt: skip


def last_layer(evidence: Evidence) -> list[Ruling]:
    """Over all sizes, as the paper's figure has them, and over those to half of the layers: both have to say the same.

    Of the largest sizes there are two or three blocks, among which one is soon near-maximal.
    """
    what = (
        "place of blocks with the last layer between the smallest and the largest distance of their size, without the "
        "first layer"
    )
    every, half = (_of_distances(evidence, statistic, what, LAST) for statistic in (height, height_to_half))
    return both_alike([
        dataclasses.replace(ruling, about=f"{ruling.about}, {sizes}")
        for rulings, sizes in ((every, "all sizes"), (half, "sizes to half of the layers")) for ruling in rulings
    ])  # fmt: skip


def depth(distances: Float[np.ndarray, "R N L"]) -> Float[np.ndarray, " R"]:
    """How deep the most similar blocks lie, of distances [n, l] drawn R times; 1 is the last layer."""
    layers = distances.shape[-1]
    sizes = range(1, max(layers // 4, 1) + 1)
    # the last block of a row holds the last layer and is no candidate
    starts = [distances[:, size - 1, : layers - size].argmin(axis=1) for size in sizes]
    # divided once, at the end: what lies exactly on a limit must not leave it by rounding
    return np.sum([start + size / 2 for start, size in zip(starts, sizes)], axis=0) / (layers * len(sizes))


def height(distances: Float[np.ndarray, "R N L"], largest: int | None = None) -> Float[np.ndarray, " R"]:
    """How near-maximal blocks with the last layer are, of distances [n, l] drawn R times: a mean over sizes.

    Blocks that begin at layer 0 are left out: what leaves the embedding is unlike all else, and would set the range.
    """
    layers, places = distances.shape[-1], []
    for size in range(1, (layers - 2 if largest is None else largest) + 1):
        row = distances[:, size - 1, 1 : layers - size + 1]
        low, high = row.min(axis=1), row.max(axis=1)
        places.append((row[:, -1] - low) / (high - low))
    return np.mean(places, axis=0)


def height_to_half(distances: Float[np.ndarray, "R N L"]) -> Float[np.ndarray, " R"]:
    return height(distances, max(distances.shape[-1] // 2, 1))


def _of_distances(evidence: Evidence, statistic: Callable, what: str, floor: float) -> list[Ruling]:
    found = resampled_distances(evidence, statistic) if evidence.layers >= FEWEST else None
    if found is None:
        few = f" of {FEWEST} layers or more" if evidence.distances() else ""
        return [Ruling("distances", obstacle=not_measured(f"angular distances{few}"))]
    draws, about, samples = found
    return [Ruling(about, [Finding.of_draws(what, draws, floor=floor, form=FINE, items=samples)])]
