"""Which layers should go? Every block's cost, the regret of rules and of measures of geometry.

A rule is judged by its regret: how much more its choice costs than the best block of its size, found on one half of the
sequences and judged on the other. A map holds every block, so no interval is over blocks.

Letters in shapes: B blocks, S sequences, L layers.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers import results
from deeper_layers.report.estimates import TIE_TOLERANCE, Estimate, mean_of, resample
from deeper_layers.report.names import model_title, put_in_order, rule_title, task_title
from deeper_layers.report.pairing import find_measurements, is_map_row, returns, select_best
from deeper_layers.report.statistics import group_sequences, nearest, select_distances, sort_by_model
from deeper_layers.rules.choosing import REGISTERED

TEXT = "c4"  # whose loss is judged
PERCENT = 10, 20, 25, 33  # of the layers: the sizes over which regret is averaged
# of geometry, and how a block has it (OF_BLOCK); a block with the least of a measure is its pick
MEASURES = pd.read_csv(Path(__file__).with_name("measures.csv"), index_col="measure")
# the measure of the block from one layer up to another, without that: the mean over its layers, what its ends do not
# share, what later layers lose without it, or how much more, less or otherwise the residual that leaves it has of
# something; of values of layers [L], of residuals [L + 1] between them, or of pairs, [L + 1, L + 1] or [L, L]
OF_BLOCK = {
    "mean": lambda values, start, stop: values[start:stop].mean(),
    "ends": lambda values, start, stop: 1 - values[start, stop],
    "later": lambda values, start, stop: values[start:stop, stop:].mean() if stop < len(values) else np.nan,
    "more": lambda values, start, stop: values[stop] - values[start],
    "less": lambda values, start, stop: values[start] - values[stop],
    "otherwise": lambda values, start, stop: abs(values[stop] - values[start]),
    "otherwise in log": lambda values, start, stop: abs(np.log(values[stop] / values[start])),
}
Maps = dict[int, np.ndarray]  # by size the losses of all blocks, from the one that starts at layer 0 on, [B, S]


def maps(scores: pd.DataFrame) -> dict[tuple[str, str], Maps]:
    """By model and text the sizes of which every block was tried. Blocks that hold the last layer are left out, as no
    rule drops it; so are sizes with fewer than 3 blocks."""
    found: dict = {}
    for one in find_measurements(_of_blocks(scores)):
        model, text, rule = one.place
        size = int(rule.removeprefix("blocks of "))
        inner = one.cuts.query("size == @size and start + size < layers").index
        if len(inner) == one.layers - size > 2:
            found.setdefault((model, text), {})[size] = one.outcomes[inner]
    return {place: dict(sorted(of_sizes.items())) for place, of_sizes in found.items()}


def _of_blocks(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[is_map_row(scores)].query("metric == 'loss'")


def sizes_of_shares(layers: int) -> list[int]:
    return list(dict.fromkeys(max(1, (percent * layers + 50) // 100) for percent in PERCENT))  # halves are rounded up


def maps_of_text(scores: pd.DataFrame) -> Iterator[tuple[str, Maps]]:
    """Each model with its map, of losses on TEXT, of the sizes that are PERCENT of its layers, where it has all."""
    layers = scores.groupby("model")["layers"].first()
    for (model, text), every in maps(scores).items():
        if text == TEXT and set(sizes := sizes_of_shares(int(layers[model]))) <= set(every):
            yield model, {size: every[size] for size in sizes}


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """The map of every block: model, task (text), topic, layers, size, start, share, value (loss, nats a token),
    guessing, cost (over the whole model), place (among blocks of its size that keep the last layer, from 1)."""
    found = select_best(_of_blocks(scores)).drop_duplicates(["model", "task", "cut"])
    found = found.rename(columns={"chance": "guessing"})
    found = found[["model", "task", "layers", "size", "start", "share", "value", "guessing"]]
    whole = found.query("size == 0").set_index(["model", "task"])["value"].rename("cost")
    found = found.query("size > 0").join(whole, on=["model", "task"], how="inner")
    inner = found.query("start + size < layers").groupby(["model", "task", "size"])["value"]
    found = found.assign(cost=found["value"] - found["cost"], topic=found["task"].map(task_title))
    return sort_by_model(found.assign(place=inner.rank(method="min")), sorted(found["task"].unique()))


# ---- regret ---------------------------------------------------------------------------------------------------------


def over_best(blocks: Float[np.ndarray, "B S"], costs: Float[np.ndarray, "K S"]) -> Float[np.ndarray, "N K"]:
    """How much more each cut costs than the best of all blocks of its size: its regret, of all and of each draw.

    The best block is found on one half of the sequences and judged on the other, both ways round: else it would be
    flattered by the sequences that chose it.
    """
    found, halves = [], [resample(np.concatenate([blocks, costs])[:, half::2], seed=half) for half in (0, 1)]
    for chosen, judged in (halves, halves[::-1]):
        of_blocks = chosen[:, : len(blocks)]
        best = of_blocks <= of_blocks.min(axis=1, keepdims=True) + TIE_TOLERANCE
        least = (judged[:, : len(blocks)] * best).sum(axis=1, keepdims=True) / best.sum(axis=1, keepdims=True)
        found.append(judged[:, len(blocks) :] - least)
    return np.mean(found, axis=0)


def regret_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """How much more the most similar block costs than the best block of its size, nats a token: model, corpus (of the
    distances), task (the text of the losses), size, start (the pick), best, blocks, place (of the pick among them by
    loss, from 1), value with low and high, where the pick is drawn anew with its sequences. Of size 0 is the mean over
    PERCENT of the layers, where the map has all of these sizes."""
    rows, near = [], select_distances(distances)
    for (model, task), every in maps(scores).items():
        for corpus, of_text in near.query("model == @model").groupby("corpus"):
            if of_text["by_sequence"].isna().any():
                continue
            by_size, found = group_sequences(of_text), {}
            shared = {"model": model, "corpus": corpus, "task": task}
            for size, costs in every.items():
                # other sequences than those of the costs, so another draw
                picks = resample(np.stack(by_size[size][: len(costs)]), seed=2).argmin(axis=1)
                start, average = picks[0], costs.mean(axis=1)
                found[size] = Estimate.of(over_best(costs, costs)[np.arange(len(picks)), picks])
                row = {"size": size, "start": start, "best": average.argmin(), "blocks": len(costs)}
                rows.append(shared | row | {"place": 1 + (average < average[start]).sum()} | found[size].columns())
            if set(sizes := sizes_of_shares(int(of_text["layers"].iloc[0]))) <= set(found):
                rows.append(shared | {"size": 0} | mean_of([found[size] for size in sizes]).columns())
    names = ["model", "corpus", "task", "size", "start", "best", "blocks", "place", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(["start", "best", "blocks", "place"], "Int64"))


@returns("model rule title sizes value low high")
def rules(scores: pd.DataFrame) -> Iterator[dict]:
    """Rivals: the mean regret over sizes (as text) that are PERCENT of the layers, nats a token, best first. Rules that
    lack a size are left out; random draws are one rule, their mean. The rules of others chose on Wikipedia."""
    chosen = _losses(scores).query("healing.isna() and outcome.notna() and rule not in ['similarity', 'simple']")
    for model, every in maps_of_text(scores):
        sequences = next(iter(every.values())).shape[1]
        own = chosen.query(f"model == @model and items == {sequences}")  # the map's
        of_rules = {str(rule): dict(zip(of["size"], of["outcome"])) for rule, of in own.groupby("rule", sort=False)}
        # the simple heuristic drops the last block that keeps the last layer
        of_rules["simple"] = {size: costs[-1] for size, costs in every.items()}
        regrets = {
            rule: mean_of([Estimate.of(over_best(costs, of[size][None])[:, 0]) for size, costs in every.items()])
            for rule, of in of_rules.items()
            if set(of) >= set(every)
        }
        if draws := [regrets.pop(rule) for rule in list(regrets) if rule.startswith("random-")]:
            regrets[f"random, mean of {len(draws)} draws"] = mean_of(draws)
        shared = {"model": model, "sizes": ", ".join(map(str, every))}
        for rule, regret in sorted(regrets.items(), key=lambda one: one[1].value):
            yield shared | {"rule": rule, "title": rule_title(rule)} | regret.columns()


def _losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of losses on TEXT that count; what tried every block is left out."""
    return scores[~is_map_row(scores)].query("task == @TEXT and metric == 'loss' and repeat == 0 and bits.isna()")


