"""What all decisions share: why a task says nothing, which cuts still answer, where a curve falls and how."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import Cut
from deeper_layers.report import paper
from deeper_layers.report.claims.verdicts import (
    NOTHING,
    OPEN,
    PERCENT,
    PLAIN,
    UNMEASURED,
    Finding,
    Obstacle,
    Ruling,
    so_many,
)
from deeper_layers.report.statistics.curves import Z, wilson_interval
from deeper_layers.report.statistics.evidence import Answers, Evidence
from deeper_layers.report.statistics.outcomes import at, crossing, interval
from deeper_layers.report.statistics.significance import items_that_decide
from deeper_layers.report.statistics.topics import TOPICS
from deeper_layers.report.thresholds import ALIKE, EARLIEST, FLAT, LATEST, LEFT, SHARP, SIZES
from deeper_layers.results.units import Unit

OF_PAPER = TOPICS[:2]
HALF = "half of its accuracy above guessing is gone at this share of its layers"
FOR_GOOD = "no more than half of that is left from this share on"
Falls = tuple[list[Finding], Obstacle | None]  # with what has no number


def not_measured(what: str) -> Obstacle:
    return Obstacle(UNMEASURED, f"not measured: {what}")


def not_known(answers: Answers | None, what: str, whole: str = "whole model") -> Obstacle | None:
    """Why a task says nothing, if so; `whole` is what has nothing dropped, in words."""
    if answers is None:
        return not_measured(what)
    if answers.known:
        return None
    return at_guessing(answers.right[0], answers.guessing, f"the {whole} scores", answers.described)


def at_guessing(right: np.ndarray, guessing: float, said: str, about: str) -> Obstacle:
    """Why what is not surely above guessing says nothing, of items [I]: it has nothing to lose, or they are too few.

    That it is not seen to be above guessing is no proof that it is not: for that it has to be surely ALIKE.
    """
    value, items = float(right.mean()), len(right)
    low, high = wilson_interval(value, items)
    said = f"{said} {value:.3f} ({low:.3f} to {high:.3f}) and guessing {guessing:.3f} on {about}"
    if high <= guessing + ALIKE:
        return Obstacle(NOTHING, f"{said}: it is surely no more than {ALIKE:.2f} above guessing, nothing to lose")
    distance = value - guessing if value > guessing else guessing + ALIKE - value
    needed = items_that_decide(items, (high - low) / (2 * Z), [distance])
    return Obstacle(OPEN, f"{said}: whether it is above guessing is open; {so_many(needed, items, about)}")


def too_few(cuts: list[Cut]) -> Obstacle:
    """Why a curve through these cuts has no shape to speak of."""
    return not_measured(f"enough sizes to tell the shape of a curve: {len(cuts)}, the whole model among them")


def answering(right: list[np.ndarray], guessing: float) -> np.ndarray:
    """Which cuts still answer: those where several ways to ask, [C, I] each, are together surely above guessing.

    What was chosen by the mean of two ways says nothing about their difference.
    """
    means = np.mean([of_way.mean(axis=1) for of_way in right], axis=0)
    items = right[0].shape[1]
    return np.array([wilson_interval(float(mean), items)[0] > guessing for mean in means])


def both_alike(lines: list[Ruling]) -> list[Ruling]:
    """Rulings on one question in several ways, each named last in `about`: all have to say the same."""
    if len({line.verdict for line in lines}) == 1:
        return lines
    said = "; ".join(f"{line.about.rpartition(', ')[2]}: {line.verdict}" for line in lines)
    return [dataclasses.replace(line, obstacle=Obstacle(OPEN, f"{said}. Both have to say the same")) for line in lines]


def none_answers(*ways: np.ndarray, guessing: float, about: str) -> Obstacle:
    """Why models of which none is surely above guessing say nothing, of [C, I] each way: by the best of them."""
    means = np.mean(ways, axis=0)
    return at_guessing(means[means.mean(axis=1).argmax()], guessing, "the best of these models scores", about)


def apart(
    ways: dict[Any, Float[np.ndarray, "C I"]], guessing: float, what: str
) -> tuple[dict[str, dict[int, Float[np.ndarray, " I"]]], str]:
    """What each way gets right more than the first, item by item, at the places of the cuts that still answer.

    By the name of the difference, and without ways of which no cut answers; then, in words, how many cuts do.
    """
    (own, first), *others = ways.items()
    kept = {f"{what} {name} less {own}": answering([first, right], guessing) for name, right in others}
    found = {
        name: {place: right[place] - first[place] for place in np.flatnonzero(kept[name]).tolist()}
        for name, (_, right) in zip(kept, others, strict=True)
    }
    over = f"over the {min(of.sum() for of in kept.values())} of {len(first)} models that still answer"
    return {name: of_cuts for name, of_cuts in found.items() if of_cuts}, over


# ---- where a curve falls, and how ------------------------------------------------------------------------------


def cliffs(answers: Answers) -> np.ndarray:
    """Where half of what lies above guessing is first gone: of all items, then of items drawn anew."""
    return crossing(answers.means, answers.fractions, answers.guessing)


def half_left(answers: Answers, places: list[int], *, more: bool) -> list[Finding]:
    """Whether some cuts keep at least half of what lies above guessing (`more`), or at most half: one finding a cut.

    Cut by cut and in pairs: where a curve crosses a level first is early by chance where items are few.
    """
    right, guessing, means = answers.right.astype(float), answers.guessing, answers.means
    above, found = means[:, 0] - guessing, []
    limits = {"floor": 0.0} if more else {"ceiling": 0.0}
    for place in places:
        # no ratio: whether this lies above 0 is the same question
        tested = Finding.of_pairs("", right[place] - LEFT * right[0] - (1 - LEFT) * guessing, **limits)
        left, low, high = interval((means[:, place] - guessing) / np.where(above > 0, above, np.inf))
        limit = {"floor": float(LEFT)} if more else {"ceiling": float(LEFT)}
        what = f"left above guessing without {answers.cuts[place].size} layers"
        found.append(dataclasses.replace(tested, what=what, value=left, low=low, high=high, form=PERCENT, **limit))
    return found


def _gone(answers: Answers, what: str, *, final: bool) -> Finding:
    """Where half is first gone, which no cut before EARLIEST may show; or for good, as all from LATEST on have to."""
    fractions, last = answers.fractions, float(answers.fractions[-1])
    draws = crossing(answers.means, fractions, answers.guessing, final=final)
    limits = {"ceiling": float(LATEST)} if final else {"floor": float(EARLIEST)}
    shown = Finding.of_draws(what, draws, nearest=np.minimum(draws, last), items=answers.right.shape[1], **limits)
    places = np.flatnonzero(fractions >= LATEST if final else (fractions > 0) & (fractions < EARLIEST)).tolist()
    # without such a cut the nearest one may still show that it is so, and never that it is not
    tested = Finding.of_all(half_left(answers, places or [len(fractions) - 1 if final else 1], more=not final))
    return dataclasses.replace(shown, p_agrees=tested.p_agrees, p_differs=tested.p_differs if places else 1.0)


def falls(answers: Answers) -> Falls:
    """Where accuracy falls, and for good, how much is left half way there, and how steeply (figures 2 and 6)."""
    fractions, guessing, means, items = answers.fractions, answers.guessing, answers.means, answers.right.shape[1]
    last, first_cut, gone = float(fractions[-1]), float(fractions[1]), cliffs(answers)
    found = [_gone(answers, HALF, final=False), _gone(answers, FOR_GOOD, final=True)]
    if gone[0] < 2 * first_cut:  # half way lies before the first cut: what is left there is interpolated
        what = "a cut in the first half of the way to the cliff, without which neither flat nor sharp means anything"
        return found, not_measured(what)
    place = np.minimum(gone, last)
    above = means[:, 0] - guessing
    half_way = (at(means, fractions, place / 2) - guessing) / np.where(above > 0, above, np.inf)
    start, end = (crossing(means, fractions, guessing, share) for share in (0.75, 0.25))
    start, way = np.minimum(start, last), np.where(place > 0, place, np.inf)
    # an end that is not reached lies at the last cut or anywhere beyond
    longest, shortest = (np.where(place > 0, (of - start) / way, np.inf) for of in (end, np.minimum(end, last)))
    what = "length of the fall from 3/4 to 1/4 of it, over the way there"
    return [
        *found,
        Finding.of_draws("left of it half way there", half_way, floor=FLAT, items=items),
        Finding.of_draws(what, longest, nearest=shortest, ceiling=SHARP, form=PLAIN, items=items),
    ], None


# ---- task by task ----------------------------------------------------------------------------------------------


def fall(topic: str, answers: Answers | None, obstacle: Obstacle | None) -> Ruling:
    """The ruling on whether a task stays flat and then falls; from too few cuts there is none."""
    findings, missing = ([], None) if obstacle else falls(answers)
    if findings and len(answers.cuts) < SIZES:
        findings, obstacle, missing = findings[:1], too_few(answers.cuts), None
    about = answers.described if answers else topic
    return Ruling(about, findings, obstacle, missing, of_paper=topic in OF_PAPER, topic=topic)


def on_tasks(evidence: Evidence, topics, rule: str, decide: Callable) -> list[Ruling]:
    """A ruling for each of the paper's tasks, and for every other one that the model knows."""
    rulings = []
    for topic in topics:
        answers = evidence.answers(topic, rule)
        obstacle = not_known(answers, f"{topic} under the {rule} rule")
        if topic in OF_PAPER or not obstacle:
            rulings.append(decide(topic, answers, obstacle))
    return rulings


