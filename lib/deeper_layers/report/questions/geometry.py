"""Does a measure of geometry predict what dropping a block costs? Correlations given the block's size. No torch.

The criteria, set before any of it was measured:

- What dropping a block costs is the rise of the loss on text, in nats a token, and the fall of the accuracy on a task,
  beside the whole model. All blocks count that were measured, those with the last layer too.
  Left out are tasks on which the whole model is not surely above guessing: that was added when the first were in.
- Larger blocks cost more whatever they hold, so sizes are compared with themselves only: of each size that has at least
  SIZE blocks, a measure and a cost become ranks among its blocks, over their number plus 1. The correlation given n is
  that of these ranks, each size about its own mean (Spearman's, pooled over sizes: every block counts the same).
- Intervals are 95%, by a bootstrap over first layers, as blocks of neighbouring first layers share most of their
  layers: RUNS runs of neighbouring first layers, a third of them each, are drawn anew in a circle, and all their blocks
  with them (circular block bootstrap, Politis and Romano 1992). The spread of what is drawn, on Fisher's scale
  (artanh), times Student's quantile for RUNS - 1 degrees of freedom is half of the interval. Tried on measures and
  costs that are means of random numbers of layers, each drawn apart, such intervals hold the truth in 91 to 95 of 100
  trials (18 and 30 layers, correlations 0 and 0.8); plain quantiles, or shorter runs, in 40 to 80. Where neighbouring
  layers are alike it is less: 85 to 89 where each is 0.9 of the one before. Ranks are not taken anew.
- A measure "predicts" a cost where the whole interval lies beyond PREDICTS, on either side; it does "not" where the
  whole interval lies between; else it "can't be told". From fewer than BLOCKS blocks nothing is told.
- It is "better" or "worse" than the angular distance where the interval of the difference between the absolute
  correlations, on Fisher's scale, over the same draws and the same blocks, lies on one side of 0; else it is neither.
- No direction is predicted but for the angular distance, which should cost more the larger it is. Of so many measures
  some seem to predict by chance: `two_nn_shuffled` is a control that knows nothing of what tokens have in common.

Letters in shapes: B blocks, R resamples, L layers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deeper_layers.report.names import as_markdown
from deeper_layers.report.statistics import curves
from deeper_layers.results.units import Unit, whole_units

PREDICTS = 0.5  # a correlation
SIZE, BLOCKS = 3, 12  # fewest blocks of a size, and in all
LARGEST = 1 - 1e-9  # of correlations: artanh of 1 is no number
RUNS, STUDENT = 3, 4.302653  # and the 97.5% quantile of Student's t for one degree of freedom less
RESAMPLES = 2000
DISTANCE, PREDICTED, UNTOLD = "distance", "predicts", "can't be told"
LOSSES, SCORES = ("loss", "blocks"), ("sweep", "scan")  # kinds of units
Values = Float[np.ndarray, " B"]


class Geometry:
    """What a unit of geometry holds, by name: `layers` [L], `states` [L+1] between them, `pairs` of either."""

    def __init__(self, unit: Unit):
        by_place = unit.rows.sort_values("start").groupby(["size", "metric"])["value"]
        values = {place: of_place.to_numpy(dtype=float) for place, of_place in by_place}
        self.states = {name: found for (size, name), found in values.items() if size == 0}
        self.layers = {name: found for (size, name), found in values.items() if size == 1}
        self.pairs = {name: square(rows) for name, rows in unit.details["pairs"].items()}


def square(triangle: list[list[float | None]]) -> np.ndarray:
    """From the values above the diagonal, row by row, a table with not-a-number on and below it."""
    table = np.full((len(triangle) + 1,) * 2, np.nan)
    for row, values in enumerate(triangle):
        table[row, row + 1 :] = values
    return table


@dataclass(frozen=True)
class Measure:
    """A measure of a block of n layers that starts at layer l: of one layer it is the usual one."""

    name: str
    words: str
    formula: str
    of_block: Callable[[Geometry, Int[np.ndarray, " B"], Int[np.ndarray, " B"]], Values]


def _mean(name: str):
    """Mean of the layers of a block."""

    def of_block(geometry, start, stop):
        summed = np.concatenate([[0], np.cumsum(geometry.layers[name])])
        return (summed[stop] - summed[start]) / (stop - start)

    return of_block


def _apart(name: str, sign: int = 0, log: bool = False):
    """How much more of something is after a block than before it, `sign` -1 how much less, 0 how far apart."""

    def of_block(geometry, start, stop):
        values = np.log(geometry.states[name]) if log else geometry.states[name]
        return (values[stop] - values[start]) * sign if sign else np.abs(values[stop] - values[start])

    return of_block


def _unlike(name: str):
    return lambda geometry, start, stop: 1 - geometry.pairs[name][start, stop]


def _felt_later(geometry: Geometry, start, stop) -> Values:
    """Means over the layers of a block, and over the layers after it, of what changes there when one is left out."""
    changes = geometry.pairs["skip_later"]
    found = [changes[first:last, last:] for first, last in zip(start, stop)]
    return np.array([of_block.mean() if of_block.size else math.nan for of_block in found])


MEASURES = [
    Measure("cka", "CKA", "1 - CKA of states l and l + n", _unlike("cka")),
    Measure("neighbour_overlap", "neighbours lost", "1 - overlap of states l and l + n", _unlike("neighbour_overlap")),
    Measure("norm_attention", "norm of attention", "mean over layers of |a| / |x|", _mean("norm_attention")),
    Measure("norm_mlp", "norm of MLP", "mean over layers of |m| / |x + a|", _mean("norm_mlp")),
    Measure("norm_layer", "norm of both", "mean over layers of |a + m| / |x|", _mean("norm_layer")),
    Measure("cosine_attention", "cosine of attention", "mean over layers of cos(a, x)", _mean("cosine_attention")),
    Measure("cosine_mlp", "cosine of MLP", "mean over layers of cos(m, x + a)", _mean("cosine_mlp")),
    Measure("cosine_layer", "cosine of both", "mean over layers of cos(a + m, x)", _mean("cosine_layer")),
    Measure("lens_divergence", "logit lens, KL", "KL at l less KL at l + n", _apart("lens_divergence", -1)),
    Measure("lens_overlap", "logit lens, top 5", "overlap at l + n less that at l", _apart("lens_overlap", 1)),
    Measure("skip", "output without a layer", "mean over layers of KL without the layer", _mean("skip")),
    Measure("skip_later", "later layers without a layer", "mean change of layers after the block", _felt_later),
    Measure("prompt_entropy", "prompt entropy", "difference between states, absolute", _apart("prompt_entropy")),
    Measure("effective_rank", "effective rank", "log of the ratio, absolute", _apart("effective_rank", log=True)),
    Measure("two_nn", "TwoNN dimension", "log of the ratio, absolute", _apart("two_nn", log=True)),
    Measure(
        "two_nn_shuffled", "TwoNN, shuffled (control)", "log of the ratio, absolute",
        _apart("two_nn_shuffled", log=True),
    ),
]  # fmt: skip
WORDS = {DISTANCE: "angular distance"} | {measure.name: measure.words for measure in MEASURES}


def of_blocks(unit: Unit, distances: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every measure of every block: columns start, size, and one for each measure; missing where it is not defined.

    `distances` are the rows of a unit of angular distances, of the same model, for the column of that name.
    """
    geometry, layers = Geometry(unit), unit.details["num_layers"]
    places = [(start, size) for size in range(1, layers + 1) for start in range(layers - size + 1)]
    table = pd.DataFrame(places, columns=["start", "size"])
    start, stop = table["start"].to_numpy(), (table["start"] + table["size"]).to_numpy()
    if distances is not None:
        table = table.merge(distances[["start", "size", "distance"]], how="left").rename(columns={"distance": DISTANCE})
    return table.assign(**{measure.name: measure.of_block(geometry, start, stop) for measure in MEASURES})


