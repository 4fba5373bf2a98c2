"""The paper's claims about losses and healed models as decisions. Losses are nats a token, sequence by sequence.

No ratio is taken where what it divides by may be nothing, or is worse than guessing: a loss counts up to ln V.
"""

import dataclasses
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import Cut
from deeper_layers.report.claims.deciding import (
    OF_PAPER,
    after_healing,
    answering,
    apart,
    cliffs,
    fall,
    healed_so,
    none_answers,
    not_known,
    not_measured,
    too_few,
)
from deeper_layers.report.claims.verdicts import FINE, NOTHING, SIGNED, Finding, Obstacle, Ruling
from deeper_layers.report.statistics import seeds as seeds_of
from deeper_layers.report.statistics.evidence import Evidence, Losses
from deeper_layers.report.statistics.items import item_metrics, of_topic
from deeper_layers.report.statistics.outcomes import resampled_means
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.report.statistics.topics import TOPICS, set_of, topic_of
from deeper_layers.report.thresholds import ALIKE, APART, BENT, NEAR, SIZES, SLOWLY, SPAN
from deeper_layers.results.units import Unit

TEXT = "loss on text"
HEALED = "model with all its layers, healed too,"
GRID = 201  # places between the whole model and the last cut at which a curve of losses is looked at


# ---- accuracy --------------------------------------------------------------------------------------------------


@after_healing
def plateau_healed(evidence: Evidence) -> list[Ruling]:
    rulings = []
    for topic in TOPICS[:-1]:
        after = evidence.healed_alone(topic, "similarity")
        obstacle = not_known(after, f"{topic} of healed models", HEALED)
        if topic in OF_PAPER or not obstacle:
            rulings.append(fall(topic, after, obstacle))
    return rulings


@after_healing
def healing_matters(evidence: Evidence) -> list[Ruling]:
    """What healing gives back on BoolQ, less what it gives back on MMLU: means over the pruned models of both."""
    pairs, gains, items = {}, {}, []
    for topic in OF_PAPER:
        pairs[topic] = evidence.healed(topic, "similarity")
        if obstacle := not_known(pairs[topic] and pairs[topic][0], f"{topic} of healed models"):
            return [Ruling("BoolQ beside MMLU", obstacle=obstacle)]
    common = [cut for cut in pairs["BoolQ"][0].cuts if cut.size and cut in pairs["MMLU"][0].cuts]
    every = len(common)
    for before, after in pairs.values():
        # models that only guess before and after gain nothing, whatever healing does
        kept = answering([before.of(common).astype(float), after.of(common).astype(float)], before.guessing)
        common = [cut for cut, answers in zip(common, kept, strict=True) if answers]
        if not common:
            gone = [before.right[1:].astype(float), after.right[1:].astype(float)]
            why = none_answers(*gone, guessing=before.guessing, about=before.described)
            return [Ruling("BoolQ beside MMLU", obstacle=why)]
    for topic, (before, after) in pairs.items():
        gain = after.of(common).astype(float) - before.of(common)
        gains[topic] = resampled_means(gain, seed=OF_PAPER.index(topic)).mean(axis=1)
        items.append(gain.shape[1])
    what = "gain in accuracy, BoolQ less MMLU"
    more = Finding.of_draws(what, gains["BoolQ"] - gains["MMLU"], floor=0.0, form=SIGNED, items=min(items))
    return [Ruling(f"BoolQ beside MMLU, over {len(common)} of {every} pruned models that still answer", [more])]


# ---- loss on text ----------------------------------------------------------------------------------------------


def capped(losses: Losses) -> np.ndarray:
    """Losses before healing, [C, S], none worse than guessing."""
    return np.minimum(losses.before, losses.guessing)


