"""Registered prediction: letter accuracy misses the damage of dropping late layers.

What was to decide it stands in studies/registered/last_layers.md, shown by `criteria.read_criterion`, and was committed
before any pruned model was asked. `judge_as_registered` judges by it: X, the lead of letters over writing without the
last layers less that lead without the most similar ones, at least 0.50; and Y, the writing kept without the most
similar layers less that without the last ones, at least 0.10.

X is the sum of two halves, and one may carry it alone: Y, and the letters kept without the last layers less those kept
without the most similar ones. `judge_now` judges each half by itself, as we would now.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from deeper_layers_companion.report.estimates import (
    NOT_TESTED,
    Estimate,
    differ,
    estimate_mean,
    mean_of,
    resample,
    shares_kept,
)
from deeper_layers_companion.report.findings import list_half_gone
from deeper_layers_companion.report.names import (
    Sentences,
    format_number,
    join_verdicts,
    model_title,
    put_in_order,
    rule_title,
    said,
    sort_models,
)
from deeper_layers_companion.report.pairing import (
    Measurement,
    find_measurements,
    returns,
    select_best,
)

SIZES = range(1, 9)
PLACES = {"reverse": "late", "similarity": "similar"}  # the place of each rule's cuts
FORMS = {
    "letters": ("facts_by_letter", "facts_by_letter_stated"),
    "words": ("facts_in_words", "facts_in_words_stated"),
    "written": ("facts_written", "facts_written_stated"),
}
FORM_OF: dict[str, str] = {}
for _form, _tasks in FORMS.items():
    FORM_OF |= dict.fromkeys(_tasks, _form)
UNASKED = {"letters": "facts_by_letter_unasked", "words": "facts_in_words_unasked"}
LEAST = {"X": 0.50, "Y": 0.10}
LETTERS_HALF = "X, its half about letters"
WRITING_HALF = "X, its half about writing"
LEAST_OF_A_HALF = 0.10  # as for Y, and in the first study; chosen after the data
# the numbers of both studies in the table of their verdicts
NUMBER_TITLES = {
    "X": "X, letters' lead over writing, late less similar",
    "Y": "Y, writing, similar less late",
}
ASKED = {
    "facts_by_letter": "by letter",
    "facts_in_words": "in words",
    "facts_written": "in writing",
}
PREDICTED = (
    "We predicted that writing suffers more from losing the last layers than from losing the most similar ones, by at "
    f"least {LEAST['Y']:.2f} of what the whole model writes."
)
PLACE_NAMES = {"late": "the last layers", "similar": "the most similar layers"}


def find_answers(scores: pd.DataFrame) -> Iterator[tuple[str, str, Measurement, np.ndarray]]:
    """Yield form, place and measurement of everything that judges the prediction, and the outcomes without the
    question, [C, I], which are 0 where nothing can be guessed."""
    rows = scores.query(
        "task in @tasks and rule in @PLACES", local_dict={"tasks": [*FORM_OF, *UNASKED.values()]}
    )
    measured = {curve.place: curve for curve in find_measurements(rows)}
    for (model, task, rule), curve in measured.items():
        form = FORM_OF.get(task)
        unasked = measured.get((model, UNASKED.get(form), rule))
        if form and (unasked or form not in UNASKED):
            yield (
                form,
                PLACES[rule],
                curve,
                unasked.outcomes if unasked else np.zeros_like(curve.outcomes),
            )


def average_by_place(scores: pd.DataFrame) -> dict[tuple[str, str, str], Estimate]:
    """The mean of k over sizes and prompts, by model, form and place; NOT_TESTED if a size or prompt is missing."""
    kept = {}
    missing = Estimate(no_value_reason=NOT_TESTED)
    for _, place, curve, guessed in find_answers(scores):
        sizes = curve.cuts["size"]
        shares = shares_kept(curve.outcomes, resample(guessed)) if {*SIZES} <= {*sizes} else missing
        kept[*curve.place[:2], place] = shares.mean_over(sizes.isin(SIZES))
    means = {}
    models = dict.fromkeys(model for model, *_ in kept)
    for model, (form, tasks), place in itertools.product(models, FORMS.items(), PLACES.values()):
        means[model, form, place] = mean_of(
            [kept.get((model, task, place), missing) for task in tasks]
        )
    return means


@returns("model layers place asked prompt size items value low high")
def accuracies(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The accuracy by size, and that without the question."""
    for form, place, curve, guessed in find_answers(scores):
        is_question = curve.place[1] == FORMS[form][0]
        prompt = "as a question" if is_question else "as a statement"
        outcomes_by_form = {form: curve.outcomes}
        if is_question and form in UNASKED:  # measured once for both prompts
            outcomes_by_form[f"{form}, without the question"] = guessed
        for label, outcomes in outcomes_by_form.items():
            cells = estimate_mean(outcomes).columns() | {
                "asked": label,
                "prompt": prompt,
                "place": PLACE_NAMES[place],
            }
            yield curve.cuts.assign(**cells)