def costs(units: list[Unit]) -> dict[str, tuple[pd.DataFrame, Unit]]:
    """What dropping blocks costs, of one model, by what it is paid in: rows start, size, cost, and the unit.

    Of tasks on which the whole model is not surely above guessing it costs nothing, and they are left out.
    Of several units of a text or task that counts which has most blocks to compare (see SIZE), most blocks, is not
    quantized, the latest.
    """
    found: dict[str, list] = {}
    for unit in whole_units([unit for unit in units if unit.kind in LOSSES + SCORES]):
        for what, sign, own in _paid(unit):
            whole = own.loc[own["size"] == 0, "value"]
            own = own[own["size"] > 0]
            if len(whole) and len(own):
                cost = own[["start", "size"]].assign(cost=sign * (own["value"] - whole.iloc[0]))
                found.setdefault(what, []).append((cost, unit))

    def rank(candidate: tuple[pd.DataFrame, Unit]) -> tuple:
        table, unit = candidate
        comparable = int((table.groupby("size")["start"].transform("size") >= SIZE).sum())
        return comparable, len(table), unit.key["quantization"] is None, unit.provenance["measured"]

    return {what: max(candidates, key=rank) for what, candidates in found.items()}


def _paid(unit: Unit) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """In what a unit's cuts are paid, whether more of it is a cost or a gain, and its rows."""
    rows = unit.rows
    if unit.kind in LOSSES:
        yield f"loss on {curves.title(unit.name)}", 1, rows[rows["metric"] == "loss"]
        return
    for task in curves.own_tasks(unit):
        own = rows[rows["task"] == task]
        metric = curves.main_metric(list(own["metric"]))
        own = own[own["metric"] == metric]
        whole = own[own["size"] == 0]
        if whole.empty or not curves.are_shares(own) or not _known(unit, task, whole.iloc[0]):
            continue
        yield curves.asked([task], unit.key["num_fewshot"]), -1, own


