"""What do the last layers hold? The third study, judged as registered/what-the-last-layers-hold.md says.

The criterion and `judge` were committed together, before any pruned model was asked. The criterion is never edited; of
`judge` names and imports alone were, and intervals that are the registered bootstrap's are asked for by their level.
Letters in shapes as in report/estimates.py: I items, C cuts, N the number of all items and of each draw.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from deeper_layers.data import embedded
from deeper_layers_companion.report.calibration import calibrate, estimate_option_bias, pair_logprobs, score_options
from deeper_layers_companion.report.estimates import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    SUPPORTED,
    Estimate,
    is_at_floor,
    mean_of,
    resample,
    shares_kept,
)
from deeper_layers_companion.report.pairing import Measurement, find_measurements, returns

PLACES = {"reverse": "last", "simple": "before last", "similarity": "similar"}  # the place of each rule's cuts
MAPS = {"reverse-affine": "affine", "reverse-low-rank": "low rank"}  # what stands in the place of the last layers
PROMPTS = {"question": "", "stated": "_stated"}  # the end of a task's name
LETTER, WORDS, WRITTEN = "answers_by_letter", "answers_in_words", "answers_written"
UNASKED = "answers_in_words_unasked"
LETTERS_CALIBRATED, WORDS_CALIBRATED = "letter, calibrated", "words, calibrated"
CHANCE = 0.25  # one of four choices, and each letter is right equally often
LOSS = "c4"
LEVEL = 0.95  # of all intervals, of the paired bootstrap alone, also where few items decide
LEAST_KEPT, MOST_WRITTEN, OUTLIVED_SIZE = 0.80, 0.30, 5  # prediction 1
LEAST_TASKS, LEAST_LOSS, LAST_SIZES = 0.05, 0.10, range(2, 7)  # predictions 2 and 3
LEAST_BY_ANSWER, ANSWER_SIZES = 0.20, range(1, 5)  # prediction 4
LEAST_RETURNED, LEAST_LOW, MAP_SIZES = 0.50, 0.25, range(2, 6)  # prediction 5


class Answers:
    """The outcomes of one model under one rule and prompt, by form: one row a cut, [C, I], and what guessing gives."""

    def __init__(self, measured: dict[str, Measurement], prompt: str):
        ending = PROMPTS[prompt]
        self.forms: dict[str, np.ndarray] = {}
        self.guessing: dict[str, float | np.ndarray] = {}
        self.cuts = pd.DataFrame()
        letter, words, written = (measured.get(task + ending) for task in (LETTER, WORDS, WRITTEN))
        unasked = measured.get(UNASKED)
        if letter:
            logprobs, right = pair_logprobs(letter.rows)
            calibrated = calibrate(logprobs, estimate_option_bias(logprobs))
            self._add("letter", letter, letter.outcomes, CHANCE)
            self._add(LETTERS_CALIBRATED, letter, score_options(calibrated, right), CHANCE)
        if words and unasked:
            logprobs, right = pair_logprobs(words.rows)
            bias, _ = pair_logprobs(unasked.rows)
            self._add("words", words, words.outcomes, resample(unasked.outcomes))
            self._add(WORDS_CALIBRATED, words, score_options(calibrate(logprobs, bias), right), CHANCE)
        if written:
            self._add("written", written, written.outcomes, 0.0)

    def _add(self, form: str, curve: Measurement, outcomes: np.ndarray, guessing: float | np.ndarray) -> None:
        self.cuts = curve.cuts
        self.forms[form] = outcomes
        self.guessing[form] = guessing

    def has(self, sizes) -> bool:
        """Whether the whole model and all of these sizes were measured."""
        return len(self.cuts) > 0 and {0, *sizes} <= set(self.cuts["size"])

    def kept(self, form: str) -> Estimate:
        """k of each cut, with draws of items."""
        if form not in self.forms:
            return Estimate(no_value_reason=NOT_TESTED)
        return shares_kept(self.forms[form], self.guessing[form])

    def accuracy(self, form: str, sizes) -> Estimate:
        """The mean accuracy over some sizes."""
        if form not in self.forms or not self.has(sizes):
            return Estimate(no_value_reason=NOT_TESTED)
        return Estimate.of(resample(self.forms[form])).mean_over(self.cuts["size"].isin(sizes))


def collect_answers(scores: pd.DataFrame) -> dict[tuple[str, str, str], Answers]:
    """The answers by model, rule and prompt."""
    tasks = [task + ending for task in (LETTER, WORDS, WRITTEN) for ending in PROMPTS.values()] + [UNASKED]
    rows = scores[scores["task"].isin(tasks) & scores["rule"].isin([*PLACES, *MAPS])]
    measured: dict[tuple[str, str], dict[str, Measurement]] = {}
    for curve in find_measurements(rows):
        model, task, rule = curve.place
        measured.setdefault((model, rule), {})[task] = curve
    return {
        (model, rule, prompt): Answers(of_rule, prompt)
        for (model, rule), of_rule in measured.items()
        for prompt in PROMPTS
    }


@returns("model number prompt value low high limit verdict")
def judge(scores: pd.DataFrame) -> Iterator[dict]:
    """The numbers of the registered criterion, each with its verdict, for each model that was asked."""
    answers = collect_answers(scores)
    losses = collect_losses(scores)
    for model in dict.fromkeys(model for model, *_ in answers):
        of_model = {key[1:]: value for key, value in answers.items() if key[0] == model}
        for prompt in PROMPTS:
            if (last := of_model.get(("reverse", prompt))) is not None:
                yield from _judge_outliving(model, prompt, last)
        yield _judge_tasks(model, of_model)
        yield _judge_loss(model, losses)
        yield _judge_by_answer(model, of_model)
        for rule in MAPS:
            yield _judge_map(model, rule, of_model, losses)


def _judge_outliving(model: str, prompt: str, last: Answers) -> Iterator[dict]:
    """Prediction 1: calibrated letters and writing without the last OUTLIVED_SIZE layers."""
    size = [OUTLIVED_SIZE]
    letters, written = Estimate(no_value_reason=NOT_TESTED), Estimate(no_value_reason=NOT_TESTED)
    if last.has(size):
        is_size = last.cuts["size"].isin(size)
        letters = last.kept(LETTERS_CALIBRATED).mean_over(is_size).at_level(LEVEL)
        written = last.kept("written").mean_over(is_size).at_level(LEVEL)
    difference = (letters - written).at_level(LEVEL)
    if difference.no_value_reason:
        verdict = difference.no_value_reason
    elif letters.high < LEAST_KEPT or written.low > MOST_WRITTEN:
        verdict = CONTRADICTED
    elif letters.value >= LEAST_KEPT and written.value <= MOST_WRITTEN and difference.low > 0:
        verdict = SUPPORTED
    else:
        verdict = INCONCLUSIVE
    shared = {"model": model, "prompt": prompt, "verdict": verdict}
    yield shared | {"number": "1. calibrated letters kept", "limit": LEAST_KEPT} | letters.columns()
    yield shared | {"number": "1. writing kept", "limit": MOST_WRITTEN} | written.columns()


def _judge_tasks(model: str, of_model: dict) -> dict:
    """Prediction 2: the accuracy without the last n layers less that without the n before the last one."""
    gaps = []
    for form in ("words", "written"):
        means = []
        for rule in ("reverse", "simple"):
            answers = of_model.get((rule, "question"))
            means.append(answers.accuracy(form, LAST_SIZES) if answers else Estimate(no_value_reason=NOT_TESTED))
        gaps.append(means[0] - means[1])
    return _row(model, "2. T, the last layer by tasks", mean_of(gaps), LEAST_TASKS)


def collect_losses(scores: pd.DataFrame) -> dict[tuple[str, str], tuple[pd.DataFrame, np.ndarray]]:
    """The cuts and the losses of each sequence on C4, [C, I], by model and rule."""
    rows = scores.query("task == @LOSS and metric == 'loss' and limit == 128 and length == 256")
    found = {}
    for curve in find_measurements(rows[rows["rule"].isin([*PLACES, *MAPS])]):
        model, _, rule = curve.place
        found[model, rule] = curve.cuts, curve.outcomes
    return found


def _judge_loss(model: str, losses: dict) -> dict:
    """Prediction 3: the loss without the last n layers less that without the n before the last one."""
    means = []
    for rule in ("reverse", "simple"):
        cuts, outcomes = losses.get((model, rule), (pd.DataFrame({"size": []}), np.empty((0, 0))))
        if not {*LAST_SIZES} <= {*cuts["size"]}:
            means.append(Estimate(no_value_reason=NOT_TESTED))
            continue
        means.append(Estimate.of(resample(outcomes[cuts["size"].isin(LAST_SIZES)].mean(axis=0))))
    return _row(model, "3. U, the last layer by loss", means[0] - means[1], LEAST_LOSS)


def _judge_by_answer(model: str, of_model: dict) -> dict:
    """Prediction 4: k of writing English words less k of writing Spanish ones, by pairs."""
    name = "4. E, English less Spanish words"
    last = of_model.get(("reverse", "question"))
    if last is None or "written" not in last.forms or not last.has(ANSWER_SIZES):
        return _row(model, name, Estimate(no_value_reason=NOT_TESTED), LEAST_BY_ANSWER)
    english, spanish = pair_words(last.forms["written"])
    for outcomes in (english, spanish):
        if is_at_floor(outcomes[0], 0.0):
            return _row(model, name, shares_kept(outcomes, 0.0), LEAST_BY_ANSWER)
    is_size = last.cuts["size"].isin(ANSWER_SIZES)
    gap = shares_kept(english, 0.0) - shares_kept(spanish, 0.0)
    return _row(model, name, gap.mean_over(is_size), LEAST_BY_ANSWER)


def pair_words(outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of outcomes [C, I] of all items, those of English words and of Spanish ones, in the order of the same pairs."""
    places: dict[str, dict[tuple[str, str], int]] = {"spanish_to_english": {}, "english_to_spanish": {}}
    for place, item in enumerate(embedded.answers()):
        answer = item["choices"][item["answer"]]
        if item["relation"] == "spanish_to_english":
            places["spanish_to_english"][answer, item["subject"]] = place
        elif item["relation"] == "english_to_spanish":
            places["english_to_spanish"][item["subject"], answer] = place
    to_english, to_spanish = places.values()
    pairs = sorted(to_english.keys() & to_spanish.keys())
    return outcomes[:, [to_english[pair] for pair in pairs]], outcomes[:, [to_spanish[pair] for pair in pairs]]