@returns("model asked place whole unasked constant value low high no_value_reason")
def kept_by_form(scores: pd.DataFrame) -> Iterator[dict]:
    """The means of k as a table, a row for each model, form and place: value with low and high, and no_value_reason.

    Further columns are mean accuracies over prompts: of the whole model (whole), of the whole model without the
    question (unasked), and of the best constant answer (constant).
    """
    constant = scores.groupby(["model", "task"])["commonest"].max()
    levels = {}
    for form, _, curve, guessed in find_answers(scores):
        accuracies_of_task = (
            curve.outcomes[0].mean(),
            guessed[0].mean(),
            constant[curve.place[:2]],
        )
        levels.setdefault((curve.place[0], form), []).append(accuracies_of_task)
    for (model, form, place), kept in average_by_place(scores).items():
        means = np.mean(levels.get((model, form), [[np.nan] * 3]), axis=0)
        row = dict(zip(("whole", "unasked", "constant"), means)) | kept.columns()
        yield row | {"model": model, "asked": form, "place": PLACE_NAMES[place]}


@returns("model asked cut size items bfloat16 float32 turned value low high")
def compare_dtypes(scores: pd.DataFrame) -> Iterator[dict]:
    """Right answers to the same questions under the same cuts in two data types: bfloat16, float32, value (the second
    minus the first), turned (questions that are right in only one of them)."""
    key = ["model", "task", "cut"]
    rows = select_best(scores.query("task in @FORM_OF"), ["dtype"])
    rows = rows.sort_values(["model", "task", "size", "start"])
    bfloat16 = rows[rows["dtype"] == "bfloat16"].drop_duplicates(key)
    float32 = rows[rows["dtype"] == "float32"].drop_duplicates(key)
    for row in float32.merge(
        bfloat16[[*key, "outcome"]], on=key, suffixes=("", "_bfloat16")
    ).to_dict("records"):
        outcomes = np.stack([row["outcome_bfloat16"], row["outcome"]])
        row["bfloat16"], row["float32"] = outcomes.mean(axis=1)
        row |= {"asked": FORM_OF[row["task"]], "turned": int((outcomes[0] != outcomes[1]).sum())}
        yield row | differ(outcomes[1], outcomes[0]).columns()


@returns("model number value low high limit verdict")
def judge_as_registered(scores: pd.DataFrame) -> Iterator[dict]:
    """The registered numbers, "X" and "Y", for each model, with their verdicts."""
    kept = average_by_place(scores)
    for model in dict.fromkeys(model for model, *_ in kept):
        late = kept[model, "letters", "late"] - kept[model, "written", "late"]
        similar = kept[model, "letters", "similar"] - kept[model, "written", "similar"]
        written = kept[model, "written", "similar"] - kept[model, "written", "late"]
        for number, estimate in {"X": late - similar, "Y": written}.items():
            yield _judge(model, number, estimate, LEAST[number])


@returns("model number value low high limit verdict")
def judge_now(scores: pd.DataFrame) -> Iterator[dict]:
    """The halves of X for each model, each judged by itself; seen after the data."""
    kept = average_by_place(scores)
    for model in dict.fromkeys(model for model, *_ in kept):
        letters = kept[model, "letters", "late"] - kept[model, "letters", "similar"]
        written = kept[model, "written", "similar"] - kept[model, "written", "late"]
        for number, estimate in {WRITING_HALF: written, LETTERS_HALF: letters}.items():
            yield _judge(model, number, estimate, LEAST_OF_A_HALF)


def _judge(model: str, number: str, estimate: Estimate, limit: float) -> dict:
    verdict = estimate.judge_beyond(limit)
    return {
        "model": model,
        "number": number,
        "limit": limit,
        "verdict": verdict,
    } | estimate.columns()


def outcome(scores: pd.DataFrame, number: str = "X") -> pd.DataFrame:
    """The verdict on X or Y for each model that can show it, and its mean shares kept, like written_late."""
    judged = judge_as_registered(scores)
    table = judged.query("number == @number and value.notna()").set_index("model")[["verdict"]]
    for (model, form, place), kept in average_by_place(scores).items():
        if model in table.index:
            table.loc[model, f"{form}_{place}"] = kept.value
    names = [f"{form}_{place}" for form, place in itertools.product(FORMS, PLACES.values())]
    return table.reset_index().reindex(columns=["model", "verdict", *names])