@after_healing
def healed_loss(evidence: Evidence) -> list[Ruling]:
    """Two parts: it grows slowly, and about linearly."""
    losses = evidence.losses("similarity")
    if losses is None:
        return [Ruling(TEXT, obstacle=not_measured("losses before and after healing"))]
    before = capped(losses)
    without, healed = before[-1] - before[0], losses.after[-1] - losses.after[0]
    about = f"{TEXT}, {losses.fractions[-1]:.0%} of the layers dropped{_before_the_jump(evidence, losses)}"
    if paired_interval(without, shares=False)[1] <= 0:
        slow = Ruling(about, obstacle=Obstacle(NOTHING, "without healing the loss does not surely rise"))
    else:
        what = (
            f"rise of {healed.mean():.2f} nats a token, less {SLOWLY:.0%} of the {without.mean():.2f} without healing"
        )
        slow = Ruling(about, [Finding.of_pairs(what, healed - SLOWLY * without, ceiling=0.0, shares=False)])
    return [slow, _straight(losses)]


def _before_the_jump(evidence: Evidence, healed: Losses) -> str:
    """Words for a slope that is compared with one that has hardly begun; none where the largest cut lies beyond it."""
    losses = evidence.unhealed_losses("similarity")
    if losses is None or len(losses.fractions) < SIZES:
        return ""
    *_, (middle,) = span(capped(losses).mean(axis=1)[None], losses.fractions, losses.guessing)
    jumped = middle <= healed.fractions[-1]
    return "" if jumped else f", where the loss without healing has not jumped yet (it does at {middle:.0%})"


def _straight(losses: Losses) -> Ruling:
    about = f"{TEXT}, its course"
    if len(losses.cuts) < SIZES:
        return Ruling(about, obstacle=too_few(losses.cuts))
    found = bend(resampled_means(losses.after), losses.fractions)
    what = "how far the curve sags below a straight line, as a share of its rise"
    items = losses.after.shape[1]
    return Ruling(about, [Finding.of_draws(what, found, floor=-BENT, ceiling=BENT, form=FINE, items=items)])