def leaderboard(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Rules by models: rule, title, source, passes (over the text, for 8 of 32 layers), "as in the code of" (whose
    choices ours equal), published (what others kept of Llama-2-7B), and of each model the mean regret (with "_low" and
    "_high") and the healed loss, nats a token above the whole model healed alike, of the size at which most rules were
    healed."""
    registered = {re.sub("random-.*", "random", rule): of for rule, of in REGISTERED.items()}
    columns = ["title", "source", "passes", "as in the code of", "published"]
    lines = [
        (rule_title(rule), of.source, round(of.price(8, 32)[0] + of.fitting_passes, 1), of.code, of.published)
        for rule, of in registered.items()
    ]
    table = pd.DataFrame(lines, list(registered), columns)
    regret = regret_table(scores, distances).query("corpus == @TEXT and task == @TEXT and size == 0")
    regrets = pd.concat([rules(scores), regret.assign(rule="similarity")])
    regrets["rule"] = regrets["rule"].str.replace("random, .*", "random", regex=True)
    for model, own in regrets.groupby("model", sort=False):
        title = model_title(str(model))
        ends = {"value": f"regret, {title}", "low": f"regret, {title}_low", "high": f"regret, {title}_high"}
        table = table.join(own.set_index("rule")[list(ends)].rename(columns=ends))
        healed = _losses(scores).query("model == @model and healing.notna()").sort_values("measured")
        whole = healed.query("size == 0").groupby("healing").agg(whole=("value", "last"))
        healed = healed.query("size > 0").join(whole, on="healing").dropna(subset=["rule", "whole"])
        if len(healed):
            last = healed.drop_duplicates(["rule", "size"], keep="last")
            size = last["size"].mode()[0]
            last = last.query("size == @size").set_index("rule")
            table[f"healed, {title} (n = {size})"] = last["value"] - last["whole"]
    measured = table.filter(like="regret").notna().any(axis=1) | (table["published"] != "")
    return table[measured].reset_index(names="rule")


# ---- geometry -------------------------------------------------------------------------------------------------------


@returns("model corpus layers layer size depth measure value")
def geometry(folder: Path | None = None) -> Iterator[dict]:
    """Measures of every block: layer (the first), depth (its middle), measure (in words)."""
    for _, own in put_in_order(results.geometry(folder)).groupby("path", sort=False):
        values, shared = {}, own[["model", "corpus", "layers"]].iloc[0].to_dict()
        for name, found in own.groupby("measure"):
            places = [found[at].to_numpy(dtype=int) for at in ("place", "other") if found[at].notna().all()]
            values[name] = np.full([max(map(max, places)) + 1] * len(places), np.nan)
            values[name][tuple(places)] = found["value"]
        layers = shared["layers"]
        blocks = ((size, start) for size in range(1, layers + 1) for start in range(layers - size + 1))
        for (size, start), (measure, how, name) in itertools.product(blocks, MEASURES.itertuples()):
            block = shared | {"layer": start, "size": size, "depth": (start + size / 2) / layers}
            yield block | {"measure": measure, "value": float(OF_BLOCK[how](values[name], start, start + size))}


@returns("model measure size start value")
def picks(scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """For each measure of `geometry` the regret of its pick, the block with the least of it, at PERCENT of the layers:
    nats a token, without an interval, as the map holds every block."""
    near = nearest(distances).rename(columns={"start": "layer", "distance": "value"})
    near["measure"] = "angular distance, on " + near["corpus"].map(rule_title)
    every = pd.concat([measures.dropna(subset="value"), near])
    every["order"] = every.groupby("measure", sort=False).ngroup()
    every = every.query("layer + size < layers").sort_values("value", kind="stable")
    for model, found in maps_of_text(scores):
        regrets = {size: over_best(costs, costs)[0] for size, costs in found.items()}
        own = every.query(f"model == {model!r} and size in {list(found)}").drop_duplicates(["measure", "size"])
        own = own.sort_values(["order", "size"]).rename(columns={"layer": "start"})
        yield own.assign(value=[regrets[size][int(start)] for size, start in zip(own["size"], own["start"])])
