"""Which layers should go? Every block's cost, the regret of rules and of measures of geometry.

A rule is judged by its regret: how much more its choice costs than the best block of its size, found on one half of the
sequences and judged on the other. A map holds every block, so no interval is over blocks.

Letters in shapes: B blocks, S sequences, L layers.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers.report import estimates, statistics
from deeper_layers.report.estimates import TIED, mean_of, regret
from deeper_layers.report.names import rule_title, topic
from deeper_layers.report.pairing import records
from deeper_layers.report.statistics import interval, sizes_of_shares
from deeper_layers.results.units import Unit, all_units

TEXT = "c4"  # whose loss is judged


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """The map of every block: model, task (text), topic, layers, size, start, share, value (loss, nats a token),
    guessing, cost (over the whole model), place (among blocks of its size that keep the last layer, from 1)."""
    own = scores[(scores["metric"] == "loss") & scores["rule"].str.startswith("blocks of", na=False)]
    best = estimates.best_measured(own)
    whole = best[best["size"] == 0].drop_duplicates(["model", "task"]).set_index(["model", "task"])["value"]
    best = best[best["size"] > 0].drop_duplicates(["model", "task", "cut"])
    names = {"chance": "guessing"}
    found = best[["model", "task", "layers", "size", "start", "share", "value", "chance"]].rename(columns=names)
    keys = list(zip(found["model"], found["task"], strict=True))
    found = found.assign(cost=found["value"] - [whole[key] for key in keys], topic=found["task"].map(topic))
    inner = found["start"] + found["size"] < found["layers"]
    place = found[inner].groupby(["model", "task", "size"])["value"].rank(method="min")
    return found.assign(place=place).sort_values(["model", "task", "size", "start"], ignore_index=True)


def rules(scores: pd.DataFrame, distances: pd.DataFrame | None = None, task: str = TEXT) -> pd.DataFrame:
    """Rivals: model, rule, title, sizes (as text), value (mean regret, nats a token) with low and high, rank (from 1).

    The sizes are PERCENT of the layers; rules that lack one are left out. Random draws are one rule: their mean. The
    rules of others chose on Wikipedia; with `distances` the similarity-informed one stands there once for each text.
    """
    rows, found = [], statistics.maps(scores)
    chosen = scores[(scores["task"] == task) & (scores["metric"] == "loss") & (scores["repeat"] == 0)]
    chosen = chosen[chosen["healing"].isna() & chosen["bits"].isna() & chosen["outcome"].notna()]
    for (model, text), every in found.items():
        own = chosen[chosen["model"] == model]
        sizes = sizes_of_shares(int(own["layers"].iloc[0])) if len(own) else []
        if text != task or not set(sizes) <= set(every):
            continue
        of_rules = _choices(own, every, sizes) | _blocks_of_rules(own, every, sizes)
        if distances is not None:
            of_rules |= _similar(statistics.nearest(distances[distances["model"] == model]), every, sizes)
        estimates = {
            rule: mean_of([regret(every[size][1], losses[size]) for size in sizes]) for rule, losses in of_rules.items()
        }
        draws = [estimates.pop(rule) for rule in list(estimates) if rule.startswith("random-")]
        if draws:
            estimates[f"random, mean of {len(draws)} draws"] = mean_of(draws)
        shared = {"model": model, "sizes": ", ".join(map(str, sizes))}
        of_model = [{"rule": rule, "title": rule_title(rule)} | interval(own) for rule, own in estimates.items()]
        of_model = pd.DataFrame(of_model, columns=["rule", "title", "value", "low", "high"]).sort_values("value")
        rows += records(of_model.assign(**shared, rank=range(1, len(of_model) + 1)))
    return pd.DataFrame(rows, columns=["model", "rule", "title", "sizes", "value", "low", "high", "rank"])


def _choices(own: pd.DataFrame, every: dict, sizes: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """Losses of what rules left, by rule and size, of the map's sequences, where every size was measured."""
    items = len(every[sizes[0]][1][0])
    found: dict[str, dict[int, np.ndarray]] = {}
    own = own[own["rule"].notna() & own["size"].isin(sizes) & (own["items"] == items)]
    for rule, size, outcome in zip(own["rule"], own["size"], own["outcome"], strict=True):
        if rule not in statistics.RULES and not rule.startswith("blocks of"):
            found.setdefault(rule, {})[int(size)] = outcome
    return {rule: losses for rule, losses in found.items() if set(losses) >= set(sizes)}


