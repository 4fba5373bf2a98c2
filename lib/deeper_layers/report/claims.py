"""The paper's claims: one record each (claims.toml), one number that decides it, and one table of all.

The number of a claim is a query of the table of all results. Its limits say how we read the paper's words; all limits
but those of `ranks` and `unhealed-loss` were set before the data. A task on which the whole model is not surely 0.05
above guessing is at floor. Claims about healed models are *not tested*, as no model was healed at the paper's rate on
as many tokens: their numbers stand beside, and decide nothing.
"""

import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deeper_layers.report import estimates, pairing, paper, statistics
from deeper_layers.report.estimates import AT_FLOOR, INCONCLUSIVE, NOT_TESTED, Estimate, resample
from deeper_layers.report.names import (
    Sentences,
    as_html,
    as_table,
    format_number,
    model_title,
    rule_title,
    task_title,
)
from deeper_layers.report.pairing import Measurement, pair_outcomes, returns

CLAIMS = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))["claim"]
COLLAPSE_SHARE = 0.1  # the share of dropped layers from which on a model that collapses keeps little
DEFAULTS = {"floor": -math.inf, "ceiling": math.inf, "differs": "not healed", "as_share": False}


Answer = tuple[Estimate, str]  # the number of one claim on one model, and numbers beside it that decide nothing


class NoEstimate(Exception):
    """There is no number for a claim on a model: the reason, the verdict, and numbers beside it."""

    def __init__(self, reason: str, verdict: str = NOT_TESTED, beside: str = ""):
        self.reason, self.answer = reason, (Estimate(untold=verdict), beside)


class Model(NamedTuple):
    """The results of one model, and tables that several claims need."""

    scores: pd.DataFrame
    distances: pd.DataFrame
    layers: int
    gone: dict[str, Estimate]  # by task the share of the most similar layers with which half is gone
    recovery: pd.DataFrame

    def find_curve(self, task: str, rule: str = "similarity") -> Measurement:
        """The measurement of a task under a rule. Raises NoEstimate if there is none with the whole model."""
        rows = pairing.pick_rules(self.scores.query("task == @task and rule == @rule"))
        for curve in pairing.find_measurements(rows, all_scores=self.scores):
            if curve.cuts["size"].iloc[0] == 0:
                return curve
        raise NoEstimate(f"{task_title(task)} was not asked, {rule_title(rule)}")

    def require_recovery(self) -> pd.DataFrame:
        if self.recovery.empty:
            raise NoEstimate("no model was healed")
        return self.recovery


def _find_half_gone(model: Model, task: str, with_rest: bool = False) -> Answer:
    if task not in model.gone:
        raise NoEstimate(f"{task_title(task)} was not asked")
    rest = [
        f"{task_title(name)} {format_number(share, as_share=True)}"
        for name, share in model.gone.items()
        if with_rest and name != task and not share.untold
    ]
    return model.gone[task], f"half gone of {'; '.join(rest)}" if rest else ""


def _find_collapse(model: Model) -> Answer:
    curve = model.find_curve("mmlu", "simple")
    cut = np.flatnonzero(curve.cuts["share"] >= COLLAPSE_SHARE)
    if not len(cut):
        raise NoEstimate("a tenth of the layers was not dropped")
    kept = estimates.shares_kept(curve.outcomes, curve.guessing)
    if kept.untold:
        return kept, ""
    shares = list(kept)
    lines = [f"n = {curve.cuts['size'][number]}: {format_number(shares[number], as_share=True)}" for number in cut[:3]]
    return Estimate.of(kept.numbers[:, cut].max(axis=1)), "; ".join(lines)


def _find_jump(model: Model) -> Answer:
    answers = model.find_curve("mmlu")
    gone = estimates.half_gone(answers.outcomes, answers.cuts["size"], answers.guessing)
    if gone.untold:
        raise NoEstimate("no cliff of MMLU to be near to", gone.untold)
    losses = model.find_curve("c4")
    means = resample(losses.outcomes)
    jump = estimates.find_first_size(means >= (means[:, :1] + losses.guessing) / 2, losses.cuts["size"])
    return Estimate.of((jump - gone.numbers) / model.layers), ""


