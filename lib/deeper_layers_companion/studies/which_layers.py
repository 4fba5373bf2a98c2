"""Which layers should go? The cost of every block, and the regret of rules and of measures of geometry.

The regret of a rule is the cost of its choice minus that of the best block of its size, which is found on one half of
the sequences and judged on the other. A map has every block, so no interval is over blocks.

Letters in shapes: B blocks, S sequences, L layers.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from deeper_layers_companion import results
from deeper_layers_companion.report.estimates import (
    TIE_TOLERANCE,
    Estimate,
    mean_of,
    mean_of_drawn,
    resample,
)
from deeper_layers_companion.report.names import (
    Sentences,
    format_number,
    join_words,
    model_title,
    put_in_order,
    rule_title,
    task_title,
)
from deeper_layers_companion.report.pairing import (
    find_measurements,
    is_map_row,
    returns,
    select_best,
)
from deeper_layers_companion.report.statistics import (
    group_sequences,
    nearest,
    select_distances,
    sort_by_model,
)
from deeper_layers_companion.rules.table import DESCRIBED

COMPARED = "agreement", "overlap", "KL"  # with the whole model, in the order of the column compared
TEXT = "c4"  # the text of the losses that are judged
PERCENT = 10, 20, 25, 33  # of the layers: the sizes over which regret is averaged
# the measures of geometry, each with its form for a block (BLOCK_FORMS); its pick is the block with the least value
MEASURES = pd.read_csv(Path(__file__).with_name("measures.csv"), index_col="measure")
# the measure of the block from `start` up to, but without, `stop`: the mean over its layers, the dissimilarity of its
# ends, the effect of its removal on later layers, or by how much the residual that leaves it has more, less, or
# another value; from values of layers [L], of residuals [L + 1], or of pairs, [L + 1, L + 1] or [L, L]
BLOCK_FORMS = {
    "mean": lambda values, start, stop: values[start:stop].mean(),
    "ends": lambda values, start, stop: 1 - values[start, stop],
    "later": lambda values, start, stop: (
        values[start:stop, stop:].mean() if stop < len(values) else np.nan
    ),
    "more": lambda values, start, stop: values[stop] - values[start],
    "less": lambda values, start, stop: values[start] - values[stop],
    "otherwise": lambda values, start, stop: abs(values[stop] - values[start]),
    "otherwise in log": lambda values, start, stop: abs(np.log(values[stop] / values[start])),
}
Maps = dict[
    int, np.ndarray
]  # by size the losses of all blocks, the first one starting at layer 0, [B, S]


def collect_maps(scores: pd.DataFrame) -> dict[tuple[str, str], Maps]:
    """The maps by model and text, of sizes whose every block was measured. Blocks with the last layer are left out, as
    no rule drops it; so are sizes with fewer than 3 blocks."""
    maps: dict = {}
    for measurement in find_measurements(_select_maps(scores)):
        model, text, rule = measurement.place
        size = int(rule.removeprefix("blocks of "))
        inner = measurement.cuts.query("size == @size and start + size < layers").index
        if len(inner) == measurement.layers - size > 2:
            maps.setdefault((model, text), {})[size] = measurement.outcomes[inner]
    return {place: dict(sorted(by_size.items())) for place, by_size in maps.items()}


def _select_maps(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[is_map_row(scores)].query("metric == 'loss'")


def list_share_sizes(maps: Maps) -> list[int]:
    """The sizes of PERCENT; [] if the maps lack one of them."""
    layers = next(size + len(costs) for size, costs in maps.items())
    sizes = dict.fromkeys(
        max(1, (percent * layers + 50) // 100) for percent in PERCENT
    )  # halves are rounded up
    return list(sizes) if sizes.keys() <= maps.keys() else []


def find_maps(scores: pd.DataFrame) -> Iterator[tuple[str, Maps]]:
    """Yield each model that has maps of losses on TEXT for all sizes of PERCENT, with these maps."""
    for (model, text), maps in collect_maps(scores).items():
        sizes = list_share_sizes(maps)
        if text == TEXT and sizes:
            yield model, {size: maps[size] for size in sizes}


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """Every block: model, task (text), topic, layers, size, start, share, value (loss, nats a token), guessing, cost
    (loss minus that of the whole model), place (rank among blocks of its size that keep the last layer, from 1)."""
    rows = select_best(_select_maps(scores)).drop_duplicates(["model", "task", "cut"])
    rows = rows["model task layers size start share value chance".split()].rename(
        columns={"chance": "guessing"}
    )
    whole = rows.query("size == 0").set_index(["model", "task"])["value"].rename("cost")
    rows = rows.query("size > 0").join(whole, on=["model", "task"]).dropna(subset="cost")
    rows["cost"] = rows["value"] - rows["cost"]
    rows["topic"] = rows["task"].map(task_title)
    inner = rows.query("start + size < layers")
    rows["place"] = inner.groupby(["model", "task", "size"])["value"].rank(method="min")
    return sort_by_model(rows, sorted(rows["task"].unique()))


# ---- regret ---------------------------------------------------------------------------------------------------------


def compute_regret(
    blocks: Float[np.ndarray, "B S"], costs: Float[np.ndarray, "K S"]
) -> Float[np.ndarray, "N K"]:
    """The regret of each cut, from all sequences and from each draw: its cost minus that of the best block of its size.
    The best block is found on one half of the sequences and judged on the other, both ways round, as it would look too
    good on the sequences that chose it."""
    regrets = []
    halves = [resample(np.concatenate([blocks, costs])[:, half::2], seed=half) for half in (0, 1)]
    for chosen, judged in (halves, halves[::-1]):
        block_costs = chosen[:, : len(blocks)]
        best = block_costs <= block_costs.min(axis=1, keepdims=True) + TIE_TOLERANCE
        least_cost = (judged[:, : len(blocks)] * best).sum(axis=1, keepdims=True) / best.sum(
            axis=1, keepdims=True
        )
        regrets.append(judged[:, len(blocks) :] - least_cost)
    return np.mean(regrets, axis=0)


def regret_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """The regret of the most similar block, nats a token: model, corpus (of the distances), task (text of the losses),
    size, start (of the pick), best (start of the best block), blocks (their number), place (rank of the pick by loss,
    from 1), value with low and high, for which each draw of sequences picks again. Size 0 is the mean over PERCENT of
    the layers, if the maps have all of these sizes."""
    rows = []
    selected = select_distances(distances)
    for (model, task), maps in collect_maps(scores).items():
        for corpus, rows_of_text in selected.query("model == @model").groupby("corpus"):
            if rows_of_text["by_sequence"].isna().any():
                continue
            by_size = group_sequences(rows_of_text)
            regrets = {}
            shared = {"model": model, "corpus": corpus, "task": task}
            for size, costs in maps.items():
                # distances have other sequences than costs, so they have draws of their own
                picks = resample(np.stack(by_size[size][: len(costs)]), seed=2).argmin(axis=1)
                start = picks[0]
                means = costs.mean(axis=1)
                regrets[size] = Estimate.of(
                    compute_regret(costs, costs)[np.arange(len(picks)), picks]
                )
                row = {"size": size, "start": start, "best": means.argmin(), "blocks": len(costs)}
                rows.append(
                    shared
                    | row
                    | {"place": 1 + (means < means[start]).sum()}
                    | regrets[size].columns()
                )
            sizes = list_share_sizes(maps)
            if sizes:
                rows.append(
                    shared | {"size": 0} | mean_of([regrets[size] for size in sizes]).columns()
                )
    names = [
        "model",
        "corpus",
        "task",
        "size",
        "start",
        "best",
        "blocks",
        "place",
        "value",
        "low",
        "high",
    ]
    return pd.DataFrame(rows, columns=names).astype(
        dict.fromkeys(["start", "best", "blocks", "place"], "Int64")
    )


def tell_regret(means: pd.DataFrame) -> Sentences:
    """The mean regret of the most similar block of each model, from rows of `regret_table` of size 0."""
    rows = put_in_order(means).to_dict("records")
    if not rows:
        return Sentences([], "answer")
    costs = join_words(f"{format_number(row)} in {model_title(row['model'])}" for row in rows)
    told = (
        "Without a tenth of the layers or more, the block most similar on C4 leaves this much more loss there than the "
        f"best block, in nats a token: {costs}."
    )
    return Sentences([told], "answer")


@returns("model rule title sizes value low high")
def rules(scores: pd.DataFrame) -> Iterator[dict]:
    """The mean regret of each rule over the sizes (as text) of PERCENT of the layers, nats a token, best first. Rules
    without all sizes are left out; random draws are averaged, and drawn anew for the interval. The rules of others
    were calibrated on Wikipedia."""
    chosen = _select_losses(scores).query(
        "healing.isna() and outcome.notna() and rule not in ['similarity', 'simple']"
    )
    for model, maps in find_maps(scores):
        sequences = next(iter(maps.values())).shape[1]
        rows = chosen.query(
            f"model == @model and items == {sequences}"
        )  # of the same sequences as the map
        regrets = {}
        for rule, runs in rows.groupby("rule", sort=False):
            outcomes = dict(zip(runs["size"], runs["outcome"]))
            if set(outcomes) >= set(maps):
                regrets[str(rule)] = _average_regret(maps, outcomes)
        # the simple heuristic drops the last block that keeps the last layer
        regrets["simple"] = _average_regret(maps, {size: costs[-1] for size, costs in maps.items()})
        draws = [regrets.pop(rule) for rule in list(regrets) if rule.startswith("random-")]
        if draws:
            regrets[f"random, mean of {len(draws)} draws"] = mean_of_drawn(draws)
        shared = {"model": model, "sizes": ", ".join(map(str, maps))}
        for rule, regret in sorted(regrets.items(), key=lambda pair: pair[1].value):
            yield shared | {"rule": rule, "title": rule_title(rule)} | regret.columns()


def _average_regret(maps: Maps, outcomes: dict[int, np.ndarray]) -> Estimate:
    """The mean regret over sizes of one cut each, whose losses are [S]."""
    regrets = [compute_regret(costs, outcomes[size][None])[:, 0] for size, costs in maps.items()]
    return mean_of(list(map(Estimate.of, regrets)))


def _select_losses(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of losses on TEXT that count, without the maps of every block."""
    return scores[~is_map_row(scores)].query(
        "task == @TEXT and metric == 'loss' and repeat == 0 and bits.isna()"
    )


