"""What stored answers hold that no criterion asked for. All of it was seen after the data, and tests nothing.

Three questions: what is chosen once each option's own bias is taken off (report/calibration.py), what it costs to drop
the last layer or to keep it, and which kinds of answers go first.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from deeper_layers.data import embedded
from deeper_layers_companion.report.calibration import (
    calibrate,
    estimate_option_bias,
    pair_logprobs,
    score_options,
)
from deeper_layers_companion.report.estimates import are_shares, differ, estimate_mean
from deeper_layers_companion.report.names import task_title
from deeper_layers_companion.report.pairing import (
    Measurement,
    Vectors,
    add_runs,
    align,
    find_measurements,
    get_outcomes,
    is_map_row,
    pick_metric,
    returns,
)
from deeper_layers_companion.report.statistics import sort_by_model
from deeper_layers_companion.studies.last_layers import FORM_OF, PLACE_NAMES, PLACES
from deeper_layers_companion.studies.letters_or_words import drop_unnormalized, keep_latest

LETTERED = (
    "mmlu",
    "embedded_mmlu",
    "lettered_capitals",
    "facts_by_letter",
    "facts_by_letter_stated",
)
# tasks whose choices were also scored without the question
UNASKED = dict.fromkeys(("facts_in_words", "facts_in_words_stated"), "facts_in_words_unasked")
QUESTIONS = ("facts_by_letter", "facts_in_words", "facts_written")  # the facts, asked as questions
LARGEST = 8  # the largest size at which the last layer is dropped or kept


# ---- choices without each option's bias -----------------------------------------------------------------------------


def find_calibrated(scores: pd.DataFrame) -> Iterator[tuple[Measurement, np.ndarray]]:
    """Yield each measurement whose choices can be calibrated, and its calibrated outcomes, [C, I].

    Of letters each one's mean log-probability over the items is taken off, of words the log-probability of the same
    words without the question, under the same cut. Intervals hold a bias fixed: drawn anew with the items, it moves
    their ends by less than 0.01.
    """
    tasks = [*LETTERED, *UNASKED, *UNASKED.values()]
    rows = scores[scores["task"].isin(tasks) & scores["rule"].notna()].dropna(
        subset=["logprobs", "target"]
    )
    rows = keep_latest(rows)  # an earlier measurement may have no log-probabilities
    curves = {curve.place: curve for curve in find_measurements(rows, all_scores=scores)}
    for (model, task, rule), curve in curves.items():
        logprobs, target = pair_logprobs(curve.rows)
        if task in LETTERED:
            yield curve, score_options(calibrate(logprobs, estimate_option_bias(logprobs)), target)
        unasked = curves.get((model, UNASKED.get(task), rule))
        if unasked is not None and unasked.cuts["cut"].equals(curve.cuts["cut"]):
            yield curve, score_options(calibrate(logprobs, pair_logprobs(unasked.rows)[0]), target)


@returns(
    "model task topic rule layers cut start size items guessing chosen chosen_low chosen_high value low high"
)
def calibrate_choices(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The accuracy of every cut whose log-probabilities are stored: as chosen (chosen), and calibrated (value)."""
    for curve, calibrated in find_calibrated(scores):
        chosen = estimate_mean(curve.outcomes).columns("chosen")
        yield curve.cuts.assign(**chosen | estimate_mean(calibrated).columns())


# ---- facts, by form and by kind of answer ---------------------------------------------------------------------------


