"""The paper's claims: a record each, one number that decides it, one table of all.

The number of a claim is a query of the table of all results; the limits say what we take the paper's words to mean, and
all were set before the data but for those of `ranks` and `unhealed-loss`. Where the whole model is within 0.05 of
guessing nothing could be seen (at floor). Claims about healed models are *not tested* where they were healed at another
rate than the paper's: their numbers stand beside and decide nothing.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from deeper_layers.report import paper
from deeper_layers.report.estimates import (
    AT_FLOOR,
    INCONCLUSIVE,
    NOT_TESTED,
    Estimate,
    difference,
    half_gone,
    is_at_floor,
    means,
    shares_kept,
)
from deeper_layers.report.names import as_html, as_table, model_title, say, topic
from deeper_layers.report.pairing import Measured, guessing, measurements, one_rule, paired
from deeper_layers.report.statistics import half_gone_table, kept_distances, recovery_table, settings_of

ALIKE = 0.05  # accuracies no further apart are alike
LEFT, AT_ONCE = 0.5, 0.1  # what a model that collapses keeps at most, from this share of the layers on
NEAR = 0.1  # of the layers between two places that are near
DEEP, LAST = 2 / 3, 0.9  # of the depth, from which on a block is deep; of the range of distances, near-maximal
EARLIEST = min(low for low, _ in paper.CLIFFS.values())


class Found(NamedTuple):
    """The number of one claim on one model, why there is none, and what stands beside it and decides nothing."""

    estimate: Estimate = Estimate.none(NOT_TESTED)
    reason: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, in our words, and the one number that decides it.

    Attributes:
        paper: the paper's own number, with its model.
        figure: of the paper; the GSM8K one is in an appendix of the later version.
        number: what is counted here; `floor` and `ceiling` are what the claim says of it.
        query: the number of one model, of all that results hold of it.
        differs: from the paper, besides the models.
        as_share: whether the number is said in percent.
        is_tested: whether anything here tests it; else its numbers stand beside.
    """

    identifier: str
    title: str
    sentence: str
    paper: str
    figure: str
    page: str
    number: str
    query: Callable[["Model"], Found]
    floor: float = -math.inf
    ceiling: float = math.inf
    differs: str = "not healed"
    as_share: bool = False
    is_tested: bool = True


@dataclass
class Model:
    """All that results hold of one model."""

    name: str
    scores: pd.DataFrame = field(repr=False)
    distances: pd.DataFrame = field(repr=False)

    @property
    def layers(self) -> int:
        return int(pd.concat([self.scores["layers"], self.distances["layers"]]).max())

    @functools.cached_property
    def recovery(self) -> pd.DataFrame:
        return recovery_table(self.scores)

    def curve(self, task: str, rule: str = "similarity") -> Measured | None:
        """The one measurement of a task under a rule; None where there is none of the whole model and pruned ones."""
        own = one_rule(self.scores[(self.scores["task"] == task) & (self.scores["rule"] == rule)])
        found = [one for one in measurements(own, of=self.scores) if one.cuts["size"].iloc[0] == 0]
        return max(found, key=lambda one: len(one.cuts), default=None)


def _half_gone(task: str, beside: bool = False) -> Callable[[Model], Found]:
    def query(model: Model) -> Found:
        found = model.curve(task)
        if found is None or len(found.cuts) < 3:
            return Found(reason=f"{topic(task)} was not asked")
        share, said = half_gone(found.outcomes, found.cuts["size"], found.guessing) / model.layers, []
        if beside:
            others = half_gone_table(model.scores).query("rule == 'similarity' and untold == '' and task != @task")
            said = [
                f"{row['topic']} {say(row['share'], row['share_low'], row['share_high'], as_share=True)}"
                for row in others.to_dict("records")
            ]
        return Found(share, beside=f"half gone of {'; '.join(said)}" if said else "")

    return query


def _collapses(model: Model) -> Found:
    found = model.curve("mmlu", "simple")
    if found is None:
        return Found(reason="MMLU was not asked under the simple heuristic")
    shares = shares_kept(found.outcomes, found.guessing)
    at_once = found.cuts["share"] >= AT_ONCE
    kept = {size: share for size, share, wanted in zip(found.cuts["size"], shares, at_once) if wanted}
    if not kept or shares[0].untold:
        return Found(shares[0]) if kept else Found()
    value, draws = ([getattr(share, name) for share in kept.values()] for name in ("value", "draws"))
    said = "; ".join(f"n = {size}: {say(share, as_share=True)}" for size, share in list(kept.items())[:3])
    return Found(Estimate.of(max(value), np.max(draws, axis=0)), beside=said)


