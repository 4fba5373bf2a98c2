"""Letters or words? What middle and late blocks take of the same questions, asked by letter, in words and to write.

What was to decide it was registered before any block was scanned: studies/registered/letters_or_words.md, shown by
`criteria.read_criterion`. `judge_as_registered` judges by that text alone, for ever. `judge_now` judges the same
numbers as we would today, and stands beside: words are guessed at the better of chance and the best constant answer,
intervals have 95%, and five words say what follows.

Three numbers: D, what blocks leave of letters less what they leave of words, by place; W, what middle blocks leave less
what late ones leave; C, letters less words of MMLU over 1 to 8 dropped layers, by the paper's two rules. Nearest to it
is 2605.07271, which finds a silent and a decisive phase of layers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from deeper_layers_companion.report.estimates import (
    AT_FLOOR,
    NOT_TESTED,
    Estimate,
    resample,
    shares_kept,
)
from deeper_layers_companion.report.names import task_title
from deeper_layers_companion.report.pairing import (
    PLACE,
    PROMPT,
    Measurement,
    find_measurements,
    returns,
    select_best,
)
from deeper_layers_companion.report.statistics import RULES, SIZE, find_scans
from deeper_layers_companion.studies.which_layers import collect_maps

HALF = 0.5  # of what the whole model knows
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
PAIRS = {
    "MMLU": ("mmlu", "mmlu_continuation"),
    "Capitals": ("lettered_capitals", "capitals"),
}  # letters, words
LOSSES = ("c4", "gsm8k_solutions")
# what the page of both studies asks
ASKED = ("mmlu", "mmlu_continuation", "lettered_capitals", "capitals", "written_facts")
ASKED += ("facts_by_letter", "facts_in_words", "facts_written")
MIDDLE = "middle"
LATE = "late"
D = "D, letters less words"
W = "W, middle less late"
C = "C, letters less words"
SIZES_OF_C = range(1, 9)
QUESTIONS_OF_C = 20  # the first ones of each subject
# the first layers of the two blocks that were measured before; the statistics are also given without them
KNOWN_BLOCKS = {"Qwen2.5-Coder-1.5B-Instruct": (13, 23)}
# the words of the registered verdicts
CONFIRMED = "confirmed"
REFUTED = "refuted"
OPEN = "open"
HOLDS = "holds"
FAILS = "fails"
LETTERS = "letters"
KNOWLEDGE = "knowledge"


class Number(NamedTuple):
    """One number of the criterion, with its 95% interval and its draws."""

    model: str
    number: str  # D, W or C
    about: str  # the questions, the text, or for C the rule
    place: str
    limit: float  # the least size that counts, with the sign that was expected; 0 for W
    estimate: Estimate


class BlockShares(NamedTuple):
    """What every block of one size leaves of one task."""

    starts: np.ndarray  # of the cuts, [C]; -1 for the whole model
    layers: int
    items: int
    kept: Estimate  # [C]

    def mean_in(self, place: str, size: int = SIZE, without: tuple[int, ...] = ()) -> Estimate:
        """The mean share kept by the blocks of a place, but those with the first layers `without`."""
        is_in_place = classify_places(self.starts, self.layers, size) == place
        return self.kept.mean_over(is_in_place & ~np.isin(self.starts, without))


def classify_places(starts, layers: int, size: int = SIZE) -> np.ndarray:
    """The place of each block: "middle" or "late", if it lies in that third (late without the last layer), else ""."""
    starts = np.asarray(starts, dtype=int)
    last = starts + size - 1
    is_middle = (3 * starts >= layers) & (3 * last < 2 * layers)
    return np.select(
        [is_middle, (3 * starts >= 2 * layers) & (last < layers - 1)], [MIDDLE, LATE], ""
    )


@returns("model task topic form place blocks items value low high no_value_reason")
def costs(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """The mean share kept by place ("middle", "late") of blocks of a size; form is "letters", "words" or "written"."""
    for (model, task), shares in _find_block_shares(scores, size).items():
        shared = {
            "model": model,
            "task": task,
            "topic": task_title(task),
            "form": FORMS[task],
            "items": shares.items,
        }
        places = classify_places(shares.starts, shares.layers, size)
        for place in (MIDDLE, LATE):
            row = {"place": place, "blocks": int((places == place).sum())}
            yield shared | row | shares.mean_in(place, size).columns()


def _find_block_shares(
    scores: pd.DataFrame, size: int = SIZE, *, as_registered: bool = False
) -> dict[tuple[str, str], BlockShares]:
    """The shares kept by every block of a size, by model and task, where there are blocks of both places."""
    shares_by_task = {}
    for scan in find_scans(drop_unnormalized(scores), FORMS, size):
        starts = scan.cuts["start"].where(scan.cuts["size"] > 0, -1).to_numpy(dtype=int)
        if {MIDDLE, LATE} <= {*classify_places(starts, scan.layers, size)}:
            kept = shares_kept(scan.outcomes, _find_guessing(scan, as_registered))
            shares_by_task[scan.place[:2]] = BlockShares(
                starts, scan.layers, scan.outcomes.shape[1], kept
            )
    return shares_by_task


def _find_guessing(curve: Measurement, as_registered: bool) -> float:
    """The score of guessing: the better of chance and the best constant answer, but as registered chance for words."""
    is_chance = as_registered and FORMS[curve.place[1]] == "words"
    return float(curve.rows["chance"].max()) if is_chance else curve.guessing


def drop_unnormalized(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows without scores of MMLU in words that are not normalized by length, as the criterion demands."""
    return scores.query("task != 'mmlu_continuation' or metric == 'acc_norm'")