def _known(unit: Unit, task: str, whole: pd.Series) -> bool:
    """Whether the whole model is surely above guessing: else dropping a block has nothing to cost."""
    return curves.surely_above(float(whole["value"]), int(whole["items"]), curves.levels_of(unit).get(task, {}))


@dataclass(frozen=True)
class Prediction:
    """How far a measure predicts a cost: a correlation given n with its interval, or why there is none."""

    measure: str
    cost: str
    blocks: int
    correlation: float = math.nan
    low: float = math.nan
    high: float = math.nan
    beside: str = ""  # better or worse than the angular distance, where that is told
    obstacle: str = ""

    @property
    def verdict(self) -> str:
        if self.obstacle:
            return self.obstacle
        if self.low >= PREDICTS or self.high <= -PREDICTS:
            return PREDICTED
        return "not" if -PREDICTS < self.low and self.high < PREDICTS else UNTOLD


def predictions(blocks: pd.DataFrame, cost: pd.DataFrame, what: str, *, resamples: int = RESAMPLES) -> list[Prediction]:
    """For each measure of `of_blocks` how far it predicts a cost of `costs`, the angular distance first."""
    table = blocks.merge(cost.dropna(), on=["start", "size"])
    distance = _draws(table, DISTANCE, resamples) if DISTANCE in table else None
    found = []
    for name in WORDS:
        if name not in table or (drawn := _draws(table, name, resamples)) is None:
            own = table[name].notna().sum() if name in table else 0
            why = "not measured" if not own else f"too few blocks of a size: {own} in all"
            found.append(Prediction(name, what, int(own), obstacle=why))
            continue
        blocks_used, draws = drawn
        correlation, low, high = np.tanh(_interval(draws)).tolist()
        beside = ""
        if name != DISTANCE and distance is not None:
            both = table[table[name].notna() & table[DISTANCE].notna()]
            first, second = (_draws(both, one, resamples) for one in (name, DISTANCE))
            if first is not None and second is not None:
                _, less, more = _interval(np.abs(first[1]) - np.abs(second[1]))
                beside = "better" if less > 0 else "worse" if more < 0 else ""
        found.append(Prediction(name, what, blocks_used, correlation, low, high, beside))
    return found


def _draws(table: pd.DataFrame, name: str, resamples: int) -> tuple[int, Float[np.ndarray, " R"]] | None:
    """How many blocks count, and artanh of the correlation given n: of all, then of resamples; None for too few."""
    table = table[table[name].notna()]
    table = table[table.groupby("size")["start"].transform("size") >= SIZE]
    if len(table) < BLOCKS:
        return None
    by_size = table.groupby("size")
    ranks = [by_size[column].transform(lambda own: own.rank() / (len(own) + 1)) for column in (name, "cost")]
    times = resampled_starts(table["start"].to_numpy(), resamples)
    found = given_size(*(one.to_numpy() for one in ranks), table["size"].to_numpy(), times)
    return len(table), np.arctanh(found.clip(-LARGEST, LARGEST))


def resampled_starts(starts: Int[np.ndarray, " B"], resamples: int) -> Float[np.ndarray, "R B"]:
    """How often each block counts: once, then as often as its first layer is in runs of first layers drawn anew."""
    known, place = np.unique(starts, return_inverse=True)
    number = len(known)
    length = math.ceil(number / RUNS)
    draw = np.random.default_rng(0)
    begins = draw.integers(0, number, (resamples, math.ceil(number / length)))
    drawn = ((begins[:, :, None] + np.arange(length)) % number).reshape(resamples, -1)
    times = np.stack([np.bincount(row, minlength=number) for row in drawn]) if resamples else np.zeros((0, number))
    return np.concatenate([np.ones((1, number)), times]).astype(float)[:, place]


