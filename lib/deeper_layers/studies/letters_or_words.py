"""Letters or words? What middle and late blocks take of the same questions, asked by letter, in words and to write.

The criterion was written before the scan of every block: of the questions of a set, blocks of the middle third cost
letters at least LEAST more of what the whole model knows than words (D, middle), and blocks of the last third, without
the last layer, cost words at least as much more than letters (D, late). And whatever is told in words loses more by
late blocks than by middle ones (W). Nearest to it is 2605.07271, which finds a silent and a decisive phase of layers.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from deeper_layers.report.estimates import Estimate, correct_by_holm, resample, shares_kept
from deeper_layers.report.names import task_title
from deeper_layers.report.pairing import returns, select_best
from deeper_layers.report.statistics import SIZE, find_scans
from deeper_layers.studies.which_layers import maps

LEAST = 0.10  # of what a model knows: a smaller difference is none
FORMS = {
    "mmlu": "letters",
    "lettered_capitals": "letters",
    "boolq": "letters",
    "mmlu_continuation": "words",
    "capitals": "words",
    "sums_two_digits": "words",
    "written_facts": "written",
}
PAIRS = {"MMLU": ("mmlu", "mmlu_continuation"), "Capitals": ("lettered_capitals", "capitals")}  # letters, words
LOSSES = ("c4", "gsm8k_solutions")
MIDDLE, LATE = "middle", "late"
D, W = "D, letters less words", "W, middle less late"


def places_of(starts, layers: int, size: int = SIZE) -> np.ndarray:
    """Whether each block lies in the middle third, in the last one (without the last layer), or else: ""."""
    starts = np.asarray(starts, dtype=int)
    last = starts + size - 1
    is_middle = (3 * starts >= layers) & (3 * last < 2 * layers)
    return np.select([is_middle, (3 * starts >= 2 * layers) & (last < layers - 1)], [MIDDLE, LATE], "")


@returns("model task topic form place blocks items value low high untold")
def costs(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """Mean share kept by place ("middle", "late") of the blocks of a size; form is "letters", "words" or "written"."""
    for (model, task, place), (blocks, items, kept) in _kept(scores, size).items():
        about = {"model": model, "task": task, "topic": task_title(task), "form": FORMS[task], "place": place}
        yield about | {"blocks": blocks, "items": items} | kept.columns()


def _kept(scores: pd.DataFrame, size: int = SIZE) -> dict[tuple[str, str, str], tuple[int, int, Estimate]]:
    """By model, task and place the number of blocks, of items, and the mean share kept."""
    found = {}
    for one in find_scans(_by_words(scores), FORMS, size):
        places = places_of(one.cuts["start"].where(one.cuts["size"] > 0, -1), one.layers, size)
        shares = shares_kept(one.outcomes, one.guessing)
        for place in (MIDDLE, LATE) if {MIDDLE, LATE} <= set(places) else ():
            own = places == place
            kept = Estimate.combine(lambda numbers, own=own: numbers[:, own].mean(axis=1), shares)
            found[*one.place[:2], place] = own.sum(), one.outcomes.shape[1], kept
    return found


def _by_words(scores: pd.DataFrame) -> pd.DataFrame:
    """Without the scores of MMLU in words that do not count how long each choice is, as the criterion has it."""
    return scores.query("task != 'mmlu_continuation' or metric == 'acc_norm'")


def differences(scores: pd.DataFrame) -> pd.DataFrame:
    """The study's criterion: model, number ("D, letters less words" or "W, middle less late"), about, place, value with
    low and high, limit, verdict, p (of the number being 0, drawn) and p_holm (corrected over those of one number and
    model). Of losses W is that of late blocks less that of middle ones, nats a token."""
    table = _numbers(scores)
    told = table[table["p"].notna()].groupby(["model", "number"])["p"]
    return table.assign(p_holm=told.transform(correct_by_holm))


@returns("model number about place value low high limit verdict p")
def _numbers(scores: pd.DataFrame) -> Iterator[dict]:
    kept = {place: estimate for place, (*_, estimate) in _kept(scores).items()}
    for model in dict.fromkeys(model for model, *_ in kept):
        of = {key[1:]: estimate for key, estimate in kept.items() if key[0] == model}
        found = [
            (D, about, place, of[letters, place] - of[words, place], limit)
            for about, (letters, words) in PAIRS.items()
            for place, limit in ((MIDDLE, -LEAST), (LATE, LEAST))
            if {(letters, place), (words, place)} <= of.keys()
        ]
        told = [task for task, form in FORMS.items() if form == "words" and (task, LATE) in of]
        late = {task_title(task): of[task, MIDDLE] - of[task, LATE] for task in told} | _losses(scores, model)
        found += [(W, about, f"{MIDDLE}, {LATE}", estimate, 0.0) for about, estimate in late.items()]
        for number, about, place, estimate, limit in found:
            verdict = estimate.judge_beyond(limit) if limit else estimate.judge(floor=0.0)
            row = {"model": model, "number": number, "about": about, "place": place, "limit": limit, "verdict": verdict}
            yield row | {"p": estimate.p_value()} | estimate.columns()


def _losses(scores: pd.DataFrame, model: str) -> dict[str, Estimate]:
    found, every = {}, maps(scores)
    for task in LOSSES:
        losses = every.get((model, task), {}).get(SIZE, np.empty(0))
        places = places_of(np.arange(len(losses)), len(losses) + SIZE)
        if {MIDDLE, LATE} <= set(places):
            late, middle = (losses[places == name].mean(axis=0) for name in (LATE, MIDDLE))
            found[task_title(task)] = Estimate.of(resample(late - middle))
    return found


@returns("model task topic layers start middle commonest margin items")
def silent(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """2605.07271's two phases by block of a size: commonest (share of the choice that is given most often), margin
    (nats, right choice less the best other, mean)."""
    own = scores.query(f"rule == 'blocks of {size}' and size > 0").dropna(subset=["logprobs", "target"])
    for _, found in select_best(_by_words(own)).groupby(["model", "task", "start"]):
        model, task, start, layers = found[["model", "task", "start", "layers"]].iloc[0]
        chosen = np.concatenate(list(found["chosen"])).astype(int)
        margin = np.concatenate([_margin(*of) for of in zip(found["logprobs"], found["target"], strict=True)])
        row = {"model": model, "task": task, "topic": task_title(task), "layers": layers, "start": start}
        row |= {"middle": start + (size - 1) / 2, "commonest": np.bincount(chosen[chosen >= 0]).max() / len(chosen)}
        yield row | {"margin": float(np.mean(margin[np.isfinite(margin)])), "items": len(chosen)}


def _margin(logprobs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """By how many nats the right choice of each item leads the best other one, [I], of log-probabilities [I, K]."""
    is_right = np.arange(logprobs.shape[1]) == target[:, None]
    right, others = np.where(is_right, logprobs, np.nan), np.where(is_right, np.nan, logprobs)
    return np.nanmax(right, axis=1).astype(float) - np.nanmax(others, axis=1)
