"""Which layers should go? Every block's cost, the regret of rules and of measures of geometry.

A rule is judged by its regret: how much more its choice costs than the best block of its size, found on one half of the
sequences and judged on the other. A map holds every block, so no interval is over blocks.

Letters in shapes: B blocks, S sequences, L layers.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers import results
from deeper_layers.report.estimates import Estimate, mean_of, over_best
from deeper_layers.report.names import model_title, put_in_order, rule_title, topic
from deeper_layers.report.pairing import best_measured
from deeper_layers.report.statistics import RULES, in_order_of_models, maps, nearest, regret_table, sizes_of_shares
from deeper_layers.rules.choosing import REGISTERED

TEXT = "c4"  # whose loss is judged
# what others say that rules keep of Llama-2-7B, not healed, and the code (commit) whose choices ours equal
OTHERS = Path(__file__).with_name("others.csv")


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """The map of every block: model, task (text), topic, layers, size, start, share, value (loss, nats a token),
    guessing, cost (over the whole model), place (among blocks of its size that keep the last layer, from 1)."""
    own = scores[(scores["metric"] == "loss") & scores["rule"].str.startswith("blocks of", na=False)]
    found = best_measured(own).drop_duplicates(["model", "task", "cut"]).rename(columns={"chance": "guessing"})
    found = found[["model", "task", "layers", "size", "start", "share", "value", "guessing"]]
    whole = found[found["size"] == 0].rename(columns={"value": "whole"})[["model", "task", "whole"]]
    found = found[found["size"] > 0].merge(whole, on=["model", "task"])
    found = found.assign(cost=found["value"] - found["whole"], topic=found["task"].map(topic)).drop(columns="whole")
    inner = found[found["start"] + found["size"] < found["layers"]]
    place = inner.groupby(["model", "task", "size"])["value"].rank(method="min")
    return in_order_of_models(found.assign(place=place), sorted(found["task"].unique()))


def rules(scores: pd.DataFrame) -> pd.DataFrame:
    """Rivals: model, rule, title, sizes (as text), value (mean regret, nats a token) with low and high, best first.

    The sizes are PERCENT of the layers; rules that lack one are left out. Random draws are one rule: their mean.
    The rules of others chose on Wikipedia.
    """
    found = []
    chosen = scores[(scores["task"] == TEXT) & (scores["metric"] == "loss") & (scores["repeat"] == 0)]
    chosen = chosen[chosen["healing"].isna() & chosen["bits"].isna() & chosen["outcome"].notna()]
    for model, (every, sizes) in _of_text(scores).items():
        own = chosen[(chosen["model"] == model) & chosen["rule"].notna() & chosen["size"].isin(sizes)]
        own = own[~own["rule"].isin(RULES) & ~own["rule"].str.startswith("blocks of", na=False)]
        own = own[own["items"] == every[sizes[0]][1].shape[1]]  # the map's sequences
        of_rules = {rule: dict(zip(of["size"], of["outcome"])) for rule, of in own.groupby("rule", sort=False)}
        # the simple heuristic drops the last block that keeps the last layer
        of_rules["simple"] = {size: every[size][1][-1] for size in sizes}
        regrets = {
            rule: mean_of([_regret(every[size][1], losses[size]) for size in sizes])
            for rule, losses in of_rules.items()
            if set(losses) >= set(sizes)
        }
        draws = [regrets.pop(rule) for rule in list(regrets) if rule.startswith("random-")]
        regrets |= {f"random, mean of {len(draws)} draws": mean_of(draws)} if draws else {}
        shared = {"model": model, "sizes": ", ".join(map(str, sizes))}
        rows = [shared | {"rule": rule, "title": rule_title(rule)} | own.columns() for rule, own in regrets.items()]
        found += sorted(rows, key=lambda row: row["value"])
    return pd.DataFrame(found, columns=["model", "rule", "title", "sizes", "value", "low", "high"])


def leaderboard(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Rules by models: rule, title, source, passes (over the text, for 8 of 32 layers), "as in the code of" (whose
    choices ours equal), published (what others kept of Llama-2-7B), and of each model the mean regret (with "_low" and
    "_high") and the healed loss, missing where not measured.

    The healed loss is of the size at which most rules of that model were healed, 0 among them: nats a token above the
    whole model healed alike.
    """
    others, words = pd.read_csv(OTHERS).set_index("rule"), "{kept:.2f} of {whole:.2f} without {dropped} ({said_by})"
    told = {rule: words.format(**of) for rule, of in others.dropna(subset="kept").to_dict("index").items()}
    regrets = pd.concat([rules(scores), _regret_of_similarity(scores, distances)])
    regrets["rule"] = regrets["rule"].str.replace("random, .*", "random", regex=True)
    table = pd.DataFrame(index=[*dict.fromkeys(re.sub("random-.*", "random", rule) for rule in REGISTERED)])
    first = {re.sub("random-.*", "random", rule): of for rule, of in reversed(REGISTERED.items())}
    table["title"] = [rule_title(rule) for rule in table.index]
    table["source"] = [first[rule].source for rule in table.index]
    table["passes"] = [round(first[rule].passes(8, 32) + first[rule].fits, 1) for rule in table.index]
    table["as in the code of"] = others["code"].reindex(table.index).fillna("")
    table["published"] = pd.Series(told).reindex(table.index).fillna("")
    for model, own in regrets.groupby("model", sort=False):
        own, title = own.set_index("rule").reindex(table.index), model_title(str(model))
        ends = {"value": "", "low": "_low", "high": "_high"}
        table = table.assign(**{f"regret, {title}{end}": own[name] for name, end in ends.items()})
        if len(healed := _healed_losses(scores, str(model))):
            size = healed.index.get_level_values("size").value_counts().index[0]
            table[f"healed, {title} (n = {size})"] = healed.xs(size, level="size").reindex(table.index)
    measured = table.filter(like="regret").notna().any(axis=1) | (table["published"] != "")
    return table[measured].reset_index(names="rule")