@returns("model layers asked answer place size items value low high")
def score_facts(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The accuracy on the facts asked as questions, by size: asked is "letters", "words" or "written", or "letters,
    calibrated" or "words, calibrated"; answer is a kind of answer, such as "author", or "" for all of them."""
    kinds = list_answer_kinds()
    for curve, asked, outcomes in _find_forms(scores):
        if outcomes.shape[1] != len(kinds):
            continue  # only some of the facts were asked
        for answer in ("", *embedded.RELATIONS):
            is_of_kind = kinds == answer if answer else np.full(len(kinds), True)
            cells = {"asked": asked, "answer": answer, "items": int(is_of_kind.sum())}
            cells["place"] = PLACE_NAMES[PLACES[curve.place[2]]]
            yield curve.cuts.assign(**cells | estimate_mean(outcomes[:, is_of_kind]).columns())


def _find_forms(scores: pd.DataFrame) -> Iterator[tuple[Measurement, str, np.ndarray]]:
    """Yield the measurements of the facts asked as questions, how each is scored, and the outcomes, [C, I]."""
    rows = scores[scores["rule"].isin(list(PLACES))]
    for curve in find_measurements(rows[rows["task"].isin(QUESTIONS)], all_scores=scores):
        yield curve, FORM_OF[curve.place[1]], curve.outcomes
    for curve, outcomes in find_calibrated(rows):
        if curve.place[1] in QUESTIONS:
            yield curve, f"{FORM_OF[curve.place[1]]}, calibrated", outcomes


def list_answer_kinds() -> np.ndarray:
    """The kind of answer of each of the 295 facts, in the order in which they are asked, [I]."""
    return np.array([_find_kind(item["question"]) for item in embedded.facts()])


def _find_kind(question: str) -> str:
    forms = embedded.RELATIONS.items()
    return next(
        relation for relation, form in forms if question.startswith(form.partition("{}")[0])
    )


# ---- the last layer -------------------------------------------------------------------------------------------------


def compare_last_layer(scores: pd.DataFrame) -> pd.DataFrame:
    """The last n layers dropped against the n before the last, on the same items: model, task, topic, metric, size (n),
    items, last_dropped and last_kept (the two scores), value with low and high, better.

    value is the score (or the loss, nats a token) without the last n layers minus that without the n before the last;
    better says with which of the two cuts the model surely scores better: last layer "dropped", "kept", or "".
    """
    table = _compare_last_layer(scores).sort_values("items", ascending=False, kind="stable")
    return sort_by_model(
        table.drop_duplicates(["model", "task", "metric", "size"]), sorted(table["task"].unique())
    )


@returns("model task topic metric size start items last_dropped last_kept value low high better")
def _compare_last_layer(scores: pd.DataFrame) -> Iterator[dict]:
    is_plain = (
        scores["healing"].isna()
        & scores["bits"].isna()
        & scores["changed"].isna()
        & (scores["repeat"] == 0)
    )
    is_asked = ~scores["task"].str.endswith("_unasked")
    rows = pick_metric(drop_unnormalized(scores[is_plain & is_asked & (scores["size"] <= LARGEST)]))
    is_map = is_map_row(rows)
    rows = add_runs(
        pd.concat([rows[is_map], rows[~is_map]])
    )  # maps first: one file of them has both cuts
    for _, run_rows in rows.groupby("run", sort=False):
        outcomes = get_outcomes(run_rows)
        first = run_rows.iloc[0]
        shared = {name: first[name] for name in ("model", "task", "metric")} | {
            "topic": task_title(first["task"])
        }
        for size in range(1, LARGEST + 1):
            start = int(first["layers"]) - size
            cuts = f"{start},{size}", f"{start - 1},{size}"
            if outcomes.keys() >= {*cuts}:
                fewest = min((outcomes[cut] for cut in cuts), key=_count_items)
                pair = align(outcomes, cuts, fewest)
                if pair:
                    yield shared | {"size": size, "start": start} | _compare_pair(*pair)


def _count_items(vectors: Vectors) -> int:
    return sum(len(vector) for vector in vectors.values())


def _compare_pair(last_dropped: np.ndarray, last_kept: np.ndarray) -> dict:
    difference = differ(last_dropped, last_kept)
    is_loss = not are_shares(np.stack([last_dropped, last_kept]))
    higher, lower = ("kept", "dropped") if is_loss else ("dropped", "kept")
    better = ""
    if difference.low > 0:
        better = higher
    elif difference.high < 0:
        better = lower
    means = {
        "last_dropped": last_dropped.mean(),
        "last_kept": last_kept.mean(),
        "items": len(last_kept),
    }
    return means | difference.columns() | {"better": better}


@returns("model size tasks dropped kept texts texts_dropped texts_kept")
def count_better(compared: pd.DataFrame) -> Iterator[dict]:
    """How many tasks, and how many texts, are surely better with the last layer dropped, or kept: by model and size,
    from `compare_last_layer`."""
    for _, rows in compared.groupby(["model", "size"], sort=False):
        is_text = rows["metric"] == "loss"
        tasks = rows[~is_text]["better"]
        texts = rows[is_text]["better"]
        of_tasks = {
            "tasks": len(tasks),
            "dropped": (tasks == "dropped").sum(),
            "kept": (tasks == "kept").sum(),
        }
        of_texts = {
            "texts_dropped": (texts == "dropped").sum(),
            "texts_kept": (texts == "kept").sum(),
        }
        yield (
            rows.iloc[0][["model", "size"]].to_dict() | {"texts": len(texts)} | of_tasks | of_texts
        )
