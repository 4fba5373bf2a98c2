"""From the table of all results to tidy tables, for figures, pages and claims.

Every number comes with `low` and `high`, its 95% interval (see estimates.py), and with `no_value_reason`: why there is
no number, else "". Each function takes frames of `results.scores` or `results.distances`, filtered in any way, and uses
for each model, task and rule the one measurement that counts (`pairing.find_measurements`).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers_companion import results
from deeper_layers_companion.report import estimates, pairing
from deeper_layers_companion.report.estimates import Estimate, estimate_mean, resample
from deeper_layers_companion.report.names import task_title
from deeper_layers_companion.report.pairing import (
    Measurement,
    align,
    find_measurements,
    get_outcomes,
    pick_rules,
    returns,
)

HEADLINE = ("mmlu", "lettered_capitals", "capitals", "written_facts")
WHOLE = "0,0"
SIZE = 4  # layers in a block of the published scans of tasks
RULES = ("similarity", "simple")  # the paper's
AT_MOST = "at most"  # the whole model was not healed in the same way: a loss has only `high`, a score nothing
NO_WHOLE = "whole model not healed alike"
LIKELY = 2 / 3  # the share of the draws from which on one number of layers stands for itself
KEPT = ["kept", "kept_low", "kept_high", "no_value_reason", "gone_at"]


def find_quarter(layers):
    """A quarter of the layers, to the nearest whole number, halves up: the one size at which models are compared."""
    return (layers + 2) // 4


def find_depth(rows: pd.DataFrame, start: str = "start") -> pd.Series:
    """The depth of the middle of each block, from 0 for the first layer to 1 for the end of the last one; blocks begin
    at the column `start`."""
    return (rows[start] + rows["size"] / 2) / rows["layers"]


def curves(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """Score against layers dropped: a row for each model, task, rule and size, from the best measurement, and for each
    value of the columns `also` of `results.scores`, such as "shots", "order", "bits" or "healing".

    Columns: value with low and high (by Wilson for an accuracy, by the bootstrap for a loss), guessing, whole (the
    value of the whole model), kept with kept_low and kept_high (share of the whole model's score above guessing;
    missing at floor and for losses), no_value_reason ("at floor" or ""), gone_at (of `half_gone_table`, the same in all
    rows of a line; "" for losses).
    """
    return _tabulate_by_cut(find_measurements(pick_rules(scores), also, scores), also)


def kept_by_place(scores: pd.DataFrame, size: int = SIZE) -> pd.DataFrame:
    """The share kept above guessing by the place of the dropped block, for headline tasks with every block of `size`
    layers: the columns of `curves`, middle (of the block, in layers) and depth (middle / layers)."""
    rows = _tabulate_by_cut(find_scans(scores, HEADLINE, size)).query("size > 0")
    middle = rows["start"] + (size - 1) / 2
    return sort_by_model(
        rows.assign(middle=middle, depth=(middle + 0.5) / rows["layers"]), HEADLINE
    )


def sort_by_model(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by model, in the order of their first rows, then by task in the order of `tasks`, then by block."""
    order = [*rows["model"].unique(), *tasks]
    by = ["model", "task", "size", "start"]
    return rows.sort_values(
        by, key=lambda col: col.map(order.index) if col.name in by[:2] else col, ignore_index=True
    )


def find_scans(
    scores: pd.DataFrame, tasks: Iterable[str], size: int = SIZE
) -> Iterator[Measurement]:
    """The measurements that have the whole model and every block of `size` layers."""
    rows = scores[(scores["rule"] == f"blocks of {size}") & scores["task"].isin(list(tasks))]
    return (
        scan for scan in _find_answers(rows, scores) if len(scan.cuts) == scan.layers - size + 2
    )


def _find_answers(rows: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Measurement]:
    """The measurements whose items are right or wrong, with the whole model and at least one other."""
    measured = find_measurements(rows.query("metric != 'loss'"), all_scores=scores)
    return (curve for curve in measured if curve.has_whole and len(curve.cuts) > 1)


