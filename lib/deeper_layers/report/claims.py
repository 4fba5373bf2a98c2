"""The paper's claims: a record each (claims.toml), one number that decides it, one table of all.

The number of a claim is a query of the table of all results; the limits say what we take the paper's words to mean, and
all were set before the data but for those of `ranks` and `unhealed-loss`. Where the whole model is within 0.05 of
guessing nothing could be seen (at floor). Claims about healed models are *not tested*: none was healed at the paper's
rate on as many tokens, so their numbers stand beside and decide nothing.
"""

import math
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deeper_layers.report import estimates, paper, statistics
from deeper_layers.report.estimates import AT_FLOOR, INCONCLUSIVE, NOT_TESTED, Estimate, means
from deeper_layers.report.names import as_html, as_table, model_title, rule_title, say, topic
from deeper_layers.report.pairing import Measured, guessing, measurements, one_rule, paired

CLAIMS = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))["claim"]
AT_ONCE = 0.1  # of the layers, from which on a model that collapses keeps little
USUAL = {"floor": -math.inf, "ceiling": math.inf, "differs": "not healed", "as_share": False, "is_tested": True}


Found = tuple[Estimate, str]  # the number of one claim on one model, and what stands beside it and decides nothing


class Untold(Exception):
    """Why there is no number of a claim on a model; the verdict, and what stands beside."""

    def __init__(self, reason: str, verdict: str = NOT_TESTED, beside: str = ""):
        self.reason, self.estimate, self.beside = reason, Estimate(untold=verdict), beside


class Model(NamedTuple):
    """All that results hold of one model, and what several claims ask of it."""

    scores: pd.DataFrame
    distances: pd.DataFrame
    layers: int
    gone: pd.DataFrame  # where half is gone, by the most similar blocks
    recovery: pd.DataFrame

    def curve(self, task: str, rule: str = "similarity") -> Measured:
        """The one measurement of a task under a rule, of the whole model and pruned ones."""
        own = one_rule(self.scores.query("task == @task and rule == @rule"))
        for found in measurements(own, of=self.scores):
            if found.cuts["size"].iloc[0] == 0:
                return found
        raise Untold(f"{topic(task)} was not asked, {rule_title(rule)}")

    def recovered(self) -> pd.DataFrame:
        if self.recovery.empty:
            raise Untold("no model was healed")
        return self.recovery


def _half_gone(model: Model, task: str, beside: bool = False) -> Found:
    rows = {row["task"]: row for row in model.gone.to_dict("records")}
    if task not in rows:
        raise Untold(f"{topic(task)} was not asked")
    ends = ("share", *estimates.ends_of("share"))
    shares = {of: Estimate(*map(row.get, ends), untold=row["untold"]) for of, row in rows.items()}
    share = shares.pop(task)
    said = [f"{topic(of)} {say(other, as_share=True)}" for of, other in shares.items() if not other.untold]
    return share, f"half gone of {'; '.join(said)}" if beside and said else ""


def _collapses(model: Model) -> Found:
    found = model.curve("mmlu", "simple")
    cut = np.flatnonzero(found.cuts["share"] >= AT_ONCE)
    if not len(cut):
        raise Untold("a tenth of the layers was not dropped")
    kept = estimates.shares_kept(found.outcomes, found.guessing)
    if kept.untold:
        return kept, ""
    every = list(kept)
    said = [f"n = {found.cuts['size'][number]}: {say(every[number], as_share=True)}" for number in cut[:3]]
    return Estimate.of(kept.numbers[:, cut].max(axis=1)), "; ".join(said)


def _jump(model: Model) -> Found:
    answers = model.curve("mmlu")
    gone = estimates.half_gone(answers.outcomes, answers.cuts["size"], answers.guessing)
    if gone.untold:
        raise Untold("no cliff of MMLU to be near to", gone.untold)
    losses = model.curve("c4")
    every = means(losses.outcomes)
    jump = estimates.first_size(every >= (every[:, :1] + losses.guessing) / 2, losses.cuts["size"])
    return Estimate.of((jump - gone.numbers) / model.layers), ""