def leaderboard(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Rules by models: rule, title, source, passes (over the text, for 8 of 32 layers), "as in the code of" (code whose
    choices ours equal), published (what others kept of Llama-2-7B). For each model the mean regret (with "_low" and
    "_high"), and the loss after healing minus that of the whole model healed in the same way, nats a token: all rules
    of a column were healed with the same settings, at the same size."""
    registered = {re.sub("random-.*", "random", rule): item for rule, item in DESCRIBED.items()}
    columns = ["title", "source", "passes", "as in the code of", "published"]
    lines = []
    for rule, item in registered.items():
        passes = round(item.price(8, 32)[0] + item.fitting_passes, 1)
        lines.append((rule_title(rule), item.source, passes, item.code, item.published))
    table = pd.DataFrame(lines, list(registered), columns)
    regret = regret_table(scores, distances).query(
        "corpus == @TEXT and task == @TEXT and size == 0"
    )
    regrets = pd.concat([rules(scores), regret.assign(rule="similarity")])
    regrets["rule"] = regrets["rule"].str.replace("random, .*", "random", regex=True)
    for model, rows in regrets.groupby("model", sort=False):
        title = model_title(str(model))
        ends = {
            "value": f"regret, {title}",
            "low": f"regret, {title}_low",
            "high": f"regret, {title}_high",
        }
        table = table.join(rows.set_index("rule")[list(ends)].rename(columns=ends))
        healed = select_healed_alike(_select_losses(scores).query("model == @model"))
        if len(healed):
            size = healed["size"].iloc[0]
            run = json.loads(healed["healing"].iloc[0])
            name = f"healed, {title} (n = {size}, rate {run['learning_rate']:g}, {run['tokens']:,} tokens)"
            table[name] = healed.set_index("rule")["rise"]
    measured = table.filter(like="regret").notna().any(axis=1) | (table["published"] != "")
    return table[measured].reset_index(names="rule")


def select_healed_alike(losses: pd.DataFrame) -> pd.DataFrame:
    """The rows of one size and one healing of a model, those with most rules, then the smallest size, then the latest;
    rise is the loss minus that of the whole model healed in the same way."""
    healed = losses[losses["healing"].notna()].sort_values("measured")
    whole = (
        healed.query("size == 0")
        .drop_duplicates("healing", keep="last")
        .set_index("healing")["value"]
    )
    healed = (
        healed.query("size > 0")
        .join(whole.rename("whole"), on="healing")
        .dropna(subset=["rule", "whole"])
    )
    healed = healed.drop_duplicates(["rule", "size", "healing"], keep="last")
    settings = healed.groupby(["size", "healing"]).agg(
        rules=("rule", "nunique"), measured=("measured", "max")
    )
    if settings.empty:
        return healed.assign(rise=[])
    by_use = settings.reset_index().sort_values(
        ["rules", "size", "measured"], ascending=[False, True, False]
    )
    size, healing = by_use[["size", "healing"]].iloc[0]
    alike = healed[(healed["size"] == size) & (healed["healing"] == healing)]
    return alike.assign(rise=alike["value"] - alike["whole"])


# ---- agreement ------------------------------------------------------------------------------------------------------


def agreement(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """How much each block's cut predicts what the whole model does, beside its distance: model, layers, size, blocks
    (in words), start, distance (on TEXT), value (share of tokens with the same first choice), overlap, kl, and by
    sequence compared, [I, 3], and by_sequence, [S]. Blocks with the last layer are left out, as no rule drops it."""
    rows = _select_maps(scores).query(
        "task == @TEXT and agreement.notna() and size > 0 and start + size < layers"
    )
    rows = rows[rows["items"] == rows.groupby(["model", "size"])["items"].transform("max")]
    rows = rows.drop_duplicates(["model", "cut"])[
        ["model", "layers", "size", "start", "agreement", "overlap", "kl", "compared", "items"]
    ]
    of_text = select_distances(distances).query("corpus == @TEXT")
    blocks = ["model", "size", "start"]
    rows = rows.merge(
        of_text[[*blocks, "distance", "by_sequence"]].dropna(subset="by_sequence"), on=blocks
    )
    layers = rows["size"].astype(str) + np.where(rows["size"] == 1, " layer", " layers")
    return put_in_order(rows.assign(blocks=layers).rename(columns={"agreement": "value"}))


@returns("model size blocks compared items measure value low high")
def predicted_agreement(rows: pd.DataFrame) -> Iterator[dict]:
    """Spearman's correlation of the distance of blocks of one size with each measure of `agreement`. The sequences of
    both texts are drawn anew for its interval; the blocks are all there are."""
    for _, of_size in rows.groupby(["model", "size"], sort=False):
        compared = np.stack(list(of_size["compared"]))
        by_distance = rankdata(resample(np.stack(list(of_size["by_sequence"])), seed=2), axis=1)
        shared = of_size[["model", "size"]].iloc[0].to_dict()
        shared |= {"blocks": len(of_size), "items": compared.shape[1]}
        shared["compared"] = of_size["blocks"].iloc[0]
        for number, measure in enumerate(COMPARED):
            by_measure = rankdata(resample(compared[..., number]), axis=1)
            yield (
                shared
                | {"measure": measure}
                | Estimate.of(correlate_rows(by_distance, by_measure)).columns()
            )


def correlate_rows(
    first: Float[np.ndarray, "N B"], second: Float[np.ndarray, "N B"]
) -> Float[np.ndarray, " N"]:
    """Pearson's correlation of each row with the other's; of ranks it is Spearman's."""
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    return (first * second).sum(axis=1) / np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))


