"""What a figure shows, in words: captions that state it, notes at a cliff or a rebound, and the shape of a line."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from deeper_layers_companion.report.names import (
    Sentences,
    escape_invisible,
    join_words,
    model_title,
    put_in_order,
    rule_title,
    said,
    sort_models,
    title_within,
)
from deeper_layers_companion.report.paper import HEALING_TOKENS
from deeper_layers_companion.report.statistics import find_depth, find_quarter

HALF = 0.5
HARD_TASKS = ("mmlu", "gsm8k")  # that the paper asks of healed models
FLAT = 0.05  # a line that moves by less than this, of its own height, stays
FIRST_TOPICS = 2  # that a caption tells of
MOST_MODELS = 3  # likewise


def find_events(line: pd.DataFrame) -> list[tuple[pd.Series, str]]:
    """Where a curve of shares kept falls to half, and where it is surely back above half after it surely was below: the
    row and its words. `line` has the columns of `statistics.curves`, of one rule."""
    if not {"kept", "kept_low", "kept_high", "size", "gone_at"} <= set(line):
        return []
    line = line[(line["size"] > 0) & line["kept"].notna()].sort_values("size")
    events = []
    gone = line[line["kept"] <= HALF]
    if len(gone):
        events.append((gone.iloc[0], f"half gone at {gone.iloc[0]['gone_at']}"))
    below = line[line["kept_high"] < HALF]
    if len(below):
        back = line[(line["size"] > below["size"].min()) & (line["kept_low"] > HALF)]
        if len(back):
            events.append((back.iloc[0], f"back at {back.iloc[0]['size']:.0f}"))
    return events


def tell_half_gone(row: Mapping) -> str:
    """Where half is gone, as every page says it, of a row of `statistics.half_gone_table` or `statistics.curves`."""
    return f"half is gone at {row['gone_at']} of {row['layers']:.0f} layers"


def tell_fall(curves: pd.DataFrame, cliffs: pd.Series) -> Sentences:
    """What the first model keeps of MMLU by letter without the fewest most similar layers that take half of it, or
    without the most that were dropped, beside where the paper's models fall (shares of the layers). `curves` is the
    table of `statistics.curves`."""
    is_asked = (
        (curves["task"] == "mmlu") & (curves["rule"] == "similarity") & curves["kept"].notna()
    )
    line = put_in_order(curves[is_asked])
    line = line[line["model"] == line["model"].iloc[0]] if len(line) else line
    fallen = line[line["kept"] <= HALF]
    rows = fallen.head(1) if len(fallen) else line.tail(1)
    return said(
        "On MMLU, asked by letter, {model} keeps {kept:.0%} ({kept_low:.0%} to {kept_high:.0%}) of what it scores "
        "above guessing without its {size} most similar layers of {layers} ({share:.0%}). The paper's models keep "
        "nearly all of theirs until {least:.0%} to {most:.0%} of the layers are gone.",
        rows.assign(
            share=rows["size"] / rows["layers"],
            least=cliffs.min(),
            most=cliffs.max(),
        ),
    )


def tell_recovery(healed: pd.DataFrame) -> Sentences:
    """The share of the gap in loss that healing closes in each model, the most similar layers dropped, from rows of
    `statistics.recovery_table` that were healed in one way; of the first model also which of MMLU and GSM8K surely gain
    nothing."""
    rows = put_in_order(healed[(healed["rule"] == "similarity") & healed["value"].notna()])
    sentences = []
    for model, of_loss in rows[rows["metric"] == "loss"].groupby("model", sort=False):
        part = of_loss["tokens"].iloc[0] / HEALING_TOKENS
        ends = [f"{share:.0%}" for share in (of_loss["value"].min(), of_loss["value"].max())]
        closed = " to ".join(dict.fromkeys(ends))
        name = escape_title(str(model))
        if sentences:
            sentences.append(f"In {name}, with {part:.2%}, it closes {closed}.")
            continue
        is_asked = (rows["model"] == model) & rows["task"].isin(HARD_TASKS)
        gained = rows[is_asked].groupby("topic", sort=False)["gained_low"].max()
        lost = " or ".join(gained.index[gained <= 0])
        sentences.append(
            f"With {part:.2%} of the paper's tokens healing closes {closed} of {name}'s gap in loss"
            + (f", and returns no sure part of {lost}." if lost else ".")
        )
    return Sentences(sentences, "answer")


def find_return(line: pd.DataFrame) -> list[tuple[pd.Series, str]]:
    """Whether what is lost without late blocks is there again without the block that holds the last layer: its row and
    words. `line` has the columns of `statistics.kept_by_place`, of one task."""
    line = line.sort_values("start")
    if not len(line) or "kept_high" not in line:
        return []
    last = line.iloc[-1]
    before = line.iloc[:-1].tail(int(line["size"].iloc[-1]))
    holds_last = last["start"] + last["size"] == last["layers"]
    if holds_last and last["kept_low"] > HALF and (before["kept_high"] < HALF).any():
        return [(last, f"{last['kept']:.0%}")]
    return []


def list_half_gone(rows: Mapping[str, Mapping]) -> str:
    """Where half is gone of several rows, as `tell_half_gone` says it of one; the keys end each part: "half is gone at
    2 of 28 layers on GSM8K, at 3 or 4 on MMLU by letter and at 13 on capitals"."""
    parts = [f"at {row['gone_at']} {words}" for words, row in rows.items()]
    for words, row in list(rows.items())[:1]:
        parts[0] = f"{tell_half_gone(row)} {words}"
    return join_words(parts)