def given_size(
    first: Values, second: Values, sizes: Int[np.ndarray, " B"], times: Float[np.ndarray, "R B"]
) -> Float[np.ndarray, " R"]:
    """Correlation of two ranks, each size about its own mean, where each block counts so many times."""
    of_size = (sizes[:, None] == np.unique(sizes)).astype(float)

    def about_means(one: Values, other: Values) -> Float[np.ndarray, " R"]:
        counts = np.maximum(times @ of_size, 1)  # of a size that was not drawn all sums are 0
        return times @ (one * other) - ((times * one) @ of_size * ((times * other) @ of_size) / counts).sum(axis=1)

    spread = about_means(first, first) * about_means(second, second)
    return about_means(first, second) / np.sqrt(np.where(spread > 1e-12, spread, np.nan))


def _interval(draws: Float[np.ndarray, " R"]) -> tuple[float, float, float]:
    """The first of some draws, and its 95% interval from the spread of the others."""
    half = STUDENT * float(np.nanstd(draws[1:]))
    return float(draws[0]), float(draws[0]) - half, float(draws[0]) + half


def power(layers: int, sizes: Iterable[int], correlation: float, *, trials: int = 100, resamples: int = 100) -> float:
    """In which share of trials a measure would be seen to predict a cost, if layers had such a correlation of both.

    Simulated: each layer has one number of the measure and one of the cost, drawn apart from those of other layers, and
    a block has their means.
    """
    places = pd.DataFrame(
        [(start, size) for size in sizes for start in range(layers - size + 1)], columns=["start", "size"]
    )
    draw, seen = np.random.default_rng(0), 0
    for _ in range(trials):
        measure, own = draw.normal(size=(2, layers))
        cost = correlation * measure + math.sqrt(1 - correlation**2) * own
        columns = {
            name: [of_layers[start : start + size].mean() for start, size in places.itertuples(index=False)]
            for name, of_layers in ((DISTANCE, measure), ("cost", cost))
        }
        found = _draws(places.assign(**columns), DISTANCE, resamples)
        if found is not None:
            low, high = np.tanh(_interval(found[1])[1:])
            seen += Prediction(DISTANCE, "", found[0], 0.0, low, high).verdict == PREDICTED
    return seen / trials


def in_words(found: list[Prediction]) -> str:
    """Which measures predict one cost, which do not, and which are better than the angular distance, in Markdown.

    Of the found at least one has to be told.
    """
    cost, told = as_markdown(found[0].cost), [one for one in found if not one.obstacle]

    def named(chosen: Callable[[Prediction], bool], none: str) -> str:
        return ", ".join(f"{WORDS[one.measure]} ({one.correlation:+.2f})" for one in told if chosen(one)) or none

    blocks, untold = max(one.blocks for one in told), sum(one.verdict == UNTOLD for one in told)
    own = next((one for one in told if one.measure == DISTANCE), None)
    own = own and f" The distance itself: {own.correlation:+.2f} ({own.low:+.2f} to {own.high:+.2f}), {own.verdict}."
    return (
        f"**{cost}**, {blocks} blocks, {len(told)} measures: predicted by "
        f"{named(lambda one: one.verdict == PREDICTED, 'none')}; surely not by "
        f"{named(lambda one: one.verdict == 'not', 'any')}; of {untold} it can't be told; surely "
        "better than the angular distance: "
        f"{named(lambda one: one.beside == 'better', 'none')}.{own or ''}"
    )


def drawn(found: list[Prediction]) -> pd.DataFrame:
    """Correlations as rows of a figure: row (the measure), line (the cost), value, low, high, blocks and verdict.

    The measure with the largest correlations, in absolute value over costs, comes first.
    """
    rows = pd.DataFrame([
        {"row": WORDS[one.measure], "line": one.cost, "value": one.correlation, "low": one.low, "high": one.high,
         "blocks": one.blocks, "verdict": one.verdict}
        for one in found if not one.obstacle
    ])  # fmt: skip
    size = rows["value"].abs().groupby(rows["row"]).transform("mean")
    return rows.assign(size=size).sort_values("size", ascending=False, kind="stable").drop(columns="size")


def table_of(found: list[Prediction]) -> pd.DataFrame:
    """As a page shows it: a row for each measure, for each cost its correlation given n, and what is told by it."""
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        said = one.verdict
        if not one.obstacle:
            told = "" if one.verdict == UNTOLD else f", {one.verdict}"
            said = f"{one.correlation:+.2f} ({one.low:+.2f} to {one.high:+.2f}){told}"
        if one.beside:
            said += f", {one.beside} than the distance"
        rows.setdefault(one.measure, {"measure": WORDS[one.measure]})[one.cost] = said
    return pd.DataFrame([rows[name] for name in WORDS if name in rows])
