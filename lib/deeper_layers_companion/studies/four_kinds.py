"""The third study in tables for its page: what was asked, its verdicts, and all that decides nothing, shown beside.

The criterion is registered/what-the-last-layers-hold.md, and what_last_layers_hold.py judges by it. Nothing here does.
What results lack is NOT_MEASURED. Letters in shapes as in report/estimates.py.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers.data import embedded
from deeper_layers_companion.report.estimates import (
    AT_FLOOR,
    NOT_TESTED,
    Estimate,
    differ,
    estimate_mean,
    resample,
    shares_kept,
)
from deeper_layers_companion.report.findings import list_half_gone, select_first
from deeper_layers_companion.report.names import (
    FIRST,
    Sentences,
    format_number,
    join_verdicts,
    join_words,
    model_title,
    put_in_order,
    sort_models,
)
from deeper_layers_companion.report.pairing import drop_third_study, returns
from deeper_layers_companion.report.statistics import find_half_gone
from deeper_layers_companion.studies import what_last_layers_hold as study

NOT_MEASURED = "not measured"
PLACE_NAMES = {
    "reverse": "Without the last layers",
    "simple": "Without those before the last one",
    "similarity": "Without the most similar ones",
}
PROMPT_NAMES = {"question": "as a question", "stated": "as a statement"}
LOSS_NAME = "loss on C4"
TOKENS = Path(__file__).with_name(
    "answer_tokens.csv"
)  # of " answer", by the tokenizer of each model
FORM_WORDS = {
    study.LETTERS_CALIBRATED: "by calibrated letter",
    study.WORDS_CALIBRATED: "in calibrated words",
    "written": "in writing",
}
NUMBER_TITLES = {
    "1. calibrated letters kept": f"1. calibrated letters kept without the last {study.OUTLIVED_SIZE} layers",
    "1. writing kept": f"1. writing kept without the last {study.OUTLIVED_SIZE} layers",
    "2. T, the last layer by tasks": "2. right answers, last layer dropped less kept (T)",
    "3. U, the last layer by loss": "3. loss on C4, last layer dropped less kept (U)",
    "4. E, English less Spanish words": "4. writing kept, English words less Spanish ones (E)",
    "5. R of writing, affine map": "5. share of lost writing that an affine map returns (R)",
    "5. R of writing, low rank map": "5. share of lost writing that a low-rank map returns (R)",
}
ASKED = (study.LETTER, study.WORDS, study.UNASKED, study.WRITTEN)
MAIN_FORMS = (study.LETTERS_CALIBRATED, study.WORDS_CALIBRATED, "written")


def judge(scores: pd.DataFrame) -> pd.DataFrame:
    """The registered numbers and verdicts, of models that were asked all items: see `what_last_layers_hold.judge`."""
    is_part = scores["task"].str.startswith("answers_") & scores["limit"].notna()
    return study.judge(scores[~is_part])


def tabulate_verdicts(judged: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `judge` with their verdicts in words: prediction, prompt, and a column for each model of the
    criterion and each other that was judged."""
    models = sort_models([*FIRST, *judged["model"].unique()])
    lines: dict[tuple[str, str], dict] = {}
    for row in judged.to_dict("records"):
        line = lines.setdefault((row["number"], row["prompt"]), {})
        line[row["model"]] = describe_verdict(row)
    rows = []
    for (number, prompt), verdicts in lines.items():
        of_models = {model_title(model): verdicts.get(model, NOT_MEASURED) for model in models}
        rows.append(
            {"prediction": NUMBER_TITLES[number], "prompt": PROMPT_NAMES[prompt]} | of_models
        )
    return pd.DataFrame(rows, columns=["prediction", "prompt", *map(model_title, models)])


def describe_verdict(row: dict) -> str:
    """A row of `judge` in words: "0.95 (0.93 to 0.97): supported"."""
    if pd.notna(row["value"]):
        return f"{format_number(row)}: {row['verdict']}"
    return AT_FLOOR if row["verdict"] == AT_FLOOR else NOT_MEASURED