def _tabulate_by_cut(measured: Iterable[Measurement], also: Sequence[str] = ()) -> pd.DataFrame:
    asked = f"model task rule topic {' '.join(also)}"
    told = "layers cut size start share metric items value low high guessing whole"
    names = f"{asked} {told}"
    tables = []
    for curve in measured:
        kept = (
            estimates.shares_kept(curve.outcomes, curve.guessing) if curve.has_whole else Estimate()
        )
        gone = (
            find_half_gone(kept, curve.cuts["size"], curve.layers)["gone_at"]
            if curve.has_whole
            else ""
        )
        cells = estimate_mean(curve.outcomes).columns() | kept.columns("kept") | {"gone_at": gone}
        tables.append(curve.cuts.assign(**cells))
    return pairing.make_table([*names.split(), *KEPT], tables)


@returns(
    "model task rule topic layers items guessing whole sizes largest value low high share share_low share_high likely "
    "for_good for_good_low for_good_high words gone_at no_value_reason"
)
def half_gone_table(scores: pd.DataFrame) -> Iterator[dict]:
    """Where half is gone: value (layers dropped; infinite if half is never gone), share (value / layers), for_good (the
    number from which it stays gone), likely (the fewest numbers that have LIKELY of the draws together), words (of
    `describe_half_gone`), gone_at (the same in brief), sizes (measured, rising), and largest, the last of them."""
    for curve in _find_answers(pick_rules(scores), scores):
        if not curve.cuts["size"].is_unique:
            continue
        kept = estimates.shares_kept(curve.outcomes, curve.guessing)
        yield curve.cuts.iloc[-1].to_dict() | find_half_gone(kept, curve.cuts["size"], curve.layers)


def find_half_gone(kept: Estimate, sizes: pd.Series, layers: int) -> dict:
    """Where half is gone, as the columns of `half_gone_table`, from the shares kept of cuts of rising `sizes`. Of one
    size alone, or of several cuts of a size, gone_at is "": nothing can be said."""
    if len(sizes) < 2 or not sizes.is_unique:
        return {"gone_at": ""}
    half, for_good = estimates.find_half_gone(kept, sizes)
    share = Estimate.combine(lambda numbers: numbers / layers, half)
    measured = tuple(sizes.astype(int))
    row = {
        "layers": layers,
        "sizes": measured,
        "largest": measured[-1],
        "likely": _find_likely(half),
    }
    row |= for_good.columns("for_good") | share.columns("share") | half.columns()
    return row | {
        "words": describe_half_gone(row),
        "gone_at": describe_half_gone(row, is_brief=True),
    }


