"""From the table of all results to tidy tables: what figures draw, pages show and claims are judged by.

Every number comes with `low` and `high`, its 95% interval (see estimates.py), and with `untold`: why there is none, or
"". Each function takes frames of `results.scores` or `results.distances`, filtered as one likes, and picks of each
model, task and rule the one measurement that counts (`pairing.measurements`).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers import results
from deeper_layers.report.estimates import (
    TAILS,
    Estimate,
    half_gone,
    holm,
    mcnemar,
    mean_of,
    mean_of_items,
    means,
    recovery,
    regret_of_nearest,
    shares_kept,
)
from deeper_layers.report.names import topic
from deeper_layers.report.pairing import (
    RUN,
    Measured,
    by_run,
    joined,
    main_metrics,
    measurements,
    one_rule,
    paired,
    same_items,
)

HEADLINE = ("mmlu", "lettered_capitals", "capitals", "written_facts")
WHOLE = "0,0"
SIZE = 4  # layers of a block that the published scans of tasks drop
RULES = ("similarity", "simple")  # the paper's
AT_MOST = "at most"  # the whole model was not healed alike: of a loss only `high` is told, of a score nothing
NO_WHOLE = "whole model not healed alike"
PERCENT = 10, 20, 25, 33  # of the layers: the sizes over which regret is averaged
OF_HEALING = ["rank", "seed", "learning_rate", "tokens", "text", "adapters"]


def table_of(names: Sequence[str], tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Some tables below each other, with columns of these names, also where there is none."""
    tables = list(tables)
    return pd.concat(tables, ignore_index=True)[list(names)] if tables else pd.DataFrame(columns=list(names))


