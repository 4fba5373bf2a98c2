"""Letters or words? What middle and late blocks take of the same questions, asked by letter, in words and to write.

The criterion was written before the scan of every block: of the questions of a set, blocks of the middle third cost
letters at least LEAST more of what the whole model knows than words (D, middle), and blocks of the last third, without
the last layer, cost words at least as much more than letters (D, late). And whatever is told in words loses more by
late blocks than by middle ones (W). Nearest to it is 2605.07271, which finds a silent and a decisive phase of layers.
"""

import numpy as np
import pandas as pd

from deeper_layers.report import estimates, statistics
from deeper_layers.report.estimates import Estimate, difference, mean_of, shares_kept
from deeper_layers.report.names import topic
from deeper_layers.report.statistics import CONTRADICTED, INCONCLUSIVE, SUPPORTED, interval

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


def place_of(start: int, layers: int, size: int) -> str:
    """Whether a block lies in the middle third, in the last one (without the last layer), or else: ""."""
    last = start + size - 1
    if 3 * start >= layers and 3 * last < 2 * layers:
        return MIDDLE
    return LATE if 3 * start >= 2 * layers and last < layers - 1 else ""


def costs(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """Mean share kept by place: model, task, topic, form ("letters", "words", "written"), place ("middle", "late"),
    blocks, items, value with low and high, untold."""
    rows = []
    for (model, task), of_place in _kept(scores, size).items():
        for place, (estimate, blocks, items) in of_place.items():
            row = {"model": model, "task": task, "topic": topic(task), "form": FORMS[task], "place": place}
            rows.append(row | {"blocks": blocks, "items": items} | interval(estimate) | {"untold": estimate.untold})
    names = ["model", "task", "topic", "form", "place", "blocks", "items", "value", "low", "high", "untold"]
    return pd.DataFrame(rows, columns=names)


def differences(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """The study's criterion: model, number ("D, letters less words" or "W, middle less late"), about, place, value with
    low and high, limit, verdict. Of losses W is that of late blocks less that of middle ones, nats a token."""
    rows, kept = [], _kept(scores, size)
    for model in dict.fromkeys(model for model, _ in kept):
        for about, (letters, words) in PAIRS.items():
            for place, limit in ((MIDDLE, -LEAST), (LATE, LEAST)):
                if (model, letters) not in kept or (model, words) not in kept:
                    continue
                estimate = _less(kept[model, letters][place][0], kept[model, words][place][0])
                row = {"model": model, "number": "D, letters less words", "about": about, "place": place}
                rows.append(row | interval(estimate) | {"limit": limit, "verdict": _verdict(estimate, limit)})
        told = [(topic(task), kept[model, task]) for task in FORMS if FORMS[task] == "words" and (model, task) in kept]
        late = {about: _less(of[MIDDLE][0], of[LATE][0]) for about, of in told} | _losses(scores, model, size)
        for about, estimate in late.items():
            row = {"model": model, "number": "W, middle less late", "about": about, "place": f"{MIDDLE}, {LATE}"}
            rows.append(row | interval(estimate) | {"limit": 0.0, "verdict": estimate.against(floor=0.0)})
    return pd.DataFrame(rows, columns=["model", "number", "about", "place", "value", "low", "high", "limit", "verdict"])


def silent(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """2605.07271's two phases by block: model, task, topic, layers, start, middle, commonest (share of the choice that
    is given most often), margin (nats, right choice less the best other, mean), items."""
    own = _by_words(scores)
    own = own[
        (own["rule"] == f"blocks of {size}") & own["logprobs"].notna() & own["target"].notna() & (own["size"] > 0)
    ]
    own = estimates.best_measured(own) if len(own) else own
    rows = []
    for _, found in own.groupby(["model", "task", "start"], sort=False):
        model, task, start = (found[name].iloc[0] for name in ("model", "task", "start"))
        chosen, target = (np.concatenate(list(found[name])).astype(int) for name in ("chosen", "target"))
        width = max(one.shape[1] for one in found["logprobs"])
        table = [np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=np.nan) for one in found["logprobs"]]
        logprobs = np.concatenate(table).astype(float)
        right = logprobs[np.arange(len(target)), target]
        logprobs[np.arange(len(target)), target] = np.nan
        margin = right - np.nanmax(logprobs, axis=1)
        row = {"model": model, "task": task, "topic": topic(task), "layers": found["layers"].iloc[0], "start": start}
        row |= {"middle": start + (size - 1) / 2, "commonest": np.bincount(chosen[chosen >= 0]).max() / len(chosen)}
        rows.append(row | {"margin": float(np.mean(margin[np.isfinite(margin)])), "items": len(target)})
    names = ["model", "task", "topic", "layers", "start", "middle", "commonest", "margin", "items"]
    return pd.DataFrame(rows, columns=names).sort_values(["model", "task", "start"], ignore_index=True)


def _by_words(scores: pd.DataFrame) -> pd.DataFrame:
    """Without the scores of MMLU in words that do not count how long each choice is, as the criterion has it."""
    return scores[(scores["task"] != "mmlu_continuation") | (scores["metric"] == "acc_norm")]


def _kept(scores: pd.DataFrame, size: int) -> dict[tuple[str, str], dict[str, tuple[Estimate, int, int]]]:
    """Of each model and task the mean share that blocks of each place keep, how many blocks they are, and items."""
    found = {}
    for place, cuts, right, guessing in statistics.blocks_scored(_by_words(scores), size, list(FORMS)):
        shares = shares_kept(right, guessing)
        places = [
            place_of(int(start), place["layers"], size) if n else "" for start, n in zip(cuts["start"], cuts["size"])
        ]
        of = {name: [share for share, own in zip(shares, places) if own == name] for name in (MIDDLE, LATE)}
        if all(of.values()):
            found[place["model"], place["task"]] = {
                name: (mean_of(own), len(own), right.shape[1]) for name, own in of.items()
            }
    return found


def _losses(scores: pd.DataFrame, model: str, size: int) -> dict[str, Estimate]:
    found = {}
    for (of_model, task), every in statistics.maps(scores).items():
        if of_model == model and task in LOSSES and size in every:
            starts, losses = every[size]
            layers = starts[-1] + size + 1
            places = np.array([place_of(start, layers, size) for start in starts])
            late, middle = (losses[places == name] for name in (LATE, MIDDLE))
            if len(late) and len(middle):
                found[topic(task)] = difference(late.mean(axis=0), middle.mean(axis=0))
    return found


def _less(one: Estimate, other: Estimate) -> Estimate:
    untold = one.untold or other.untold
    return Estimate.none(untold) if untold else Estimate.of(one.value - other.value, one.draws - other.draws)


def _verdict(estimate: Estimate, limit: float) -> str:
    """Supported where the number lies beyond the limit and its interval beyond 0, contradicted where all of that falls
    short of the limit."""
    if estimate.untold:
        return estimate.untold
    sign = np.sign(limit)
    value, ends = sign * estimate.value, sorted((sign * estimate.low, sign * estimate.high))
    if ends[1] < abs(limit):
        return CONTRADICTED
    return SUPPORTED if ends[0] > 0 and value >= abs(limit) else INCONCLUSIVE