def _find_likely(half: Estimate) -> tuple[float, ...]:
    """The fewest numbers, rising, that have LIKELY of the draws together; () without a number."""
    if half.no_value_reason:
        return ()
    numbers, counts = np.unique(half.numbers[1:], return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    together = np.cumsum(counts[by_count]) >= LIKELY * counts.sum()
    return tuple(np.sort(numbers[by_count[: together.argmax() + 1]]).tolist())


def describe_half_gone(row: Mapping, *, as_share: bool = False, is_brief: bool = False) -> str:
    """A row of `half_gone_table` in words, in layers, or `as_share` of them: "3 or 4 (2 to 4), for good from 5"; in
    brief "3 or 4", as sentences and captions say it.

    Two numbers stand where neither has LIKELY of the draws, a range where sizes between were not measured: of 0, 4 and
    8 layers the first at which half is gone may be "1 to 4". What was never gone is "more than 8, the most measured".
    """
    if pd.isna(row["value"]):
        return ""
    sizes = [int(size) for size in row["sizes"]]
    likely = row["likely"]

    def write(number: int | float) -> str:
        return f"{number / row['layers']:.0%}" if as_share else f"{number:.0f}"

    def span(low: int | float, high: int | float) -> str:
        """From one more than the next smaller size that was measured, up to `high`."""
        beyond = f"more than {write(sizes[-1])}"
        if math.isinf(low):
            return beyond
        first = sizes[sizes.index(int(low)) - 1] + 1
        last = sizes[-1] if math.isinf(high) else int(high)
        text = write(first) if first == last else f"{write(first)} to {write(last)}"
        return f"{text} or {beyond}" if math.isinf(high) else text

    text = span(likely[0], likely[-1])
    ends = span(row["low"], row["high"])
    is_interval_said = text == ends
    if len(likely) == 2 and likely[0] + 1 == likely[1]:
        text = f"{write(likely[0])} or {write(likely[1])}"
    if is_brief:
        return text
    text += ", the most measured" if math.isinf(likely[-1]) else ""
    text += "" if is_interval_said else f" ({ends})"
    if row["for_good"] == row["value"]:
        return text
    if math.isinf(row["for_good"]):
        return f"{text}, not for good"
    return f"{text}, for good from {span(row['for_good'], row['for_good'])}"


def losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Loss on text against layers dropped, healed and not: the columns of `curves` without kept and no_value_reason,
    and healed ("not healed", or the healing in words), line (a shorter form), relative (value / guessing). Values are
    in nats a token; guessing is ln V."""
    rows = scores.query("metric == 'loss'")
    rows = rows.assign(healed=describe_healings(rows["healing"], rows["bits"]))
    table = curves(rows, also=["healing", "bits", "healed"]).drop(columns=KEPT)
    text = "healed at {learning_rate:g}, {learnt}, {tokens:,} tokens"
    line = [
        "not healed" if pd.isna(run) else text.format(**parse_healing(run))
        for run in table["healing"]
    ]
    return table.assign(line=line, relative=table["value"] / table["guessing"])


@returns(
    "model rule layers cut size start share bits healing distillation auxiliary task topic metric items whole pruned "
    "healed healed_low healed_high gained gained_low gained_high whole_healed guessing value low high no_value_reason "
    "rank seed learning_rate tokens text adapters"
)
def recovery_table(scores: pd.DataFrame) -> Iterator[dict]:
    """The recovery of each healing, with its settings: value is the share of the gap that it closes; gained is healed
    minus pruned.

    The gap after healing is that to the whole model healed in the same way (whole_healed, missing if there is none).
    Without one a score has no recovery; a loss has only `high`, and no_value_reason is "at most": compare
    these by `healed`.
    Nothing is recovered of a task of which the whole model knows nothing ("at floor"), or the cut took nothing ("not
    tested").
    """
    scores = pairing.add_runs(scores)
    kept = scores.query("repeat == 0")
    unhealed = scores.query("healing.isna()")
    guessing: dict = {}
    for (healing, run), rows in pairing.pick_metric(kept).groupby(["healing", "run"], sort=False):
        after = get_outcomes(rows)
        first_rows = rows.drop_duplicates("cut").set_index("cut", drop=False)
        files = unhealed.query(f"run == {run}").groupby("path", sort=False)
        # most cuts first
        runs = sorted((get_outcomes(file_rows) for _, file_rows in files), key=len, reverse=True)
        for cut in sorted(after.keys() - {WHOLE}):
            pairs = (align(file_rows, (WHOLE, cut), after[cut]) for file_rows in runs)
            if not (pair := next(filter(None, pairs), None)):
                continue
            first = first_rows.loc[cut].to_dict()
            (healed,) = align(after, [cut], after[cut])
            (aim,) = align(after, [WHOLE], after[cut]) or [None]
            is_loss = first["metric"] == "loss"
            question = tuple(first[name] for name in ("model", "task", "metric", "limit", "drawn"))
            if question not in guessing:
                guessing[question] = _find_guessing(kept, first)
            estimate = estimates.recovery(*pair, healed, aim, guessing=guessing[question])
            if aim is None and not estimate.no_value_reason:
                at_most = Estimate(high=estimate.high, no_value_reason=AT_MOST)
                estimate = at_most if is_loss else Estimate(no_value_reason=NO_WHOLE)
            row = (
                first
                | parse_healing(healing)
                | {"topic": task_title(first["task"]), "items": len(healed)}
            )
            row |= {
                "whole": pair[0].mean(),
                "pruned": pair[1].mean(),
                "guessing": guessing[question],
            }
            row |= estimate_mean(healed).columns("healed") | estimates.differ(
                healed, pair[1]
            ).columns("gained")
            yield row | {"whole_healed": np.nan if aim is None else aim.mean()} | estimate.columns()


def _find_guessing(scores: pd.DataFrame, row: dict) -> float:
    """The score of guessing on the task of a row, or the loss of guessing of its model."""
    if row["metric"] == "loss":
        return float(
            scores.loc[
                (scores["model"] == row["model"]) & (scores["metric"] == "loss"), "chance"
            ].max()
        )
    is_alike = (scores["task"] == row["task"]) & (scores["metric"] == row["metric"])
    is_alike &= pairing.equal(scores["limit"], row["limit"]) & pairing.equal(
        scores["drawn"], row["drawn"]
    )
    return pairing.score_guessing(scores[is_alike])


def find_recovery(place: str, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `recovery_table` for the healing whose scores are in the file `place` of results, losses last;
    `scores` are all rows of its model."""
    is_own = scores["path"] == place
    is_alike = scores["healing"].isin(scores.loc[is_own, "healing"]) & (scores["cut"] == WHOLE)
    # its rows count, even if others were to
    counted = scores.assign(repeat=scores["repeat"].mask(is_own, 0))
    table = recovery_table(counted[is_own | is_alike | scores["healing"].isna()])
    return table.sort_values("metric", key=lambda metric: metric == "loss", kind="stable")


@returns("model task rule topic cut size start share items value low high lost gained changed p")
def flips(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Answers that change: value (accuracy minus that of the whole model), lost, gained (items), changed (share of
    items with another choice, if choices were kept), p (McNemar's, exact)."""
    for curve in _find_answers(pick_rules(scores), scores):
        whole = curve.outcomes[0]
        others = curve.outcomes[1:]
        counts = {
            "lost": (whole > others).sum(axis=1),
            "gained": (whole < others).sum(axis=1),
            "changed": np.nan,
        }
        if curve.rows["chosen"].notna().all():
            choices = pairing.pair_outcomes(curve.rows.assign(outcome=curve.rows["chosen"]))[1]
            counts["changed"] = (choices[0] != choices[1:]).mean(axis=1)
        p = [estimates.mcnemar_p_value(whole, pruned) for pruned in others]
        yield curve.cuts[1:].assign(**estimates.differ(others, whole).columns(), **counts, p=p)


@returns("model task topic size share items value low high")
def rules_compared(scores: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Similarity-informed minus simple heuristic, at the sizes at which they drop different layers."""
    measured = {first.place: first for first in find_measurements(scores.query("rule in @RULES"))}
    for model, task in dict.fromkeys(place[:2] for place in measured):
        first, second = (measured.get((model, task, rule)) for rule in RULES)
        if first and second and first.outcomes.shape[1] == second.outcomes.shape[1]:
            common = first.cuts.reset_index().merge(
                second.cuts.reset_index(), on="size", suffixes=("", "_simple")
            )
            if len(common := common.query("cut != cut_simple")):
                pairs = first.outcomes[common["index"]], second.outcomes[common["index_simple"]]
                yield common.assign(**estimates.differ(*pairs).columns())


@returns(
    "model task topic rule cut size items value at_most gap gap_low gap_high ended of_ended of_ended_low of_ended_high "
    "tokens times"
)
def lengths(scores: pd.DataFrame) -> Iterator[dict]:
    """Written answers by cut: value (share right), at_most (the same if all cut-off answers were right), gap (at_most
    minus the whole model's value), ended (share not cut off), of_ended (share right among these), tokens (median),
    times (median over that of the whole model)."""
    rows = scores.query("written.notna() and healing.isna() and bits.isna() and repeat == 0")
    question = ["model", "task", "dtype", "shots", "limit"]
    rows = pairing.pick_metric(rows).sort_values([*question, "rule", "size"], na_position="first")
    rows = rows.assign(
        topic=rows["task"].map(task_title), tokens=rows["written"].map(np.median).astype(float)
    )
    for _, same_question in rows.groupby(question, dropna=False):
        whole = same_question.query("cut == @WHOLE")
        for row in same_question.to_dict("records"):
            right = row["outcome"] == 1
            ended = row["ended"] == 1
            estimate = (
                estimate_mean(right[ended])
                if ended.any()
                else Estimate(no_value_reason=estimates.NOT_TESTED)
            )
            row |= {"at_most": (right | ~ended).mean(), "ended": ended.mean()} | estimate.columns(
                "of_ended"
            )
            if len(whole):
                gap = estimates.differ(right | ~ended, whole["outcome"].iloc[0] == 1)
                row |= gap.columns("gap") | {"times": row["tokens"] / whole["tokens"].iloc[0]}
            yield row


# ---- distances and healings -----------------------------------------------------------------------------------------


def select_distances(distances: pd.DataFrame) -> pd.DataFrame:
    """One measurement of each model, text and block, not quantized: with distances by sequence if possible, then with
    most samples, then the latest."""
    rows = distances.query("bits.isna()")
    rows = rows.assign(kept=rows["by_sequence"].notna()).sort_values(
        ["kept", "samples", "measured"], kind="stable"
    )
    return (
        rows.drop_duplicates(["model", "corpus", "size", "start"], keep="last")
        .drop(columns="kept")
        .sort_index()
    )


@returns("model corpus layers size start share distance stderr samples low high agrees")
def nearest(distances: pd.DataFrame) -> Iterator[dict]:
    """The most similar block of each size, l*(n), among those that keep the last layer. low and high are the interval
    of its start over draws of the sequences; agrees is the share of draws that choose the same start."""
    inner = select_distances(distances).query("start + size < layers")
    for _, rows in inner.groupby(["model", "corpus", "size"], sort=False):
        row = rows.loc[rows["distance"].idxmin()].to_dict()
        if rows["by_sequence"].notna().all():
            starts = rows["start"].to_numpy(dtype=float)[
                resample(np.stack(list(rows["by_sequence"]))).argmin(axis=1)
            ]
            row |= Estimate.of(starts).columns() | {"agrees": (starts[1:] == starts[0]).mean()}
        yield row


@returns("model corpus layers size start depth depth_low depth_high agrees")
def depth_at_quarter(distances: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The one depth that pages and claims tell: of the most similar block of a quarter of the layers (`find_depth`)."""
    rows = nearest(distances[distances["size"] == find_quarter(distances["layers"])])
    ends = {"depth": "start", "depth_low": "low", "depth_high": "high"}
    yield rows.assign(**{name: find_depth(rows, of) for name, of in ends.items()})


def group_sequences(distances: pd.DataFrame) -> pd.Series:
    """For each size the distances of every sequence, block by block from the first layer on."""
    return distances.sort_values("start").groupby("size")["by_sequence"].agg(list)


def training(folder: Path | None = None) -> pd.DataFrame:
    """The training loss by step: the columns of `results.healing`, with healing in words."""
    table = results.healing(folder)
    return table.assign(healing=describe_healings(table["healing"], table["bits"]))


def parse_healing(healing: str) -> dict:
    """The settings of a healing as columns; the column healing has them in words."""
    run = json.loads(healing)
    run["distillation"] = run.get("objective") == "distill"
    layers = run.get("last_layers", 0)
    run["learnt"] = f"head and last {layers} layers" if layers else f"rank {run['rank']}"
    tags = [
        run["learnt"],
        f"{run['tokens']:,} tokens",
        f"rate {run['learning_rate']:g}",
        f"seed {run['seed']}",
    ]
    tags += ["distilled"] * run["distillation"] + [f"auxiliary loss {run['auxiliary']:g}"] * bool(
        run["auxiliary"]
    )
    tags += [f"adapters {run['adapters']}"] * (run["adapters"] != "all") + [f"on {run['text']}"] * (
        run["text"] != "c4"
    )
    tags += [f"in {run['quantization']}"] * bool(run["quantization"])
    return run | {"healing": ", ".join(tags)}


def describe_healings(healing: pd.Series, bits: pd.Series) -> list[str]:
    words = {run: parse_healing(run)["healing"] for run in healing.dropna().unique()}
    return [
        words.get(run, f"not healed{'' if pd.isna(kind) else f', in {kind}'}")
        for run, kind in zip(healing, bits)
    ]