def tell_outliving(judged: pd.DataFrame, kept: pd.DataFrame) -> Sentences:
    """Prediction 1 in words: what the first model that can show it keeps, asked questions, and the verdict in each.
    `kept` is the table of `tabulate_kept`, for letters as they are chosen."""
    rows = judged[judged["number"].str.startswith("1.") & (judged["prompt"] == "question")]
    rows = rows[rows["verdict"] != NOT_TESTED]
    told = put_in_order(rows[rows["verdict"] != AT_FLOOR]).head(2)
    if told.empty:
        return Sentences([], "answer")
    letters, written = told["value"]
    model = told["model"].iloc[0]
    is_told = (kept["model"] == model) & (kept["place"] == PLACE_NAMES["reverse"])
    is_told &= (kept["prompt"] == PROMPT_NAMES["question"]) & (kept["asked"] == "letter")
    as_chosen = kept.loc[is_told & (kept["size"] == study.OUTLIVED_SIZE), "kept"].iloc[0]
    return Sentences(
        [
            f"Asked new questions without its last {study.OUTLIVED_SIZE} layers, {model_title(model)} keeps "
            f"{written:.0%} of writing the right answer and {as_chosen:.0%} of choosing its letter. Once each letter's "
            f"own bias is taken off, it keeps {letters:.0%} of choosing.",
            f"That letters outlive writing was predicted: {join_verdicts(rows.drop_duplicates('model'))}.",
        ],
        "answer",
    )


def tell_last_layer(judged: pd.DataFrame) -> Sentences:
    """Prediction 2 in words, with what came of it in each model that was measured."""
    parts = [_tell_verdict(row) for row in _find_judged(judged, "2.")]
    told = (
        "Does dropping the last layer, too, help words and writing? Predicted was a gain of at least "
        f"{study.LEAST_TASKS:.2f} of all questions. It is {'; '.join(parts)}."
    )
    return Sentences([told] if parts else [], "last-layer")


def tell_last_loss(judged: pd.DataFrame) -> Sentences:
    """Prediction 3 in words, with what came of it in each model that was measured."""
    parts = [_tell_verdict(row) for row in _find_judged(judged, "3.")]
    told = (
        f"Of the loss the opposite was predicted: at least {study.LEAST_LOSS:.2f} nats more without the last n layers. "
        f"It is {'; '.join(parts)}."
    )
    return Sentences([told] if parts else [], "last-loss")


def tell_answers(judged: pd.DataFrame) -> Sentences:
    """Prediction 4 in words, with what came of it in each model that can show it."""
    parts = [_tell_verdict(row) for row in _find_judged(judged, "4.")]
    told = (
        f"English words were predicted to outlast Spanish ones: of writing them at least {study.LEAST_BY_ANSWER:.2f} "
        f"more is kept. It is {'; '.join(parts)}."
    )
    return Sentences([told] if parts else [], "by-answer")


def tell_maps(judged: pd.DataFrame, returned: pd.DataFrame) -> Sentences:
    """Prediction 5 in words, for each map that was measured. `returned` is the table of `tabulate_returned`."""
    of_loss = returned[returned["asked"] == LOSS_NAME].set_index(["model", "map"])["value"]
    parts = []
    for name in study.MAPS.values():
        for row in _find_judged(judged, f"5. R of writing, {name} map"):
            share = of_loss.get((row["model"], name), np.nan)
            of_text = f", and {share:.2f} of the loss" if pd.notna(share) else ""
            parts.append(
                f"In {model_title(row['model'])} the {name} map returns {format_number(row)} of the writing that was "
                f"lost{of_text} ({row['verdict']})."
            )
    weaker = "A map that returns less may only be the weaker map."
    return Sentences([*parts, weaker] if parts else [], "maps")


