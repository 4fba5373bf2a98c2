"""What healing gives back of what a cut took, by the tokens spent on it: of the loss on text, and of every task.

The share given back is (healed - pruned) / (whole - pruned): 0 where healing changes nothing, 1 where the healed model
is as good as the whole one. It is told where the cut surely took something, of the same sequences and items.

A model that heals on a text gets used to that text too, which repairs nothing. So of a healed loss is taken back what
the same healing gives the whole model, sequence by sequence: the share is that by which the gap between the two gets
smaller. Where the whole model was not healed alike, only what the share is at most is told, which takes it that this
healing would not make the whole model worse on the text. And none is told where the pruned model is worse than
guessing, ln V: such a loss has no upper end, so that a rule which ruins more would seem to be healed better. An
accuracy below guessing counts as guessing: to be less wrong than a guess gives nothing back.

Letters in shapes: I items or sequences.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.questions.two_ways import LOSS
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.evidence import Evidence
from deeper_layers.report.statistics.healed import by_cut, healed_how
from deeper_layers.report.statistics.items import item_metrics, right_items
from deeper_layers.report.statistics.outcomes import leaves_of, resampled_means, right_answers
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.report.statistics.topics import set_of, shots, shots_by_set
from deeper_layers.results.units import Unit

BUDGET = ("steps", "warmup_steps")  # of a healing
UNTOLD = (np.nan,) * 3
TOLD = 0.99  # of draws show that the cut took something, or no share of it is told
COLUMNS = [
    "what", "size", "start", "tokens", "items", "guessing", "whole", "whole, healed", "pruned", "healed", "value",
    "low", "high",
]  # fmt: skip


def by_tokens(units: Iterable[Unit], like: Unit) -> dict[int, dict[Cut, Unit]]:
    """Healings that differ from `like` in nothing but the cut and the number of updates, by the tokens of training."""
    found: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.kind == "healing" and healed_how(unit, *BUDGET) == healed_how(like, *BUDGET):
            found.setdefault(unit.details["healing"]["tokens"], []).append(unit)
    return {tokens: by_cut(of_budget) for tokens, of_budget in sorted(found.items())}


class Losses(NamedTuple):
    """Losses by sequence of the whole and a pruned model, of one unit: another one may have run on another processor,
    and of a small cut the last digits decide."""

    whole: list[float]
    pruned: list[float]


def losses_before(units: Iterable[Unit], like: Unit) -> dict[str, Losses]:
    """Losses before healing, by the name of the cut: of `like`, and of units that lack other layers.

    Those are of the same sequences, and of weights opened alike.
    """
    alike = (unit for unit in units if unit.kind == like.kind and unit.settings("cuts") == like.settings("cuts"))
    found: dict[str, Losses] = {}
    for unit in (*alike, like):
        of_unit = unit.details["by_sequence"]
        found |= {name: Losses(of_unit[UNPRUNED.name], of_cut) for name, of_cut in of_unit.items()}
    return found


def swept_alike(units: Iterable[Unit], healed: Iterable[Unit]) -> list[Unit]:
    """Sweeps that asked of the same weights, opened alike, what healed models were asked, and as many items or more.

    Those with most cuts come last.
    """
    healed, same = list(healed), ("model", "dtype", "quantization")

    def alike(unit: Unit, key: dict) -> bool:
        task, limit = unit.key["task"], unit.key["limit"]
        if [unit.key[name] for name in same] != [key[name] for name in same] or task not in key["tasks"]:
            return False
        if shots(task, unit.key["num_fewshot"]) != shots(task, key["tasks"][task]):
            return False
        asked = key.get("limits", {}).get(task, key["limit"])
        return limit is None or (asked is not None and limit >= asked)

    sweeps = (unit for unit in units if unit.kind == "sweep" and any(alike(unit, one.key) for one in healed))
    return sorted(sweeps, key=lambda unit: len(unit.key["cuts"]))


def of_healing(units: Iterable[Unit], healed: Unit) -> pd.DataFrame:
    """`table` of one healed model: beside it the losses and scores from before that units hold, and the whole model
    healed alike."""
    units, key = list(units), healed.key
    alike = key["loss"] | {name: key[name] for name in ("model", "dtype", "quantization")}
    losses = [unit for unit in units if unit.kind == "loss" and unit.settings("cuts", "version", "data") == alike]
    own = Cut.of_key(key["cut"])
    tokens = healed.details["healing"]["tokens"]
    budget = by_tokens(units, healed)[tokens]
    beside = {cut: unit for cut, unit in budget.items() if not cut.size} | {own: budget[own]}
    vocabulary = losses[0].details["vocabulary"] if losses else 0
    before = losses_before(losses, losses[0]) if losses else {}
    return table(before, units, {tokens: beside}, vocabulary)


def table(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]], vocabulary: int
) -> pd.DataFrame:
    """A row for the loss and for each task that the whole model knows, cut and number of tokens: those of COLUMNS.

    `losses` are those of the pruned models, as `losses_before` has them, `swept` has their scores. The columns from
    guessing to healed are nats a token, or accuracies; value, low and high the share given back with its 95% interval,
    by resampled sequences or items, and missing where the cut did not surely take anything, or left less than guessing
    over a vocabulary of that size. Where only high is there, it is that much at most: the whole model's own loss was
    not healed alike. In the order of cuts.
    """
    rows, every = [], list(_found(losses, swept, healed))
    healed_whole = {(tokens, name): found.healed for tokens, cut, name, found in every if not cut.size}
    for tokens, cut, name, found in every:
        if not cut.size:
            continue
        is_loss, adapted = name == LOSS, healed_whole.get((tokens, name))
        if adapted is None or len(adapted) != len(found.whole):  # not healed alike, or asked other items
            adapted = np.full(len(found.whole), np.nan)
        is_bound = is_loss and np.isnan(adapted).any()
        repaired = found.healed + (found.whole - adapted if is_loss and not is_bound else 0)
        guessing = math.log(vocabulary) if is_loss else found.guessing
        exploded = is_loss and found.pruned.mean() > guessing
        share = UNTOLD if exploded else back((found.whole, found.pruned, repaired), guessing, shares=not is_loss)
        share = (*UNTOLD[:2], share[2]) if is_bound else share
        means = (float(one.mean()) for one in (found.whole, adapted, found.pruned, found.healed))
        rows.append((name, cut.size, cut.start, tokens, len(found.whole), guessing, *means, *share))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["what", "size", "start", "tokens"], ignore_index=True)


def of_the_whole(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]]
) -> pd.DataFrame:
    """What the same healing does to the unpruned model: a row for the loss and each task that it knows, and budget.

    Columns what, tokens, items, before, after (nats a token, or accuracies), change, low, high: paired, with its 95%
    interval. What it costs there no pruned model can be expected to get back.
    """
    rows = []
    for tokens, cut, name, found in _found(losses, swept, healed):
        if cut.size:
            continue
        change = paired_interval(found.healed - found.whole, shares=name != LOSS)
        rows.append((name, tokens, len(found.whole), found.whole.mean(), found.healed.mean(), *change))
    return pd.DataFrame(rows, columns=["what", "tokens", "items", "before", "after", "change", "low", "high"])


def of_more_tokens(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]]
) -> pd.DataFrame:
    """What more tokens of the same healing do: a row for each cut, thing that was asked and number above the fewest.

    Columns what, size, start, fewest, tokens, items, before and after (nats a token, or accuracies, of the model healed
    on the fewest and on that many), change, low, high: paired, with its 95% interval. In the order of cuts.
    """
    by_budget: dict[tuple, dict[int, np.ndarray]] = {}
    for tokens, cut, name, found in _found(losses, swept, healed):
        by_budget.setdefault((name, cut.size, cut.start), {})[tokens] = found.healed
    rows = []
    for asked, of_tokens in by_budget.items():
        fewest = min(of_tokens)
        for tokens, values in of_tokens.items():
            if tokens > fewest and len(values) == len(of_tokens[fewest]):
                change = paired_interval(values - of_tokens[fewest], shares=asked[0] != LOSS)
                means = float(of_tokens[fewest].mean()), float(values.mean())
                rows.append((*asked, fewest, tokens, len(values), *means, *change))
    columns = ["what", "size", "start", "fewest", "tokens", "items", "before", "after", "change", "low", "high"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values(["size", "start", "tokens"], kind="stable", ignore_index=True)


def rounded_away(units: Iterable[Unit], healed: Unit) -> str:
    """What the whole model surely lost where it was opened in fewer bits to be healed, in words; "" where it was not.

    Of the same items, in pairs. Healing may mend that too, in the whole model and in a pruned one.
    """
    evidence, opened, found = Evidence(list(units)), healed.key["quantization"], []
    for topic in evidence.topics if opened else ():
        plain = {_asked(own): own for own in evidence.sweeps(topic) if own[0].key["quantization"] is None}
        own = next((own for own in reversed(evidence.sweeps_opened_as(healed, topic)) if _asked(own) in plain), None)
        if own is None:
            continue
        before, after = (_right_whole(of_way).astype(float) for of_way in (plain[_asked(own)], own))
        if paired_interval(after - before, shares=True)[2] < 0:
            found.append(f"{topic} from {before.mean():.2f} to {after.mean():.2f} ({len(before):,} items)")
    return f"Opened in {opened} the whole model had lost before it was healed: {', '.join(found)}" if found else ""


def _asked(sweeps: Sequence[Unit]) -> tuple:
    return tuple((unit.name, unit.key["num_fewshot"], unit.key["limit"]) for unit in sweeps)


def _right_whole(sweeps: Sequence[Unit]) -> Bool[np.ndarray, " I"]:
    of_tasks = ((unit.details["outcomes"][UNPRUNED.name], unit.name, item_metrics(unit)[unit.name]) for unit in sweeps)
    return np.concatenate([right_items(*of_task) for of_task in of_tasks]).astype(bool)


def in_words(back: pd.DataFrame) -> list[str]:
    """For the loss, and then each task, and number of tokens what comes back at which sizes; rows are of `table`.

    What no cut surely took is left out; where no share is surely above 0, or none is known, it says so.
    """
    found = []
    for (what, tokens), rows in back.dropna(subset="high").groupby(["what", "tokens"], sort=False):
        asked = f"{what} ({rows['items'].max():,} {'sequences' if what == LOSS else 'items'}), {tokens:,} tokens"
        if rows["value"].isna().all():  # a bound beside shares of another number of tokens would seem to be more
            found.append(f"{asked}: no share is told, as the unpruned model was not healed on so many")
            continue
        if not (rows["low"] > 0).any():
            sizes = ", ".join(map(str, rows["size"]))
            found.append(f"{asked}: no gain is shown, at n = {sizes}")
            continue
        shares = (f"{share_in_words(row)} at n = {row.size}" for row in rows.itertuples())
        found.append(f"{asked}: {', '.join(shares)}")
    return sorted(found, key=lambda line: not line.startswith(LOSS))


def share_in_words(row: Any) -> str:
    """The share that a row of `table` has."""
    if math.isnan(row.high):
        return "not told"
    if math.isnan(row.value):
        return f"at most {row.high:.0%}"
    if row.what != LOSS and max(row.pruned, row.healed) <= row.guessing:
        return "0%, both guess"
    value, low, high = (f"{share:.0%}".replace("-0%", "0%") for share in (row.value, row.low, row.high))
    return f"{value} ({low} to {high})"


def whole_in_words(rows: pd.DataFrame) -> list[str]:
    """For each number of tokens what the same healing surely changes in the unpruned model; rows of `of_the_whole`."""
    found = []
    for tokens, of_budget in rows.groupby("tokens"):
        found.append(f"the unpruned model itself, healed alike on {tokens:,} tokens: {_changes(of_budget)}")
    return found


def more_in_words(rows: pd.DataFrame) -> list[str]:
    """For each cut and number of tokens what surely changes from the fewest on; rows are of `of_more_tokens`."""
    found = []
    for (size, _, fewest, tokens), of_cut in rows.groupby(["size", "start", "fewest", "tokens"]):
        which = f"n = {size}" if size else "the unpruned model"
        found.append(f"{which}, {tokens:,} tokens instead of {fewest:,}: {_changes(of_cut)}")
    return found


def _changes(rows: pd.DataFrame) -> str:
    """What surely changes, each with its interval, and in what nothing is shown to."""
    surely = (rows["low"] > 0) | (rows["high"] < 0)
    changes = [
        f"{row.what} from {row.before:.3f} to {row.after:.3f} ({row.change:+.3f}, {row.low:+.3f} to {row.high:+.3f})"
        for row in rows[surely].itertuples()
    ]
    others = [re.sub(", (.*)", r" (\1)", what) for what in rows.loc[~surely, "what"]]
    untold = f"no change is shown in {', '.join(others)}" if others else ""
    return "; ".join(filter(None, [*changes, untold]))


def courses(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]]
) -> pd.DataFrame:
    """The same as curves: a row for each model before and after healing, what it was asked, and number of tokens.

    Columns what, size, start, tokens (0 before healing), value, low, high (nats a token or accuracy, with the 95%
    interval over sequences or items), items, metric. Size 0 is the whole model.
    """
    models = {}
    for tokens, cut, name, found in _found(losses, swept, healed):
        models[name, UNPRUNED, 0], models[name, cut, 0] = found.whole, found.pruned
        models[name, cut, tokens] = found.healed
    rows = {}
    for (name, model, budget), values in models.items():
        ends = paired_interval(values, shares=False)[1:]
        if name != LOSS:
            ends = curves.wilson_interval(float(values.mean()), len(values))
        rows[name, model.size, model.start, budget] = (float(values.mean()), *ends, len(values))
    metrics = [("loss" if key[0] == LOSS else "accuracy",) for key in rows]
    every = [key + row + metric for (key, row), metric in zip(rows.items(), metrics, strict=True)]
    columns = ["what", "size", "start", "tokens", "value", "low", "high", "items", "metric"]
    return pd.DataFrame(every, columns=columns).sort_values(columns[:4], ignore_index=True)


def _found(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]]
) -> Iterable[tuple[int, Cut, str, "BeforeAndAfter"]]:
    """Of each healed model, the whole one among them, and what the whole one knows: tokens, cut, name, items."""
    for tokens, of_cuts in healed.items():
        for cut, unit in of_cuts.items():
            for what, found in before_and_after(losses, swept, cut, unit).items():
                if found.known:
                    number = shots_by_set(unit).get(what)
                    yield tokens, cut, what + (f", {number}-shot" if number else ""), found


def back(
    values: Sequence[Float[np.ndarray, " I"]], guessing: int | float, *, shares: bool
) -> tuple[float, float, float]:
    """The share given back with its interval, of what whole, pruned and healed model have.

    `shares`: of outcomes from 0 to 1, of which more is better, and a mean below `guessing` counts as that; else of
    losses. To items that are drawn anew one that healing won and one that it lost are added, as in
    `significance.paired`. Not a number where nothing was surely lost: by a paired test, and in all but 1% of the draws.
    """
    better = np.stack(values) if shares else -np.stack(values)  # more of it is better
    _, surely_lost, _ = paired_interval(better[0] - better[1], shares=shares)
    means, drawn = better.mean(axis=1)[None], better
    if shares:
        added = [[means[0, 0]] * 2, [means[0, 1]] * 2, means[0, 1] + [1.0, -1.0]]
        drawn = np.concatenate([better, added], axis=1)
    every = np.concatenate([means, resampled_means(drawn)[1:]])
    whole, pruned, healed = np.maximum(every, guessing if shares else -np.inf).T
    told = whole > pruned  # items drawn anew may show no loss, and a share of nothing is no number
    if surely_lost <= 0 or told.mean() < TOLD:
        return UNTOLD
    share = (healed - pruned)[told] / (whole - pruned)[told]
    low, high = np.quantile(share[1:], [0.025, 0.975])
    return float(share[0]), float(low), float(high)


class BeforeAndAfter(NamedTuple):
    """What whole, pruned and healed model have, item by item; what guessing scores, and whether the whole one is surely
    above that. Of a loss it is."""

    whole: Float[np.ndarray, " I"]
    pruned: Float[np.ndarray, " I"]
    healed: Float[np.ndarray, " I"]
    known: bool = True
    guessing: float = math.nan


def before_and_after(
    losses: Mapping[str, "Losses"], swept: Sequence[Unit], cut: Cut, healed: Unit
) -> dict[str, BeforeAndAfter]:
    """Of the loss and of each set of items that was asked before healing too: the first ones of a sweep, with as many
    examples in the prompt."""
    found = {}
    if cut.name in losses and len(losses[cut.name].pruned) == len(healed.details["by_sequence"]):
        values = (*losses[cut.name], healed.details["by_sequence"])
        found[LOSS] = BeforeAndAfter(*map(np.array, values))
    after = healed.details["outcomes"]
    for of_tasks in _asked_both_times(swept_alike(swept, [healed]), cut, after):
        right, answers = [], []
        for task, leaf in sorted(of_tasks.items()):
            of_cuts, metric = leaf.details["outcomes"], item_metrics(leaf)[task]
            models = (of_cuts[UNPRUNED.name], of_cuts[cut.name], after)
            of_task = [right_items(of_model, task, metric) for of_model in models]
            right.append(np.stack([of_model[: len(of_task[2])] for of_model in of_task]))
            answers.append(right_answers(of_cuts, task))
        values = np.concatenate(right, axis=1).astype(float)
        levels = [leaf.details["levels"].get(task, {}) for task, leaf in sorted(of_tasks.items())]
        together = curves.levels_together(levels, answers)
        known = curves.surely_above(float(values[0].mean()), values.shape[1], together)
        found[set_of(task)] = BeforeAndAfter(*values, known, max(together.values(), default=0.0))
    return found


def _asked_both_times(swept: Sequence[Unit], cut: Cut, after: Mapping[str, dict]) -> Iterable[dict[str, Unit]]:
    """The tasks that were asked of a healed model, and of it and the whole one before, of as many items or more.

    Together those of one set of items: the subjects of MMLU may be sweeps of their own.
    """
    together: dict[str, dict[str, Unit]] = {}
    for leaf in (leaf for unit in swept for leaf in leaves_of(unit)):
        whole, pruned = (leaf.details["outcomes"].get(name, {}) for name in (UNPRUNED.name, cut.name))
        for task, metric in item_metrics(leaf).items():
            if not (task in whole and task in pruned and metric in after.get(task, {})):
                continue
            if len(right_items(whole, task, metric)) >= len(right_items(after, task, metric)):
                asked = curves.SUBJECTS.get(task, task)
                together[asked] = together.pop(asked, {}) | {task: leaf}
    return together.values()
