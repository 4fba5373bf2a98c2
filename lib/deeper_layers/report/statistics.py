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
from deeper_layers.report import estimates, pairing
from deeper_layers.report.estimates import Estimate, mean_of_items, means
from deeper_layers.report.names import topic
from deeper_layers.report.pairing import Measured, asked_alike, gives, measurements, one_rule, vectors

HEADLINE = ("mmlu", "lettered_capitals", "capitals", "written_facts")
WHOLE = "0,0"
SIZE = 4  # layers of a block that the published scans of tasks drop
RULES = ("similarity", "simple")  # the paper's
AT_MOST = "at most"  # the whole model was not healed alike: of a loss only `high` is told, of a score nothing
NO_WHOLE = "whole model not healed alike"
KEPT = ["kept", "kept_low", "kept_high", "untold"]


def curves(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """Score against layers dropped: a row for each model, task, rule and size, of the best measurement of each, and for
    each value of `also`, columns of `results.scores` such as "shots", "order", "bits" or "healing".

    value with low and high (Wilson's of an accuracy, drawn of a loss), guessing, whole (the value of the whole model),
    kept with kept_low and kept_high (share of what the whole model scores above guessing; missing at floor and of
    losses), untold ("at floor" where nothing can be seen, else "").
    """
    return _by_cut(measurements(one_rule(scores), also, scores), also)


def kept_by_place(scores: pd.DataFrame, size: int = SIZE) -> pd.DataFrame:
    """Share kept above guessing by the place of the dropped block: the columns of `curves`, with middle (of the block,
    in layers) and depth (middle / layers), of the headline's tasks where every block of `size` layers was tried."""
    found = _by_cut(scans(scores, HEADLINE, size)).query("size > 0")
    middle = found["start"] + (size - 1) / 2
    return in_order_of_models(found.assign(middle=middle, depth=(middle + 0.5) / found["layers"]), HEADLINE)


def in_order_of_models(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Models in the order in which they come, of each the tasks in a given one, of each the blocks by their place."""
    order = [*rows["model"].unique(), *tasks]
    by = ["model", "task", "size", "start"]
    return rows.sort_values(by, key=lambda of: of.map(order.index) if of.name in by[:2] else of, ignore_index=True)


def scans(scores: pd.DataFrame, tasks: Iterable[str], size: int = SIZE) -> Iterator[Measured]:
    """The measurements of the whole model and every block of `size` layers."""
    own = scores[(scores["rule"] == f"blocks of {size}") & scores["task"].isin(list(tasks))]
    return (one for one in _answers(own, scores) if len(one.cuts) == one.layers - size + 2)


def _answers(own: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Measured]:
    """The measurements of what is right or wrong, of the whole model and others."""
    every = measurements(own.query("metric != 'loss'"), of=scores)
    return (one for one in every if one.has_whole and len(one.cuts) > 1)


def _by_cut(found: Iterable[Measured], also: Sequence[str] = ()) -> pd.DataFrame:
    names = ["model", "task", "rule", "topic", *also, "layers", "cut", "size", "start", "share", "metric", "items"]
    names += ["value", "low", "high", "guessing", "whole", *KEPT]
    tables = []
    for one in found:
        kept = estimates.shares_kept(one.outcomes, one.guessing) if one.has_whole else Estimate(untold="")
        tables.append(one.cuts.assign(**mean_of_items(one.outcomes).columns() | kept.columns("kept")))
    return pairing.table_of(names, tables)


@gives("model task rule topic layers items guessing whole largest value low high share share_low share_high untold")
def half_gone_table(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Where half is gone: largest (size that was tried), value (layers dropped; infinite where half is never gone),
    share (value / layers)."""
    for one in _answers(one_rule(scores), scores):
        if one.cuts["size"].is_unique:
            half = estimates.half_gone(one.outcomes, one.cuts["size"], one.guessing)
            share = Estimate.combined(lambda numbers, layers=one.layers: numbers / layers, half)
            told = half.columns() | share.columns("share")
            yield one.cuts.tail(1).rename(columns={"size": "largest"}).assign(**told)


def losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Loss on text against layers dropped, healed and not: the columns of `curves` without kept and untold, and healed
    ("not healed", or the healing in words), line (the same, shorter), relative (value over guessing). Values are nats a
    token, guessing is ln V."""
    own = scores.query("metric == 'loss'")
    own = own.assign(healed=healed_in_words(own["healing"], own["bits"]))
    found = curves(own, also=["healing", "bits", "healed"]).drop(columns=KEPT)
    settings = {how: json.loads(how) for how in found["healing"].dropna().unique()}
    words = "healed at {learning_rate:g}, rank {rank}, {tokens:,} tokens"
    lines = {how: words.format(**of) for how, of in settings.items()}
    line = [lines.get(how, "not healed") for how in found["healing"]]
    return found.assign(line=line, relative=found["value"] / found["guessing"])


@gives(
    "model rule layers cut size start share bits healing distillation auxiliary task topic metric items whole pruned "
    "healed healed_low healed_high whole_healed value low high untold rank seed learning_rate tokens text adapters"
)
def recovery_table(scores: pd.DataFrame) -> Iterator[dict]:
    """What each healing (in words, and its settings) recovers: value, the share of the gap closed.

    The gap after healing is that to the whole model healed alike (whole_healed, missing where it was not). Without one
    a score has no recovery; of a loss only `high` is told, and untold is "at most": compare such healings by `healed`.
    """
    scores = pairing.with_runs(scores)
    kept, unhealed = scores.query("repeat == 0"), scores.query("healing.isna()")
    known = kept.query("metric == 'loss'").groupby("model")["chance"].max()
    for (healing, run), rows in pairing.by_main_metric(kept).groupby(["healing", "run"], sort=False):
        mended, firsts = vectors(rows), rows.drop_duplicates("cut").set_index("cut", drop=False)
        files = unhealed.query(f"run == {run}").groupby("path", sort=False)
        runs = sorted((vectors(of_file) for _, of_file in files), key=len, reverse=True)  # that with most cuts first
        for cut in sorted(mended.keys() - {WHOLE}):
            pairs = (asked_alike(of_file, (WHOLE, cut), mended[cut]) for of_file in runs)
            if not (pair := next(filter(None, pairs), None)):
                continue
            first, (healed,) = firsts.loc[cut].to_dict(), asked_alike(mended, [cut], mended[cut])
            (aim,), is_loss = asked_alike(mended, [WHOLE], mended[cut]) or [None], first["metric"] == "loss"
            estimate = estimates.recovery(*pair, healed, aim, guessing=known[first["model"]] if is_loss else np.inf)
            if aim is None and not estimate.untold:
                most = Estimate(high=estimate.high, untold=AT_MOST)
                estimate = most if is_loss else Estimate(untold=NO_WHOLE)
            row = first | settings_of(healing) | {"topic": topic(first["task"]), "items": len(healed)}
            row |= {"whole": pair[0].mean(), "pruned": pair[1].mean()} | mean_of_items(healed).columns("healed")
            yield row | {"whole_healed": np.nan if aim is None else aim.mean()} | estimate.columns()


def recovered_by(place: str, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `recovery_table` for the healing whose scores lie at `place` in results, losses last; `scores` are
    all of its model."""
    own = scores["path"] == place
    alike = scores["healing"].isin(scores.loc[own, "healing"]) & (scores["cut"] == WHOLE)
    asked = scores.assign(repeat=scores["repeat"].mask(own, 0))  # whatever else was measured of the same
    back = recovery_table(asked[own | alike | scores["healing"].isna()])
    back = back[back["cut"].isin(scores.loc[own, "cut"].iloc[:1])]
    return back.sort_values("metric", key=lambda metric: metric == "loss", kind="stable")


@gives("model task rule topic cut size start share items value low high lost gained changed p p_holm")
def flips(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Answers that change: value (accuracy less that of the whole model), lost, gained (items), changed (share of items
    with another choice, missing where none was kept), p (McNemar's, exact), p_holm (over the sizes of a curve)."""
    for one in _answers(one_rule(scores), scores):
        whole, others = one.outcomes[0], one.outcomes[1:]
        counts = {"lost": (whole > others).sum(axis=1), "gained": (whole < others).sum(axis=1), "changed": np.nan}
        if one.rows["chosen"].notna().all():
            choices = pairing.paired(one.rows.assign(outcome=one.rows["chosen"]))[1]
            counts["changed"] = (choices[0] != choices[1:]).mean(axis=1)
        p = [estimates.mcnemar(whole, other) for other in others]
        changes = Estimate.of(means(others - whole)).columns()
        yield one.cuts[1:].assign(**changes, **counts, p=p, p_holm=estimates.holm(p))


@gives("model task topic size share items value low high")
def rules_compared(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Similarity-informed less simple heuristic, at sizes at which they drop other layers."""
    found = {one.place: one for one in measurements(scores.query("rule in @RULES"), of=scores)}
    for model, task in dict.fromkeys(place[:2] for place in found):
        one, other = (found.get((model, task, rule)) for rule in RULES)
        if one and other and one.outcomes.shape[1] == other.outcomes.shape[1]:
            both = one.cuts.reset_index().merge(other.cuts.reset_index(), on="size", suffixes=("", "_simple"))
            if len(both := both.query("cut != cut_simple")):
                apart = one.outcomes[both["index"]] - other.outcomes[both["index_simple"]]
                yield both.assign(**Estimate.of(means(apart)).columns())


@gives("model task topic rule cut size items value at_most ended of_ended of_ended_low of_ended_high tokens times")
def lengths(scores: pd.DataFrame) -> Iterator[dict]:
    """Written answers by cut: value (share right), at_most (if all that was cut off were right), ended (share that
    ended by itself), of_ended (share right of these), tokens (median), times (median over that of the whole model)."""
    own = scores.query("written.notna() and healing.isna() and bits.isna() and repeat == 0")
    asked = ["model", "task", "dtype", "shots", "limit"]
    own = pairing.by_main_metric(own).sort_values([*asked, "rule", "size"], na_position="first")
    own = own.assign(topic=own["task"].map(topic), tokens=own["written"].map(np.median).astype(float))
    for _, alike in own.groupby(asked, dropna=False):
        whole = alike.query("cut == @WHOLE")["tokens"]
        for row in alike.to_dict("records"):
            right, ended = row["outcome"] == 1, row["ended"] == 1
            told = mean_of_items(right[ended]) if ended.any() else Estimate(untold=estimates.NOT_TESTED)
            row |= {"at_most": (right | ~ended).mean(), "ended": ended.mean()} | told.columns("of_ended")
            yield row | {"times": row["tokens"] / whole.iloc[0] if len(whole) else np.nan}


# ---- distances and healings -----------------------------------------------------------------------------------------


def kept_distances(distances: pd.DataFrame) -> pd.DataFrame:
    """One measurement of each model, text and block: not rounded, with the distances of sequences, the latest."""
    own = distances.query("bits.isna()").assign(kept=distances["by_sequence"].notna())
    own = own.sort_values(["kept", "samples", "measured"], kind="stable")
    return own.drop_duplicates(["model", "corpus", "size", "start"], keep="last").drop(columns="kept").sort_index()


@gives("model corpus layers size start share distance stderr samples low high agrees")
def nearest(distances: pd.DataFrame) -> Iterator[dict]:
    """The most similar block of each size, l*(n), among those that keep the last layer: low and high are of its start,
    where the sequences are drawn anew, agrees is the share of these draws that choose the same."""
    inner = kept_distances(distances).query("start + size < layers")
    for _, of in inner.groupby(["model", "corpus", "size"], sort=False):
        row = of.loc[of["distance"].idxmin()].to_dict()
        if of["by_sequence"].notna().all():
            starts = of["start"].to_numpy(dtype=float)[means(np.stack(list(of["by_sequence"]))).argmin(axis=1)]
            row |= Estimate.of(starts).columns() | {"agrees": (starts[1:] == starts[0]).mean()}
        yield row


def sequences_by_size(distances: pd.DataFrame) -> pd.Series:
    """Of each size the distances of every sequence, block by block from the first layer on."""
    return distances.sort_values("start").groupby("size")["by_sequence"].agg(list)


def training(folder: Path | None = None) -> pd.DataFrame:
    """Loss while healing, by step: the columns of `results.healing`, and healing is in words."""
    found = results.healing(folder)
    return found.assign(healing=healed_in_words(found["healing"], found["bits"]))


def settings_of(healing: str) -> dict:
    """The settings of a healing as columns, and all of them in words."""
    how = json.loads(healing)
    how["distillation"] = how.get("objective") == "distill"
    said = [f"rank {how['rank']}", f"{how['tokens']:,} tokens", f"rate {how['learning_rate']:g}", f"seed {how['seed']}"]
    said += ["distilled"] * how["distillation"] + [f"auxiliary loss {how['auxiliary']:g}"] * bool(how["auxiliary"])
    said += [f"adapters {how['adapters']}"] * (how["adapters"] != "all") + [f"on {how['text']}"] * (how["text"] != "c4")
    said += [f"in {how['quantization']}"] * bool(how["quantization"])
    return how | {"healing": ", ".join(said)}


def healed_in_words(healing: pd.Series, bits: pd.Series) -> list[str]:
    said = {how: settings_of(how)["healing"] for how in healing.dropna().unique()}
    return [said.get(how, f"not healed{'' if pd.isna(form) else f', in {form}'}") for how, form in zip(healing, bits)]
