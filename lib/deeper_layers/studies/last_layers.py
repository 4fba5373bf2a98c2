"""What letters cannot see: a prediction, written before any pruned model was asked.

After the data it was seen on one model that the last four layers can go without a loss on letters, while what has to
be written is ruined; and that four middle layers take the letters and leave the writing. Here is what follows, on
items that no result had asked. Its letters' half is near to what Shi et al., arXiv 2605.07271, report of larger models.

*Cuts.* For n = 1 to 8: the last n layers (late), and the n layers most similar on C4 (similar).

*Items.* 295 facts of five relations, each asked for a letter of four, for the words of four, and to be written, under
two prompts each. The whole SmolLM2-135M was asked 100 of them before this was written, to see that the tasks work.

*Kept.* k = (a - g) / (a' - g'), with the accuracy a of a pruned model and g of the same model without the question,
a' and g' those of the whole model. What is written is never right by guessing: g is 0.

*Can show.* A form of questions can show something of a model where Wilson's interval of a' lies more than 0.05 above
g' under both prompts; else that model is at floor.

*The number that decides.* X = mean over n and prompts of (k of letters - k of writing) without late layers, less the
same without similar ones. Predicted: at least 0.50. Supported where X is at least 0.50 and its 95% interval above 0,
contradicted where the interval lies below 0.50, else inconclusive.

*Where letters can't be seen.* Y = mean over n and prompts of k of writing without similar layers, less that without
late ones. Predicted: at least 0.10, judged alike.

What stands beside them decides nothing: words in place of writing, either half of X, each n, each prompt, MMLU.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from deeper_layers.report import estimates, pairing
from deeper_layers.report.estimates import AT_FLOOR, NOT_TESTED, ROOM, Estimate

SIZES = range(1, 9)
PLACES = {"reverse": "late", "similarity": "similar"}  # by rule
FORMS = {
    "letters": ("facts_by_letter", "facts_by_letter_stated"),
    "words": ("facts_in_words", "facts_in_words_stated"),
    "written": ("facts_written", "facts_written_stated"),
}
UNASKED = {"letters": "facts_by_letter_unasked", "words": "facts_in_words_unasked"}
LEAST = {"X": 0.50, "Y": 0.10}
PLACE_NAMES = {"late": "the last layers", "similar": "the most similar layers"}


class Asked(NamedTuple):
    """One task of one model without late or similar layers: cuts by size, right answers [C, I], those unasked or 0."""

    model: str
    form: str
    task: str
    place: str
    cuts: pd.DataFrame
    right: Bool[np.ndarray, "C I"] | Float[np.ndarray, "C I"]
    guessed: Float[np.ndarray, "C I"]


def answers(scores: pd.DataFrame) -> list[Asked]:
    """What the prediction is judged by, and measured in full: the task, and where its form can be guessed, unasked."""
    tasks = [*(task for of_form in FORMS.values() for task in of_form), *UNASKED.values()]
    asked = scores[scores["task"].isin(tasks) & scores["rule"].isin(list(PLACES))]
    found = {one.place: (one.cuts, one.outcomes) for one in pairing.measurements(asked)}
    complete = []
    for (model, task, rule), (cuts, right) in found.items():
        form = next((form for form, of_form in FORMS.items() if task in of_form), "")
        guessed = found.get((model, UNASKED.get(form, ""), rule), (cuts, np.zeros_like(right)))[1]
        if form and (form not in UNASKED or (model, UNASKED[form], rule) in found):
            complete.append(Asked(model, form, task, PLACES[rule], cuts, right, guessed))
    return complete


def share_kept(asked: Asked) -> dict[int, Estimate]:
    """k of each size: what is kept above guessing without the question."""
    told = asked.right - asked.guessed
    if estimates.mean_of_items(asked.right[0]).low <= asked.guessed[0].mean() + ROOM:
        return dict.fromkeys(asked.cuts["size"].tolist(), Estimate.none(AT_FLOOR))
    numbers = estimates.means(told)
    return dict(zip(asked.cuts["size"].tolist(), Estimate.of(numbers / numbers[:, :1]), strict=True))


def accuracies(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by size, and that without the question: model, layers, place, asked, prompt, size, value, low, high."""
    layers = scores.groupby("model")["layers"].first()
    rows = []
    for one in answers(scores):
        is_question = one.task == FORMS[one.form][0]
        prompt = "as a question" if is_question else "as a statement"
        shared = {"model": one.model, "layers": layers[one.model], "place": PLACE_NAMES[one.place], "prompt": prompt}
        kinds = {one.form: one.right}
        if is_question and one.form in UNASKED:  # asked once for both prompts
            kinds[f"{one.form}, without the question"] = one.guessed
        for asked, outcomes in kinds.items():
            for size, outcome in zip(one.cuts["size"], outcomes, strict=True):
                found = estimates.mean_of_items(outcome).columns()
                rows.append(shared | {"asked": asked, "size": size, "items": len(outcome)} | found)
    return pd.DataFrame(
        rows, columns=["model", "layers", "place", "asked", "prompt", "size", "items", "value", "low", "high"]
    )


