"""MMLU's early cliff: does knowledge fall, or the letters of the answers? The second half of the criterion, as code.

It is stated in words, and dated, in notebooks/12-where.ipynb, as that of dissociation.py.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.questions.dissociation import (
    LEAST,
    OPEN,
    QUESTIONS,
    ROOM,
    WRONG,
    Kept,
    Ruling,
    extent,
    interval,
    kept,
    scans,
    unknown_in_sweeps,
)
from deeper_layers.report.statistics import answers, outcomes
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import measured_cuts

BOTH = "both rules"
ABOVE = "C, none below guessing"
FOR_GOOD = "{}, for good"  # of letters or words: half is gone at this share of the layers, and no later cut has more
SIZES = range(1, 9)  # layers dropped where MMLU's early cliff is looked for
SUPPOSED = (0.25, 0.28, 0.30)  # what guessing might score on the words, where that was not measured


def cliffs(units: Iterable[Unit], guessing: float | None = None, *, without_bias: bool = False) -> list[Ruling]:
    """MMLU's early cliff on every model, rule by rule: letters, knowledge, or open; or why that can't be told.

    Beside C stands the same with accuracies below guessing counted as guessing (ABOVE), and where half of the letters
    and half of the words is gone, first and for good, as `half_gone` has it; they decide nothing. `guessing` is what
    guessing scores on the words, if not chance: of them it is not known, as no constant answer can be named.
    `without_bias`: of the letters after calibration.
    """
    found, forms, units = [], QUESTIONS["MMLU"], list(units)
    for model, of_model in of_both_rules(units).items():
        if missing := [form for form in forms if form.task not in of_model]:
            why = f"not measured under both rules: {', '.join(form.task for form in missing)}"
            why = "; ".join([why, *unknown_in_sweeps(units, model, missing)])
            found.append(Ruling(model, BOTH, "", why=why))
            continue
        unit = of_model[forms[0].task]
        if without_bias and unit.kind == "sweep":
            found.append(Ruling(model, BOTH, "", why="the log-probabilities of its letters were not kept"))
            continue
        letters, words = letters_and_words(of_model)
        if without_bias:
            letters = kept(unit, forms[0], without_bias=True)
        if guessing is not None:
            words = dataclasses.replace(words, guessing=guessing)
        layers = unit.details["num_layers"]
        of_rules = measured_cuts(unit.key["rule"].split(", "), letters.cuts, layers)
        of_rules = {rule: [cut for cut in cuts if cut.size in SIZES] for rule, cuts in of_rules.items()}
        if why := _untold(letters, words, of_rules):
            found.append(Ruling(model, BOTH, "", why=why))
            continue
        for rule, cuts in of_rules.items():
            both = letters.at(cuts), words.at(cuts)
            value = interval((both[0] - both[1]).mean(axis=1), len(of_rules))
            above = interval((np.maximum(both[0], 0) - np.maximum(both[1], 0)).mean(axis=1), len(of_rules))
            gone = {}
            for name, form in (("letters", letters), ("words", words)):
                gone[name] = half_gone(form, cuts, layers)
                gone[FOR_GOOD.format(name)] = half_gone(form, cuts, layers, final=True)
            of_letters = value[2] < 0 and value[0] <= -LEAST
            verdict = "letters" if of_letters else "knowledge" if value[1] > -LEAST else OPEN
            found.append(
                Ruling(
                    model,
                    rule,
                    verdict,
                    {"C": value, ABOVE: above, **gone},
                    1 - WRONG / len(of_rules),
                    letters.right.shape[1],
                )
            )
    return found


def without_questions(by_rule: Mapping[str, dict[str, Unit]], measured: Iterable[dict]) -> dict[str, dict]:
    """By model, of what `python -m benchmarks.unasked` measured that of the words of `of_both_rules`, asked alike."""
    words, found = QUESTIONS["MMLU"][1], {}
    for one in measured:
        unit = by_rule.get(one["model"], {}).get(one["task"])
        alike = ("task", "limit", "num_fewshot", "dtype")
        if unit and unit.name == words.task and one["metric"] == words.metric and unit.key["quantization"] is None:
            if all(one[name] == unit.key[name] for name in alike):
                found[one["model"]] = one
    return found


def by_guessing(units: Iterable[Unit], unasked: Mapping[str, dict]) -> list[tuple[str, float, Ruling]]:
    """What `cliffs` finds by what guessing may score on the words: how that is known, its value, and what is found.

    `unasked` is of `without_questions`: "chance", "guessing" and its "interval", whose upper end is tried last. Of a
    model without, SUPPOSED are tried.
    """
    units = list(units)
    found = []
    for model in of_both_rules(units):
        tried = [("supposed", value) for value in SUPPOSED]
        if measured := unasked.get(model):
            tried = [
                ("chance", measured["chance"]),
                ("without the questions", measured["guessing"]),
                ("at most, without the questions", measured["interval"][1]),
            ]
        of_model = [unit for unit in units if unit.key["model"]["name"] == model]
        found += [(how, value, ruling) for how, value in tried for ruling in cliffs(of_model, value) if ruling.verdict]
    return found


def half_gone(form: Kept, cuts: Iterable[Cut], layers: int, *, final: bool = False) -> tuple[float, float, float]:
    """The share of the layers at which half of what is known is first gone, with its 95% interval; it may be infinite.

    Beside the verdict: both forms fall. With `final`, from which share on none of the cuts has more than half.
    """
    cuts = [UNPRUNED, *sorted(cuts, key=lambda cut: cut.size)]
    fractions = np.array([cut.size / layers for cut in cuts])
    return outcomes.interval(outcomes.crossing(form.at(cuts), fractions, guessing=0.0, final=final))


def of_both_rules(units: Iterable[Unit]) -> dict[str, dict[str, Unit]]:
    """By model and task the scan of both rules; of MMLU by letter the sweep, where only that has the same questions."""
    units = list(units)
    found = scans(units, of_blocks=False)
    letters, words = (form.task for form in QUESTIONS["MMLU"])
    for of_model in found.values():
        if words in of_model and letters not in of_model and (swept := _swept(units, of_model[words])):
            of_model[letters] = swept
    return found


def _swept(units: Iterable[Unit], words: Unit) -> Unit | None:
    """The sweep of the letters of the same questions as those of a scan, asked alike."""
    same, letters = ("model", "dtype", "quantization", "limit", "num_fewshot"), QUESTIONS["MMLU"][0].task
    asked = [words.key[name] for name in same]
    swept = (unit for unit in units if (unit.kind, unit.name) == ("sweep", letters))
    return max((unit for unit in swept if [unit.key[name] for name in same] == asked), key=extent, default=None)


class AskedTwice(NamedTuple):
    """What changed where the same letters were asked of the same models twice, in batches that round differently."""

    fewest: int  # answers of one model that are right once only
    most: int
    apart: float  # accuracies of one model, at most
    near: float  # in nats: 9 of 10 of these answers lie within this of a tie of the right letter and the best other
    items: int


def asked_twice(units: Iterable[Unit]) -> dict[str, AskedTwice]:
    """By model, where a scan of both rules and a sweep asked the letters of the same questions alike."""
    units, found = list(units), {}
    letters, words = (form.task for form in QUESTIONS["MMLU"])
    for model, of_model in of_both_rules(units).items():
        if not {letters, words} <= set(of_model) or of_model[letters].kind == "sweep":
            continue
        if (swept := _swept(units, of_model[words])) is None:
            continue
        scanned, again = (letters_and_words(of_model | {letters: unit})[0] for unit in (of_model[letters], swept))
        shared = [cut for cut in scanned.cuts if cut in again.cuts]
        right = [one.right[[one.cuts.index(cut) for cut in shared]] for one in (scanned, again)]
        changed = right[0] != right[1]
        flips = changed.sum(axis=1)
        apart = np.abs(right[0].mean(axis=1) - right[1].mean(axis=1)).max()
        own = answers.answers_of(of_model[letters])
        margins = answers.margins(own.logprobs[[own.cuts.index(cut) for cut in shared]], own.target)
        near = np.quantile(np.abs(margins[changed]), 0.9) if changed.any() else 0.0
        found[model] = AskedTwice(int(flips.min()), int(flips.max()), float(apart), float(near), right[0].shape[1])
    return found


def letters_and_words(of_model: dict[str, Unit]) -> tuple[Kept, Kept]:
    """What is kept of both forms of MMLU. A sweep holds what was chosen, and so which answers are right of most.

    Of a sweep only the cuts of the words are taken: it may have many more.
    """
    forms = QUESTIONS["MMLU"]
    unit, words = of_model[forms[0].task], kept(of_model[forms[1].task], forms[1])
    if unit.kind != "sweep":
        return kept(unit, forms[0]), words
    if "units" in unit.details:  # of a group: in the order of `answers_of`, by name
        unit = dataclasses.replace(unit, details=unit.details | {"units": sorted(unit.details["units"])})
    cuts = [cut for cut in words.cuts if [cut.start, cut.size] in unit.key["cuts"]]
    right, named = (
        outcomes.outcomes_of(unit, cuts, forms[0].metric).astype(bool),
        outcomes.outcomes_of(unit, cuts, "chosen"),
    )
    alike = right.shape[1] == len(words.target) and (named == words.target)[right].all()
    target = words.target if alike else named[0].astype(int)
    counts = np.bincount(target, minlength=2)
    return Kept(cuts, right, target, max(words.guessing, float(counts.max() / counts.sum()))), words


def _untold(letters: Kept, words: Kept, of_rules: dict[str, list[Cut]]) -> str:
    """Why nothing can be told of the early cliff; "" where it can."""
    if not np.array_equal(letters.target, words.target):
        return "the two forms were asked of different items"
    if any(len(cuts) < len(SIZES) or set(cuts) - set(words.cuts) for cuts in of_rules.values()):
        return f"not every n from {SIZES[0]} to {SIZES[-1]} is measured"
    unknown = [form.task for form, one in zip(QUESTIONS["MMLU"], (letters, words), strict=True) if not one.known]
    return f"the whole model is not surely {ROOM:.2f} above guessing on {', '.join(unknown)}" if unknown else ""