def _regret_of_similarity(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    found = regret_table(scores, distances)
    return found[(found["corpus"] == TEXT) & (found["task"] == TEXT) & (found["size"] == 0)].assign(rule="similarity")


def _healed_losses(scores: pd.DataFrame, model: str) -> pd.Series:
    """Loss on TEXT above that of the whole model healed alike, by rule and size, of the last healing measured."""
    own = scores[(scores["model"] == model) & (scores["task"] == TEXT) & (scores["metric"] == "loss")]
    own = own[own["healing"].notna() & own["bits"].isna() & (own["repeat"] == 0)].sort_values("measured")
    whole = own[own["size"] == 0].groupby("healing")["value"].last().rename("whole")
    own = own[(own["size"] > 0) & own["rule"].notna()].join(whole, on="healing")
    return (
        own.assign(above=own["value"] - own["whole"]).dropna(subset="above").groupby(["rule", "size"])["above"].last()
    )


def _regret(blocks: np.ndarray, costs: np.ndarray) -> Estimate:
    """How much more a cut costs on each sequence, [S], than the best of its size, [B, S], does."""
    return Estimate.of(over_best(np.stack([*blocks, costs]), len(blocks))[:, -1])


def _of_text(scores: pd.DataFrame) -> dict[str, tuple[dict, list[int]]]:
    """The map of each model, of losses on TEXT, with the sizes that are PERCENT of its layers, where it has all."""
    layers = scores.groupby("model")["layers"].first()
    found = {model: every for (model, text), every in maps(scores).items() if text == TEXT}
    sizes = {model: sizes_of_shares(int(layers[model])) for model in found}
    return {model: (every, sizes[model]) for model, every in found.items() if set(sizes[model]) <= set(every)}


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


def picks(scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """For each measure the regret of its pick, the block with the least of it: model, measure, size, start, value
    (nats a token, without an interval: the map holds every block).

    `measures` are those of `geometry`; the sizes are PERCENT of the layers.
    """
    rows = []
    near = nearest(distances).rename(columns={"start": "layer", "distance": "value"})
    near["measure"] = "angular distance, on " + near["corpus"].replace("c4", "C4").replace("wikipedia", "Wikipedia")
    every = pd.concat([measures.dropna(subset="value"), near])
    every["order"] = every.groupby("measure", sort=False).ngroup()
    every = every[every["layer"] + every["size"] < every["layers"]].sort_values("value", kind="stable")
    for model, (found, sizes) in _of_text(scores).items():
        regrets = {size: over_best(costs, len(costs))[0] for size, (_, costs) in found.items() if size in sizes}
        own = every[(every["model"] == model) & every["size"].isin(sizes)].drop_duplicates(["measure", "size"])
        for of in own.sort_values(["order", "size"]).to_dict("records"):
            regret = regrets[of["size"]][found[of["size"]][0].index(of["layer"])]
            rows.append((model, of["measure"], of["size"], of["layer"], regret))
    return pd.DataFrame(rows, columns=["model", "measure", "size", "start", "value"])
