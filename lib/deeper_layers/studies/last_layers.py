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

import numpy as np
import pandas as pd

from deeper_layers.report import estimates, pairing
from deeper_layers.report.estimates import AT_FLOOR, CONTRADICTED, INCONCLUSIVE, NOT_TESTED, ROOM, SUPPORTED, Estimate

SIZES = range(1, 9)
PLACES = {"reverse": "late", "similarity": "similar"}  # by rule
FORMS = {
    "letters": ("facts_by_letter", "facts_by_letter_stated"),
    "words": ("facts_in_words", "facts_in_words_stated"),
    "written": ("facts_written", "facts_written_stated"),
}
UNASKED = {"letters": "facts_by_letter_unasked", "words": "facts_in_words_unasked"}
LEAST = {"X": 0.50, "Y": 0.10}


def shares_kept(scores: pd.DataFrame) -> dict[tuple[str, str, str, str], dict[int, Estimate]]:
    """What is kept above guessing without the question, by size, of each model, form, task and place."""
    tasks = [*(task for of_form in FORMS.values() for task in of_form), *UNASKED.values()]
    asked = scores[scores["task"].isin(tasks) & scores["rule"].isin(list(PLACES))]
    found = {tuple(one.place.values()): (one.cuts, one.outcomes) for one in pairing.measurements(asked)}
    kept = {}
    for (model, task, rule), (cuts, right) in found.items():
        form = next((form for form, of_form in FORMS.items() if task in of_form), "")
        guessed = found.get((model, UNASKED.get(form, ""), rule))
        if not form or (form in UNASKED and guessed is None):
            continue
        told = right if guessed is None else right - guessed[1]
        if estimates.accuracy(right[0]).low <= (right[0] - told[0]).mean() + ROOM:
            shares = [Estimate.none(AT_FLOOR)] * len(told)
        else:
            shares = estimates.estimates_of(*(mean / mean[..., :1] for mean in estimates.means(told)))
        kept[model, form, task, PLACES[rule]] = dict(zip(cuts["size"], shares, strict=True))
    return kept


def judge_prediction(scores: pd.DataFrame) -> pd.DataFrame:
    """The criterion's numbers of each model: model, number ("X" or "Y"), value with low and high, limit, verdict."""
    kept, rows = shares_kept(scores), []
    for model in dict.fromkeys(model for model, *_ in kept):
        mean = {
            (form, place): _mean([kept.get((model, form, task, place), {}) for task in FORMS[form]])
            for form in FORMS
            for place in PLACES.values()
        }
        late, similar = (mean["letters", place] - mean["written", place] for place in ("late", "similar"))
        numbers = {"X": late - similar, "Y": mean["written", "similar"] - mean["written", "late"]}
        for number, found in numbers.items():
            row = {"model": model, "number": number, "value": found.value, "low": found.low, "high": found.high}
            rows.append(row | {"limit": LEAST[number], "verdict": _judge(found, LEAST[number])})
    return pd.DataFrame(rows, columns=["model", "number", "value", "low", "high", "limit", "verdict"])


def _mean(of_prompts: list[dict[int, Estimate]]) -> Estimate:
    shares = [by_size.get(size, Estimate.none(NOT_TESTED)) for by_size in of_prompts for size in SIZES]
    return estimates.mean_of(shares)


def _judge(found: Estimate, least: float) -> str:
    if found.untold or np.isnan(found.value):
        return found.untold or NOT_TESTED
    if found.high < least:
        return CONTRADICTED
    return SUPPORTED if found.value >= least and found.low > 0 else INCONCLUSIVE