def _judge_map(model: str, rule: str, of_model: dict, losses: dict) -> dict:
    """Prediction 5: the share of lost writing that a map returns, where it returns half of the lost loss."""
    name = f"5. R of writing, {MAPS[rule]} map"
    returned, of_loss = return_of_writing(rule, of_model), return_of_loss(model, rule, losses)
    row = _row(model, name, returned, LEAST_RETURNED)
    if returned.no_value_reason:
        verdict = returned.no_value_reason
    elif of_loss.no_value_reason or of_loss.value < LEAST_RETURNED:
        verdict = NOT_TESTED
    elif returned.high < LEAST_RETURNED:
        verdict = CONTRADICTED
    elif returned.value >= LEAST_RETURNED and returned.low > LEAST_LOW:
        verdict = SUPPORTED
    else:
        verdict = INCONCLUSIVE
    return row | {"verdict": verdict}


def return_of_writing(rule: str, of_model: dict, form: str = "written", prompt: str = "question") -> Estimate:
    """R of a form: the share of the lost accuracy that the map of a rule returns, over MAP_SIZES."""
    without, mapped = of_model.get(("reverse", prompt)), of_model.get((rule, prompt))
    if without is None or mapped is None or not (without.has(MAP_SIZES) and form in without.forms):
        return Estimate(no_value_reason=NOT_TESTED)
    if form not in mapped.forms or not {*MAP_SIZES} <= {*mapped.cuts["size"]}:
        return Estimate(no_value_reason=NOT_TESTED)
    if is_at_floor(without.forms[form][0], float(np.ravel(without.guessing[form])[0])):
        return Estimate(no_value_reason=shares_kept(without.forms[form], without.guessing[form]).no_value_reason)
    lost_to = without.forms[form][without.cuts["size"].isin(MAP_SIZES)].mean(axis=0)
    back_to = mapped.forms[form][mapped.cuts["size"].isin(MAP_SIZES)].mean(axis=0)
    return _share_returned(without.forms[form][0], lost_to, back_to)