def tell_prediction(scores: pd.DataFrame) -> Sentences:
    """The prediction in plain words, and what became of it in each model that can write: as Y was judged."""
    table = outcome(scores, "Y")
    if table.empty:
        return Sentences([], "prediction")
    told = join_verdicts(table, "{model} ({written_late:.0%} kept against {written_similar:.0%})")
    return Sentences([PREDICTED, f"It is {told}."], "prediction")


def tabulate_registered(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Every registered number of the first study and of this one with its interval and verdict: a row a number, a
    column a model. `first` and `second` are from `letters_or_words.judge_as_registered` and this file's."""
    judged = pd.concat([first, second]).fillna({"about": "", "place": ""})
    if judged.empty:
        return pd.DataFrame(columns=["registered number"])
    judged["cell"] = [
        row["verdict"] if pd.isna(row["value"]) else f"{format_number(row)}: {row['verdict']}"
        for row in judged.to_dict("records")
    ]
    names = judged["number"].replace(NUMBER_TITLES)
    about = judged["about"].map(rule_title)
    place = judged["place"].where(judged["number"].str.startswith("D"), "")
    parts = zip(names, about, place)
    judged["registered number"] = [", ".join(filter(None, part)) for part in parts]
    judged = judged.assign(model=judged["model"].map(model_title))
    models = list(map(model_title, sort_models({*first["model"], *second["model"]})))
    table = judged.pivot_table(
        index="registered number", columns="model", values="cell", aggfunc="first", sort=False
    )
    order = (
        judged["registered number"]
        .drop_duplicates()
        .sort_values(key=lambda of: of.str[0].map("DWCXY".index))
    )
    return table.reindex(index=order, columns=models).fillna("").reset_index()


def list_halves(scores: pd.DataFrame) -> pd.DataFrame:
    """X and Y by the registered rule, then the halves of X as we would judge them now: judged says which."""
    rules = {
        "by the registered rule": judge_as_registered(scores),
        "as we would judge it now": judge_now(scores),
    }
    return pd.concat([rows.assign(judged=rule) for rule, rows in rules.items()])


def tell_x(judged: pd.DataFrame, halves: pd.DataFrame) -> Sentences:
    """What X is, its verdict in every model, and its two halves, from `judge_as_registered` and `split_x`."""
    rows = judged[judged["number"] == "X"]
    if rows["value"].isna().all():
        return Sentences([], "prediction-writing")
    sentences = [
        "The number that decides, X, is what writing loses more at the end, plus what letters lose more at the most "
        "similar layers.",
        f"At least {LEAST['X']:.2f} was predicted: {join_verdicts(rows)}.",
    ]
    halves_told = said(
        "In {model} X is {x}: {writing:.2f} comes from writing and {letters:.2f} from letters.",
        halves,
    )
    return Sentences(sentences + halves_told.sentences, "prediction-writing")


@returns("model x value verdict writing writing_verdict letters letters_verdict")
def split_x(scores: pd.DataFrame) -> Iterator[dict]:
    """X of each model that can show it, its registered verdict, and its halves with those of today; x is X in words."""
    halves = judge_now(scores).set_index(["model", "number"])
    for row in (
        judge_as_registered(scores).query("number == 'X' and value.notna()").to_dict("records")
    ):
        row["x"] = format_number(row)
        for name, number in {"writing": WRITING_HALF, "letters": LETTERS_HALF}.items():
            half = halves.loc[(row["model"], number)]
            row |= {name: half["value"], f"{name}_verdict": half["verdict"]}
        yield row


def state_order(gone: pd.DataFrame) -> str:
    """Where half is gone of the facts asked as questions, by place and form, from `statistics.half_gone_table`: a
    sentence for each model and place."""
    asked = gone[gone["rule"].isin(PLACES) & (gone["no_value_reason"] == "")]
    sentences = []
    for model, of_model in put_in_order(asked).groupby("model", sort=False):
        for rule, place in PLACES.items():
            by_task = of_model[of_model["rule"] == rule].set_index("task").to_dict("index")
            told = list_half_gone(
                {words: by_task[task] for task, words in ASKED.items() if task in by_task}
            )
            if told:
                sentences.append(
                    f"In {model_title(str(model))} without {PLACE_NAMES[place]} {told}."
                )
    return " ".join(sentences)