def bend(losses: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Of curves of losses, [R, C], how far a parabola through each hangs from its chord, over its rise; straight 0."""
    curvature = np.polyfit(fractions, losses.T, 2)[0]
    rise = losses[:, -1] - losses[:, 0]
    return curvature * fractions[-1] ** 2 / 4 / np.where(rise > 0, rise, np.nan)


def unhealed_loss(evidence: Evidence) -> list[Ruling]:
    losses = evidence.unhealed_losses("similarity")
    if losses is None:
        return [Ruling(TEXT, obstacle=not_measured("losses before healing"))]
    if len(losses.fractions) < SIZES:
        return [Ruling(TEXT, obstacle=too_few(losses.cuts))]
    before = capped(losses)
    if paired_interval(before[-1] - before[0], shares=False)[1] <= 0:
        return [Ruling(TEXT, obstacle=Obstacle(NOTHING, "the loss does not surely rise"))]
    widths, least, places = span(resampled_means(before), losses.fractions, losses.guessing)
    if np.isinf(widths[0]):
        return [Ruling(TEXT, obstacle=not_measured("cuts so large that the loss rises half of the way to guessing"))]
    items = before.shape[1]
    what = "share of the layers within which it rises half of the way to guessing"
    found = [Finding.of_draws(what, widths, nearest=least, ceiling=SPAN, items=items)]
    of_paper = [answers for topic in OF_PAPER if (answers := evidence.answers(topic, "similarity"))]
    known = next((answers for answers in of_paper if answers.known), None)
    if known is None:
        nothing = Obstacle(NOTHING, "surely above guessing on neither MMLU nor BoolQ: there is no cliff to be near")
        return [Ruling(TEXT, found, missing=nothing)]
    gone = cliffs(known)
    nearest = np.abs(places - np.minimum(gone, known.fractions[-1]))
    what = f"from the middle of that to the cliff of {known.described}"
    found.append(
        Finding.of_draws(what, np.abs(places - gone), nearest=np.minimum(nearest, np.abs(places - gone)), ceiling=NEAR,
                         items=min(items, known.right.shape[1]))
    )  # fmt: skip
    return [Ruling(TEXT, found)]


def span(
    losses: Float[np.ndarray, "R C"], fractions: Float[np.ndarray, " C"], guessing: float
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """The shortest stretch within which a loss rises half of the way from the whole model's to that of guessing, ln V.

    Its width, the least that it may be, and its middle, as shares of the layers: neither how densely the cuts lie nor
    where they end is part of them. Between the cuts a curve is straight; right beyond the last one it may reach
    guessing, so that the width is infinite where only there it could rise so far.
    """
    places = np.linspace(0, fractions[-1], GRID)
    weights = np.array([np.interp(places, fractions, one) for one in np.eye(len(fractions))])
    curves = losses @ weights
    half = (guessing - curves[:, :1]) / 2
    begins = GRID - 1 - (guessing - curves >= half)[:, ::-1].argmax(axis=1)  # of what ends right beyond the last cut
    beyond = places[-1] - places[begins]
    widths, middles = np.full(len(curves), np.inf), places[-1] - beyond / 2
    for steps in range(1, GRID):
        rises = curves[:, steps:] - curves[:, :-steps]
        best = rises.argmax(axis=1)
        now = np.isinf(widths) & (rises[np.arange(len(curves)), best] >= half[:, 0])
        widths[now], middles[now] = places[steps], (places[best] + places[best + steps])[now] / 2
    # a width is known to a step: whatever speaks for or against a limit has to do so at either end of that
    least = np.maximum(np.minimum(widths, beyond) - places[1], 0.0)
    return widths, least, middles


@after_healing
def simple_healed(evidence: Evidence) -> list[Ruling]:
    """At the sizes at which the two rules drop different layers, and of accuracy those where models still answer."""
    rulings = []
    for topic in TOPICS[:-1]:
        pairs = {rule: evidence.healed(topic, rule) for rule in ("similarity", "simple")}
        obstacles = [not_known(pair and pair[0], f"{topic} of healed models, {rule}") for rule, pair in pairs.items()]
        obstacle = next(filter(None, obstacles), None)
        if obstacle:
            rulings += [Ruling(topic, obstacle=obstacle)] if topic in OF_PAPER else []
            continue
        informed, simple = (after for _, after in pairs.values())
        common = two_cuts(informed.cuts, simple.cuts)
        if not common:
            rulings += [Ruling(topic, obstacle=ONE_CUT)] if topic in OF_PAPER else []
            continue
        own, other = (of.of([pair[place] for pair in common]).astype(float)
                      for place, of in enumerate((informed, simple)))  # fmt: skip
        kept = answering([own, other], informed.guessing)
        if not kept.any():
            why = none_answers(own, other, guessing=informed.guessing, about=informed.described)
            rulings += [Ruling(topic, obstacle=why)] if topic in OF_PAPER else []
            continue
        sizes = _sizes([pair for pair, answers in zip(common, kept, strict=True) if answers])
        what = f"accuracy, simple heuristic less similarity-informed, mean over {sizes}"
        finding = Finding.of_pairs(what, (other - own)[kept].mean(axis=0), floor=-ALIKE)
        about = f"{informed.described}, at {kept.sum()} of {len(common)} sizes where healed models still answer"
        rulings.append(Ruling(about, [finding], of_paper=topic in OF_PAPER))
    return [*rulings, _losses_match(evidence)]


ONE_CUT = not_measured("healed models of a size at which the two rules drop different layers")


def _losses_match(evidence: Evidence) -> Ruling:
    informed, simple = (evidence.losses(rule) for rule in ("similarity", "simple"))
    if not informed or not simple:
        return Ruling(TEXT, obstacle=not_measured("losses of healed models under both rules"))
    common = two_cuts(informed.cuts, simple.cuts)
    if not common:
        return Ruling(TEXT, obstacle=ONE_CUT)
    places = [(informed.cuts.index(a), simple.cuts.index(b)) for a, b in common]
    before = [capped(simple)[b] - capped(informed)[a] for a, b in places]
    worse = [place for place, gap in zip(places, before, strict=True) if paired_interval(gap, shares=False)[1] > APART]
    if not worse:
        what = f"without healing the simple heuristic is nowhere surely more than {APART:.2f} nats worse"
        return Ruling(TEXT, obstacle=Obstacle(NOTHING, f"{what}: there is no gap that healing could close"))
    gaps = np.mean([simple.after[b] - informed.after[a] for a, b in worse], axis=0)
    sizes = _sizes([(informed.cuts[a], simple.cuts[b]) for a, b in worse])
    what = f"nats a token, simple heuristic less similarity-informed, both healed, mean over {sizes}"
    return Ruling(TEXT, [Finding.of_pairs(what, gaps, ceiling=APART, shares=False)])


def two_cuts(informed: list[Cut], simple: list[Cut]) -> list[tuple[Cut, Cut]]:
    """The cuts of both rules for each size at which they are not the same."""
    of_size = {cut.size: cut for cut in simple}
    return [(cut, of_size[cut.size]) for cut in informed if of_size.get(cut.size, cut) != cut]


def _sizes(pairs: list[tuple[Cut, Cut]]) -> str:
    return f"n = {', '.join(str(cut.size) for cut, _ in pairs)}"


# ---- ways of healing -------------------------------------------------------------------------------------------


def ranks(evidence: Evidence) -> list[Ruling]:
    """Two parts: better MMLU, worse loss. One healing beside one other can't tell a rank from a seed."""
    units = [unit for of_way in evidence.ways.values() for unit in of_way.values()]
    found = seeds_of.widest(units, "rank")
    if not found:
        why = not_measured("two ranks, each healed with seeds enough to tell a rank from a seed")
        return [Ruling(about, obstacle=why) for about in ("MMLU", TEXT)]
    low, high = min(found), max(found)
    losses = {rank: np.array([np.mean(unit.details["by_sequence"]) for unit in found[rank].values()])
              for rank in (low, high)}  # fmt: skip
    count = len(losses[low])
    what = f"nats a token, rank {low} less rank {high}, seed by seed"
    loss = Finding.of_pairs(what, losses[low] - losses[high], floor=0.0, shares=False)
    loss = dataclasses.replace(loss, counted="seeds")
    ends = {rank: list(found[rank].values()) for rank in (high, low)}
    mmlu = _of_mmlu(evidence, ends, "rank", {"floor": 0.0})
    return healed_so([mmlu, Ruling(f"{TEXT}, {count} seeds of each rank", [loss])], chain.from_iterable(ends.values()))


def seeds(evidence: Evidence) -> list[Ruling]:
    ways = evidence.alike_but("seed")
    if len(ways) < 2:
        return [Ruling("MMLU", obstacle=not_measured("healings that differ in their seed alone"))]
    ends = {f"{seed}": list(units.values()) for seed, units in ways.items()}
    ruling = _of_mmlu(evidence, ends, "seed", {"floor": -ALIKE, "ceiling": ALIKE})
    return healed_so([ruling], chain.from_iterable(ends.values()))


def _of_mmlu(evidence: Evidence, ways: dict[Any, list[Unit]], name: str, limits: dict) -> Ruling:
    """MMLU of ways of healing, on the items that decide, where these healed models are above guessing on them."""
    units = list(ways.values())
    every = [unit for of_way in units for unit in of_way]
    sets: dict[str, list[str]] = {}
    for task in (task for task in item_metrics(units[0][0]) if topic_of(task) == "MMLU"):
        asked = {len(of_topic(unit, [task])) if task in item_metrics(unit) else 0 for unit in every}
        if len(asked) == 1:  # all were asked the same ones
            sets.setdefault(set_of(task), []).append(task)
    names = max(sets.values(), key=lambda names: len(of_topic(units[0][0], names)), default=[])
    if not names:
        return Ruling("MMLU", obstacle=not_measured("MMLU of these healings"))
    guessing = max(evidence.levels(units[0][:1], names).values())
    right = {way: np.stack([of_topic(unit, names) for unit in of_way]).astype(float)
             for way, of_way in zip(ways, units, strict=True)}  # fmt: skip
    items = right[next(iter(right))].shape[1]
    compared, over = apart(right, guessing, name)
    found = [
        Finding.of_pairs(f"accuracy, {what}", np.mean(list(of_cuts.values()), axis=0), **limits)
        for what, of_cuts in compared.items()
    ]
    about = f"MMLU, {items:,} items"
    if not found:
        why = none_answers(*right.values(), guessing=guessing, about=about)
        return Ruling(about, obstacle=why)
    return Ruling(f"{about}, {over}", found)