def after_healing(decide: Callable) -> Callable:
    """A claim about the widest way of healing, each cut with one seed: its rulings say so."""

    @functools.wraps(decide)
    def decided(evidence: Evidence) -> list[Ruling]:
        return healed_so(decide(evidence), next(iter(evidence.ways.values()), {}).values(), ", one seed")

    return decided


def healed_so(rulings: list[Ruling], healed: Iterable[Unit], runs: str = "") -> list[Ruling]:
    """Rulings that say of which weights and on how much text, beside the paper's, their models were healed, and in
    which runs. `healed` are alike in that; of several numbers of tokens the most are named."""
    of = {(unit.details["healing"]["tokens"], unit.key["quantization"]) for unit in healed}
    if not of:
        return rulings
    tokens, quantization = max(of, key=lambda one: one[0])
    how = f", healed {f'in {quantization} ' if quantization else ''}on {tokens:,} tokens, {of_paper(tokens)}{runs}"
    return [
        dataclasses.replace(ruling, about=ruling.about + how, tokens=tokens) if ruling.findings else ruling
        for ruling in rulings
    ]


def of_paper(tokens: int) -> str:
    """How much healing that is beside the paper's, in words."""
    return f"{tokens / paper.HEALING_TOKENS:.2%} of the paper's tokens"
