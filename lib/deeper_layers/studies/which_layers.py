"""Which layers should go? Every block's cost, the regret of rules and of measures of geometry.

A rule is judged by its regret: how much more its choice costs than the best block of its size, found on one half of the
sequences and judged on the other. A map holds every block, so no interval is over blocks.

Letters in shapes: B blocks, S sequences, L layers.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers import results
from deeper_layers.report.estimates import Estimate, mean_of, means, over_best
from deeper_layers.report.names import model_title, put_in_order, rule_title, topic
from deeper_layers.report.pairing import best_measured, gives, measurements, of_maps
from deeper_layers.report.statistics import RULES, in_order_of_models, kept_distances, nearest
from deeper_layers.rules.choosing import REGISTERED

TEXT = "c4"  # whose loss is judged
PERCENT = 10, 20, 25, 33  # of the layers: the sizes over which regret is averaged
# what others say that rules keep of Llama-2-7B, not healed, and the code (commit) whose choices ours equal
OTHERS = Path(__file__).with_name("others.csv")
Maps = dict[int, tuple[list[int], np.ndarray]]  # by size the first layers of all blocks, and their losses [B, S]


def maps(scores: pd.DataFrame) -> dict[tuple[str, str], Maps]:
    """By model and text the sizes of which every block was tried.

    Blocks that hold the last layer are left out, as no rule drops it; so are sizes with fewer than 3 blocks.
    """
    found: dict = {}
    for one in measurements(scores[(scores["metric"] == "loss") & of_maps(scores)]):
        model, text, rule = one.place
        size = int(rule.removeprefix("blocks of "))
        inner = ((one.cuts["size"] == size) & (one.cuts["start"] + size < one.layers)).to_numpy(dtype=bool)
        if inner.sum() == one.layers - size > 2:
            found.setdefault((model, text), {})[size] = one.cuts["start"][inner].tolist(), one.outcomes[inner]
    return {place: dict(sorted(of_sizes.items())) for place, of_sizes in found.items()}


def sizes_of_shares(layers: int) -> list[int]:
    return list(dict.fromkeys(max(1, (percent * layers + 50) // 100) for percent in PERCENT))  # halves are rounded up


def maps_of_text(scores: pd.DataFrame) -> Iterator[tuple[str, Maps, list[int]]]:
    """Each model with its map, of losses on TEXT, and the sizes that are PERCENT of its layers, where it has all."""
    layers = scores.groupby("model")["layers"].first()
    for (model, text), every in maps(scores).items():
        if text == TEXT and set(sizes := sizes_of_shares(int(layers[model]))) <= set(every):
            yield model, every, sizes


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """The map of every block: model, task (text), topic, layers, size, start, share, value (loss, nats a token),
    guessing, cost (over the whole model), place (among blocks of its size that keep the last layer, from 1)."""
    found = best_measured(scores[(scores["metric"] == "loss") & of_maps(scores)])
    found = found.drop_duplicates(["model", "task", "cut"]).rename(columns={"chance": "guessing"})
    found = found[["model", "task", "layers", "size", "start", "share", "value", "guessing"]]
    whole = found[found["size"] == 0].set_index(["model", "task"])["value"].rename("whole")
    found = found[found["size"] > 0].join(whole, on=["model", "task"], how="inner")
    found = found.assign(cost=found["value"] - found["whole"], topic=found["task"].map(topic)).drop(columns="whole")
    inner = found[found["start"] + found["size"] < found["layers"]]
    place = inner.groupby(["model", "task", "size"])["value"].rank(method="min")
    return in_order_of_models(found.assign(place=place), sorted(found["task"].unique()))


def regret_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """How much more the most similar block costs than the best block of its size, nats a token, by calibration text.

    Columns: model, corpus (of the distances), task (the text of the losses), size, start (the pick), best, blocks,
    place (of the pick among them by loss, from 1), value with low and high. Of size 0 is the mean over PERCENT of
    the layers, where the map has all of these sizes. The choice is drawn anew with the calibration sequences.
    """
    rows, near = [], kept_distances(distances)
    for (model, task), every in maps(scores).items():
        for corpus, of_text in near[near["model"] == model].groupby("corpus"):
            if of_text["by_sequence"].isna().any():
                continue
            by_sequence, found = of_text.set_index(["start", "size"])["by_sequence"], {}
            shared = {"model": model, "corpus": corpus, "task": task}
            for size, (starts, costs) in every.items():
                # other sequences than those of the costs, so another draw
                drawn = means(np.stack([by_sequence[start, size] for start in starts]), seed=2)
                picks, average = drawn.argmin(axis=1), costs.mean(axis=1)
                found[size] = Estimate.of(over_best(costs, len(costs))[np.arange(len(picks)), picks])
                row = {"size": size, "start": starts[picks[0]], "best": starts[average.argmin()]}
                row |= {"blocks": len(starts), "place": 1 + (average < average[picks[0]]).sum()}
                rows.append(shared | row | found[size].columns())
            sizes = sizes_of_shares(int(of_text["layers"].iloc[0]))
            if set(sizes) <= set(found):
                rows.append(shared | {"size": 0} | mean_of([found[size] for size in sizes]).columns())
    names = ["model", "corpus", "task", "size", "start", "best", "blocks", "place", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(["start", "best", "blocks", "place"], "Int64"))


@gives("model rule title sizes value low high")
def rules(scores: pd.DataFrame) -> Iterator[dict]:
    """Rivals: the mean regret over sizes (as text) that are PERCENT of the layers, nats a token, best first.

    Rules that lack a size are left out. Random draws are one rule: their mean. The rules of others chose on Wikipedia.
    """
    chosen = _losses(scores[scores["healing"].isna() & scores["outcome"].notna() & ~scores["rule"].isin(RULES)])
    for model, every, sizes in maps_of_text(scores):
        own = chosen[(chosen["model"] == model) & chosen["size"].isin(sizes)]
        own = own[own["items"] == every[sizes[0]][1].shape[1]]  # the map's sequences
        of_rules = {rule: dict(zip(of["size"], of["outcome"])) for rule, of in own.groupby("rule", sort=False)}
        # the simple heuristic drops the last block that keeps the last layer
        of_rules["simple"] = {size: every[size][1][-1] for size in sizes}
        regrets = {
            rule: mean_of([_regret(every[size][1], losses[size]) for size in sizes])
            for rule, losses in of_rules.items()
            if set(losses) >= set(sizes)
        }
        if draws := [regrets.pop(rule) for rule in list(regrets) if rule.startswith("random-")]:
            regrets[f"random, mean of {len(draws)} draws"] = mean_of(draws)
        shared = {"model": model, "sizes": ", ".join(map(str, sizes))}
        for rule, regret in sorted(regrets.items(), key=lambda one: one[1].value):
            yield shared | {"rule": rule, "title": rule_title(rule)} | regret.columns()


def _losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of losses on TEXT that count, of what a rule chose; what tried every block is left out."""
    own = scores[(scores["task"] == TEXT) & (scores["metric"] == "loss") & (scores["repeat"] == 0)]
    return own[own["bits"].isna() & ~of_maps(own)]