def _depth(model: Model) -> Found:
    """Depth of the middle of the most similar block that keeps the last layer, mean over sizes up to a quarter."""
    sizes = range(1, max(model.layers // 4, 1) + 1)
    return _of_distances(model, sizes, lambda drawn, size: drawn[:, :-1].argmin(axis=1) + size / 2)


def _height(model: Model) -> Found:
    """Place of the block with the last layer in the range of distances of its size, without those from layer 0 on."""

    def place(drawn: np.ndarray, size: int) -> np.ndarray:
        low, high = drawn[:, 1:].min(axis=1), drawn[:, 1:].max(axis=1)
        return model.layers * (drawn[:, -1] - low) / (high - low)

    (every, said), (half, _) = (
        _of_distances(model, range(1, max(largest, 1) + 1), place) for largest in (model.layers - 2, model.layers // 2)
    )
    return every, f"{said}; over sizes to half of the layers {say(half)}"


def _of_distances(model: Model, sizes: range, of: Callable[[np.ndarray, int], np.ndarray]) -> Found:
    """The mean over sizes, over the layers; the sequences are drawn anew. Of the paper's text where it was measured."""
    own = statistics.kept_distances(model.distances).dropna(subset="by_sequence")
    corpus = paper.CORPUS if paper.CORPUS in set(own["corpus"]) else own["corpus"].max()
    of_size = statistics.sequences_by_size(own.query("corpus == @corpus"))
    if any(len(of_size.get(size, [])) <= model.layers - size for size in sizes):
        raise Untold("distances of all blocks were not kept by sequence")
    found = [of(means(np.stack(of_size[size])), size) for size in sizes]
    return Estimate.of(np.sum(found, axis=0) / (model.layers * len(sizes))), f"on {corpus}"


def _prompts(model: Model, column: str, one: int, other: int) -> Found:
    """Accuracy of the whole model on MMLU, by one number or order of examples less by another."""
    fixed = "order == 0" if column == "shots" else "shots == 5"
    asked = f"task == 'mmlu' and metric == 'acc' and repeat == 0 and rule == 'similarity' and {fixed}"
    own = model.scores.query(f"{asked} and order.notna() and healing.isna()")
    if not {one, other} <= set(own[column]):
        raise Untold("prompts were not varied")
    first, second = (paired(own.query(f"{column} == {value}"))[1][0] for value in (one, other))
    if estimates.is_at_floor(first, guessing(own)):
        raise Untold("the whole model only guesses", AT_FLOOR)
    return Estimate.of(means(first - second)), f"whole model, {len(first)} items"


def _ranks(model: Model) -> Found:
    """Loss on C4 after healing, lowest rank less highest, where several seeds of each were healed."""
    model.recovered()
    own = model.scores.query("healing.notna() and metric == 'loss' and repeat == 0").drop_duplicates(["cut", "healing"])
    settings = pd.DataFrame(map(statistics.settings_of, own["healing"]), own.index).drop(columns="healing")
    own = own.join(settings).query("not distillation and adapters == 'all' and auxiliary == 0")
    for cut, found in own.groupby("cut"):
        seeds = found.groupby("rank")["seed"].nunique()
        seeds = seeds[seeds > 1]
        if len(seeds) > 1:
            low, high = seeds.index.min(), seeds.index.max()
            lowest, highest = (np.mean(list(found.query(f"rank == {rank}")["outcome"]), axis=0) for rank in (low, high))
            said = f"rank {low} less rank {high}, mean of {seeds.min()} seeds, {cut.split(',')[1]} layers dropped"
            return Estimate.of(means(lowest - highest)), f"{said}; MMLU of these models is at floor"
    raise Untold("no two ranks were healed with several seeds")


def _seeds(model: Model) -> Found:
    if model.recovered().query("task in ['mmlu', 'embedded_mmlu'] and untold == ''").empty:
        raise Untold("MMLU of healed models with several seeds: the whole model only guesses", AT_FLOOR)
    raise Untold("MMLU was asked of one seed")


def _healed(model: Model, task: str) -> Found:
    """What healings recovered, beside: none was the paper's."""
    every = model.recovered()
    asked = every.query("task == @task")
    own, asked = asked.query("untold == ''").sort_values("size"), every if asked.empty else asked
    rate, tokens = min(zip(asked["learning_rate"], asked["tokens"]), key=lambda one: (one[0], -one[1]))
    share, times = tokens / paper.HEALING_TOKENS, rate / paper.LEARNING_RATE
    said = [f"n = {row['size']} ({row['rule']}, {row['learning_rate']:g}) {say(row)}" for row in own.to_dict("records")]
    recovered = f"recovered of {topic(task)} by rule and rate: {'; '.join(said)}" if said else ""
    raise Untold(f"healed at {times:.0f}× the paper's rate, on {share:.2%} of its tokens", beside=recovered)


QUERIES: dict[str, Callable[[Model], Found]] = {
    "plateau": partial(_half_gone, task="mmlu", beside=True),
    "boolq": partial(_half_gone, task="boolq"),
    "simple-unhealed": _collapses,
    "unhealed-loss": _jump,
    "deep-blocks": _depth,
    "last-layer": _height,
    "shot-order": partial(_prompts, column="order", one=1, other=0),
    "more-shots": partial(_prompts, column="shots", one=5, other=0),
    "reasoning": partial(_half_gone, task="gsm8k"),
    "ranks": _ranks,
    "seeds": _seeds,
    "plateau-healed": partial(_healed, task="mmlu"),
    "boolq-healing": partial(_healed, task="boolq"),
    "healed-loss": partial(_healed, task="c4"),
    "simple-healed": partial(_healed, task="mmlu"),
}


def claims_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """All claims of all models: the columns of claims.toml, and model, value with low and high, verdict, reason, beside
    (numbers that decide nothing), power (half of the interval)."""
    models = {}
    for name in dict.fromkeys([*scores["model"], *distances["model"]]):
        own, near = (table.query("model == @name", local_dict={"name": name}) for table in (scores, distances))
        layers, gone = int(pd.concat([own["layers"], near["layers"]]).max()), statistics.half_gone_table(own)
        models[name] = Model(own, near, layers, gone.query("rule == 'similarity'"), statistics.recovery_table(own))
    rows = (_judged(USUAL | claim, name, model) for claim in CLAIMS for name, model in models.items())
    return pd.DataFrame(rows).drop(columns="untold")


def _judged(claim: dict, name: str, model: Model) -> dict:
    try:
        (estimate, beside), reason = QUERIES[claim["claim"]](model), ""
    except Untold as why:
        estimate, beside, reason = why.estimate, why.beside, why.reason
    limits = claim["floor"], claim["ceiling"]
    verdict = estimate.against(*limits) if claim["is_tested"] else NOT_TESTED
    if verdict != NOT_TESTED and any(np.allclose((estimate.low, estimate.high), limit) for limit in limits):
        verdict, reason = INCONCLUSIVE, "it lies exactly on the limit"
    power = (estimate.high - estimate.low) / 2
    row = claim | {"model": name} | estimate.columns() | {"verdict": verdict, "reason": reason}
    return row | {"power": power if math.isfinite(power) else np.nan, "beside": beside}


def shown(found: pd.DataFrame):
    """The one table of the page: claim (with what we count, what differs and the paper's figure) | the paper's number |
    ours, a model a column, with its verdict. Why a claim is tested on no model is said once. It shows itself in a
    notebook; the book makes a link of what names a page."""
    rows = []
    for _, own in found.groupby("claim", sort=False):
        first = own.iloc[0]
        shared = first["reason"] if not first["is_tested"] and own["reason"].nunique() == 1 else ""
        small = f"We count: {first['number']}. Differs: {shared or first['differs']}. Figure: {first['figure']}."
        cells = {"claim": (first["page"], first["title"], first["sentence"], small), "the paper": first["paper"]}
        for of in own.to_dict("records"):
            number = "" if pd.isna(of["value"]) else f": {say(of, as_share=of['as_share'])}"
            cells[model_title(of["model"])] = (of["verdict"] + number, "" if shared else of["reason"])
        rows.append(cells)
    caption = "The paper's claims: its number, ours with 95% intervals, and the verdict."
    in_html = dict.fromkeys(map(model_title, found["model"]), "{} <small>{}</small>")
    in_html["claim"] = '<a data-page="{}">{}</a>. {} <small>{}</small>'
    form = {
        name: lambda cell, text=text: text.format(*map(as_html, cell)).removesuffix(" <small></small>")
        for name, text in in_html.items()
    }
    return as_table(pd.DataFrame(rows), caption, form | {"the paper": None})