def _find_judged(judged: pd.DataFrame, number: str) -> list[dict]:
    """The rows of one prediction with a number, in the order of models."""
    rows = judged[judged["number"].str.startswith(number) & judged["value"].notna()]
    return put_in_order(rows).to_dict("records")


def _tell_verdict(row: dict) -> str:
    return f"{row['value']:.2f} in {model_title(row['model'])} ({row['verdict']})"


# ---- what was asked -------------------------------------------------------------------------------------------------


def tabulate_items(scores: pd.DataFrame) -> pd.DataFrame:
    """The relations: kind, asked (the question of one item), answer, items, and for each model that was asked all
    items the share that it writes right whole, asked as a question."""
    items = embedded.answers()
    relations = np.array([item["relation"] for item in items])
    rows = []
    for relation in dict.fromkeys(relations):
        first = items[int((relations == relation).argmax())]
        answer = first["choices"][first["answer"]]
        is_of = relations == relation
        rows.append(
            {
                "kind": first["kind"],
                "asked": first["question"],
                "answer": answer,
                "items": int(is_of.sum()),
            }
        )
    table = pd.DataFrame(rows, index=list(dict.fromkeys(relations))).sort_values(
        "kind", kind="stable"
    )
    for (model, rule, prompt), answers in study.collect_answers(scores).items():
        written = answers.forms.get("written")
        if (
            (rule, prompt) == ("reverse", "question")
            and written is not None
            and written.shape[1] == len(items)
        ):
            whole = {
                relation: float(written[0, relations == relation].mean())
                for relation in table.index
            }
            table[f"{model_title(model)} writes"] = table.index.map(whole)
    return table.reset_index(drop=True)


@returns("model files hours first")
def sum_hours(scores: pd.DataFrame, runs: pd.DataFrame) -> Iterator[dict]:
    """What the study took: files of results, hours of their runs (`results.runs`), and when the first was done."""
    elsewhere = drop_third_study(scores)["path"]
    of_study = scores.loc[~scores["path"].isin(elsewhere), "path"].unique()
    for model, rows in runs[runs["path"].isin(of_study)].groupby("model", sort=False):
        seconds = rows["seconds"].sum()
        yield {
            "model": model,
            "files": len(rows),
            "hours": seconds / 3600,
            "first": describe_time(rows["measured"].min()),
        }


def describe_time(moment: str) -> str:
    """A moment as results hold it, in words: "2 December 2026, 17:06 UTC"."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%-d %B %Y, %H:%M} UTC"


# ---- what was kept --------------------------------------------------------------------------------------------------


@returns(
    "model layers place prompt asked size items value low high kept kept_low kept_high no_value_reason gone_at"
)
def tabulate_kept(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The accuracy (value) and the share kept (kept) of every form, cut and prompt."""
    for (model, rule, prompt), answers in study.collect_answers(scores).items():
        if rule not in PLACE_NAMES:
            continue
        place = {"model": model, "place": PLACE_NAMES[rule], "prompt": PROMPT_NAMES[prompt]}
        for form, outcomes in answers.forms.items():
            kept = answers.kept(form)
            gone = find_half_gone(kept, answers.cuts["size"], int(answers.cuts["layers"].iloc[0]))
            cells = (
                estimate_mean(outcomes).columns()
                | kept.columns("kept")
                | {"gone_at": gone["gone_at"]}
            )
            yield answers.cuts.assign(**cells | place, asked=form)


def state_forms(kept: pd.DataFrame) -> str:
    """Where half of each form is gone in the first model without its last layers, from `tabulate_kept`."""
    rows = kept[(kept["place"] == PLACE_NAMES["reverse"]) & kept["gone_at"].ne("")]
    return _state_half_gone(rows, "asked", FORM_WORDS)