def _regret(blocks: np.ndarray, costs: np.ndarray) -> Estimate:
    """How much more a cut costs on each sequence, [S], than the best of its size, [B, S], does."""
    return Estimate.of(over_best(np.stack([*blocks, costs]), len(blocks))[:, -1])


def leaderboard(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Rules by models: rule, title, source, passes (over the text, for 8 of 32 layers), "as in the code of" (whose
    choices ours equal), published (what others kept of Llama-2-7B), and of each model the mean regret (with "_low" and
    "_high") and the healed loss, missing where not measured.

    The healed loss is of the size at which most rules of that model were healed, 0 among them: nats a token above the
    whole model healed alike.
    """
    registered = {re.sub("random-.*", "random", rule): of for rule, of in reversed(REGISTERED.items())}
    table = pd.DataFrame(index=list(registered)[::-1])
    table["title"] = [rule_title(rule) for rule in table.index]
    table["source"] = [registered[rule].source for rule in table.index]
    table["passes"] = [round(registered[rule].passes(8, 32) + registered[rule].fits, 1) for rule in table.index]
    others = pd.read_csv(OTHERS, index_col="rule").reindex(table.index).fillna("")
    table = table.assign(**{"as in the code of": others["code"], "published": others["published"]})
    regret = regret_table(scores, distances).query("corpus == @TEXT and task == @TEXT and size == 0")
    regrets = pd.concat([rules(scores), regret.assign(rule="similarity")])
    regrets["rule"] = regrets["rule"].str.replace("random, .*", "random", regex=True)
    for model, own in regrets.groupby("model", sort=False):
        own, title = own.set_index("rule").reindex(table.index), model_title(str(model))
        for name, end in {"value": "", "low": "_low", "high": "_high"}.items():
            table[f"regret, {title}{end}"] = own[name]
        if len(healed := _healed_losses(scores[scores["model"] == model])):
            size = healed.index.get_level_values("size").value_counts().index[0]
            table[f"healed, {title} (n = {size})"] = healed.xs(size, level="size").reindex(table.index)
    measured = table.filter(like="regret").notna().any(axis=1) | (table["published"] != "")
    return table[measured].reset_index(names="rule")


def _healed_losses(scores: pd.DataFrame) -> pd.Series:
    """Loss on TEXT above that of the whole model healed alike, by rule and size, of the last healing measured."""
    own = _losses(scores[scores["healing"].notna()]).sort_values("measured")
    whole = own[own["size"] == 0].groupby("healing")["value"].last().rename("whole")
    own = own[own["size"] > 0].join(whole, on="healing")
    own["above"] = own["value"] - own["whole"]
    return own.dropna(subset="above").groupby(["rule", "size"])["above"].last()


# ---- geometry -------------------------------------------------------------------------------------------------------


# A block with the least of a measure is its pick. Of a block: the mean over its layers, 1 less what its ends share,
# what later layers lose without it, or how much more, less or otherwise the residual that leaves it has of something.
MEASURES = {
    "CKA": ("ends", "cka"),
    "neighbours lost": ("ends", "neighbour_overlap"),
    "norm of attention": ("mean", "norm_attention"),
    "norm of MLP": ("mean", "norm_mlp"),
    "norm of both": ("mean", "norm_layer"),
    "cosine of attention": ("mean", "cosine_attention"),
    "cosine of MLP": ("mean", "cosine_mlp"),
    "cosine of both": ("mean", "cosine_layer"),
    "logit lens, KL": ("less", "lens_divergence"),
    "logit lens, top 5": ("more", "lens_overlap"),
    "output without a layer (KL)": ("mean", "skip"),
    "later layers without a layer": ("later", "skip_later"),
    "prompt entropy": ("otherwise", "prompt_entropy"),
    "effective rank": ("otherwise in log", "effective_rank"),
    "TwoNN dimension": ("otherwise in log", "two_nn"),
    "TwoNN, shuffled (control)": ("otherwise in log", "two_nn_shuffled"),
}


def of_block(how: str, values: np.ndarray, start: int, stop: int) -> float:
    """The measure of the block from one layer up to another, without that: `values` are of layers [L], of residuals
    [L + 1] between them, or of pairs, [L + 1, L + 1] or [L, L]."""
    if how == "mean":
        return values[start:stop].mean()
    if how == "ends":
        return 1 - values[start, stop]
    if how == "later":
        later = values[start:stop, stop:]
        return later.mean() if later.size else np.nan
    before, after = (np.log(values[at]) if how.endswith("log") else values[at] for at in (start, stop))
    change = after - before
    return change if how == "more" else -change if how == "less" else abs(change)


def geometry(folder: Path | None = None) -> pd.DataFrame:
    """Measures of every block: model, corpus, layers, layer (the first), size, depth (its middle),
    measure (in words), value."""
    rows = []
    for _, own in put_in_order(results.geometry(folder)).groupby("path", sort=False):
        values, (model, corpus, layers) = {}, own[["model", "corpus", "layers"]].iloc[0]
        for name, found in own.groupby("measure"):
            places = [found[at].to_numpy(dtype=int) for at in ("place", "other") if found[at].notna().all()]
            values[name] = np.full([max(map(max, places)) + 1] * len(places), np.nan)
            values[name][tuple(places)] = found["value"]
        rows += [
            (model, corpus, layers, start, size, (start + size / 2) / layers, measure)
            + (float(of_block(how, values[name], start, start + size)),)
            for size in range(1, layers + 1)
            for start in range(layers - size + 1)
            for measure, (how, name) in MEASURES.items()
        ]
    return pd.DataFrame(rows, columns=["model", "corpus", "layers", "layer", "size", "depth", "measure", "value"])


@gives("model measure size start value")
def picks(scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """For each measure of `geometry` the regret of its pick, the block with the least of it, at PERCENT of the layers:
    nats a token, without an interval, as the map holds every block."""
    near = nearest(distances).rename(columns={"start": "layer", "distance": "value"})
    near["measure"] = "angular distance, on " + near["corpus"].replace("c4", "C4").replace("wikipedia", "Wikipedia")
    every = pd.concat([measures.dropna(subset="value"), near])
    every["order"] = every.groupby("measure", sort=False).ngroup()
    every = every[every["layer"] + every["size"] < every["layers"]].sort_values("value", kind="stable")
    for model, found, sizes in maps_of_text(scores):
        regrets = {
            (start, size): regret
            for size in sizes
            for start, regret in zip(found[size][0], over_best(found[size][1], len(found[size][0]))[0])
        }
        own = every[(every["model"] == model) & every["size"].isin(sizes)].drop_duplicates(["measure", "size"])
        own = own.sort_values(["order", "size"]).rename(columns={"layer": "start"})
        yield own.assign(value=[regrets[of] for of in zip(own["start"], own["size"])])