def _jump(model: Model) -> Found:
    losses, answers = model.curve("c4"), model.curve("mmlu")
    if answers is not None and answers.at_floor:
        return Found(Estimate.none(AT_FLOOR), "no cliff of MMLU to be near to")
    if losses is None or answers is None:
        return Found(reason="losses or MMLU were not measured")
    every = np.vstack(means(losses.outcomes))
    reached = every >= (every[:, :1] + losses.guessing) / 2
    sizes = losses.cuts["size"].to_numpy(dtype=float)
    jump = np.where(reached.any(axis=1), sizes[reached.argmax(axis=1)], math.inf)
    gone = half_gone(answers.outcomes, answers.cuts["size"], answers.guessing)
    return Found(Estimate.of((jump[0] - gone.value) / model.layers, (jump[1:] - gone.draws) / model.layers))


def _depth(model: Model) -> Found:
    """Depth of the middle of the most similar block, mean over sizes up to a quarter of the layers."""
    sizes = range(1, max(model.layers // 4, 1) + 1)
    return _of_distances(model, sizes, False, lambda drawn, size: drawn.argmin(axis=1) + size / 2)


def _height(model: Model) -> Found:
    """Place of the block with the last layer in the range of distances of its size, without those from layer 0 on."""

    def place(drawn: np.ndarray, size: int) -> np.ndarray:
        low, high = drawn[:, 1:].min(axis=1), drawn[:, 1:].max(axis=1)
        return model.layers * (drawn[:, -1] - low) / (high - low)

    every, half = (
        _of_distances(model, range(1, max(largest, 1) + 1), True, place)
        for largest in (model.layers - 2, model.layers // 2)
    )
    beside = f"{every.beside}; over sizes to half of the layers {say(half.estimate)}"
    return every if every.reason else every._replace(beside=beside)


def _of_distances(model: Model, sizes: range, with_last: bool, of: Callable[[np.ndarray, int], np.ndarray]) -> Found:
    """The mean over sizes, over the layers; the sequences are drawn anew. Of the paper's text where it was measured."""
    own = kept_distances(model.distances)
    own = own[own["by_sequence"].notna() & (with_last | (own["start"] + own["size"] < model.layers))]
    corpus = paper.CORPUS if (own["corpus"] == paper.CORPUS).any() else own["corpus"].max()
    own, found = own[own["corpus"] == corpus].sort_values("start"), []
    if own.empty:
        return Found(reason="distances were not kept by sequence")
    for size in sizes:
        drawn = list(own.loc[own["size"] == size, "by_sequence"])
        if len(drawn) != model.layers - size + with_last:
            return Found(reason="distances of some blocks were not measured")
        found.append(of(np.vstack(means(np.stack(drawn))), size))
    total = np.sum(found, axis=0) / (model.layers * len(sizes))
    return Found(Estimate.of(total[0], total[1:]), beside=f"on {corpus}")


def _prompts(column: str, one: int, other: int) -> Callable[[Model], Found]:
    """Accuracy of the whole model on MMLU, by one number or order of examples less by another."""
    fixed = "order == 0" if column == "shots" else "shots == 5"
    asked = f"task == 'mmlu' and metric == 'acc' and repeat == 0 and rule == 'similarity' and {fixed}"

    def query(model: Model) -> Found:
        own = model.scores.query(asked)
        own = own[own["order"].notna() & own["healing"].isna()]
        if not {one, other} <= set(own[column]):
            return Found(reason="prompts were not varied")
        first, second = (paired(own[own[column] == value])[1][0] for value in (one, other))
        if is_at_floor(first, guessing(own)):
            return Found(Estimate.none(AT_FLOOR), "the whole model only guesses")
        return Found(difference(first, second), beside=f"whole model, {len(first)} items")

    return query


def _ranks(model: Model) -> Found:
    """Loss on C4 after healing, lowest rank less highest, where several seeds of each were healed."""
    own = model.scores.query("healing.notna() and metric == 'loss' and repeat == 0").drop_duplicates(["cut", "healing"])
    if own.empty:
        return Found(reason="no model was healed")
    settings = pd.DataFrame(map(settings_of, own["healing"]), own.index).drop(columns="healing")
    own = own.join(settings).query("not distillation and adapters == 'all' and auxiliary == 0")
    for cut, found in own.groupby("cut"):
        seeds = found.groupby("rank")["seed"].nunique()
        if (seeds > 1).sum() > 1:
            low, high = seeds[seeds > 1].index.min(), seeds[seeds > 1].index.max()
            vectors = [np.mean(list(found[found["rank"] == rank]["outcome"]), axis=0) for rank in (low, high)]
            said = f"rank {low} less rank {high}, mean of {seeds.min()} seeds, {cut.split(',')[1]} layers dropped"
            return Found(difference(*vectors), beside=f"{said}; MMLU of these models is at floor")
    return Found(reason="no two ranks were healed with several seeds")


def _seeds(model: Model) -> Found:
    if model.recovery.empty:
        return Found(reason="no model was healed")
    if model.recovery.query("task in ['mmlu', 'embedded_mmlu'] and untold == ''").empty:
        reason = "MMLU of healed models with several seeds: the whole model only guesses"
        return Found(Estimate.none(AT_FLOOR), reason)
    return Found(reason="MMLU was asked of one seed")


def _healed(task: str) -> Callable[[Model], Found]:
    """What healings recovered, beside: none was the paper's."""

    def query(model: Model) -> Found:
        every = model.recovery
        if every.empty:
            return Found(reason="no model was healed")
        own = every[(every["task"] == task) & (every["untold"] == "")].sort_values("size")
        share, times = every["tokens"].max() / paper.HEALING_TOKENS, every["learning_rate"].min() / paper.LEARNING_RATE
        said = [f"n = {row['size']} ({row['rule']}) {say(row)}" for row in own.to_dict("records")]
        recovered = f"; recovered of {topic(task)}: {'; '.join(said)}" if said else ""
        beside = f"healed on at most {share:.2%} of the paper's tokens{recovered}"
        return Found(reason=f"healed at {times:.0f} times the paper's rate", beside=beside)

    return query


CLIFFS = ", ".join(f"{f} {lo:.0%}" + (f" to {hi:.0%}" if hi > lo else "") for f, (lo, hi) in paper.CLIFFS.items())
PLATEAU = "share of the layers at which half of what lies above guessing is gone"
CLAIMS = [
    Claim("plateau", "Accuracy stays, then falls at once", "MMLU stays flat until a cliff, then falls to chance.",
          CLIFFS, "1d, 2", "02-question-answering", PLATEAU, _half_gone("mmlu", beside=True), floor=EARLIEST,
          as_share=True),
    Claim("boolq", "BoolQ alike", "BoolQ stays flat and falls at about the same place.", CLIFFS, "1d, 6",
          "02-question-answering", PLATEAU, _half_gone("boolq"), floor=EARLIEST, as_share=True),
    Claim("simple-unhealed", "The simple heuristic alone collapses",
          "Without healing, dropping the layers before the last one costs everything at once.",
          "Llama-2-70B: near chance from the first cuts on", "5", "02-question-answering",
          "most that any cut from a tenth of the layers on keeps of MMLU above guessing", _collapses, ceiling=LEFT,
          as_share=True),
    Claim("unhealed-loss", "Unhealed loss jumps near the cliff", "Without healing, the loss jumps near MMLU's cliff.",
          "Llama-2-70B: at 40 to 50%", "1d, 3", "04-healing",
          "share of the layers from MMLU's half to where the loss is half way to guessing", _jump, -NEAR, NEAR,
          as_share=True),
    Claim("deep-blocks", "Deep blocks are the most alike",
          "The deepest blocks without the last layer are the most similar.",
          "Llama-2-7B and Mistral-7B: centred at depth 0.78 at a quarter dropped", "1c, 4", "01-similarity",
          "depth of the middle of the most similar block, mean over sizes to a quarter", _depth, floor=DEEP,
          differs="256 sequences of C4, not 10,000"),
    Claim("last-layer", "The last layer is unlike the others",
          "Blocks with the last layer are near-maximally dissimilar.",
          "all models: the outer edge of each curve", "1c, 4", "01-similarity",
          "place in the range of distances of a size, mean over all sizes", _height, floor=LAST,
          differs="256 sequences of C4, not 10,000; blocks from layer 0 on left out"),
    Claim("shot-order", "The order of examples does not matter", "Another order of the examples: no effect on MMLU.",
          "Llama-2-13B: curves lie on each other", "7", "02-question-answering",
          "accuracy of the whole model on MMLU, one order less another", _prompts("order", 1, 0), -ALIKE, ALIKE),
    Claim("more-shots", "More examples help a little", "More examples in the prompt: MMLU marginally better.",
          "Llama-2-13B: curves of 0 to 5 examples nearly alike", "7", "02-question-answering",
          "accuracy of the whole model on MMLU, 5 examples less 0", _prompts("shots", 5, 0), 0.0, ALIKE),
    Claim("reasoning", "Reasoning falls early", "GSM8K has no plateau: it falls early.",
          f"before MMLU's cliffs, {CLIFFS}",
          "GSM8K (appendix of 2025)", "03-reasoning", PLATEAU, _half_gone("gsm8k"), ceiling=EARLIEST, as_share=True),
    Claim("ranks", "Lower ranks: worse loss", "A lower rank of the adapters gives better MMLU and worse loss on C4.",
          "Mistral-7B: loss rises as the rank falls from 64 to 2", "9", "04-healing",
          "loss on C4, lowest rank less highest, nats a token", _ranks, floor=0.0,
          differs="healed at 17 times the rate, on 0.07% of the tokens"),
    Claim("seeds", "The seed of healing does not matter", "Another seed of healing: no effect on MMLU.",
          "Llama-2-13B: curves lie on each other", "8", "04-healing", "accuracy on MMLU, one seed less another", _seeds,
          -ALIKE, ALIKE, differs="healed at 17 times the rate"),
    Claim("plateau-healed", "So it does after healing", "The healed curves have the same flat part and the same fall.",
          CLIFFS, "1d, 2, 6", "04-healing", PLATEAU, _healed("mmlu"), floor=EARLIEST, is_tested=False),
    Claim("boolq-healing", "Healing matters more for BoolQ", "Healing gives back more on BoolQ than on MMLU.",
          "all models", "6", "04-healing", "recovery of BoolQ less that of MMLU", _healed("boolq"), floor=0.0,
          is_tested=False),
    Claim("healed-loss", "Healed loss grows slowly and straight",
          "After healing, the loss on C4 grows slowly and about linearly, straight through the cliff.",
          "Llama-2-70B, to 50%", "1d, 3", "04-healing", "rise of the healed loss over that of the other", _healed("c4"),
          ceiling=0.5, is_tested=False),
    Claim("simple-healed", "The simple heuristic, healed, nearly matches",
          "After healing, the simple heuristic does nearly as well as similarity-informed pruning.", "Llama-2-70B", "5",
          "04-healing", "accuracy on MMLU, simple heuristic less similarity-informed", _healed("mmlu"), floor=-ALIKE,
          is_tested=False),
]  # fmt: skip


def claims_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """All claims of all models: claim, title, sentence, paper (its number, with its model), figure, page, model, number
    (what was counted), value with low and high, as_share, floor, ceiling, verdict, reason, beside (numbers that decide
    nothing), differs (what differs here), power (half of the interval), is_tested."""
    rows = []
    names = dict.fromkeys([*scores["model"], *distances["model"]])
    models = [Model(name, *(table[table["model"] == name] for table in (scores, distances))) for name in names]
    for claim in CLAIMS:
        for model in models:
            estimate, reason, beside = claim.query(model)
            verdict = estimate.against(claim.floor, claim.ceiling) if claim.is_tested else NOT_TESTED
            ends = estimate.low, estimate.high
            if verdict != NOT_TESTED and any(np.allclose(ends, limit) for limit in (claim.floor, claim.ceiling)):
                verdict, reason = INCONCLUSIVE, "it lies exactly on the limit"
            half = (estimate.high - estimate.low) / 2
            row = vars(claim) | {"claim": claim.identifier, "model": model.name} | estimate.columns()
            row |= {"verdict": verdict, "reason": reason, "power": half if math.isfinite(half) else np.nan}
            rows.append(row | {"beside": beside})
    return pd.DataFrame(rows).drop(columns=["identifier", "query"])


def shown(found: pd.DataFrame):
    """The one table of the page: claim (with what we count, what differs and the paper's figure) | the paper's number |
    ours, a model a column, with its verdict. Why a claim is tested on no model is said once. It shows itself in a
    notebook."""
    rows = []
    for _, own in found.groupby("claim", sort=False):
        first = own.iloc[0]
        shared = first["reason"] if not first["is_tested"] and own["reason"].nunique() == 1 else ""
        small = f"We count: {first['number']}. Differs: {shared or first['differs']}. Figure: {first['figure']}."
        row = {"claim": (first["page"], first["title"], first["sentence"], small), "the paper": first["paper"]}
        for of in own.to_dict("records"):
            number = "" if pd.isna(of["value"]) else f": {say(of, as_share=of['as_share'])}"
            row[model_title(of["model"])] = (f"{of['verdict']}{number}", "" if shared else of["reason"])
        rows.append(row)
    caption = "The paper's claims: its number, ours with 95% intervals, and the verdict."
    form = dict.fromkeys(map(model_title, found["model"]), _with_reason) | {"claim": _claim, "the paper": None}
    return as_table(pd.DataFrame(rows), caption, form)


def _claim(cell: tuple[str, str, str, str]) -> str:
    """The book makes a link of what names a page."""
    page, title, sentence, small = map(as_html, cell)
    return f'<a data-page="{page}">{title}</a>. {sentence} <small>{small}</small>'


def _with_reason(cell: tuple[str, str]) -> str:
    verdict, reason = map(as_html, cell)
    return verdict + (f" <small>{reason}</small>" if reason else "")