def _blocks_of_rules(own: pd.DataFrame, every: dict, sizes: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """The simple heuristic drops the last block that keeps the last layer."""
    return {"simple": {size: every[size][1][-1] for size in sizes}}


def _similar(nearest: pd.DataFrame, every: dict, sizes: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """The most similar blocks, a rule for each text on which distances were measured."""
    found = {}
    for corpus, own in nearest.groupby("corpus"):
        start = own.set_index("size")["start"]
        if set(sizes) <= set(start.index):
            title = f"{rule_title('similarity')}, on {'C4' if corpus == 'c4' else str(corpus).title()}"
            found[title] = {size: every[size][1][every[size][0].index(start[size])] for size in sizes}
    return found


def points(scores: pd.DataFrame) -> pd.DataFrame:
    """What rules keep of tasks: model, rule, title, task, topic, size, items, value (share kept) with low and high, of
    the sizes that are PERCENT of the layers."""
    own = statistics.one_rule(scores)
    found = statistics.curves(own[own["metric"] != "loss"])
    sizes = {layers: sizes_of_shares(int(layers)) for layers in found["layers"].unique()}
    found = found[[size in sizes[layers] for size, layers in zip(found["size"], found["layers"], strict=True)]]
    found = found.drop(columns=["value", "low", "high"])
    kept = {"kept": "value", "kept_low": "low", "kept_high": "high"}
    return found.rename(columns=kept).assign(title=found["rule"].map(rule_title)).reset_index(drop=True)


# ---- geometry -------------------------------------------------------------------------------------------------------


class Geometry:
    """What a unit of geometry holds, by name: `layers` [L], `states` [L + 1] between them, `pairs` of states or layers,
    [L + 1, L + 1] or [L, L], not-a-number on and below the diagonal."""

    def __init__(self, unit: Unit):
        rows = unit.rows.sort_values("start")
        self.states, self.layers = (
            {
                str(name): own.to_numpy(dtype=float)
                for name, own in rows[rows["size"] == size].groupby("metric")["value"]
            }
            for size in (0, 1)
        )
        self.pairs = {}
        for name, triangle in unit.details["pairs"].items():
            self.pairs[name] = np.full((len(triangle) + 1,) * 2, np.nan)
            for row, values_of in enumerate(triangle):
                self.pairs[name][row, row + 1 :] = values_of


Of = Callable[[Geometry, int, int], float]  # of the block from one layer up to another, without that


def _mean(name: str) -> Of:
    return lambda geometry, start, stop: geometry.layers[name][start:stop].mean()


def _apart(name: str, sign: int = 0, log: bool = False) -> Of:
    """How much more of something is after a block than before it, `sign` -1 how much less, 0 how far apart."""

    def of_block(geometry: Geometry, start: int, stop: int) -> float:
        values = np.log(geometry.states[name]) if log else geometry.states[name]
        change = values[stop] - values[start]
        return sign * change if sign else abs(change)

    return of_block


def _later(geometry: Geometry, start: int, stop: int) -> float:
    later = geometry.pairs["skip_later"][start:stop, stop:]
    return later.mean() if later.size else np.nan


# a block with the least of a measure is its pick
MEASURES: dict[str, Of] = {
    "CKA": lambda geometry, start, stop: 1 - geometry.pairs["cka"][start, stop],
    "neighbours lost": lambda geometry, start, stop: 1 - geometry.pairs["neighbour_overlap"][start, stop],
    "norm of attention": _mean("norm_attention"),
    "norm of MLP": _mean("norm_mlp"),
    "norm of both": _mean("norm_layer"),
    "cosine of attention": _mean("cosine_attention"),
    "cosine of MLP": _mean("cosine_mlp"),
    "cosine of both": _mean("cosine_layer"),
    "logit lens, KL": _apart("lens_divergence", -1),
    "logit lens, top 5": _apart("lens_overlap", 1),
    "output without a layer (KL)": _mean("skip"),
    "later layers without a layer": _later,
    "prompt entropy": _apart("prompt_entropy"),
    "effective rank": _apart("effective_rank", log=True),
    "TwoNN dimension": _apart("two_nn", log=True),
    "TwoNN, shuffled (control)": _apart("two_nn_shuffled", log=True),
}


def geometry(folder: Path | None = None, *, blocks: bool = False) -> pd.DataFrame:
    """Measures of every layer, or of every block: model, corpus, layers, layer (the first), size, depth (its middle),
    measure (in words), value."""
    rows = []
    for unit in all_units(folder, "geometry"):
        found, layers = Geometry(unit), int(unit.details["num_layers"])
        shared = {"model": unit.key["model"]["name"], "corpus": unit.key["corpus"], "layers": layers}
        for size in range(1, layers + 1 if blocks else 2):
            for start in range(layers - size + 1):
                place = {"layer": start, "size": size, "depth": (start + size / 2) / layers}
                for measure, of_block in MEASURES.items():
                    value = float(of_block(found, start, start + size))
                    rows.append(shared | place | {"measure": measure, "value": value})
    return pd.DataFrame(rows, columns=["model", "corpus", "layers", "layer", "size", "depth", "measure", "value"])


def picks(scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame, task: str = TEXT) -> pd.DataFrame:
    """For each measure the regret of its pick, the block with the least of it: model, measure, size, start, best, value
    (nats a token, without an interval: the map holds every block).

    `measures` is `geometry(blocks=True)`; the sizes are PERCENT of the layers.
    """
    near = statistics.nearest(distances).rename(columns={"start": "layer", "distance": "value"})
    near["measure"] = "angular distance, on " + near["corpus"].map({"c4": "C4"}).fillna(near["corpus"].str.title())
    rows = []
    every = pd.concat([measures.dropna(subset="value"), near[["model", "measure", "size", "layer", "value"]]])
    for (model, text), found in statistics.maps(scores).items():
        own = every[every["model"] == model]
        layers = int(scores.loc[scores["model"] == model, "layers"].iloc[0])
        for (measure, size), of_size in own[own["layer"] + own["size"] < layers].groupby(
            ["measure", "size"], sort=False
        ):
            if text != task or size not in found or size not in sizes_of_shares(layers):
                continue
            starts, costs = found[size]
            pick = int(of_size.sort_values("value")["layer"].iloc[0])
            row = {"model": model, "measure": measure, "size": size, "start": pick}
            rows.append(
                row | {"best": starts[int(costs.mean(axis=1).argmin())], "value": _regret(costs, starts.index(pick))}
            )
    return pd.DataFrame(rows, columns=["model", "measure", "size", "start", "best", "value"])


def _regret(costs: np.ndarray, pick: int) -> float:
    """As estimates.regret, without draws."""
    halves = [costs[:, half::2].mean(axis=1) for half in (0, 1)]
    best = [judged[chosen <= chosen.min() + TIED].mean() for chosen, judged in (halves, halves[::-1])]
    return float(np.mean([halves[1][pick] - best[0], halves[0][pick] - best[1]]))