# ---- the numbers ----------------------------------------------------------------------------------------------------


def find_numbers(
    scores: pd.DataFrame, *, as_registered: bool = False, without_known: bool = False
) -> Iterator[Number]:
    """The numbers of the criterion. For losses W is the loss of late blocks minus that of middle ones, nats a token."""
    shares = _find_block_shares(scores, as_registered=as_registered)
    maps = collect_maps(scores)
    for model in dict.fromkeys(model for model, _ in shares):
        without = KNOWN_BLOCKS.get(model, ()) if without_known else ()
        of_model = {task: own for (name, task), own in shares.items() if name == model}
        for about, (letters, words) in PAIRS.items():
            if {letters, words} <= of_model.keys():
                for place, limit in ((MIDDLE, -LEAST), (LATE, LEAST)):
                    kept = of_model[letters].mean_in(place, without=without)
                    difference = kept - of_model[words].mean_in(place, without=without)
                    yield Number(model, D, about, place, limit, difference)
        for task in [task for task in of_model if FORMS[task] == "words"]:
            gap = of_model[task].mean_in(MIDDLE, without=without) - of_model[task].mean_in(
                LATE, without=without
            )
            yield Number(model, W, task_title(task), f"{MIDDLE}, {LATE}", 0.0, gap)
        for text in LOSSES:
            losses = maps.get((model, text), {}).get(SIZE, np.empty(0))
            gap = _compare_losses(losses, without)
            if gap is not None:
                yield Number(model, W, task_title(text), f"{MIDDLE}, {LATE}", 0.0, gap)
    yield from _find_c(scores, as_registered)


