"""What is kept by place, in the words and the table of the page *Letters or words?*, with the first study's verdict.

In: the frames of letters_or_words.py and `statistics.kept_by_place`. Nothing is measured or judged here.
"""

import numpy as np
import pandas as pd

from deeper_layers_companion.report.names import (
    Sentences,
    join_verdicts,
    join_words,
    model_title,
    put_in_order,
    task_title,
    title_within,
)
from deeper_layers_companion.report.statistics import SIZE
from deeper_layers_companion.studies.letters_or_words import (
    FORMS,
    HALF,
    LATE,
    MIDDLE,
    classify_places,
    judge_models,
)

FIRST_THIRD = "first"
END = "end"
TOLD = ("mmlu", "written_facts")
SHOWN = (
    "mmlu",
    "lettered_capitals",
    "mmlu_continuation",
    "capitals",
    "written_facts",
)  # in the table of places
# the rows of that table: what is dropped
PLACE_TITLES = {
    MIDDLE: "a middle block",
    LATE: "a late block, the last layer kept",
    "last layers": "the last layers",
}


def find_places(layers: int, size: int = SIZE) -> dict[str, list[int]]:
    """The first layers of the blocks of a size that lie in each place: FIRST_THIRD, MIDDLE, LATE (the last third, the
    last layer kept) and END (the last layer with it)."""
    starts = np.arange(layers - size + 1)
    of_study = classify_places(starts, layers, size)
    return {
        FIRST_THIRD: starts[3 * (starts + size - 1) < layers].tolist(),
        MIDDLE: starts[of_study == MIDDLE].tolist(),
        LATE: starts[of_study == LATE].tolist(),
        END: starts[-1:].tolist(),
    }


def tell_verdicts(judged: pd.DataFrame) -> Sentences:
    """The first prediction, and its registered verdict in each model, from `letters_or_words.judge_as_registered`."""
    found = judge_models(judged)
    found = found.assign(verdict=found["verdict"].where(found["sets"] > 0, "at floor"))
    told = (
        "We predicted that middle blocks take answering by letter, and late blocks answering in words: "
        f"{join_verdicts(found)}."
    )
    return Sentences([told] if len(found) else [], "answer")


def tell_written(rows: pd.DataFrame, size: int = SIZE) -> Sentences:
    """What middle and late blocks of a size leave of written facts in each model, from `costs`."""
    table = put_in_order(rows[rows["task"] == "written_facts"].dropna(subset="value"))
    by_place = table.pivot_table(index="model", columns="place", values="value", sort=False)
    parts = []
    for model, kept in by_place.iterrows():
        name = model_title(str(model))
        if parts:
            parts.append(f"{name} {kept[MIDDLE]:.0%} and {kept[LATE]:.0%}")
        else:
            parts.append(
                f"Of written facts {name} keeps {kept[MIDDLE]:.0%} without {size} middle layers and {kept[LATE]:.0%} "
                f"without {size} late ones, the last layer kept"
            )
    return Sentences([f"{'; '.join(parts)}."] if parts else [], "found")


def tell_places(rows: pd.DataFrame, kept: pd.DataFrame) -> Sentences:
    """What middle blocks and the last layers leave of MMLU's letters and of written facts, from `costs` and
    `statistics.kept_by_place`: a sentence for each model that shows both."""
    sentences = []
    for model, of_model in put_in_order(rows.dropna(subset="value")).groupby("model", sort=False):
        middle = of_model[of_model["place"] == MIDDLE].set_index("task")["value"]
        last = _find_at_end(kept[kept["model"] == model], 0)
        if not {*TOLD} <= {*middle.index} & {*last.index}:
            continue
        letters, writing = middle[list(TOLD)]
        letters_last, writing_last = last["kept"][list(TOLD)]
        is_crossed = letters < writing and letters_last > writing_last
        beginning = "What is lost depends on where. " if is_crossed else ""
        size = int(last["size"].iloc[0])
        sentences.append(
            f"{beginning}Without {size} middle layers {model_title(str(model))} keeps {letters:.0%} of MMLU's letters "
            f"and {writing:.0%} of written facts; without the {size} at the very end, {letters_last:.0%} and "
            f"{writing_last:.0%}."
        )
    return Sentences(sentences, "contrast")


def state_ends(kept: pd.DataFrame) -> str:
    """What the last block leaves of the tasks told, and what the block before it leaves, which keeps the last layer,
    from `statistics.kept_by_place`: a sentence for each model, and whether letters alone come back at the end."""
    sentences = []
    for model, of_model in put_in_order(kept).groupby("model", sort=False):
        last = _find_at_end(of_model, 0)
        before = _find_at_end(of_model, 1)
        tasks = [task for task in last.index if task in before.index]
        if not tasks:
            continue
        name = model_title(str(model))
        is_back = last.loc[tasks, "kept_low"] > HALF
        is_lost = last.loc[tasks, "kept_high"] < HALF
        is_letters = pd.Series([FORMS[task] == "letters" for task in tasks], tasks)
        if is_letters.any() and is_back[is_letters].all() and is_lost[~is_letters].all():
            sentences.append(f"In {name} letters come back at the end, words and writing do not.")
        told = [task for task in TOLD if task in tasks] or tasks
        titles = [title_within(task_title(task)) for task in told]
        parts = join_words(
            f"{last['kept'][task]:.0%} of {title}" for task, title in zip(told, titles)
        )
        earlier = join_words(f"{before['kept'][task]:.0%}" for task in told)
        size = int(last["size"].iloc[0])
        sentences.append(
            f"Without the last {size} layers {name} keeps {parts}; without the block one layer earlier, {earlier}."
        )
    return " ".join(sentences)


def _find_at_end(kept: pd.DataFrame, earlier: int) -> pd.DataFrame:
    """Rows of `statistics.kept_by_place` of one model whose block ends `earlier` layers before the last, by task."""
    is_there = kept["start"] + kept["size"] + earlier == kept["layers"]
    return kept[is_there & kept["kept"].notna()].set_index("task")


def tabulate_places(rows: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """What is kept of each task by place, from `costs` and `statistics.kept_by_place`: a row for each model and place,
    a column for each task; empty where the whole model only guesses."""
    lines = []
    for model, of_model in put_in_order(rows).groupby("model", sort=False):
        shares = {
            place: part.set_index("task")["value"] for place, part in of_model.groupby("place")
        }
        shares["last layers"] = _find_at_end(kept[kept["model"] == model], 0)["kept"]
        for place, title in PLACE_TITLES.items():
            cells = {task_title(task): shares[place].get(task, np.nan) for task in SHOWN}
            lines.append({"model": model_title(str(model)), "dropped": title} | cells)
    return pd.DataFrame(lines)
