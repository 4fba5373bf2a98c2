"""Does dropping middle layers take the letters of answers, and dropping late ones the words? The criterion, as code.

It is stated in words, and dated, in notebooks/12-where.ipynb: what is here follows it and decides nothing else.

Letters in shapes: R resamples, the first of them all items; C cuts; I items.
"""

import collections
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from deeper_layers.cuts import Cut
from deeper_layers.report.statistics.answers import answers_of, calibrated, chosen
from deeper_layers.report.statistics.curves import SUBJECTS, levels_of, title, wilson_interval
from deeper_layers.report.statistics.joined import joined
from deeper_layers.report.statistics.outcomes import outcomes_of, resampled_means
from deeper_layers.report.statistics.significance import POWER
from deeper_layers.results.units import Unit, whole_units

SIZE = 4  # layers in a block
ROOM = 0.05  # by which a model that can show it is surely above guessing
LEAST = 0.10  # of what a model knows: a smaller difference is none
RESAMPLES = 10_000
WRONG = 0.05  # of all intervals together
SEEN = {"Qwen2.5-Coder-1.5B-Instruct": (13, 23)}  # starts that were measured before the criterion was written
MIDDLE, LATE = "middle", "late"
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"
HOLDS, FAILS = "holds", "fails"


@dataclass(frozen=True)
class Form:
    """A set of questions in one form: the task that asks them so, what counts as right, whether labels are chosen."""

    task: str
    metric: str = "acc"
    letters: bool = False


QUESTIONS = {
    "MMLU": (Form("mmlu", letters=True), Form("mmlu_continuation", "acc_norm")),
    "Capitals": (Form("lettered_capitals", letters=True), Form("capitals")),
}
# what late blocks are expected to cost more of: losses in nats a token, and shares of what was known
LOSSES = {"c4": "loss on C4", "gsm8k_solutions": "loss on GSM8K's gold solutions"}
WORDS = {
    "capitals": Form("capitals"),
    "sums_two_digits": Form("sums_two_digits"),
    "mmlu_continuation": Form("mmlu_continuation", "acc_norm"),
}
BESIDE = {"boolq": Form("boolq", letters=True), "written_facts": Form("written_facts", "exact_match")}
FORMS = WORDS | BESIDE | {form.task: form for forms in QUESTIONS.values() for form in forms}


@dataclass(frozen=True)
class Kept:
    """How much of what a model knows is kept under each cut, on one set of items in one form.

    Attributes:
        cuts: the whole model first.
        right: which items count as right.
        target: which choice of each item is the right one.
        guessing: chance or, for letters, the best constant letter where that is more.
    """

    cuts: list[Cut]
    right: Bool[np.ndarray, "C I"]
    target: Int[np.ndarray, " I"]
    guessing: float

    @property
    def known(self) -> bool:
        """Whether the whole model can show what is lost: it is surely above guessing, with room to fall."""
        low, _ = wilson_interval(float(self.right[0].mean()), self.right.shape[1])
        return low >= self.guessing + ROOM

    @functools.cached_property
    def shares(self) -> Float[np.ndarray, "R C"]:
        """k: accuracy above guessing over that of the whole model, of all items and of items drawn anew."""
        above = resampled_means(self.right.astype(float), resamples=RESAMPLES) - self.guessing
        return above / above[:, :1]

    def at(self, cuts: Iterable[Cut]) -> Float[np.ndarray, "R C"]:
        return self.shares[:, [self.cuts.index(cut) for cut in cuts]]


def kept(unit: Unit, form: Form, *, without_bias: bool = False) -> Kept:
    """What a unit's cuts keep; `without_bias`: of letters after calibration. Raises InputError as `answers_of` does."""
    if form.metric == "exact_match":  # written: nothing is guessed
        cuts = sorted([Cut(*cut) for cut in unit.key["cuts"]], key=lambda cut: cut.size > 0)
        right = outcomes_of(unit, cuts, form.metric).astype(bool)
        return Kept(cuts, right, np.zeros(right.shape[1], dtype=int), 0.0)
    answers = answers_of(unit, form.metric)
    order = sorted(range(len(answers.cuts)), key=lambda place: answers.cuts[place].size > 0)  # the whole model first
    right = answers.right[order]
    if without_bias:
        right = np.stack([chosen(calibrated(answers.logprobs[place])) == answers.target for place in order])
    counts = np.bincount(answers.target, minlength=2)
    chance = float((1 / (~np.isnan(answers.logprobs[0])).sum(axis=-1)).mean())
    constant = float(counts.max() / counts.sum()) if form.letters else 0.0
    return Kept([answers.cuts[place] for place in order], right, answers.target, max(chance, constant))


def place_of(start: int, layers: int, size: int = SIZE) -> str:
    """Whether a block lies in the middle third, in the last one (without the last layer), or else: ""."""
    first, last = start, start + size - 1
    if 3 * first >= layers and 3 * last < 2 * layers:
        return MIDDLE
    return LATE if 3 * first >= 2 * layers and last < layers - 1 else ""


