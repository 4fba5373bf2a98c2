"""Letters or words? What middle and late blocks take of the same questions, asked by letter, in words and to write.

The criterion was written before the scan of every block: of the questions of a set, blocks of the middle third cost
letters at least LEAST more of what the whole model knows than words (D, middle), and blocks of the last third, without
the last layer, cost words at least as much more than letters (D, late). And whatever is told in words loses more by
late blocks than by middle ones (W). Nearest to it is 2605.07271, which finds a silent and a decisive phase of layers.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from deeper_layers.report.estimates import Estimate, resample, shares_kept
from deeper_layers.report.names import task_title
from deeper_layers.report.pairing import make_table, returns, select_best
from deeper_layers.report.statistics import SIZE, find_scans
from deeper_layers.studies.which_layers import collect_maps

LEAST = 0.10  # the least difference that counts, as a share of what a model knows
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


def classify_places(starts, layers: int, size: int = SIZE) -> np.ndarray:
    """The place of each block: "middle" or "late", if it lies in that third (late without the last layer), else ""."""
    starts = np.asarray(starts, dtype=int)
    last = starts + size - 1
    is_middle = (3 * starts >= layers) & (3 * last < 2 * layers)
    return np.select([is_middle, (3 * starts >= 2 * layers) & (last < layers - 1)], [MIDDLE, LATE], "")


@returns("model task topic form place blocks items value low high untold")
def costs(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """The mean share kept by place ("middle", "late") of blocks of a size; form is "letters", "words" or "written"."""
    for (model, task, place), (blocks, items, kept) in _average_kept(scores, size).items():
        shared = {"model": model, "task": task, "topic": task_title(task), "form": FORMS[task], "place": place}
        yield shared | {"blocks": blocks, "items": items} | kept.columns()


def _average_kept(scores: pd.DataFrame, size: int = SIZE) -> dict[tuple[str, str, str], tuple[int, int, Estimate]]:
    """The number of blocks, the number of items and the mean share kept, by model, task and place."""
    kept_by_place = {}
    for scan in find_scans(_drop_unnormalized(scores), FORMS, size):
        places = classify_places(scan.cuts["start"].where(scan.cuts["size"] > 0, -1), scan.layers, size)
        shares = shares_kept(scan.outcomes, scan.guessing)
        for place in (MIDDLE, LATE) if {MIDDLE, LATE} <= set(places) else ():
            in_place = places == place
            counts = int(in_place.sum()), scan.outcomes.shape[1]
            kept_by_place[*scan.place[:2], place] = *counts, shares.mean_over(in_place)
    return kept_by_place


def _drop_unnormalized(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows without scores of MMLU in words that are not normalized by length, as the criterion demands."""
    return scores.query("task != 'mmlu_continuation' or metric == 'acc_norm'")


def differences(scores: pd.DataFrame) -> pd.DataFrame:
    """The numbers of the criterion: model, number ("D, letters less words" or "W, middle less late"), about, place,
    value with low and high, limit and verdict. For losses W is the loss of late blocks minus that of middle ones, nats
    a token."""
    rows, all_kept, maps = [], _average_kept(scores), collect_maps(scores)
    for model in dict.fromkeys(model for model, *_ in all_kept):
        kept = {key[1:]: estimate for key, (*_, estimate) in all_kept.items() if key[0] == model}
        numbers = [
            (D, about, place, kept[letters, place] - kept[words, place], limit)
            for about, (letters, words) in PAIRS.items()
            for place, limit in ((MIDDLE, -LEAST), (LATE, LEAST))
            if {(letters, place), (words, place)} <= kept.keys()
        ]
        tasks = [task for task, form in FORMS.items() if form == "words" and (task, LATE) in kept]
        gaps = {task: kept[task, MIDDLE] - kept[task, LATE] for task in tasks}
        for task in LOSSES:
            losses = maps.get((model, task), {}).get(SIZE, np.empty(0))
            places = classify_places(np.arange(len(losses)), len(losses) + SIZE)
            if {MIDDLE, LATE} <= set(places):
                late, middle = (losses[places == place].mean(axis=0) for place in (LATE, MIDDLE))
                gaps[task] = Estimate.of(resample(late - middle))
        numbers += [(W, task_title(task), f"{MIDDLE}, {LATE}", gap, 0.0) for task, gap in gaps.items()]
        for number, about, place, estimate, limit in numbers:
            verdict = estimate.judge_beyond(limit) if limit else estimate.judge(floor=0.0)
            row = {"model": model, "number": number, "about": about, "place": place, "limit": limit, "verdict": verdict}
            rows.append(row | estimate.columns())
    return make_table("model number about place value low high limit verdict".split(), rows)


@returns("model task topic layers start size middle commonest margin items")
def silent(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """The two phases of arXiv 2605.07271 by block of `size` layers: commonest (share of the choice that is given most
    often), margin (log-probability of the right choice minus that of the best other, nats, mean)."""
    scans = scores.query(f"rule == 'blocks of {size}' and size > 0").dropna(subset=["logprobs", "target"])
    for _, rows in select_best(_drop_unnormalized(scans)).groupby(["model", "task", "start"]):
        row, chosen, margins = rows.iloc[0].to_dict(), np.concatenate(list(rows["chosen"])).astype(int), []
        for logprobs, target in zip(rows["logprobs"], rows["target"]):  # [I, K], [I]
            is_right = np.arange(logprobs.shape[1]) == target[:, None]
            right, others = np.where(is_right, logprobs, np.nan), np.where(is_right, np.nan, logprobs)
            margins.append(np.nanmax(right, axis=1).astype(float) - np.nanmax(others, axis=1))
        margin = np.concatenate(margins)
        row |= {"topic": task_title(row["task"]), "items": len(chosen), "middle": row["start"] + (size - 1) / 2}
        row |= {"commonest": np.bincount(chosen[chosen >= 0]).max() / len(chosen)}
        yield row | {"margin": float(np.mean(margin[np.isfinite(margin)]))}