def state_half_gone(curves: pd.DataFrame) -> str:
    """Where half of the first topics is gone in the first model without its most similar layers; "" without."""
    if "gone_at" not in curves or curves.empty:
        return ""
    model, of_model = select_first(curves)
    of_rule = of_model[(of_model["rule"] == "similarity") & of_model["gone_at"].ne("")]
    lines = {}
    for topic, line in list(of_rule.groupby("topic", sort=False))[:FIRST_TOPICS]:
        lines[f"on {title_within(str(topic))}"] = line.iloc[0].to_dict()
    return f"In {model}, the most similar layers dropped, {list_half_gone(lines)}." if lines else ""


def state_earliest(gone: pd.DataFrame) -> str:
    """The task of which half is gone first, and the last one, in the first models without their most similar layers,
    from `statistics.half_gone_table`."""
    rows = gone[(gone["rule"] == "similarity") & (gone["no_value_reason"] == "")]
    sentences = []
    for model in sort_models(rows["model"].unique())[:MOST_MODELS]:
        ends = rows[rows["model"] == model].sort_values("value", kind="stable").iloc[[0, -1]]
        told = list_half_gone(
            {f"on {title_within(row['topic'])}": row for row in ends.to_dict("records")}
        )
        sentences.append(f"In {escape_title(model)} {told}.")
    return " ".join(sentences)


def state_kept(rows: pd.DataFrame, hue: str) -> str:
    """Which line of shares kept falls to half first in the first model, which last, and what the others keep."""
    if rows.empty or "gone_at" not in rows:
        return ""
    model, of_model = select_first(rows)
    fallen = []
    held = []
    for label, line in (
        of_model[of_model["size"] > 0].dropna(subset="kept").groupby(hue, sort=False)
    ):
        line = line.sort_values("size")
        gone = line[line["kept"] <= HALF]
        words = f"on {title_within(rule_title(str(label)))}"
        if len(gone):
            fallen.append((int(gone["size"].iloc[0]), words, gone.iloc[0].to_dict()))
        else:
            last = line.iloc[-1]
            held.append(f"{last['kept']:.0%} is still kept at {last['size']:.0f} {words}.")
    fallen.sort(key=lambda one: one[0])
    ends = {words: row for _, words, row in [*fallen[:1], *fallen[-1:]]}
    told = [f"In {model} {list_half_gone(ends)}, the first and the last." if len(ends) > 1 else ""]
    if len(ends) == 1:
        told = [f"In {model} {list_half_gone(ends)}."]
    return " ".join(filter(None, [*told, *held]))


def state_differences(rows: pd.DataFrame) -> str:
    """The most by which the similarity-informed rule surely scores higher, and lower, than the simple heuristic in the
    most capable model. `rows` are those of `statistics.rules_compared`."""
    if rows.empty:
        return ""
    model, of_model = select_first(rows)
    parts = []
    for sure, word in ((of_model["low"] > 0, "higher"), (of_model["high"] < 0, "lower")):
        if sure.any():
            row = of_model.loc[of_model.loc[sure, "value"].abs().idxmax()]
            parts.append(
                f"{abs(row['value']):.2f} {word} on {title_within(row['topic'])} (at {row['size']:.0f} layers)"
            )
    told = (
        f"up to {' and up to '.join(parts)}" if parts else "neither surely higher nor surely lower"
    )
    return f"In {model} the similarity-informed rule scores {told}."


def state_courses(rows: pd.DataFrame, x: str, y: str, hue: str) -> str:
    """The course of the first lines of the first model."""
    model, of_model = select_first(rows) if "model" in rows else ("", rows)
    parts = []
    for label, line in of_model.groupby(hue, sort=False):
        course = describe_shape(*line.sort_values(x)[[x, y]].astype(float).to_numpy().T)
        parts.append(f"{rule_title(str(label))} {course}")
    return f"{model}: {'. '.join(parts[:FIRST_TOPICS])}.".removeprefix(": ")


def escape_title(model: str) -> str:
    """A model's name, shortened, without characters that nobody sees."""
    return escape_invisible(model_title(model))