# ---- geometry -------------------------------------------------------------------------------------------------------


@returns("model corpus layers layer size depth measure value")
def geometry(folder: Path | None = None) -> Iterator[dict]:
    """The measures of every block: layer (its first one), depth (of its middle), measure (in words)."""
    for _, rows in put_in_order(results.geometry(folder)).groupby("path", sort=False):
        values = {}
        shared = rows[["model", "corpus", "layers"]].iloc[0].to_dict()
        for name, measured in rows.groupby("measure"):
            places = [
                measured[at].to_numpy(dtype=int)
                for at in ("place", "other")
                if measured[at].notna().all()
            ]
            values[name] = np.full([max(map(max, places)) + 1] * len(places), np.nan)
            values[name][tuple(places)] = measured["value"]
        layers = shared["layers"]
        for size, start in itertools.product(range(1, layers + 1), range(layers)):
            stop = start + size
            block = shared | {"layer": start, "size": size, "depth": (start + size / 2) / layers}
            for measure, form, name in MEASURES.itertuples() if stop <= layers else ():
                yield block | {
                    "measure": measure,
                    "value": float(BLOCK_FORMS[form](values[name], start, stop)),
                }


@returns("model measure size start value")
def picks(
    scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame
) -> Iterator[pd.DataFrame]:
    """The regret of the pick of each measure of `geometry`, the block with its least value, at PERCENT of the layers:
    nats a token, without an interval, as the map has every block."""
    distance_rows = nearest(distances).rename(columns={"distance": "value"})
    distance_rows["measure"] = "angular distance, on " + distance_rows["corpus"].map(rule_title)
    measures = measures.dropna(subset="value").rename(columns={"layer": "start"})
    candidates = pd.concat([measures, distance_rows], ignore_index=True).query(
        "start + size < layers"
    )
    best = candidates.loc[
        candidates.groupby(["model", "measure", "size"], sort=False)["value"].idxmin()
    ]
    for model, maps in find_maps(scores):
        regrets = {size: compute_regret(costs, costs)[0] for size, costs in maps.items()}
        chosen = best[(best["model"] == model) & best["size"].isin(list(maps))]
        blocks = zip(chosen["size"], chosen["start"])
        yield chosen.assign(value=[regrets[size][int(start)] for size, start in blocks])
