"""From the table of all results to tidy tables: what figures draw, pages show and claims are judged by.

Every number comes with `low` and `high`, its 95% interval (see estimates.py), and with `untold`: why there is none, or
"". Each function takes frames of `results.scores` or `results.distances`, filtered as one likes, and picks of each
model, task and rule the one measurement that counts (`best_measured`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers.report.estimates import AT_FLOOR as AT_FLOOR
from deeper_layers.report.estimates import CONTRADICTED as CONTRADICTED
from deeper_layers.report.estimates import INCONCLUSIVE as INCONCLUSIVE
from deeper_layers.report.estimates import NOT_TESTED as NOT_TESTED
from deeper_layers.report.estimates import SUPPORTED as SUPPORTED
from deeper_layers.report.estimates import Estimate as Estimate
from deeper_layers.report.estimates import (
    accuracy,
    half_gone,
    holm,
    is_at_floor,
    mcnemar,
    mean_of,
    means,
    paired,
    recovery,
    regret_of_nearest,
    shares_kept,
)
from deeper_layers.report.estimates import main_metric as main_metric
from deeper_layers.report.estimates import regret as regret
from deeper_layers.report.names import topic
from deeper_layers.report.pairing import (
    PLACE,
    RUN,
    are_shares,
    by_run,
    drawn_means,
    each_mean,
    joined,
    measurements,
    of_key,
    records,
    rows_measured,
    same_items,
)
from deeper_layers.report.pairing import (
    Measured as Measured,
)

HEADLINE = ("mmlu", "lettered_capitals", "capitals", "written_facts")
WHOLE = "0,0"
RULES = ("similarity", "simple")  # the paper's
AT_MOST = "at most"  # the whole model was not healed alike: of a loss only `high` is told, of a score nothing
NO_WHOLE = "whole model not healed alike"
PERCENT = 10, 20, 25, 33  # of the layers: the sizes over which regret is averaged


def interval(estimate: Estimate, name: str = "") -> dict[str, float]:
    """Value, low and high of an estimate as columns; `name` stands for the value, and before the others."""
    low, high = (f"{name}_low", f"{name}_high") if name else ("low", "high")
    return {name or "value": estimate.value, low: estimate.low, high: estimate.high}


def one_rule(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of cuts that a rule chose, one block a size: those of maps of every block are left out."""
    return scores[scores["rule"].notna() & ~scores["rule"].str.startswith("blocks of", na=False)]