def all_blocks(layers: int, place: str) -> list[Cut]:
    """Every block of SIZE layers in a place."""
    starts = range(layers - SIZE + 1)
    return [Cut(start, SIZE) for start in starts if place_of(start, layers) == place]


def scans(units: Iterable[Unit], *, of_blocks: bool = True) -> dict[str, dict[str, Unit]]:
    """By model and task the scan of blocks of SIZE layers, or that of both rules: the one with most items and cuts.

    Scans alike in all but their cuts are one. A subject of MMLU that stands alone beside a scan of all is a part of
    another one, which is not complete, and left out.
    """
    found: dict[str, dict[str, Unit]] = {}
    for unit in joined(whole_units([unit for unit in units if unit.kind in ("scan", "blocks")])):
        starts = collections.Counter(size for _, size in unit.key["cuts"] if size)
        # two rules have at most two blocks of a size; a map of losses has every block of others too
        if unit.key["quantization"] or (starts[SIZE] < 3 if of_blocks else len(starts) < 2):
            continue
        of_model = found.setdefault(unit.key["model"]["name"], {})
        of_model[unit.name] = max(filter(None, (of_model.get(unit.name), unit)), key=extent)
    for model, of_model in found.items():
        every = set(map(title, of_model))
        found[model] = {name: unit for name, unit in of_model.items() if SUBJECTS.get(name) not in every}
    return found


def extent(unit: Unit) -> tuple[int, int]:
    """Items and cuts: of two measurements the one with more says more."""
    return int(unit.rows["items"].max()), len(unit.key["cuts"])


def interval(found: Float[np.ndarray, " R"], tests: int) -> tuple[float, float, float]:
    """The value, and its interval at the level 1 - WRONG / tests."""
    low, high = np.quantile(found[1:], [WRONG / tests / 2, 1 - WRONG / tests / 2])
    return float(found[0]), float(low), float(high)


@dataclass(frozen=True)
class Ruling:
    """A verdict and what it rests on: statistics by name, each a value and its interval at `level`."""

    model: str
    what: str
    verdict: str
    statistics: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    level: float = math.nan
    items: int = 0  # questions
    why: str = ""  # it can show nothing