def return_of_loss(model: str, rule: str, losses: dict) -> Estimate:
    """R of the loss on C4: the share of its gap that the map of a rule closes, over MAP_SIZES."""
    if (model, "reverse") not in losses or (model, rule) not in losses:
        return Estimate(no_value_reason=NOT_TESTED)
    means = []
    for cuts, outcomes in (losses[model, "reverse"], losses[model, rule]):
        if not {*MAP_SIZES} <= {*cuts["size"]}:
            return Estimate(no_value_reason=NOT_TESTED)
        means.append(outcomes[cuts["size"].isin(MAP_SIZES)].mean(axis=0))
    cuts, outcomes = losses[model, "reverse"]
    if cuts["size"].iloc[0] != 0:
        return Estimate(no_value_reason=NOT_TESTED)
    return _share_returned(outcomes[0], *means)


def _share_returned(whole: np.ndarray, without: np.ndarray, mapped: np.ndarray) -> Estimate:
    """(mapped - without) / (whole - without), of vectors [I] of the same items."""
    before, after, back = resample(np.stack([whole, without, mapped])).T
    gap = before - after
    return Estimate.of((back - after) / np.where(gap == 0, np.nan, gap))


def _row(model: str, number: str, estimate: Estimate, limit: float) -> dict:
    verdict = estimate.no_value_reason or (NOT_TESTED if math.isnan(estimate.value) else estimate.judge_beyond(limit))
    shared = {"model": model, "number": number, "prompt": "question", "limit": limit}
    return shared | estimate.columns() | {"verdict": verdict}