def _find_depth(model: Model) -> Answer:
    """The depth of the middle of the most similar block that keeps the last layer, mean over sizes up to a quarter."""
    quarter = max(model.layers // 4, 1)
    (all_sizes, corpus), (at_quarter, _) = (
        _average_over_sizes(model, sizes, lambda drawn, size: drawn[:, :-1].argmin(axis=1) + size / 2)
        for sizes in (range(1, quarter + 1), [quarter])
    )
    return all_sizes, f"{corpus}; at a quarter dropped {format_number(at_quarter)}"


def _find_last_block_place(model: Model) -> Answer:
    """The place of the block with the last layer in the range of distances of its size, without blocks from layer 0."""

    def place(drawn: np.ndarray, size: int) -> np.ndarray:
        low, high = drawn[:, 1:].min(axis=1), drawn[:, 1:].max(axis=1)
        return model.layers * (drawn[:, -1] - low) / (high - low)

    (all_sizes, corpus), (half_sizes, _) = (
        _average_over_sizes(model, range(1, max(top, 1) + 1), place) for top in (model.layers - 2, model.layers // 2)
    )
    return all_sizes, f"{corpus}; over sizes to half of the layers {format_number(half_sizes)}"


def _average_over_sizes(model: Model, sizes: Sequence[int], place: Callable[[np.ndarray, int], np.ndarray]) -> Answer:
    """The mean of `place` over sizes, divided by the number of layers; on the paper's text if it was measured.
    `place` takes the distances of all blocks of a size, for all sequences and for each draw, [N, B]."""
    distances = statistics.select_distances(model.distances).dropna(subset="by_sequence")
    corpus = paper.CORPUS if paper.CORPUS in set(distances["corpus"]) else distances["corpus"].max()
    sequences = statistics.group_sequences(distances.query("corpus == @corpus"))
    if any(len(sequences.get(size, [])) <= model.layers - size for size in sizes):
        raise NoEstimate("distances of all blocks were not kept by sequence")
    places = [place(resample(np.stack(sequences[size])), size) for size in sizes]
    return Estimate.of(np.sum(places, axis=0) / (model.layers * len(sizes))), f"on {corpus}"


def _compare_prompts(model: Model, column: str, first_value: int, second_value: int) -> Answer:
    """The whole model's accuracy on MMLU with one number or order of examples, minus that with another."""
    fixed = "order == 0" if column == "shots" else "shots == 5"
    condition = f"task == 'mmlu' and metric == 'acc' and repeat == 0 and rule == 'similarity' and {fixed}"
    rows = model.scores.query(f"{condition} and order.notna() and healing.isna()")
    if not {first_value, second_value} <= set(rows[column]):
        raise NoEstimate("prompts were not varied")
    first, second = (pair_outcomes(rows.query(f"{column} == {value}"))[1][0] for value in (first_value, second_value))
    if estimates.is_at_floor(first, pairing.score_guessing(rows)):
        raise NoEstimate("the whole model only guesses", AT_FLOOR)
    return Estimate.of(resample(first - second)), f"whole model, {len(first)} items"


def _compare_ranks(model: Model) -> Answer:
    """The loss on C4 after healing at the lowest rank minus that at the highest, of ranks with several seeds."""
    model.require_recovery()
    rows = model.scores.query("size > 0 and healing.notna() and metric == 'loss' and repeat == 0").drop_duplicates(
        ["cut", "healing"]
    )
    if rows.empty:
        raise NoEstimate("no loss was measured after healing")
    settings = pd.DataFrame(map(statistics.parse_healing, rows["healing"]), rows.index).drop(columns="healing")
    rows = rows.join(settings).query("rank > 0 and not distillation and adapters == 'all' and auxiliary == 0")
    for cut, runs in rows.groupby("cut"):
        seeds = runs.groupby("rank")["seed"].nunique()
        seeds = seeds[seeds > 1]
        if len(seeds) > 1:
            low, high = seeds.index.min(), seeds.index.max()
            lowest, highest = (np.mean(list(runs.query(f"rank == {rank}")["outcome"]), axis=0) for rank in (low, high))
            words = f"rank {low} less rank {high}, mean of {seeds.min()} seeds, {cut.split(',')[1]} layers dropped"
            return Estimate.of(resample(lowest - highest)), f"{words}; MMLU of these models is at floor"
    raise NoEstimate("no two ranks were healed with several seeds")


def _compare_seeds(model: Model) -> Answer:
    """The accuracy on MMLU after healing with one seed minus that after healing alike with the next one."""
    if model.require_recovery().query("task in ['mmlu', 'embedded_mmlu'] and untold == ''").empty:
        raise NoEstimate("MMLU of healed models with several seeds: the whole model only guesses", AT_FLOOR)
    rows = model.scores.query("task == 'mmlu' and size > 0 and metric == 'acc' and healing.notna() and repeat == 0")
    settings = [json.loads(healing) for healing in rows["healing"]]
    rows = rows.assign(seed=[of_row.pop("seed") for of_row in settings], settings=list(map(str, settings)))
    rows = rows.drop_duplicates(["cut", "settings", "seed", "limit", "subject"])
    for (cut, *_), runs in rows.groupby(["cut", "settings", "limit"], dropna=False):
        seeds = sorted(set(runs["seed"]))[:2]
        if len(seeds) == 2:
            first, second = (pair_outcomes(runs[runs["seed"] == seed])[1][0] for seed in seeds)
            words = f"seed {seeds[0]} less seed {seeds[1]}, {cut.split(',')[1]} layers dropped"
            return Estimate.of(resample(first - second)), words
    raise NoEstimate("MMLU was asked of one seed")


def _describe_healed(model: Model, task: str) -> Answer:
    """Raise NoEstimate with the recoveries of our healings beside, as none has the paper's settings."""
    table = model.require_recovery().query("rank > 0").sort_values(["learning_rate", "tokens"], ascending=[True, False])
    of_task = table.query("task == @task")
    nearest = (table if of_task.empty else of_task).iloc[0]
    share, times = nearest["tokens"] / paper.HEALING_TOKENS, nearest["learning_rate"] / paper.LEARNING_RATE
    lines = [
        f"n = {row['size']} ({row['rule']}, {row['learning_rate']:g}) {format_number(row)}"
        for row in of_task.query("untold == ''").sort_values(["rule", "size"], kind="stable").to_dict("records")
    ]
    recovered = f"recovered of {task_title(task)} by rule and rate: {'; '.join(lines)}" if lines else ""
    raise NoEstimate(f"healed at {times:.0f}× the paper's rate, on {share:.2%} of its tokens", beside=recovered)


QUERIES: dict[str, Callable[[Model], Answer]] = {
    "plateau": partial(_find_half_gone, task="mmlu", with_rest=True),
    "boolq": partial(_find_half_gone, task="boolq"),
    "simple-unhealed": _find_collapse,
    "unhealed-loss": _find_jump,
    "deep-blocks": _find_depth,
    "last-layer": _find_last_block_place,
    "shot-order": partial(_compare_prompts, column="order", first_value=1, second_value=0),
    "more-shots": partial(_compare_prompts, column="shots", first_value=5, second_value=0),
    "reasoning": partial(_find_half_gone, task="gsm8k"),
    "ranks": _compare_ranks,
    "seeds": _compare_seeds,
    "plateau-healed": partial(_describe_healed, task="mmlu"),
    "boolq-healing": partial(_describe_healed, task="boolq"),
    "healed-loss": partial(_describe_healed, task="c4"),
    "simple-healed": partial(_describe_healed, task="mmlu"),
}


@returns(
    "claim title sentence paper figure page number floor ceiling differs as_share model value low high "
    "verdict reason beside power"
)
def claims_table(scores: pd.DataFrame, distances: pd.DataFrame) -> Iterator[dict]:
    """All claims for all models: the columns of claims.toml, and model, value with low and high, verdict, reason,
    beside (numbers that decide nothing), power (half of the interval)."""
    models = {}
    for name in dict.fromkeys([*scores["model"], *distances["model"]]):
        rows, blocks = scores[scores["model"] == name], distances[distances["model"] == name]
        gone = {
            row.task: Estimate(row.share, row.share_low, row.share_high, untold=row.untold)
            for row in statistics.half_gone_table(rows).query("rule == 'similarity'").itertuples()
        }
        layers = int(max([*rows["layers"], *blocks["layers"]]))
        models[name] = Model(rows, blocks, layers, gone, statistics.recovery_table(rows))
    for claim, (name, model) in itertools.product(CLAIMS, models.items()):
        claim, reason = DEFAULTS | claim, ""
        try:
            estimate, beside = QUERIES[claim["claim"]](model)
        except NoEstimate as no_estimate:
            (estimate, beside), reason = no_estimate.answer, no_estimate.reason
        limits = claim["floor"], claim["ceiling"]
        verdict = estimate.judge(*limits)
        if verdict != NOT_TESTED and any(np.allclose((estimate.low, estimate.high), limit) for limit in limits):
            verdict, reason = INCONCLUSIVE, "it lies exactly on the limit"
        power = (estimate.high - estimate.low) / 2
        row = claim | {"model": name} | estimate.columns() | {"verdict": verdict, "reason": reason, "beside": beside}
        yield row | {"power": power if math.isfinite(power) else np.nan}


def shown(claims: pd.DataFrame):
    """The table of the page: claim (with what we count, what differs, and the paper's figure) | the paper's number |
    our number and verdict, one column a model. The book makes links of the attributes data-page."""
    if claims.empty:
        return Sentences([], "claims")
    rows = []
    for _, claim_rows in claims.groupby("claim", sort=False):
        first = claim_rows.iloc[0]
        note = f"We count: {first['number']}. Differs: {first['differs']}. Figure: {first['figure']}."
        texts = map(as_html, (first["page"], first["title"], first["sentence"], note))
        claim = '<a data-page="{}">{}</a>. {} <small>{}</small>'.format(*texts)
        cells = {"claim": [claim], "the paper": first["paper"]}  # lists hold HTML, which is escaped already
        for row in claim_rows.to_dict("records"):
            number = "" if pd.isna(row["value"]) else f": {format_number(row, as_share=row['as_share'])}"
            reason = f" <small>{as_html(row['reason'])}</small>" if row["reason"] else ""
            cells[model_title(row["model"])] = [as_html(row["verdict"] + number) + reason]
        rows.append(cells)
    caption = "The paper's claims: its number, ours with 95% intervals, and the verdict."
    form = dict.fromkeys(["claim", *map(model_title, claims["model"])], "{0[0]}")
    return as_table(pd.DataFrame(rows), caption, form)