def means_kept(scores: pd.DataFrame) -> dict[tuple[str, str, str], Estimate]:
    """The mean of k over sizes and prompts by model, form and place; NOT_TESTED where a size or prompt is missing."""
    kept = {(one.model, one.task, one.place): share_kept(one) for one in answers(scores)}
    found = {}
    for model, form, place in itertools.product(dict.fromkeys(model for model, *_ in kept), FORMS, PLACES.values()):
        of_prompts = [kept.get((model, task, place), {}) for task in FORMS[form]]
        shares = [by_size.get(size, Estimate.none(NOT_TESTED)) for by_size in of_prompts for size in SIZES]
        found[model, form, place] = estimates.mean_of(shares)
    return found


def kept_by_form(scores: pd.DataFrame) -> pd.DataFrame:
    """These means as a table, a row for each model, form and place: value with low and high, and untold.

    Beside them the accuracy of the whole model (whole), without the question (unasked), and of the best constant answer
    (constant), means over prompts.
    """
    constant, levels = scores.groupby(["model", "task"])["commonest"].max(), {}
    for one in answers(scores):
        of_task = (one.right[0].mean(), one.guessed[0].mean(), constant[one.model, one.task])
        levels.setdefault((one.model, one.form), []).append(of_task)
    rows = []
    for (model, form, place), found in means_kept(scores).items():
        whole, unasked, best = np.mean(levels.get((model, form), [[np.nan] * 3]), axis=0)
        row = {"model": model, "asked": form, "place": PLACE_NAMES[place], "whole": whole, "unasked": unasked}
        rows.append(row | {"constant": best} | found.columns() | {"untold": found.untold})
    names = ["model", "asked", "place", "whole", "unasked", "constant", "value", "low", "high", "untold"]
    return pd.DataFrame(rows, columns=names)


def outcome(scores: pd.DataFrame, number: str = "X") -> pd.DataFrame:
    """X or Y of each model that can show it: model, verdict, mean shares kept, as written_late and letters_similar."""
    judged = judge_prediction(scores)
    told = judged[(judged["number"] == number) & judged["value"].notna()].set_index("model")[["verdict"]]
    for (model, form, place), found in means_kept(scores).items():
        if model in told.index:
            told.loc[model, f"{form}_{place}"] = found.value
    return told.reset_index()


def judge_prediction(scores: pd.DataFrame) -> pd.DataFrame:
    """The criterion's numbers of each model: model, number ("X" or "Y"), value with low and high, limit, verdict."""
    kept, rows = means_kept(scores), []
    for model in dict.fromkeys(model for model, *_ in kept):
        late, similar = (kept[model, "letters", place] - kept[model, "written", place] for place in PLACES.values())
        similar_written, late_written = (kept[model, "written", place] for place in ("similar", "late"))
        for number, found in {"X": late - similar, "Y": similar_written - late_written}.items():
            row = {"model": model, "number": number} | found.columns()
            rows.append(row | {"limit": LEAST[number], "verdict": found.beyond(LEAST[number])})
    return pd.DataFrame(rows, columns=["model", "number", "value", "low", "high", "limit", "verdict"])