def curves(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """Score against layers dropped: a row for each model, task, rule and size, of the best measurement of each.

    `also` names columns of `results.scores` that tell curves apart too, such as "shots", "order", "bits" or "healing".
    Columns: model, task, topic, rule, *also, layers, size, start, share (of layers dropped), metric, items, value with
    low and high (95%: Wilson's of an accuracy, drawn of a loss), guessing, whole (the value of the whole model), kept
    with kept_low and kept_high (share of what the whole model scores above guessing; missing at floor and of losses),
    untold ("at floor" where nothing can be seen, else "").
    """
    return _by_cut(measurements(one_rule(scores), also, scores), also)


def kept_by_place(scores: pd.DataFrame, size: int = SIZE) -> pd.DataFrame:
    """Share kept above guessing by the place of the dropped block: the columns of `curves`, with middle (of the block,
    in layers) and depth (middle / layers), of the headline's tasks where every block of `size` layers was tried."""
    found = _by_cut(scans(scores, HEADLINE, size))
    found = found[found["size"] > 0]
    middle = found["start"] + (size - 1) / 2
    return in_order_of_models(found.assign(middle=middle, depth=(middle + 0.5) / found["layers"]), HEADLINE)


def in_order_of_models(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Models in the order in which they come, of each the tasks in a given one, of each the blocks by their place."""
    models, order = list(rows["model"].unique()), list(tasks)
    places = rows.assign(model=rows["model"].map(models.index), task=rows["task"].map(order.index))
    return rows.loc[places.sort_values(["model", "task", "size", "start"]).index].reset_index(drop=True)


def scans(scores: pd.DataFrame, tasks: Iterable[str], size: int = SIZE) -> Iterator[Measured]:
    """The measurements of the whole model and every block of `size` layers."""
    own = scores[(scores["rule"] == f"blocks of {size}") & scores["task"].isin(list(tasks))]
    for one in measurements(own[own["metric"] != "loss"], of=scores):
        if len(one.cuts) == one.layers - size + 2:
            yield one


def _by_cut(found: Iterable[Measured], also: Sequence[str] = ()) -> pd.DataFrame:
    names = ["model", "task", "rule", "topic", *also, "layers", "cut", "size", "start", "share", "metric", "items"]
    names += ["value", "low", "high", "guessing", "whole", "kept", "kept_low", "kept_high", "untold"]
    tables = []
    for one in found:
        kept = shares_kept(one.outcomes, one.guessing) if one.has_whole else Estimate.none("")
        told = mean_of_items(one.outcomes).columns() | kept.columns("kept")
        tables.append(one.cuts.assign(**told, untold=kept.untold))
    return table_of(names, tables)


def half_gone_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Where half is gone: model, task, topic, rule, layers, items, guessing, whole, largest (size), value with low and
    high (layers dropped; infinite where half is never gone), share with share_low and share_high, untold."""
    names = "model task rule topic layers items guessing whole largest value low high share share_low share_high untold"
    tables = []
    for one in measurements(one_rule(scores[scores["metric"] != "loss"]), of=scores):
        if one.has_whole and len(one.cuts) > 1 and one.cuts["size"].is_unique:
            half = half_gone(one.outcomes, one.cuts["size"], one.guessing)
            told = half.columns() | {name: n / one.layers for name, n in half.columns("share").items()}
            tables.append(one.cuts.tail(1).rename(columns={"size": "largest"}).assign(**told, untold=half.untold))
    return table_of(names.split(), tables)


def losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Loss on text against layers dropped, healed and not: the columns of `curves` without kept and untold, and healed
    ("not healed", or the healing in words), line (the same, shorter), relative (value over guessing). Values are nats a
    token, guessing is ln V."""
    own = scores[scores["metric"] == "loss"]
    known = own["chance"].fillna(own["model"].map(own.groupby("model")["chance"].first()))
    own = own.assign(chance=known, healed=healed_in_words(own["healing"], own["bits"]))
    found = curves(own, also=["healing", "bits", "healed"])
    found = found.drop(columns=["kept", "kept_low", "kept_high", "untold"])
    settings = {how: json.loads(how) for how in found["healing"].dropna().unique()}
    lines = {how: f"healed, rank {of['rank']}, {of['tokens']:,} tokens" for how, of in settings.items()}
    line = [lines.get(how, "not healed") for how in found["healing"]]
    return found.assign(line=line, relative=found["value"] / found["guessing"])


def recovery_table(scores: pd.DataFrame) -> pd.DataFrame:
    """What each healing recovers: model, rule, layers, cut, size, start, share, healing (in words), OF_HEALING,
    distillation, auxiliary, task, topic, metric, items, whole, pruned, healed with healed_low and healed_high,
    whole_healed (missing where the whole model was not healed alike), value with low and high (share of the gap
    closed), untold. Where a loss lacks the whole model healed alike, only `high` is told, and untold is "at most":
    compare such healings by `healed`.

    The gap after healing is that to the whole model healed alike. Without one a score has no recovery.
    """
    kept = scores[(scores["repeat"] == 0) & scores["outcome"].notna()]
    known = kept[kept["metric"] == "loss"].groupby("model")["chance"].max()
    every = kept[kept["healing"].notna() & (kept["metric"] == kept["task"].map(main_metrics(kept)))]
    unhealed, mended = by_run(scores[scores["healing"].isna()]), by_run(every.assign(path=every["healing"]))
    every = every.assign(group=every.groupby(["healing", *RUN], dropna=False, sort=False).ngroup())
    pruned = every[every["cut"] != WHOLE].drop_duplicates(["group", "cut"])
    rows = []
    for first in pruned.sort_values(["group", "cut"]).to_dict("records"):
        key = tuple(None if pd.isna(first[name]) else first[name] for name in RUN)
        cut, of_cut = first["cut"], mended[key][first["healing"]]
        pair = same_items(unhealed.get(key, {}), of_cut[cut], (WHOLE, cut))
        if pair is None:
            continue
        healed, adapted = joined(of_cut[cut], of_cut[cut]), joined(of_cut.get(WHOLE, {}), of_cut[cut])
        is_loss = first["metric"] == "loss"
        estimate = recovery(*pair, healed, adapted, guessing=known[first["model"]] if is_loss else np.inf)
        if adapted is None and not estimate.untold:
            most = Estimate(np.nan, np.nan, estimate.high, estimate.numbers, AT_MOST)
            estimate = most if is_loss else Estimate.none(NO_WHOLE)
        row = first | settings_of(first["healing"]) | {"topic": topic(first["task"]), "items": len(healed)}
        row |= {"whole": pair[0].mean(), "pruned": pair[1].mean()} | mean_of_items(healed).columns("healed")
        row["whole_healed"] = np.nan if adapted is None else adapted.mean()
        rows.append(row | estimate.columns() | {"untold": estimate.untold})
    names = "model rule layers cut size start share bits healing distillation auxiliary task topic metric items whole"
    names += " pruned healed healed_low healed_high whole_healed value low high untold"
    return pd.DataFrame(rows, columns=[*names.split(), *OF_HEALING])


def recovered_by(place: str, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `recovery_table` for the healing whose scores lie at `place` in results, losses last.

    `scores` are all of its model: of the models before healing, and of the whole one healed alike.
    """
    own = scores["path"] == place
    healing, cut = scores.loc[own, "healing"], scores.loc[own, "cut"].iloc[:1].tolist()
    alike = scores["healing"].isin(healing) & (scores["cut"] == WHOLE)
    asked = scores.assign(repeat=scores["repeat"].mask(own, 0))  # whatever else was measured of the same
    back = recovery_table(asked[own | alike | scores["healing"].isna()])
    back = back[back["cut"].isin(cut)]
    return back.sort_values("metric", key=lambda metric: metric == "loss", kind="stable")


def regret_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """How much more the most similar block costs than the best block of its size, nats a token, by calibration text.

    Columns: model, corpus (of the distances), task (the text of the losses), size, start (the pick), best, blocks,
    place (of the pick among them by loss, from 1), value with low and high. Of size 0 is the mean over PERCENT of
    the layers, where the map has all of these sizes.
    """
    rows, near = [], kept_distances(distances)
    for (model, task), every in maps(scores).items():
        for corpus, of_text in near[near["model"] == model].groupby("corpus"):
            if of_text["by_sequence"].isna().any():
                continue
            vectors, found = of_text.set_index(["start", "size"])["by_sequence"], {}
            shared = {"model": model, "corpus": corpus, "task": task}
            for size, (starts, costs) in every.items():
                by_sequence = np.stack([vectors[start, size] for start in starts])
                found[size], average = regret_of_nearest(costs, by_sequence), costs.mean(axis=1)
                pick = int(by_sequence.mean(axis=1).argmin())
                row = {"size": size, "start": starts[pick], "best": starts[int(average.argmin())]}
                row |= {"blocks": len(starts), "place": 1 + int((average < average[pick]).sum())}
                rows.append(shared | row | found[size].columns())
            of_shares = sizes_of_shares(int(of_text["layers"].iloc[0]))
            if set(of_shares) <= set(found):
                rows.append(shared | {"size": 0} | mean_of([found[size] for size in of_shares]).columns())
    names = ["model", "corpus", "task", "size", "start", "best", "blocks", "place", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(["start", "best", "blocks", "place"], "Int64"))


def sizes_of_shares(layers: int) -> list[int]:
    return list(dict.fromkeys(max(1, (percent * layers + 50) // 100) for percent in PERCENT))  # halves are rounded up


def maps(scores: pd.DataFrame) -> dict[tuple[str, str], dict[int, tuple[list[int], np.ndarray]]]:
    """By model and text, then size, of each size of which every block was tried: first layers, and losses [B, I].

    Blocks that hold the last layer are left out, as no rule drops it; so are sizes with fewer than 3 blocks.
    """
    found: dict = {}
    own = scores[(scores["metric"] == "loss") & scores["rule"].str.startswith("blocks of", na=False)]
    for one in measurements(own):
        model, text, rule = one.place
        size = int(rule.removeprefix("blocks of "))
        inner = ((one.cuts["size"] == size) & (one.cuts["start"] + size < one.layers)).to_numpy(dtype=bool)
        if inner.sum() == one.layers - size > 2:
            found.setdefault((model, text), {})[size] = one.cuts["start"][inner].tolist(), one.outcomes[inner]
    return {place: dict(sorted(of_sizes.items())) for place, of_sizes in found.items()}


def flips(scores: pd.DataFrame) -> pd.DataFrame:
    """Answers that change: model, task, topic, rule, size, share, items, value with low and high (accuracy less that of
    the whole model), lost, gained (items), changed (share of items with another choice, missing where none was kept),
    p (McNemar's, exact), p_holm (corrected over the sizes of a curve)."""
    names = "model task rule topic cut size start share items value low high lost gained changed p p_holm"
    tables = []
    for one in measurements(one_rule(scores[scores["metric"] != "loss"]), of=scores):
        if not one.has_whole or len(one.cuts) < 2:
            continue
        whole, others = one.outcomes[0], one.outcomes[1:]
        counts = {"lost": (whole > others).sum(axis=1), "gained": (whole < others).sum(axis=1), "changed": np.nan}
        if one.rows["chosen"].notna().all():
            choices = paired(one.rows.assign(outcome=one.rows["chosen"]))[1]
            counts["changed"] = (choices[0] != choices[1:]).mean(axis=1)
        p = [mcnemar(whole, other) for other in others]
        changes = Estimate.of(means(others - whole)).columns()
        tables.append(one.cuts[1:].assign(**changes, **counts, p=p, p_holm=holm(p)))
    return table_of(names.split(), tables)


def rules_compared(scores: pd.DataFrame) -> pd.DataFrame:
    """Similarity-informed less simple heuristic, at sizes at which they drop other layers: model, task, topic, size,
    share, items, value with low and high."""
    found = {one.place: one for one in measurements(scores[scores["rule"].isin(RULES)], of=scores)}
    tables = []
    for model, task in dict.fromkeys(place[:2] for place in found):
        one, other = (found.get((model, task, rule)) for rule in RULES)
        if one is None or other is None or one.outcomes.shape[1] != other.outcomes.shape[1]:
            continue
        both = one.cuts.reset_index().merge(other.cuts.reset_index(), on="size", suffixes=("", "_simple"))
        both = both[both["cut"] != both["cut_simple"]]
        if len(both):
            apart = one.outcomes[both["index"]] - other.outcomes[both["index_simple"]]
            tables.append(both.assign(**Estimate.of(means(apart)).columns()))
    return table_of(["model", "task", "topic", "size", "share", "items", "value", "low", "high"], tables)


# ---- distances and healings -----------------------------------------------------------------------------------------


def kept_distances(distances: pd.DataFrame) -> pd.DataFrame:
    """One measurement of each model, text and block: not rounded, with the distances of sequences, the latest."""
    own = distances[distances["bits"].isna()].assign(kept=distances["by_sequence"].notna())
    own = own.sort_values(["kept", "samples", "measured"], kind="stable")
    return own.drop_duplicates(["model", "corpus", "size", "start"], keep="last").drop(columns="kept").sort_index()


def nearest(distances: pd.DataFrame) -> pd.DataFrame:
    """The most similar block of each size, l*(n), among those that keep the last layer: model, corpus, layers, size,
    start, share, distance, stderr, samples, low and high (of the start, where the sequences are drawn anew), agrees
    (share of these draws that choose the same)."""
    own, rows = kept_distances(distances), []
    for _, of in own[own["start"] + own["size"] < own["layers"]].groupby(["model", "corpus", "size"], sort=False):
        row = of.loc[of["distance"].idxmin()].to_dict()
        if of["by_sequence"].notna().all():
            starts = of["start"].to_numpy(dtype=float)[means(np.stack(list(of["by_sequence"]))).argmin(axis=1)]
            row["low"], row["high"] = np.quantile(starts[1:], TAILS, method="inverted_cdf")
            row["agrees"] = (starts[1:] == starts[0]).mean()
        rows.append(row)
    names = "model corpus layers size start share distance stderr samples low high agrees"
    return pd.DataFrame(rows, columns=names.split())


def training(folder: Path | None = None) -> pd.DataFrame:
    """Loss while healing, by step: the columns of `results.healing`, and healing is in words."""
    found = results.healing(folder)
    return found.assign(healing=healed_in_words(found["healing"], found["bits"]))


def settings_of(healing: str) -> dict:
    """The settings of a healing as columns, and all of them in words."""
    how = json.loads(healing)
    distilled = how.get("objective") == "distill"
    said = [f"rank {how['rank']}", f"{how['tokens']:,} tokens", f"rate {how['learning_rate']:g}", f"seed {how['seed']}"]
    said += ["distilled"] * distilled + [f"auxiliary loss {how['auxiliary']:g}"] * bool(how["auxiliary"])
    said += [f"adapters {how['adapters']}"] * (how["adapters"] != "all") + [f"on {how['text']}"] * (how["text"] != "c4")
    said += [f"in {how['quantization']}"] * bool(how["quantization"])
    settings = {name: how[name] for name in OF_HEALING}
    return {"healing": ", ".join(said), **settings, "distillation": distilled, "auxiliary": how["auxiliary"]}


def healed_in_words(healing: pd.Series, bits: pd.Series) -> list[str]:
    said = {how: settings_of(how)["healing"] for how in healing.dropna().unique()}
    return [said.get(how, f"not healed{'' if pd.isna(form) else f', in {form}'}") for how, form in zip(healing, bits)]