def curves(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """Score against layers dropped: a row for each model, task, rule and size, of the best measurement of each.

    `also` names columns of `results.scores` that tell curves apart too, such as "shots", "order", "bits" or "healing".
    Columns: model, task, topic, rule, *also, layers, size, start, share (of layers dropped), metric, items, value with
    low and high (95%: Wilson's of an accuracy, drawn of a loss), guessing, whole (the value of the whole model), kept
    with kept_low and kept_high (share of what the whole model scores above guessing; missing at floor and of losses),
    untold ("at floor" where nothing can be seen, else "").
    """
    rows = []
    for place, cuts, right, level, found in measurements(one_rule(scores), also, scores):
        first, is_loss = found.iloc[0], not are_shares(right)
        at_floor = not is_loss and cuts["size"].iloc[0] == 0 and is_at_floor(right[0], level)
        has_whole = not is_loss and cuts["size"].iloc[0] == 0
        kept = shares_kept(right, level) if has_whole else [Estimate.none(NOT_TESTED)] * len(cuts)
        drawn = each_mean(right)
        shared = place | {"layers": first["layers"], "metric": first["metric"], "items": right.shape[1]}
        shared |= {"topic": topic(first["task"]), "guessing": level, "untold": AT_FLOOR if at_floor else ""}
        shared["whole"] = right[0].mean() if cuts["size"].iloc[0] == 0 else np.nan
        for cut, value, share in zip(records(cuts), drawn, kept, strict=True):
            rows.append(shared | cut | interval(value) | interval(share, "kept"))
    names = [*PLACE, "topic", *also, "layers", "cut", "size", "start", "share", "metric", "items", "value", "low"]
    names += ["high", "guessing", "whole", "kept", "kept_low", "kept_high", "untold"]
    return pd.DataFrame(rows, columns=names)


def half_gone_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Where half is gone: model, task, topic, rule, layers, items, guessing, whole, value with low and high (layers
    dropped; infinite where half is never gone), share with share_low and share_high, untold."""
    rows = []
    for place, cuts, right, level, found in measurements(one_rule(scores[scores["metric"] != "loss"]), (), scores):
        if not are_shares(right) or cuts["size"].iloc[0] or len(cuts) < 2 or cuts["size"].duplicated().any():
            continue
        first = found.iloc[0]
        half = half_gone(right, cuts["size"], level)
        shared = place | {"topic": topic(place["task"]), "layers": first["layers"], "items": right.shape[1]}
        shared |= {"guessing": level, "whole": right[0].mean(), "largest": int(cuts["size"].max())}
        shared |= {"untold": half.untold}
        rows.append(shared | interval(half) | interval(half / int(first["layers"]), "share"))
    names = [*PLACE, "topic", "layers", "items", "guessing", "whole", "largest", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "share", "share_low", "share_high", "untold"])


def kept_by_place(scores: pd.DataFrame, size: int = 4, tasks: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Share kept above guessing by the place of the dropped block: the headline.

    Columns: model, task, topic (its form too, as "MMLU, letter chosen"), layers, start, middle (of the block, in
    layers), depth (middle / layers), value with low and high, items, untold.
    """
    rows = []
    for place, cuts, right, level in blocks_scored(scores, size, tasks):
        shared = place | {"topic": topic(place["task"]), "items": right.shape[1]}
        for cut, share in zip(records(cuts), shares_kept(right, level), strict=True):
            if cut["size"]:
                middle = cut["start"] + (size - 1) / 2
                at = {"start": cut["start"], "middle": middle, "depth": (middle + 0.5) / place["layers"]}
                rows.append(shared | at | interval(share) | {"untold": share.untold})
    names = ["model", "task", "topic", "layers", "start", "middle", "depth", "value", "low", "high", "items", "untold"]
    return _in_order(pd.DataFrame(rows, columns=names), tasks)


def blocks_scored(
    scores: pd.DataFrame, size: int, tasks: Sequence[str]
) -> Iterator[tuple[dict, pd.DataFrame, np.ndarray, float]]:
    """Of each model and task of which every block of a size was tried: model, task and layers, the cuts (the whole
    model first), their outcomes [C, I], and what guessing scores."""
    own = scores[(scores["rule"] == f"blocks of {size}") & scores["task"].isin(tasks) & (scores["metric"] != "loss")]
    for place, cuts, right, level, found in measurements(own, (), scores):
        layers = int(found["layers"].iloc[0])
        if len(cuts) == layers - size + 2:
            yield place | {"layers": layers}, cuts, right, level


def losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Loss on text against layers dropped, healed and not: model, task, rule, healed ("not healed", or the healing in
    words) with rank, seed, learning_rate, tokens, distillation, layers, size, start, share, items, value with low, high
    (nats a token), guessing (ln V), relative (value over guessing)."""
    own = scores[scores["metric"] == "loss"].copy()
    own["healed"] = healed_in_words(own["healing"], own["bits"])
    known = own.dropna(subset="chance").groupby("model")["chance"].first()
    own["chance"] = own["chance"].fillna(own["model"].map(known))
    found = curves(own, also=["healing", "bits", "healed"])
    found = found.drop(columns=["kept", "kept_low", "kept_high", "untold"])
    settings = {how: settings_of(how) for how in found["healing"].dropna().unique()}
    for name in ("rank", "seed", "learning_rate", "tokens", "distillation"):
        found[name] = [settings.get(how, {}).get(name) for how in found["healing"]]
    return found.assign(relative=found["value"] / found["guessing"])


def recovery_table(scores: pd.DataFrame) -> pd.DataFrame:
    """What each healing recovers: model, rule, layers, cut, size, start, share, healing (in words), rank, seed,
    learning_rate, tokens, distillation, text, task, topic, metric, items, whole, pruned, healed, whole_healed
    (missing where the whole model was not healed alike), value with low and high (share of the gap closed), untold.
    Where a loss lacks the whole model healed alike, only `high` is told, and untold is "at most": compare such healings
    by `healed`, which has an interval of its own, healed_low to healed_high.

    The gap after healing is that to the whole model healed alike. Without one a score has no recovery.
    """
    kept = scores[(scores["repeat"] == 0) & scores["outcome"].notna()]
    known = kept[kept["metric"] == "loss"].groupby("model")["chance"].max()
    before, rows = by_run(scores[scores["healing"].isna()]), []
    main = {task: main_metric(list(dict.fromkeys(own))) for task, own in kept.groupby("task")["metric"]}
    every = kept[kept["healing"].notna()].drop_duplicates([*RUN, "healing", "cut", "subject"])
    for (healing, *run), found in every.groupby(["healing", *RUN], dropna=False, sort=False):
        metric, task = found["metric"].iloc[0], found["task"].iloc[0]
        if metric != main[task]:
            continue
        is_loss, unhealed = metric == "loss", before.get(of_key(run), {})
        of_cut = {cut: dict(zip(own["subject"].fillna(""), own["outcome"])) for cut, own in found.groupby("cut")}
        for cut, own in of_cut.items():
            pair = same_items(unhealed, own, (WHOLE, cut))
            if cut == WHOLE or pair is None:
                continue
            healed = joined(own, own)
            adapted = joined(of_cut.get(WHOLE, {}), own)
            first = found[found["cut"] == cut].iloc[0]
            guessing = known[first["model"]] if is_loss else np.inf
            estimate = recovery(*pair, healed, adapted, guessing=guessing)
            if adapted is None and not estimate.untold:
                most = Estimate(np.nan, np.nan, estimate.high, estimate.draws, AT_MOST)
                estimate = most if is_loss else Estimate.none(NO_WHOLE)
            row = {name: first[name] for name in ("model", "rule", "layers", "cut", "size", "start", "share", "bits")}
            row |= settings_of(healing) | {"task": task, "topic": topic(task)}
            row |= {"metric": metric, "items": len(healed), "whole": pair[0].mean(), "pruned": pair[1].mean()}
            row |= interval(drawn_means(healed[None])[0] if is_loss else accuracy(healed), "healed")
            row |= {"whole_healed": np.nan if adapted is None else adapted.mean()}
            rows.append(row | interval(estimate) | {"untold": estimate.untold})
    names = "model rule layers cut size start share bits healing rank seed learning_rate tokens distillation text"
    names += (
        " adapters auxiliary task topic metric items whole pruned healed healed_low healed_high whole_healed value low"
    )
    names += " high untold"
    return pd.DataFrame(rows, columns=None if rows else names.split())


def regret_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """How much more the most similar block costs than the best block of its size, nats a token, by calibration text.

    Columns: model, corpus (of the distances), task (the text of the losses), size, start (the pick), best, blocks,
    place (of the pick among them by loss, from 1), value with low and high. Of size 0 is the mean over PERCENT of
    the layers, where the map has all of these sizes.
    """
    rows = []
    near = kept_distances(distances)
    for (model, task), every in maps(scores).items():
        for corpus, of_text in near[near["model"] == model].groupby("corpus"):
            if of_text["by_sequence"].isna().any():
                continue
            vectors, found = of_text.set_index(["start", "size"])["by_sequence"], {}
            of_shares = sizes_of_shares(int(of_text["layers"].iloc[0]))
            for size, (starts, costs) in every.items():
                by_sequence = np.stack([vectors[start, size] for start in starts])
                estimate, average = regret_of_nearest(costs, by_sequence), costs.mean(axis=1)
                pick = int(by_sequence.mean(axis=1).argmin())
                row = {"model": model, "corpus": corpus, "task": task, "size": size, "start": starts[pick]}
                row |= {"best": starts[int(average.argmin())], "blocks": len(starts)}
                row |= {"place": 1 + int((average < average[pick]).sum())}
                rows.append(row | interval(estimate))
                found[size] = estimate
            if set(of_shares) <= set(found):
                row = {"model": model, "corpus": corpus, "task": task, "size": 0}
                rows.append(row | interval(mean_of([found[size] for size in of_shares])))
    names = ["model", "corpus", "task", "size", "start", "best", "blocks", "place", "value", "low", "high"]
    found = pd.DataFrame(rows, columns=names)
    return found.astype({"start": "Int64", "best": "Int64", "blocks": "Int64", "place": "Int64"})


def sizes_of_shares(layers: int) -> list[int]:
    return list(dict.fromkeys(max(1, (percent * layers + 50) // 100) for percent in PERCENT))  # halves are rounded up


def maps(scores: pd.DataFrame) -> dict[tuple[str, str], dict[int, tuple[list[int], np.ndarray]]]:
    """By model and text, then size, of each size of which every block was tried: first layers, and losses [B, I].

    Blocks that hold the last layer are left out, as no rule drops it; so are sizes with fewer than 3 blocks.
    """
    found: dict = {}
    own = scores[(scores["metric"] == "loss") & scores["rule"].str.startswith("blocks of", na=False)]
    for place, rows in rows_measured(own):
        cuts, costs = paired(rows)
        layers, size = int(rows["layers"].iloc[0]), int(place["rule"].removeprefix("blocks of "))
        inner = ((cuts["size"] == size) & (cuts["start"] + size < layers)).to_numpy(dtype=bool)
        if inner.sum() == layers - size > 2:
            starts = [int(start) for start in cuts["start"][inner]]
            found.setdefault((place["model"], place["task"]), {})[size] = starts, costs[inner]
    return {place: dict(sorted(of_sizes.items())) for place, of_sizes in found.items()}


def flips(scores: pd.DataFrame) -> pd.DataFrame:
    """Answers that change: model, task, topic, rule, size, share, items, value with low and high (accuracy less that of
    the whole model), lost, gained (items), changed (share of items with another choice, missing where none was kept),
    p (McNemar's, exact), p_holm (corrected over the sizes of a curve)."""
    rows = []
    for place, cuts, right, _, found in measurements(one_rule(scores[scores["metric"] != "loss"]), (), scores):
        if not are_shares(right) or cuts["size"].iloc[0] != 0 or len(cuts) < 2:
            continue
        has_choices = found["chosen"].notna().all()
        choices = paired(found.assign(outcome=found["chosen"]))[1] if has_choices else None
        p = [mcnemar(right[0], one) for one in right[1:]]
        changes = zip(records(cuts)[1:], p, holm(p), drawn_means(right[1:] - right[0]), strict=True)
        for number, (cut, own, corrected, change) in enumerate(changes, start=1):
            row = place | {"topic": topic(place["task"])} | cut | {"items": right.shape[1], "p": own}
            row |= {"lost": int((right[0] > right[number]).sum()), "gained": int((right[0] < right[number]).sum())}
            row["changed"] = np.nan if choices is None else float((choices[0] != choices[number]).mean())
            rows.append(row | interval(change) | {"p_holm": corrected})
    names = "model task rule topic size share items value low high lost gained changed p p_holm"
    return pd.DataFrame(rows, columns=None if rows else names.split())


def rules_compared(scores: pd.DataFrame) -> pd.DataFrame:
    """Similarity-informed less simple heuristic, at sizes at which they drop other layers: model, task, topic, size,
    share, items, value with low and high."""
    rows = []
    found = {tuple(place.values()): paired(own) for place, own in rows_measured(scores[scores["rule"].isin(RULES)])}
    for model, task in dict.fromkeys(place[:2] for place in found):
        if (model, task, RULES[0]) not in found or (model, task, RULES[1]) not in found:
            continue
        (cuts, one), (others, other) = (found[model, task, rule] for rule in RULES)
        if one.shape[1] != other.shape[1]:
            continue
        place_of = {size: place for place, size in enumerate(others["size"])}
        both = [(place, place_of[size]) for place, size in enumerate(cuts["size"]) if size in place_of]
        apart = [(a, b) for a, b in both if cuts["cut"][a] != others["cut"][b]]
        changes = drawn_means(np.stack([one[a] - other[b] for a, b in apart])) if apart else []
        for (a, b), change in zip(apart, changes, strict=True):
            row = {"model": model, "task": task, "topic": topic(task), "size": cuts["size"][a]}
            row |= {"share": cuts["share"][a], "items": one.shape[1], "similarity": one[a].mean()}
            rows.append(row | {"simple": other[b].mean()} | interval(change))
    names = "model task topic size share items similarity simple value low high"
    return pd.DataFrame(rows, columns=None if rows else names.split())


# ---- distances and healings -----------------------------------------------------------------------------------------


def kept_distances(distances: pd.DataFrame) -> pd.DataFrame:
    """One measurement of each model, text and block: not rounded, with the distances of sequences, the latest."""
    own = distances[distances["bits"].isna()].assign(kept=distances["by_sequence"].notna())
    own = own.sort_values(["kept", "samples", "measured"], kind="stable")
    return own.drop_duplicates(["model", "corpus", "size", "start"], keep="last").drop(columns="kept").sort_index()


def nearest(distances: pd.DataFrame) -> pd.DataFrame:
    """The most similar block of each size, l*(n), among those that keep the last layer: model, corpus, layers, size,
    start, share, distance, stderr, samples, low and high (of the start, where the sequences are drawn anew)."""
    own = kept_distances(distances)
    own = own[own["start"] + own["size"] < own["layers"]]
    best = own.loc[own.groupby(["model", "corpus", "size"], sort=False)["distance"].idxmin()]
    ends = {place: _drawn_starts(found) for place, found in own.groupby(["model", "corpus", "size"], sort=False)}
    keys = list(zip(best["model"], best["corpus"], best["size"], strict=True))
    names = ["model", "corpus", "layers", "size", "start", "share", "distance", "stderr", "samples"]
    found = best[names].assign(low=[ends[key][0] for key in keys], high=[ends[key][1] for key in keys])
    return found.assign(agrees=[ends[key][2] for key in keys]).reset_index(drop=True)


def _drawn_starts(blocks: pd.DataFrame) -> tuple[float, float, float]:
    """Ends of 95% of the starts of the most similar block, and how often it is the one of all sequences."""
    if blocks["by_sequence"].isna().any():
        return np.nan, np.nan, np.nan
    value, draws = means(np.stack(list(blocks["by_sequence"])))
    starts = blocks["start"].to_numpy(dtype=int)
    drawn = starts[draws.argmin(axis=1)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high), float((drawn == starts[value.argmin()]).mean())


def training(folder: Path | None = None) -> pd.DataFrame:
    """Loss while healing, by step: model, healing (in words), size, start, cut, path of the run, step, tokens, loss."""
    from deeper_layers.cuts import Cut
    from deeper_layers.results.units import all_units

    rows = []
    for unit in all_units(folder, "healing"):
        cut, course, how = Cut.of_key(unit.key["cut"]), unit.details["healing"], unit.key["healing"]
        said = settings_of(json.dumps(how | {"text": unit.key["text"], "tokens": course["tokens"]}))
        place = {"model": unit.key["model"]["name"], "healing": said["healing"], "size": cut.size, "start": cut.start}
        place |= {"cut": cut.name, "path": unit.path.name if unit.path else ""}
        a_step = course["tokens"] / len(course["losses"])
        for step, loss in enumerate(course["losses"], start=1):
            rows.append(place | {"step": step, "tokens": step * a_step, "loss": loss})
    return pd.DataFrame(rows, columns=["model", "healing", "size", "start", "cut", "path", "step", "tokens", "loss"])


def settings_of(healing: str) -> dict:
    """The settings of a healing as columns, and all of them in words."""
    how = json.loads(healing)
    distilled = how.get("objective") == "distill"
    said = [f"rank {how['rank']}", f"{how['tokens']:,} tokens", f"rate {how['learning_rate']:g}", f"seed {how['seed']}"]
    said += ["distilled"] * distilled + [f"auxiliary loss {how['auxiliary']:g}"] * bool(how["auxiliary"])
    said += [f"adapters {how['adapters']}"] * (how["adapters"] != "all") + [f"on {how['text']}"] * (how["text"] != "c4")
    said += [f"in {how['quantization']}"] * bool(how["quantization"])
    settings = {name: how[name] for name in ("rank", "seed", "learning_rate", "tokens", "text", "adapters")}
    return {"healing": ", ".join(said), **settings, "distillation": distilled, "auxiliary": how["auxiliary"]}


def healed_in_words(healing: pd.Series, bits: pd.Series) -> list[str]:
    said = {how: settings_of(how)["healing"] for how in healing.dropna().unique()}
    return [said.get(how, f"not healed{'' if pd.isna(form) else f', in {form}'}") for how, form in zip(healing, bits)]


def answer_lengths(scores: pd.DataFrame) -> pd.DataFrame:
    """How long written answers are, where results keep it: none of today does, so the table is empty."""
    return pd.DataFrame(columns=["model", "task", "topic", "rule", "size", "share", "items", "value", "low", "high"])


# ---- what they share ------------------------------------------------------------------------------------------------


def _in_order(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    order = {task: number for number, task in enumerate(tasks)}
    return rows.assign(order=rows["task"].map(order)).sort_values(["model", "order", "start"]).drop(columns="order")