def differences(letters: Kept, words: Kept, layers: int, without: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """D of the middle and of the late blocks, [R] each: the mean of what is kept of letters less that of words."""
    found = {}
    for place in (MIDDLE, LATE):
        cuts = [cut for cut in all_blocks(layers, place) if cut.start not in without]
        found[place] = (letters.at(cuts) - words.at(cuts)).mean(axis=1)
    return found


def verdict_of(middle: tuple[float, float, float], late: tuple[float, float, float]) -> str:
    """Of D of the middle and the late blocks, each with its interval."""
    if middle[2] < 0 < late[1] and middle[0] <= -LEAST and late[0] >= LEAST:
        return CONFIRMED
    return REFUTED if middle[1] > -LEAST or late[2] < LEAST else OPEN


def items_needed(ruling: Ruling) -> tuple[int, str]:
    """Of how many questions an open verdict would be which, with a power of 80%, if both D are what they seem.

    Intervals shrink as 1/sqrt. Raises KeyError where the ruling has no D.
    """
    middle, late = ruling.statistics[MIDDLE], ruling.statistics[LATE]
    verdict = CONFIRMED if middle[0] <= -LEAST and late[0] >= LEAST else REFUTED
    if verdict == CONFIRMED:  # both have to leave 0
        times = max((middle[2] - middle[0]) / -middle[0], (late[0] - late[1]) / late[0])
    else:  # one has to leave what was expected
        ways = [(middle[0] - middle[1]) / (middle[0] + LEAST)] if middle[0] > -LEAST else []
        ways += [(late[2] - late[0]) / (LEAST - late[0])] if late[0] < LEAST else []
        times = min(ways)
    # an interval that would just end at its limit does so in half of all samples; of two D both have to
    power = 1 - (1 - POWER) / 2 if verdict == CONFIRMED else POWER
    margin = 1 + float(ndtri(power) / ndtri((1 + ruling.level) / 2))
    return math.ceil(ruling.items * max(times * margin, 1) ** 2), verdict


def rulings(units: Iterable[Unit]) -> list[Ruling]:
    """Of every model and set of questions: a verdict, or why there is none."""
    able, found = pairs(units)
    tests = 2 * len(able)
    for (model, questions), (letters, words, layers) in able.items():
        both = {place: interval(d, tests) for place, d in differences(letters, words, layers).items()}
        verdict, items = verdict_of(both[MIDDLE], both[LATE]), letters.right.shape[1]
        found.append(Ruling(model, questions, verdict, both, 1 - WRONG / tests, items))
    return sorted(found, key=lambda ruling: (ruling.model, ruling.what))


def pairs(units: Iterable[Unit], *, without_bias: bool = False) -> tuple[dict, list[Ruling]]:
    """By model and set of questions what is kept of letters and of words, and the layers; and why others can't show it.

    `without_bias`: of letters after calibration.
    """
    able, unable, units = {}, [], list(units)
    for model, of_model in scans(units).items():
        for questions, forms in QUESTIONS.items():
            pair = pair_of(of_model, forms)
            if isinstance(pair, str):
                lacking = [form for form in forms if form.task not in of_model]
                why = "; ".join([pair, *unknown_in_sweeps(units, model, lacking)])
                unable.append(Ruling(model, questions, "", why=why))
                continue
            letters, words = pair
            unit = of_model[forms[0].task]
            if without_bias:
                letters = kept(unit, forms[0], without_bias=True)
            able[model, questions] = letters, words, unit.details["num_layers"]
    return able, unable


def pair_of(of_model: dict[str, Unit], forms: Sequence[Form]) -> tuple[Kept, Kept] | str:
    """What is kept of letters and of words; or why that can't be shown."""
    if missing := [form.task for form in forms if form.task not in of_model]:
        return f"not measured: {', '.join(missing)}"
    pair = [kept(of_model[form.task], form) for form in forms]
    if not np.array_equal(pair[0].target, pair[1].target):
        return "the two forms were asked of different items"
    how = ("dtype", "num_fewshot")  # of what is quantized no scan is taken
    if len({tuple(of_model[form.task].key[name] for name in how) for form in forms}) > 1:
        return "the two forms were asked with other numbers of examples, or of other number formats"
    layers = of_model[forms[0].task].details["num_layers"]
    places = [all_blocks(layers, place) for place in (MIDDLE, LATE)]
    if not all(places):
        return f"of {layers} layers no block of {SIZE} is {MIDDLE} or none is {LATE}"
    if any({cut for cuts in places for cut in cuts} - set(one.cuts) for one in pair):
        return "not every middle and late block is measured"
    if unknown := [form.task for form, one in zip(forms, pair, strict=True) if not one.known]:
        return f"the whole model is not surely {ROOM:.2f} above guessing on {', '.join(unknown)}"
    return pair[0], pair[1]


def unknown_in_sweeps(units: Iterable[Unit], model: str, forms: Iterable[Form]) -> list[str]:
    """Of forms that were not asked block by block: those of which a sweep says that the whole model can't show it."""
    found = []
    for form in forms:
        of_form = [
            unit for unit in units
            if (unit.kind, unit.name, unit.key["model"]["name"]) == ("sweep", form.task, model)
            and not unit.key["quantization"] and unit.details["levels"]
        ]  # fmt: skip
        if not of_form:
            continue
        unit = max(of_form, key=extent)
        rows = unit.rows[(unit.rows["task"] == form.task) & (unit.rows["metric"] == form.metric)]
        whole = rows[rows["size"] == 0].iloc[0]
        guessing = max(levels_of(unit)[form.task].values(), default=0.0)
        if wilson_interval(float(whole["value"]), int(whole["items"]))[0] < guessing + ROOM:
            found.append(
                f"it could show nothing: asked {int(whole['items']):,} items of {form.task}, the whole model is not "
                f"surely {ROOM:.2f} above guessing"
            )
    return found


def of_models(found: Iterable[Ruling]) -> dict[str, str]:
    """The verdict on each model that can show it, of those on its sets of questions."""
    by_model: dict[str, list[str]] = {}
    for ruling in found:
        if ruling.verdict:
            by_model.setdefault(ruling.model, []).append(ruling.verdict)
    return {
        model: REFUTED if REFUTED in own else CONFIRMED if set(own) == {CONFIRMED} else OPEN
        for model, own in by_model.items()
    }


def words_half(units: Iterable[Unit]) -> list[Ruling]:
    """Of every model whether late blocks cost words more than middle ones: W of each loss and task that can show it."""
    found = []
    for model, of_model in scans(units).items():
        costs = {}
        for task, unit in of_model.items():
            layers = unit.details["num_layers"]
            have = {Cut(*cut) for cut in unit.key["cuts"]}
            middle, late = (all_blocks(layers, place) for place in (MIDDLE, LATE))
            if not (middle and late and have >= {*middle, *late}):
                continue
            if task in LOSSES:
                by_cut = [np.array(unit.details["by_sequence"][cut.name]) for cut in (*late, *middle)]
                means = resampled_means(np.stack(by_cut), resamples=RESAMPLES)
                costs[LOSSES[task]] = means[:, : len(late)].mean(axis=1) - means[:, len(late) :].mean(axis=1)
            elif task in WORDS and (one := kept(unit, WORDS[task])).known:
                costs[task] = one.at(middle).mean(axis=1) - one.at(late).mean(axis=1)
        if costs:
            statistics = {name: interval(cost, len(costs)) for name, cost in costs.items()}
            lows, highs = ([value[end] for value in statistics.values()] for end in (1, 2))
            verdict = HOLDS if min(lows) > 0 else FAILS if min(highs) < 0 else OPEN
            found.append(Ruling(model, "words", verdict, statistics, 1 - WRONG / len(costs)))
    return found