def select_first(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The first model (`sort_models`), its name as text, and its rows."""
    model = sort_models(rows["model"].unique())[0]
    return escape_title(model), rows[rows["model"] == model]


def state_ends(rows: pd.DataFrame, y: str, x: str, title: str) -> str:
    """The least and the most of the first models' rows: "Share kept: 10% (Written facts) to 91% (Capitals) in m.".
    Of the first model they are named."""
    parts = []
    for model in sort_models(rows["model"].unique())[:MOST_MODELS]:
        span = describe_ends(
            rows[rows["model"] == model],
            y,
            x,
            is_named=not parts,
            is_share=title.startswith("Share"),
        )
        if span:
            parts.append(f"{span} in {escape_title(model)}")
    return f"{title}: {'; '.join(parts)}." if parts else f"{title}."


def describe_ends(
    rows: pd.DataFrame, y: str, x: str, *, is_named: bool = True, is_share: bool = False
) -> str:
    """The least and the most of some rows: "10% (Written facts) to 91% (Capitals)"."""
    rows = rows[rows[x].notna()].sort_values(x)
    form = "{:.0%}" if is_share or x in ("share", "kept") else "{:.2g}"
    ends = []
    for row in rows.iloc[[0, -1]].to_dict("records") if len(rows) else ():
        number = form.format(row[x]) if np.isfinite(row[x]) else "more than was measured"
        ends.append(f"{number} ({rule_title(str(row[y]))})" if is_named else number)
    return " to ".join(dict.fromkeys(ends))


def state_nearest(nearest: pd.DataFrame) -> str:
    """Which block of a quarter of the layers is the most similar one, model by model."""
    parts = []
    for row in nearest[nearest["size"] == find_quarter(nearest["layers"])].to_dict("records"):
        block = (
            f"layers {row['start']:.0f} to {row['start'] + row['size'] - 1:.0f} of {row['layers']}"
        )
        parts.append(f"{block} in {escape_title(row['model'])}")
    return f"Of a quarter of the layers the most similar are {join_words(parts)}." if parts else ""


def state_depths(nearest: pd.DataFrame, of_paper: pd.DataFrame) -> str:
    """How deep the most similar block of a quarter of the layers lies, here and in the authors' models, from
    `statistics.nearest` and `paper.depth_at_quarter`."""
    rows = nearest[nearest["size"] == find_quarter(nearest["layers"])]
    here = [
        f"{depth:.2f} in {escape_title(model)}"
        for depth, model in zip(find_depth(rows), rows["model"])
    ]
    if not here:
        return ""
    text = (
        f"The most similar block of a quarter of the layers is centred at depth {join_words(here)}"
    )
    return f"{text}, at {of_paper['depth'].min():.2f} to {of_paper['depth'].max():.2f} in the authors' models."


def state_last_block(rows: pd.DataFrame) -> str:
    """At how many sizes the block with the last layer lies in the upper half of the distances of its size, blocks from
    layer 0 left out, as the claim on the last layer counts."""
    inner = rows[rows["start"] > 0]
    of_size = inner.groupby(["model", "corpus", "size"])["distance"]
    least = of_size.transform("min")
    most = of_size.transform("max")
    inner = inner.assign(place=(inner["distance"] - least) / (most - least))
    holds_last = inner["start"] + inner["size"] == inner["layers"]
    parts = []
    # a row of one block has no halves
    for model, blocks in inner[holds_last & (most > least)].groupby("model", sort=False):
        unlike = (blocks["place"] > HALF).sum()
        parts.append(f"{unlike} of {len(blocks)} sizes in {escape_title(model)}")
    if parts:
        return (
            "Of blocks that do not begin at layer 0 the one with the last layer lies in the upper half of the "
            f"distances at {join_words(parts)}."
        )
    return ""


def state_agreement(blocks: pd.DataFrame, nearest: pd.DataFrame) -> str:
    """At how many sizes the most similar block is the one that costs least, model by model."""
    best = blocks.loc[blocks["place"] == 1, ["model", "size", "start"]]
    both = best.merge(
        nearest[["model", "size", "start"]], on=["model", "size"], suffixes=("", "_nearest")
    )
    parts = []
    for model, rows in both.drop_duplicates(["model", "size"]).groupby("model", sort=False):
        alike = (rows["start"] == rows["start_nearest"]).sum()
        parts.append(f"{alike} of {len(rows)} sizes in {escape_title(model)}")
    return (
        f"The most similar block is the one that costs least at {join_words(parts)}."
        if parts
        else ""
    )


def describe_shape(x: np.ndarray, y: np.ndarray) -> str:
    """The course of a line: "falls from 0.74 at 0 to 0.38 at 0.9, steepest before 0.11; least 0.3 at 0.2"."""
    known = np.isfinite(x) & np.isfinite(y)
    x = x[known]
    y = y[known]
    if not len(y):
        return "nothing"
    if len(y) == 1 or np.ptp(y) <= FLAT * max(abs(y).max(), 1e-9):
        return f"stays near {y.mean():.2g}"
    course = "falls" if y[-1] < y[0] else "rises"
    text = f"{course} from {y[0]:.2g} at {x[0]:.2g} to {y[-1]:.2g} at {x[-1]:.2g}"
    if len(y) > 2:
        steps = np.diff(y) if course == "rises" else -np.diff(y)
        text += f", steepest before {x[1 + steps.argmax()]:.2g}"
    for name, place in (("least", y.argmin()), ("most", y.argmax())):
        if abs(y[place] - y[0]) > 0.2 * np.ptp(y) and abs(y[place] - y[-1]) > 0.2 * np.ptp(y):
            text += f"; {name} {y[place]:.2g} at {x[place]:.2g}"
    return text