def keep_latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of what was measured several times only the latest measurement, which then counts: repeat is 0."""
    same = [*PLACE, *PROMPT, "subject", "metric", "cut", "healing", "bits", "changed"]
    latest = rows.sort_values("measured", kind="stable").drop_duplicates(same, keep="last")
    return latest.sort_index().assign(repeat=0)


def _compare_losses(losses: np.ndarray, without: tuple[int, ...]) -> Estimate | None:
    """The mean loss without late blocks minus that without middle ones, from the losses of all blocks, [B, S]."""
    starts = np.arange(len(losses))
    places = np.where(np.isin(starts, without), "", classify_places(starts, len(losses) + SIZE))
    if not {MIDDLE, LATE} <= {*places}:
        return None
    return Estimate.of(
        resample(losses[places == LATE].mean(axis=0) - losses[places == MIDDLE].mean(axis=0))
    )


def _find_c(scores: pd.DataFrame, as_registered: bool) -> Iterator[Number]:
    """C by model and rule: what is kept of MMLU's letters less what is kept of its words, mean over sizes.

    Of Qwen's letters an earlier measurement was known when C was registered; the one made for it counts, which is the
    latest.
    """
    letters, words = PAIRS["MMLU"]
    names = {"tasks": (letters, words), "questions": QUESTIONS_OF_C, "rules": RULES}
    rows = scores.query(
        "task in @tasks and rule in @rules and limit == @questions", local_dict=names
    )
    rows = keep_latest(drop_unnormalized(rows[rows["size"].isin((0, *SIZES_OF_C))]))
    curves = {curve.place: curve for curve in find_measurements(rows, all_scores=scores)}
    for (model, task, rule), of_words in curves.items():
        of_letters = curves.get((model, letters, rule)) if task == words else None
        if of_letters is not None and len(of_letters.cuts) == len(of_words.cuts) == 1 + len(
            SIZES_OF_C
        ):
            kept = [
                shares_kept(one.outcomes, _find_guessing(one, as_registered))
                for one in (of_letters, of_words)
            ]
            means = [one.mean_over(of_words.cuts["size"] > 0) for one in kept]
            yield Number(model, C, rule, "1 to 8 layers", -LEAST, means[0] - means[1])


# ---- the verdicts ---------------------------------------------------------------------------------------------------


@returns("model number about place value low high limit verdict")
def judge_now(scores: pd.DataFrame) -> Iterator[dict]:
    """The numbers judged as we would judge them now: 95%, the better guess for words too, one verdict a number."""
    for number in find_numbers(scores):
        estimate = number.estimate
        limit = number.limit
        verdict = estimate.judge_beyond(limit) if limit else estimate.judge(floor=0.0)
        yield number._asdict() | estimate.columns() | {"verdict": verdict}


@returns("model number about place level value low high limit verdict")
def judge_as_registered(scores: pd.DataFrame, *, without_known: bool = False) -> Iterator[dict]:
    """The numbers judged by the registered text: level is that of the interval, by Bonferroni; verdict is that of the
    number's questions (D: confirmed, refuted, open), of its rule (C: letters, knowledge, open) or of all numbers of the
    model (W: holds, fails, open); "at floor" where the whole model cannot show it."""
    numbers = list(find_numbers(scores, as_registered=True, without_known=without_known))
    level_of_d = _correct_level([one for one in numbers if one.number == D])
    for model in dict.fromkeys(one.model for one in numbers):
        of_model = [one for one in numbers if one.model == model]
        level_of_w = _correct_level([one for one in of_model if one.number == W])
        levels = {D: level_of_d, W: level_of_w, C: 1 - 0.05 / len(RULES)}
        judged = [
            one._replace(estimate=one.estimate.at_level(levels[one.number])) for one in of_model
        ]
        for one in judged:
            row = one._asdict() | one.estimate.columns() | {"level": levels[one.number]}
            yield row | {
                "verdict": one.estimate.no_value_reason or _find_registered_verdict(one, judged)
            }


def _correct_level(numbers: list[Number]) -> float:
    """The level of each interval with which all that can be told hold together with 95%."""
    return 1 - 0.05 / max(1, sum(not one.estimate.no_value_reason for one in numbers))


def _find_registered_verdict(number: Number, of_model: list[Number]) -> str:
    """The verdict on one number, from the numbers of its model that are judged together with it."""
    if number.number == D:
        same = [one for one in of_model if one.number == D and one.about == number.about]
        by_place = {one.place: one.estimate for one in same}
        return _judge_d(by_place[MIDDLE], by_place[LATE])
    if number.number == C:
        return _judge_c(number.estimate)
    return _judge_w(
        [one.estimate for one in of_model if one.number == W and not one.estimate.no_value_reason]
    )


def _judge_d(middle: Estimate, late: Estimate) -> str:
    is_expected = middle.high < 0 < late.low and middle.value <= -LEAST and late.value >= LEAST
    if is_expected:
        return CONFIRMED
    return REFUTED if middle.low > -LEAST or late.high < LEAST else OPEN


def _judge_w(gaps: list[Estimate]) -> str:
    if all(gap.low > 0 for gap in gaps):
        return HOLDS
    return FAILS if any(gap.high < 0 for gap in gaps) else OPEN


def _judge_c(estimate: Estimate) -> str:
    if estimate.high < 0 and estimate.value <= -LEAST:
        return LETTERS
    return KNOWLEDGE if estimate.low > -LEAST else OPEN


@returns("model verdict sets")
def judge_models(judged: pd.DataFrame) -> Iterator[dict]:
    """The registered verdict on each model, from `judge_as_registered`: confirmed where all sets of questions that can
    show it are, refuted where one is, else open; "not tested" if no set can show it. sets counts those that can."""
    for model, rows in judged[judged["number"] == D].groupby("model", sort=False):
        shown = rows[rows["verdict"] != AT_FLOOR]
        verdicts = {*shown["verdict"]}
        if not verdicts:
            verdict = NOT_TESTED
        elif REFUTED in verdicts:
            verdict = REFUTED
        else:
            verdict = CONFIRMED if verdicts == {CONFIRMED} else OPEN
        yield {"model": model, "verdict": verdict, "sets": shown["about"].nunique()}


def compare_judgements(scores: pd.DataFrame) -> pd.DataFrame:
    """The numbers by the registered rule and by today's, side by side: model, number, about, place; registered with its
    interval, level and registered_verdict; without_known (without the two blocks known before) with its interval and
    without_known_verdict; now with its interval and now_verdict."""
    key = ["model", "number", "about", "place"]
    sides = {
        "registered": judge_as_registered(scores),
        "without_known": judge_as_registered(scores, without_known=True).drop(columns="level"),
        "now": judge_now(scores),
    }
    table = sides["registered"][key]
    for name, judged in sides.items():
        heads = {
            "value": name,
            "low": f"{name}_low",
            "high": f"{name}_high",
            "verdict": f"{name}_verdict",
        }
        table = table.merge(judged.drop(columns="limit").rename(columns=heads), on=key, how="left")
    return table


# ---- beside the verdicts, deciding nothing --------------------------------------------------------------------------


@returns("model task topic layers start size middle commonest margin items")
def silent(scores: pd.DataFrame, size: int = SIZE) -> Iterator[dict]:
    """The two phases of arXiv 2605.07271 by block of `size` layers: commonest (share of the choice that is given most
    often), margin (log-probability of the right choice minus that of the best other, nats, mean)."""
    scans = scores.query(f"rule == 'blocks of {size}' and size > 0").dropna(
        subset=["logprobs", "target"]
    )
    for _, rows in select_best(drop_unnormalized(scans)).groupby(["model", "task", "start"]):
        row = rows.iloc[0].to_dict()
        chosen = np.concatenate(list(rows["chosen"])).astype(int)
        margins = []
        for logprobs, target in zip(rows["logprobs"], rows["target"]):  # [I, K], [I]
            is_right = np.arange(logprobs.shape[1]) == target[:, None]
            right = np.where(is_right, logprobs, np.nan)
            others = np.where(is_right, np.nan, logprobs)
            margins.append(np.nanmax(right, axis=1).astype(float) - np.nanmax(others, axis=1))
        margin = np.concatenate(margins)
        row |= {
            "topic": task_title(row["task"]),
            "items": len(chosen),
            "middle": row["start"] + (size - 1) / 2,
        }
        row |= {"commonest": np.bincount(chosen[chosen >= 0]).max() / len(chosen)}
        yield row | {"margin": float(np.mean(margin[np.isfinite(margin)]))}
