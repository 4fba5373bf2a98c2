"""What log-probabilities of every choice say beyond right and wrong: bias to a letter, entropy, information, margin.

A model that lost its letters answers one of them whatever is asked. Whether it still knows the answer shows in how the
probability of each letter differs from question to question.

Letters in shapes: C cuts, I items, K choices; nan where an item has fewer.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.report.statistics.outcomes import leaves_of
from deeper_layers.results.packing import LOGPROBS, unpack, unpack_halves
from deeper_layers.results.units import Unit


@dataclass(frozen=True)
class Answers:
    """How some pruned models answered the items of a task, the tasks of a group in the order of their names.

    Attributes:
        cuts: the pruned models.
        logprobs: of each choice, in nats.
        target: which choice is right.
        right: whether the metric that was asked for counts the answer as right.
    """

    cuts: list[Cut]
    logprobs: Float[np.ndarray, "C I K"]
    target: Int[np.ndarray, " I"]
    right: Bool[np.ndarray, "C I"]


def answers_of(unit: Unit, metric: str = "acc") -> Answers:
    """The answers that a unit holds, under all of its cuts.

    Raises InputError for a unit that was measured before log-probabilities were kept, and for a metric that it does not
    have.
    """
    cuts = [Cut(*cut) for cut in unit.key["cuts"]]
    tables: dict[str, list] = {}  # by task: of each cut what is packed
    for leaf in leaves_of(unit):
        for cut in cuts:
            for task, packed in leaf.details["outcomes"].get(cut.name, {}).items():
                if missing := {LOGPROBS, "target", metric} - packed.keys():
                    raise InputError(f"{task} has no {', '.join(sorted(missing))}: measure it again, with a scan")
                tables.setdefault(task, []).append(packed)
    if not tables or any(len(of_task) != len(cuts) for of_task in tables.values()):
        raise InputError(f"{unit.path and unit.path.name} was measured for other cuts than {cuts}")
    logprobs, targets, right = [], [], []
    for _, of_task in sorted(tables.items()):
        target = unpack(of_task[0]["target"]).astype(int)
        targets.append(target)
        logprobs.append(np.stack([unpack_halves(packed[LOGPROBS], len(target)) for packed in of_task]))
        right.append(np.stack([unpack(packed[metric]).astype(bool) for packed in of_task]))
    most = max(table.shape[2] for table in logprobs)
    wide = [np.pad(table, [(0, 0), (0, 0), (0, most - table.shape[2])], constant_values=np.nan) for table in logprobs]
    return Answers(cuts, np.concatenate(wide, 1), np.concatenate(targets), np.concatenate(right, 1))


def posterior(logprobs: Float[np.ndarray, "... I K"]) -> Float[np.ndarray, "... I K"]:
    """Probability of each choice, given that one of them is the answer; 0 for those that an item has not."""
    shifted = np.exp(logprobs - np.nanmax(logprobs, axis=-1, keepdims=True))
    return np.nan_to_num(shifted / np.nansum(shifted, axis=-1, keepdims=True))


def calibrated(logprobs: Float[np.ndarray, "... I K"]) -> Float[np.ndarray, "... I K"]:
    """Log-probabilities among the choices, less the mean of each choice over the items: without what it says anyway.

    Needs no right answers; as if each letter were right as often as any other. Source: batch calibration (Zhou et al.
    2024, arXiv 2309.17249), in log space; for letters of options, Zheng et al. 2024 (arXiv 2309.03882).
    """
    shifted = logprobs - np.nanmax(logprobs, axis=-1, keepdims=True)
    among = shifted - np.log(np.nansum(np.exp(shifted), axis=-1, keepdims=True))
    return among - np.nanmean(among, axis=-2, keepdims=True)


def chosen(scores: Float[np.ndarray, "... I K"]) -> Int[np.ndarray, "... I"]:
    """The choice with the highest score, the first of equal ones."""
    return np.nan_to_num(scores, nan=-np.inf).argmax(axis=-1)


def entropy(shares: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."] | float:
    """Entropy of shares that sum to 1, in bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nansum(shares * np.log2(shares), axis=-1)


def information(choice: Int[np.ndarray, " I"], target: Int[np.ndarray, " I"]) -> float:
    """Mutual information of what was chosen and what is right, in bits, from their counts.

    Counts of independent ones give more than 0: what they give on average, to first order, is taken off
    (Miller 1955; Treves and Panzeri 1995), so that chance can be below 0.
    """
    counts = np.zeros((max(choice.max(), target.max()) + 1,) * 2)
    np.add.at(counts, (choice, target), 1)
    counts /= len(choice)
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    found = entropy(rows) + entropy(columns) - entropy(counts.reshape(-1))
    free = ((rows > 0).sum() - 1) * ((columns > 0).sum() - 1)
    return float(found - free / (2 * len(choice) * np.log(2)))


def margins(logprobs: Float[np.ndarray, "... I K"], target: Int[np.ndarray, " I"]) -> Float[np.ndarray, "... I"]:
    """By how many nats the right choice lies above the best of the others."""
    right = np.arange(logprobs.shape[-1]) == target[:, None]
    others = np.where(right, np.nan, logprobs)
    return np.where(right, logprobs, 0.0).sum(axis=-1) - np.nanmax(others, axis=-1)


def described(answers: Answers) -> pd.DataFrame:
    """A row for each cut: start, size, items, and of its answers

    accuracy (of the highest log-probability), calibrated (the same, `calibrated`), largest (share of the choice that is
    chosen most), entropy (of the choices made, bits; 2 where four are made alike), doubt (mean entropy of a single
    answer, bits), information (bits), margin (mean, nats).
    """
    rows = []
    for cut, logprobs in zip(answers.cuts, answers.logprobs, strict=True):
        choice = chosen(logprobs)
        shares = np.bincount(choice) / len(choice)
        rows.append({
            "start": cut.start, "size": cut.size, "items": len(choice),
            "accuracy": float((choice == answers.target).mean()),
            "calibrated": float((chosen(calibrated(logprobs)) == answers.target).mean()),
            "largest": float(shares.max()), "entropy": float(entropy(shares)),
            "doubt": float(entropy(posterior(logprobs)).mean()), "information": information(choice, answers.target),
            "margin": float(margins(logprobs, answers.target).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)
