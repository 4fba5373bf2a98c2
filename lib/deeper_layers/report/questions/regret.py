"""Regret: how much more loss a rule's choice costs than the best contiguous block of that size. No torch.

The criteria, set before any map was measured:

- The regret at size n is the loss on text, in nats a token, of what the rule leaves, less that of the best block among
  those that keep the last layer. The best is found on one half of the sequences and judged on the other, both ways
  round, so that it is not flattered by having been chosen on what judges it. Negative is possible: a rule that takes
  layers out one by one, or changes weights, may do better than any block; and a block too, by what the halves disagree
  about which one is best.
- Intervals are 95%, by resampling sequences within the halves, the choice of the best included.
- A rule is "as good as the best block" where the interval ends below MARGIN, "worse" where it begins above, else it
  "can't be told". MARGIN is 0.05 nats, 5% more perplexity.
- A rule is judged by the mean of its regrets over the sizes of 10, 20, 25 and 33% of the layers. Ranks are by this
  mean, 1 is best; their intervals come from the same resamples.
- The place of a rule's block is the share of blocks of its size with less loss: 0 is the best, 0.5 what chance gives.

Letters in shapes: B blocks, S sequences, R resamples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.results.units import Unit

MARGIN = 0.05  # nats
RESAMPLES = 2000
TIED = 1e-12  # blocks whose answers cost the same to the last item
TAIL = 2.5  # percent on either side of an interval


@dataclass(frozen=True)
class Judged:
    """A number with its 95% interval, and what was drawn for it, [R]."""

    value: float
    low: float
    high: float
    draws: np.ndarray

    @classmethod
    def of(cls, value: float, draws: np.ndarray) -> "Judged":
        low, high = np.percentile(draws, [TAIL, 100 - TAIL])
        return cls(float(value), float(low), float(high), draws)

    @property
    def of_a_block(self) -> "Judged":
        """The same of a block of the map: as the best is among them, what seems better than it is chance."""
        return Judged.of(max(0.0, self.value), np.maximum(0.0, self.draws))

    @property
    def verdict(self) -> str:
        """Beside the best block, by MARGIN."""
        return "as good" if self.high < MARGIN else "worse" if self.low > MARGIN else "can't be told"


def scanned_sizes(cuts: Iterable[Cut], layers: int) -> list[int]:
    """The sizes of which every block is among some cuts, from the first layer to the last."""
    starts: dict[int, set[int]] = {}
    for cut in cuts:
        if cut.is_block and cut.size:
            starts.setdefault(cut.size, set()).add(cut.start)
    return sorted(size for size, found in starts.items() if found == set(range(layers - size + 1)))


class Map:
    """What dropping every block of some sizes costs: nats a token by sequence, or answers that are wrong by item.

    `costs` are by cut, the whole model's among them; a size that lacks a block is no part of the map.
    Raises InputError where no size has every block, or where there are not two items: one half judges the other.
    """

    def __init__(self, layers: int, costs: Mapping[Cut, Float[np.ndarray, " S"]]):
        self.layers, self._costs = layers, {cut.name: np.asarray(cost) for cut, cost in costs.items()}
        self.whole = self._costs[UNPRUNED.name]
        if len(self.whole) < 2:
            raise InputError(f"{len(self.whole)} items were measured, expected 2 or more: one half judges the other")
        self.sizes = scanned_sizes(costs, layers)
        if not self.sizes:
            raise InputError("every block was measured of no size: measure them for the map")
        rows = [
            {"start": start, "size": size, "value": cost.mean(), "stderr": cost.std(ddof=1) / len(cost) ** 0.5}
            for size in self.sizes for start in range(layers - size + 1)
            for cost in [self._costs[Cut(start, size).name]]
        ]  # fmt: skip
        self.rows = pd.DataFrame(rows)

    @classmethod
    def of(cls, unit: Unit) -> "Map":
        """Of a unit of losses."""
        by_cut = unit.details["by_sequence"]
        return cls(int(unit.details["num_layers"]), {Cut.named(name): np.array(cost) for name, cost in by_cut.items()})

    def losses(self, size: int) -> Float[np.ndarray, "B S"]:
        """By sequence, of each block of a size that keeps the last layer; start l on row l."""
        if size not in self.sizes:
            raise InputError(f"size is {size}, expected one of {', '.join(map(str, self.sizes))}: the map has no other")
        return np.array([self._costs[Cut(start, size).name] for start in range(self.layers - size)])

    @property
    def best(self) -> pd.DataFrame:
        """Of each size the block with the least loss among those that keep the last layer: size, start, value."""
        kept = self.rows[self.rows["start"] + self.rows["size"] < self.layers]
        least = kept.loc[kept.groupby("size")["value"].idxmin(), ["size", "start", "value"]]
        return least.sort_values("size").reset_index(drop=True)

    def of_cut(self, cut: Cut) -> Float[np.ndarray, " S"] | None:
        """Losses of a cut by sequence; None where it is no block of the map."""
        return self._costs.get(cut.name) if cut.is_block else None


def place(every: Map, cut: Cut) -> float:
    """The share of the other blocks of its size, those that keep the last layer, with less loss than a block has.

    Raises InputError for a cut that is no such block.
    """
    losses = every.losses(cut.size).mean(axis=1)
    if not cut.is_block or cut.start >= len(losses):
        raise InputError(f"{cut} is no block that keeps the last layer: only such have a place")
    return float((losses < losses[cut.start]).sum() / max(1, len(losses) - 1))


def regret(every: Map, size: int, losses: Float[np.ndarray, " S"]) -> Judged:
    """How much more these are, by sequence or item, than what the best block of a size costs, in units of the map."""
    blocks = every.losses(size)
    if losses.shape != blocks.shape[1:]:
        raise InputError(f"losses has {len(losses)} sequences, and the map {blocks.shape[1]}: measure on the same text")
    return Judged.of(_crossed(blocks, losses, _halves(len(losses), None))[0],
                     _crossed(blocks, losses, _halves(len(losses), RESAMPLES)))  # fmt: skip


def mean_regret(regrets: list[Judged]) -> Judged:
    """The mean over sizes; as all share the sequences, so do their resamples."""
    return Judged.of(np.mean([one.value for one in regrets]), np.mean([one.draws for one in regrets], axis=0))


def ranks(regrets: Mapping[str, Judged]) -> pd.DataFrame:
    """Rules by their regrets, best first: rule, rank (1 is best, equals share the mean), and its 95% interval."""
    draws = pd.DataFrame({rule: one.draws for rule, one in regrets.items()}).rank(axis=1)
    values = pd.Series({rule: one.value for rule, one in regrets.items()}).rank()
    low, high = (draws.quantile(share) for share in (TAIL / 100, 1 - TAIL / 100))
    table = pd.DataFrame({"rule": values.index, "rank": values, "low": low, "high": high})
    return table.sort_values("rank", kind="stable").reset_index(drop=True)


def in_halves(rank: int | float) -> str:
    """A rank in words: those that tie share the mean of theirs, which may be a half."""
    return f"{round(2 * rank) / 2:g}"


def _halves(sequences: int, resamples: int | None) -> list[Float[np.ndarray, "R S"]]:
    """Weights of sequences, for each half: as they are, or resampled within it; each row sums to 1."""
    draw = np.random.default_rng(0)
    found = []
    for half in (np.arange(0, sequences, 2), np.arange(1, sequences, 2)):
        weights = np.zeros((resamples or 1, sequences))
        if resamples is None:
            weights[:, half] = 1 / len(half)
        else:
            counts = draw.multinomial(len(half), np.full(len(half), 1 / len(half)), resamples)
            weights[:, half] = counts / len(half)
        found.append(weights)
    return found


def _crossed(
    blocks: Float[np.ndarray, "B S"], losses: Float[np.ndarray, " S"], halves: list[Float[np.ndarray, "R S"]]
) -> Float[np.ndarray, " R"]:
    """Regrets where the best block of one half is judged on the other, mean of both ways, and of blocks that tie."""
    of_blocks = [weights @ blocks.T for weights in halves]  # [R, B]
    of_rule = [weights @ losses for weights in halves]
    ways = []
    for chosen_on, judged_on in ((0, 1), (1, 0)):
        best = of_blocks[chosen_on] <= of_blocks[chosen_on].min(axis=1, keepdims=True) + TIED
        ways.append(of_rule[judged_on] - (of_blocks[judged_on] * best).sum(axis=1) / best.sum(axis=1))
    return np.mean(ways, axis=0)
