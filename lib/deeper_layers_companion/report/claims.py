"""The paper's claims: one record each (claims.toml), one number that decides it, and one table of all.

The number of a claim is a query of the table of all results. Its limits say how we read the paper's words; all limits
but those of `ranks` and `unhealed-loss` were set before the data. A task on which the whole model is not surely 0.05
above guessing is at floor. Claims about what healing brings back are *not tested*, as no model was healed at the
paper's rate on as many tokens: their numbers are shown for context.
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

from deeper_layers_companion.report import estimates, pairing, paper, statistics
from deeper_layers_companion.report.estimates import (
    AT_FLOOR,
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    SUPPORTED,
    Estimate,
    resample,
)
from deeper_layers_companion.report.names import (
    Sentences,
    as_html,
    as_table,
    format_number,
    join_verdicts,
    model_title,
    rule_title,
    task_title,
)
from deeper_layers_companion.report.pairing import Measurement, pair_outcomes, returns

CLAIMS = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))["claim"]
COLLAPSE_SHARE = (
    0.1  # the share of dropped layers from which on a model that collapses keeps little
)
DEFAULTS = {"floor": -math.inf, "ceiling": math.inf, "differs": "not healed", "as_share": False}


class Answer(NamedTuple):
    """What is found of one claim on one model."""

    estimate: Estimate  # the number that decides
    beside: str = ""  # numbers beside it that decide nothing
    note: str = ""  # what has to be known to read the number
    words: str = ""  # the number in words, in place of its figures
    alone: str = ""  # why no verdict follows, where one cut alone would decide it


class NoEstimate(Exception):
    """There is no number for a claim on a model: the reason, the verdict, and numbers beside it."""

    def __init__(self, reason: str, verdict: str = NOT_TESTED, beside: str = ""):
        self.answer = Answer(Estimate(no_value_reason=verdict), beside, reason)


class Model(NamedTuple):
    """The results of one model, and tables that several claims need."""

    scores: pd.DataFrame
    distances: pd.DataFrame
    layers: int
    # by task where half is gone without the most similar layers (statistics.half_gone_table)
    gone: dict[str, dict]
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
    told = {name: row for name, row in model.gone.items() if not row["no_value_reason"]}
    words = {name: statistics.describe_half_gone(row, as_share=True) for name, row in told.items()}
    rest = [f"{task_title(name)} {text}" for name, text in words.items() if name != task]
    row = model.gone[task]
    estimate = Estimate(
        row["share"], row["share_low"], row["share_high"], no_value_reason=row["no_value_reason"]
    )
    beside = f"half gone of {'; '.join(rest)}" if rest and with_rest else ""
    return Answer(estimate, beside, words=words.get(task, ""))


def _find_collapse(model: Model) -> Answer:
    """The most that a cut keeps. Where one cut alone stands between that and the opposite, no verdict follows: a curve
    with one spike has collapsed around it."""
    curve = model.find_curve("mmlu", "simple")
    cut = np.flatnonzero(curve.cuts["share"] >= COLLAPSE_SHARE)
    if not len(cut):
        raise NoEstimate("a tenth of the layers was not dropped")
    kept = estimates.shares_kept(curve.outcomes, curve.guessing)
    if kept.no_value_reason:
        return Answer(kept)
    shares = list(kept)
    sizes = curve.cuts["size"]
    most = cut[np.argmax(kept.value[cut])]
    others = cut[cut != most]

    def write(number: int | np.integer) -> str:
        return f"n = {sizes[number]}: {format_number(shares[number], as_share=True)}"

    estimate = Estimate.of(kept.numbers[:, cut].max(axis=1))
    beside = "; ".join(map(write, cut[:3])) + _describe_collapse_in_words(model)
    if not len(others):
        return Answer(estimate, beside)
    without = Estimate.of(kept.numbers[:, others].max(axis=1))
    around = ", ".join(write(number) for number in others if abs(sizes[number] - sizes[most]) == 1)
    if _is_alike(estimate, without):
        return Answer(estimate, beside)
    return Answer(estimate, beside, alone=f"n = {sizes[most]} alone decides; beside it {around}")


def _is_alike(one: Estimate, other: Estimate) -> bool:
    ceiling = next(claim["ceiling"] for claim in CLAIMS if claim["claim"] == "simple-unhealed")
    return one.judge(ceiling=ceiling) == other.judge(ceiling=ceiling)


def _describe_collapse_in_words(model: Model) -> str:
    """What the same cuts keep of MMLU where words are chosen, not letters."""
    try:
        curve = model.find_curve("mmlu_continuation", "simple")
    except NoEstimate:
        return ""
    kept = estimates.shares_kept(curve.outcomes, curve.guessing)
    cut = np.flatnonzero(curve.cuts["share"] >= COLLAPSE_SHARE)
    if kept.no_value_reason or not len(cut):
        return ""
    shares = list(kept)
    sizes = curve.cuts["size"]
    lines = [
        f"n = {sizes[number]}: {format_number(shares[number], as_share=True)}" for number in cut[:3]
    ]
    return f"; of its words {'; '.join(lines)}"


def _find_jump(model: Model) -> Answer:
    answers = model.find_curve("mmlu")
    gone = estimates.half_gone(answers.outcomes, answers.cuts["size"], answers.guessing)
    if gone.no_value_reason:
        raise NoEstimate("no cliff of MMLU to be near to", gone.no_value_reason)
    losses = model.find_curve("c4")
    means = resample(losses.outcomes)
    jump = estimates.find_first_size(
        means >= (means[:, :1] + losses.guessing) / 2, losses.cuts["size"]
    )
    return Answer(Estimate.of((jump - gone.numbers) / model.layers))


def _find_depth(model: Model) -> Answer:
    """The depth of the most similar block of a quarter of the layers; beside it the mean over smaller sizes, too."""
    depths = statistics.depth_at_quarter(_select_text(model)).dropna(subset="depth_low")
    if depths.empty:
        raise NoEstimate("distances of all blocks were not kept by sequence")
    row = depths.iloc[0]
    sizes = range(1, row["size"] + 1)
    mean, corpus = _average_over_sizes(
        model, sizes, lambda drawn, size: drawn[:, :-1].argmin(axis=1) + size / 2
    )
    estimate = Estimate(row["depth"], row["depth_low"], row["depth_high"])
    beside = f"{corpus}; mean over sizes to a quarter {format_number(mean)}"
    return Answer(estimate, beside, note=f"{row['size']} of {model.layers} layers")


def _find_last_block_place(model: Model) -> Answer:
    """The place of the block with the last layer in the range of distances of its size, without blocks from layer 0."""

    def place(drawn: np.ndarray, size: int) -> np.ndarray:
        low = drawn[:, 1:].min(axis=1)
        high = drawn[:, 1:].max(axis=1)
        return model.layers * (drawn[:, -1] - low) / (high - low)

    all_sizes, corpus = _average_over_sizes(model, range(1, max(model.layers - 1, 2)), place)
    half_sizes, _ = _average_over_sizes(model, range(1, max(model.layers // 2, 1) + 1), place)
    return Answer(
        all_sizes, f"{corpus}; over sizes to half of the layers {format_number(half_sizes)}"
    )


def _select_text(model: Model) -> pd.DataFrame:
    """The distances on the paper's text, or on another one if that was not measured."""
    distances = statistics.select_distances(model.distances).dropna(subset="by_sequence")
    corpora = set(distances["corpus"])
    corpus = paper.CORPUS if paper.CORPUS in corpora else distances["corpus"].max()
    return distances[distances["corpus"] == corpus]