def state_kinds(kinds: pd.DataFrame) -> str:
    """Where half of writing is gone in the first model without its last layers, by kind of answer, from
    `tabulate_kinds`."""
    rows = kinds[(kinds["place"] == PLACE_NAMES["reverse"]) & kinds["gone_at"].ne("")]
    return _state_half_gone(rows, "kind", {kind: f"on {kind}s" for kind in rows["kind"].unique()})


def _state_half_gone(rows: pd.DataFrame, column: str, words: dict[str, str]) -> str:
    if rows.empty:
        return ""
    model, of_model = select_first(rows)
    lines = of_model.drop_duplicates(column).set_index(column).to_dict("index")
    told = list_half_gone({words[label]: lines[label] for label in words if label in lines})
    return f"In {model} without the last layers {told}."


@returns(
    "model layers place kind size items value low high kept kept_low kept_high no_value_reason gone_at"
)
def tabulate_kinds(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """What is kept of writing by kind of answer, asked as a question."""
    kinds = np.array([item["kind"] for item in embedded.answers()])
    for model, place, answers in _find_written(scores):
        yield from _split_written({"model": model, "place": place}, answers, kinds)


@returns(
    "model layers place kind size items value low high kept kept_low kept_high no_value_reason gone_at"
)
def tabulate_lengths(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """What is kept of writing answers of one token, and of several, asked as a question: kind is like "name, one
    token". Tokens are those of each of the three models of the criterion; others have no rows."""
    counts = pd.read_csv(TOKENS, index_col=["relation", "subject"], keep_default_na=False)
    items = embedded.answers()
    for model, place, answers in _find_written(scores):
        if model in counts:
            tokens = counts[model].to_dict()
            kinds = []
            for item in items:
                length = (
                    "one token"
                    if tokens[item["relation"], item["subject"]] == 1
                    else "several tokens"
                )
                kinds.append(f"{item['kind']}, {length}")
            yield from _split_written({"model": model, "place": place}, answers, np.array(kinds))


def _find_written(scores: pd.DataFrame) -> Iterator[tuple[str, str, study.Answers]]:
    """The models, places and answers of what was written, asked as a question."""
    for (model, rule, prompt), answers in study.collect_answers(scores).items():
        if rule in PLACE_NAMES and prompt == "question" and "written" in answers.forms:
            yield model, PLACE_NAMES[rule], answers


def _split_written(
    place: dict, answers: study.Answers, kinds: np.ndarray
) -> Iterator[pd.DataFrame]:
    """What is kept of writing by kind; kinds names that of each item, [N]."""
    written = answers.forms["written"]
    kinds = kinds[: written.shape[1]]
    for kind in dict.fromkeys(kinds):
        outcomes = written[:, kinds == kind]
        kept = shares_kept(outcomes, 0.0)
        gone = find_half_gone(kept, answers.cuts["size"], int(answers.cuts["layers"].iloc[0]))
        cells = (
            estimate_mean(outcomes).columns() | kept.columns("kept") | {"gone_at": gone["gone_at"]}
        )
        yield answers.cuts.assign(**place | cells, kind=kind, items=outcomes.shape[1])


# ---- the last layer, and maps in its place --------------------------------------------------------------------------


@returns("model asked size items last_dropped last_kept value low high")
def compare_last_layer(scores: pd.DataFrame) -> Iterator[dict]:
    """The last n layers dropped against the n before the last one, by form (asked as a question) and by the loss on C4
    (nats a token): value is the first less the second."""
    answers = study.collect_answers(scores)
    losses = study.collect_losses(scores)
    for model in dict.fromkeys(scores["model"]):
        last = answers.get((model, "reverse", "question"))
        before = answers.get((model, "simple", "question"))
        if last is not None and before is not None:
            for form in last.forms:
                if form in before.forms:
                    shared = {"model": model, "asked": form}
                    yield from _compare_cuts(
                        shared, last.cuts, last.forms[form], before.cuts, before.forms[form]
                    )
        if (model, "reverse") in losses and (model, "simple") in losses:
            shared = {"model": model, "asked": LOSS_NAME}
            yield from _compare_cuts(shared, *losses[model, "reverse"], *losses[model, "simple"])


def _compare_cuts(
    shared: dict,
    cuts: pd.DataFrame,
    outcomes: np.ndarray,
    other_cuts: pd.DataFrame,
    others: np.ndarray,
) -> Iterator[dict]:
    """Rows by size, from the cuts and outcomes [C, I] without the last layers, and without those before the last."""
    for place, size in enumerate(cuts["size"]):
        is_same = (other_cuts["size"] == size).to_numpy()
        if size == 0 or not is_same.any():
            continue
        first = outcomes[place]
        second = others[is_same.argmax()]
        means = {"last_dropped": first.mean(), "last_kept": second.mean(), "items": len(first)}
        yield shared | means | {"size": int(size)} | differ(first, second).columns()


@returns("model map asked value low high no_value_reason")
def tabulate_returned(scores: pd.DataFrame) -> Iterator[dict]:
    """R of each form, asked as a question, and of the loss on C4: the share of what the last layers' absence takes that
    each map returns, over the sizes of the criterion. Forms in which nothing was lost have no R."""
    answers = study.collect_answers(scores)
    losses = study.collect_losses(scores)
    for model in dict.fromkeys(model for model, *_ in answers):
        of_model = {key[1:]: value for key, value in answers.items() if key[0] == model}
        for rule, name in study.MAPS.items():
            returned = {LOSS_NAME: study.return_of_loss(model, rule, losses)}
            returned["written"] = study.return_of_writing(rule, of_model)
            for form in (study.WORDS_CALIBRATED, study.LETTERS_CALIBRATED):
                returned[form] = _return_where_lost(form, rule, of_model)
            for asked, estimate in returned.items():
                yield {"model": model, "map": name, "asked": asked} | estimate.columns()


def _return_where_lost(form: str, rule: str, of_model: dict) -> Estimate:
    """R of a form, where the last layers' absence surely takes some of it."""
    estimate = study.return_of_writing(rule, of_model, form)
    if estimate.no_value_reason:
        return estimate
    without = of_model["reverse", "question"]
    is_size = without.cuts["size"].isin(study.MAP_SIZES)
    lost = resample(without.forms[form][0] - without.forms[form][is_size].mean(axis=0))
    return estimate if Estimate.of(lost).low > 0 else Estimate(no_value_reason=NOT_TESTED)


def state_last_layer(rows: pd.DataFrame) -> str:
    """By how much each form is answered better or worse, at most, with the last layer dropped in the first model, from
    `compare_last_layer`."""
    if rows.empty:
        return ""
    model, of_model = select_first(rows)
    parts = []
    for form, line in of_model.groupby("asked", sort=False):
        row = line.loc[line["value"].abs().idxmax()]
        words = FORM_WORDS.get(str(form), f"in {form}")
        parts.append(f"{row['value']:+.2f} {words} at {row['size']:.0f} layers")
    return f"In {model} dropping the last layer too changes right answers by up to {join_words(parts)}."


def state_returned(returned: pd.DataFrame) -> str:
    """What each map returns of the loss and of writing in the first model, from `tabulate_returned`."""
    rows = returned[returned["asked"].isin([LOSS_NAME, "written"]) & returned["value"].notna()]
    if rows.empty:
        return ""
    model, of_model = select_first(rows)
    parts = []
    for kind, of_map in of_model.groupby("map", sort=False):
        values = of_map.set_index("asked")["value"]
        words = {LOSS_NAME: f"of the {LOSS_NAME}", "written": "of writing"}
        told = join_words(
            f"{values[asked]:.0%} {text}" for asked, text in words.items() if asked in values
        )
        parts.append(f"the {kind} map returns {told}")
    return f"In {model} {join_words(parts)}."