def _average_over_sizes(
    model: Model, sizes: Sequence[int], place: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[Estimate, str]:
    """The mean of `place` over sizes, divided by the number of layers, and the text; on the paper's text if it was
    measured. `place` takes the distances of all blocks of a size, for all sequences and for each draw, [N, B]."""
    distances = _select_text(model)
    corpus = distances["corpus"].max()
    sequences = statistics.group_sequences(distances)
    if any(len(sequences.get(size, [])) <= model.layers - size for size in sizes):
        raise NoEstimate("distances of all blocks were not kept by sequence")
    places = [place(resample(np.stack(sequences[size])), size) for size in sizes]
    return Estimate.of(np.sum(places, axis=0) / (model.layers * len(sizes))), f"on {corpus}"


def _pair_prompts(
    model: Model, column: str, values: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Outcomes on MMLU, [C, I], with two numbers or orders of examples, of the pruned models that were asked both, and
    their numbers of dropped layers."""
    fixed = "order == 0" if column == "shots" else "shots == 5"
    condition = (
        f"task == 'mmlu' and metric == 'acc' and repeat == 0 and rule == 'similarity' and {fixed}"
    )
    rows = model.scores.query(f"{condition} and order.notna() and healing.isna()")
    if not {*values} <= set(rows[column]):
        raise NoEstimate("prompts were not varied")
    first_cuts, first = pair_outcomes(rows[rows[column] == values[0]])
    second_cuts, second = pair_outcomes(rows[rows[column] == values[1]])
    if estimates.is_at_floor(first[0], pairing.score_guessing(rows)):
        raise NoEstimate("the whole model only guesses", AT_FLOOR)
    both = first_cuts.reset_index().merge(
        second_cuts.reset_index(), on=["cut", "size"], suffixes=("", "_second")
    )
    both = both[both["size"] > 0]
    if both.empty:
        raise NoEstimate("prompts were varied of the whole model alone")
    return first[both["index"]], second[both["index_second"]], both["size"].tolist()


def _compare_orders(model: Model) -> Answer:
    """The largest difference between two orders over the pruned models. Draws add noise to each of them, so that its
    interval lies too high rather than too low."""
    first, second, sizes = _pair_prompts(model, "order", (1, 0))
    apart = estimates.differ(first, second)
    lines = [f"n = {size}: {format_number(one, digits=3)}" for size, one in zip(sizes, apart)]
    words = f"{len(sizes)} pruned models, {first.shape[1]} questions"
    return Answer(Estimate.of(np.abs(apart.numbers).max(axis=1)), "; ".join(lines), note=words)


def _compare_shots(model: Model) -> Answer:
    """The accuracy with five examples minus that with none, mean over the pruned models."""
    five, none, sizes = _pair_prompts(model, "shots", (5, 0))
    lines = [
        f"n = {size}: {format_number(one)}"
        for size, one in zip(sizes, estimates.differ(five, none))
    ]
    words = f"{len(sizes)} pruned models, {five.shape[1]} questions"
    return Answer(Estimate.of(resample((five - none).mean(axis=0))), "; ".join(lines), note=words)


def _compare_ranks(model: Model) -> Answer:
    """The loss on C4 after healing at the lowest rank minus that at the highest, of ranks with several seeds."""
    model.require_recovery()
    rows = model.scores.query(
        "size > 0 and healing.notna() and metric == 'loss' and repeat == 0"
    ).drop_duplicates(["cut", "healing"])
    if rows.empty:
        raise NoEstimate("no loss was measured after healing")
    settings = pd.DataFrame(map(statistics.parse_healing, rows["healing"]), rows.index).drop(
        columns="healing"
    )
    rows = rows.join(settings).query(
        "rank > 0 and not distillation and adapters == 'all' and auxiliary == 0"
    )
    for cut, runs in rows.groupby("cut"):
        seeds = runs.groupby("rank")["seed"].nunique()
        seeds = seeds[seeds > 1]
        if len(seeds) > 1:
            low = seeds.index.min()
            high = seeds.index.max()
            of_low = runs[runs["rank"] == low].set_index("seed")["outcome"]
            of_high = runs[runs["rank"] == high].set_index("seed")["outcome"]
            common = sorted(set(of_low.index) & set(of_high.index))
            by_seed = [Estimate.of(resample(of_low[seed] - of_high[seed])) for seed in common]
            words = f"rank {low} less rank {high}, {len(common)} seeds, drawn anew, {cut.split(',')[1]} layers dropped"
            return Answer(
                estimates.mean_of_drawn(by_seed), f"{words}; MMLU of these models is at floor"
            )
    raise NoEstimate("no two ranks were healed with several seeds")


def _compare_seeds(model: Model) -> Answer:
    """The accuracy on MMLU after healing with one seed minus that after healing alike with the next one."""
    if (
        model.require_recovery()
        .query("task in ['mmlu', 'embedded_mmlu'] and no_value_reason == ''")
        .empty
    ):
        raise NoEstimate(
            "MMLU of healed models with several seeds: the whole model only guesses", AT_FLOOR
        )
    rows = model.scores.query(
        "task == 'mmlu' and size > 0 and metric == 'acc' and healing.notna() and repeat == 0"
    )
    settings = [json.loads(healing) for healing in rows["healing"]]
    rows = rows.assign(
        seed=[of_row.pop("seed") for of_row in settings], settings=list(map(str, settings))
    )
    rows = rows.drop_duplicates(["cut", "settings", "seed", "limit", "subject"])
    for (cut, *_), runs in rows.groupby(["cut", "settings", "limit"], dropna=False):
        seeds = sorted(set(runs["seed"]))[:2]
        if len(seeds) == 2:
            _, first = pair_outcomes(runs[runs["seed"] == seeds[0]])
            _, second = pair_outcomes(runs[runs["seed"] == seeds[1]])
            words = f"seed {seeds[0]} less seed {seeds[1]}, {cut.split(',')[1]} layers dropped"
            return Answer(estimates.differ(first[0], second[0]), words)
    raise NoEstimate("MMLU was asked of one seed")


def _describe_healed(model: Model, task: str) -> Answer:
    """Raise NoEstimate with the recoveries of our healings beside, as none has the paper's settings."""
    table = (
        model.require_recovery()
        .query("rank > 0")
        .sort_values(["learning_rate", "tokens"], ascending=[True, False])
    )
    of_task = table.query("task == @task")
    rows = table if of_task.empty else of_task
    times = rows["learning_rate"] / paper.LEARNING_RATE
    shares = rows["tokens"] / paper.HEALING_TOKENS
    rate = " to ".join(dict.fromkeys(f"{end:.0f}×" for end in (times.min(), times.max())))
    share = " to ".join(dict.fromkeys(f"{end:.2%}" for end in (shares.min(), shares.max())))
    told = of_task.query("no_value_reason == ''").sort_values(["rule", "size"], kind="stable")
    lines = []
    for row in told.to_dict("records"):
        lines.append(
            f"n = {row['size']} ({row['rule']}, {row['learning_rate']:g}) {format_number(row)}"
        )
    recovered = (
        f"recovered of {task_title(task)} by rule and rate: {'; '.join(lines)}" if lines else ""
    )
    raise NoEstimate(
        f"healed at {rate} the paper's rate, on {share} of its tokens", beside=recovered
    )


QUERIES: dict[str, Callable[[Model], Answer]] = {
    "plateau": partial(_find_half_gone, task="mmlu", with_rest=True),
    "boolq": partial(_find_half_gone, task="boolq"),
    "simple-unhealed": _find_collapse,
    "unhealed-loss": _find_jump,
    "deep-blocks": _find_depth,
    "last-layer": _find_last_block_place,
    "shot-order": _compare_orders,
    "more-shots": _compare_shots,
    "reasoning": partial(_find_half_gone, task="gsm8k"),
    "ranks": _compare_ranks,
    "seeds": _compare_seeds,
    "plateau-healed": partial(_describe_healed, task="mmlu"),
    "boolq-healing": partial(_describe_healed, task="boolq"),
    "healed-loss": partial(_describe_healed, task="c4"),
    "simple-healed": partial(_describe_healed, task="mmlu"),
}


@returns(
    "claim title sentence paper figure page number floor ceiling differs as_share model value low high words "
    "verdict reason beside power"
)
def claims_table(scores: pd.DataFrame, distances: pd.DataFrame) -> Iterator[dict]:
    """All claims for all models: the columns of claims.toml, and model, value with low and high, verdict, reason,
    beside (numbers that decide nothing), power (half of the interval)."""
    models = {}
    for name in dict.fromkeys([*scores["model"], *distances["model"]]):
        rows = scores[scores["model"] == name]
        blocks = distances[distances["model"] == name]
        gone = statistics.half_gone_table(rows).query("rule == 'similarity'").to_dict("records")
        layers = int(max([*rows["layers"], *blocks["layers"]]))
        by_task = {row["task"]: row for row in gone}
        models[name] = Model(rows, blocks, layers, by_task, statistics.recovery_table(rows))
    for claim, (name, model) in itertools.product(CLAIMS, models.items()):
        claim = DEFAULTS | claim
        try:
            answer = QUERIES[claim["claim"]](model)
        except NoEstimate as no_estimate:
            answer = no_estimate.answer
        estimate = answer.estimate
        limits = (claim["floor"], claim["ceiling"])
        verdict = estimate.judge(*limits)
        reason = answer.note
        if verdict != NOT_TESTED and any(
            np.allclose((estimate.low, estimate.high), limit) for limit in limits
        ):
            verdict = INCONCLUSIVE
            reason = "it lies exactly on the limit"
        elif answer.alone:
            verdict = INCONCLUSIVE
            reason = answer.alone
        power = (estimate.high - estimate.low) / 2
        row = (
            claim
            | {"model": name, "words": answer.words, "beside": answer.beside}
            | estimate.columns()
        )
        row |= {
            "verdict": verdict,
            "reason": reason,
            "power": power if math.isfinite(power) else np.nan,
        }
        yield row


def tell_differing(claims: pd.DataFrame) -> Sentences:
    """A sentence for each claim that some models support and others contradict, which names each model."""
    sentences = []
    for title, rows in claims.groupby("title", sort=False):
        if {SUPPORTED, CONTRADICTED} <= {*rows["verdict"]}:
            sentences.append(f"\u201c{title}\u201d is {join_verdicts(rows)}.")
    beginning = (
        ["Where models differ:"]
        if sentences
        else ["No two models contradict each other on a claim."]
    )
    return Sentences(beginning + sentences if len(claims) else [], "differing")


def shown(claims: pd.DataFrame):
    """The table of the page: claim (with what we count, what differs, and the paper's figure) | the paper's number |
    our number and verdict, one column a model. The book makes links of the attributes data-page."""
    if claims.empty:
        return Sentences([], "claims")
    rows = []
    for _, claim_rows in claims.groupby("claim", sort=False):
        first = claim_rows.iloc[0]
        note = (
            f"We count: {first['number']}. Differs: {first['differs']}. Figure: {first['figure']}."
        )
        texts = map(as_html, (first["page"], first["title"], first["sentence"], note))
        claim = '<a data-page="{}">{}</a>. {} <small>{}</small>'.format(*texts)
        # lists hold HTML, which is escaped already
        cells = {
            "claim": [claim],
            "the paper": first["paper"],
        }
        for row in claim_rows.to_dict("records"):
            number = row["words"] or format_number(row, as_share=row["as_share"])
            text = as_html(
                row["verdict"] if pd.isna(row["value"]) else f"{row['verdict']}: {number}"
            )
            if row["reason"]:
                text += f" <small>{as_html(row['reason'])}</small>"
            cells[model_title(row["model"])] = [text]
        rows.append(cells)
    caption = "The paper's claims: its number, ours with 95% intervals, and the verdict."
    form = dict.fromkeys(["claim", *map(model_title, claims["model"])], "{0[0]}")
    return as_table(pd.DataFrame(rows), caption, form)
