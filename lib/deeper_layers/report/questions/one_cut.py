"""What results say of one cut of a model: its scores beside the whole model's, and which tasks it ruins.

A group of tasks such as MMLU is one line, with the 95% intervals of accuracies (Wilson) and the level of guessing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.names import as_markdown
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.curves import of_cut
from deeper_layers.report.statistics.evidence import Answers, Evidence, opened_as
from deeper_layers.report.statistics.healed import by_cut, way_of
from deeper_layers.report.statistics.items import item_metrics, of_topic, right_items
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.report.statistics.topics import described_as, topic_of
from deeper_layers.report.thresholds import LEFT
from deeper_layers.results.units import Unit

ALONE = "this cut alone"  # the rule of one whose smaller ones are not asked about

Shares = tuple[float, float, float]  # an accuracy and its interval


@dataclass(frozen=True)
class Score:
    """One task, or one text, under a cut.

    Attributes:
        topic: as people call it.
        asked: the same with the number of examples in the prompt, and of tasks of a group.
        metric: "accuracy", or "loss" in nats a token.
        items: how many were asked.
        how: the number format in which it was measured.
        whole, pruned, healed: of the whole model, without the layers of the cut, and healed after it.
        guessing: accuracy of the better way to guess.
        ruined: whether the cut ruins the task, see `surely_ruined`; of the healed model, where there is one.
        largest: the largest number of layers, under the rule whose cut this is, such that neither its cut nor any
            smaller one that was measured ruins the task; None where the whole model is not surely above guessing.
    """

    topic: str
    asked: str
    metric: str
    items: int
    how: str
    whole: Shares
    pruned: Shares
    healed: Shares | None = None
    guessing: float | None = None
    ruined: bool = False
    largest: int | None = None
    rule: str | None = None

    @property
    def left(self) -> Shares:
        """Of the checkpoint itself."""
        return self.healed or self.pruned


def surely_ruined(before: Bool[np.ndarray, " I"], after: Bool[np.ndarray, " I"], guessing: float) -> bool:
    """Whether of what a model scores above guessing surely less than LEFT stays, from which items are right.

    The statistic is the mean of `after - LEFT * before` over items, which belongs to pairs: accuracy lies below
    `guessing + LEFT * (whole - guessing)` just where it lies below `(1 - LEFT) * guessing`. Surely is: its 95% interval
    (t, over pairs, see `significance.paired`) ends below that, as in the claim that a rule collapses.
    """
    _, _, high = paired_interval(after - LEFT * before - (1 - LEFT) * guessing, shares=True)
    return high < 0


def scores(units: list[Unit], cut: Cut, healed: Unit | None = None) -> list[Score]:
    """What the units of one model say of a cut, by topic; of a healed one too, where its unit is given.

    Of a cut of any shape, and of what other rules than the paper's chose, that is what was swept by its name.
    """
    evidence, found = Evidence(units), []
    if not cut.is_block:
        return _of_its_own(evidence, cut)
    for topic in evidence.topics:
        measured = evidence.measured(topic, cut, healed)
        if measured is not None:
            found.append(_score(topic, *measured, cut, healed))
    known = {score.topic for score in found}
    named = [] if healed else [score for score in _of_its_own(evidence, cut) if score.topic not in known]
    return found + named + _losses(evidence, cut, healed)


def healing_of(units: list[Unit], cut: Cut, config: dict, text: str) -> Unit | None:
    """A model healed after a cut, with these settings, on this text, as one unit of all that it was asked.

    Of several number formats that in which it was asked most.
    """
    wanted, alike = {"cut": cut.key, "healing": config, "text": text}, {}
    for unit in (unit for unit in units if unit.kind == "healing"):
        if all(unit.key[name] == value for name, value in wanted.items()):
            alike.setdefault(way_of(unit), []).append(unit)
    found = [by_cut(of_way)[cut] for of_way in alike.values()]
    return max(found, key=lambda unit: len(unit.key["tasks"]), default=None)


def card_text(units: list[Unit], cut: Cut, healed: Unit | None = None) -> str:
    """What results hold about a cut, in Markdown, for a model card: its distance, its scores, what it ruins."""
    lines = [
        f"Angular distance of the dropped block: {value:.4f} (units of pi; {as_markdown(unit.name)}, {_how(unit)})."
        for unit in units if unit.kind == "similarity" and cut.is_block for value in of_cut(unit.rows, cut)["distance"]
    ]  # fmt: skip
    if found := scores(units, cut, healed):
        lines += ["", *_table(found, healed is not None), ""]
        lines.append(
            "Accuracies with their 95% intervals (Wilson); losses in nats a token, with theirs over sequences."
        )
        if ruined := [as_markdown(score.topic) for score in found if score.ruined]:
            said = "Surely less than half of what the whole model has above guessing is left on these:"
            lines += ["", f"{said} {'; '.join(ruined)}."]
    return "\n".join(lines)


def _score(topic: str, rule: str, answers: Answers, unit: Unit, names: list[str], cut: Cut, healed: Unit | None):
    before, after = answers.right[0], answers.of([cut])[0]
    mended = None if healed is None else of_topic(healed, names)
    ruined, largest = False, None
    if answers.known:
        is_ruined = [surely_ruined(before, right, answers.guessing) for right in answers.right]
        until = is_ruined.index(True) if True in is_ruined else len(is_ruined)
        largest = answers.cuts[until - 1].size
        ruined = surely_ruined(before, after if mended is None else mended, answers.guessing)
    asked = answers.described.rpartition(", ")[0]  # without the number of items
    return Score(
        topic, asked, "accuracy", len(before), _how(unit), _share(before), _share(after),
        None if mended is None else _share(mended), answers.guessing, ruined, largest, rule,
    )  # fmt: skip


def _of_its_own(evidence: Evidence, cut: Cut) -> list[Score]:
    """Scores of a cut that was swept by its name, beside the whole model."""
    together: dict[tuple, dict[str, Unit]] = {}
    own = evidence.of_kind("cuts")
    # a task that was swept twice counts once: with most items, then as it was measured last
    for unit in sorted(own, key=lambda unit: (unit.rows["items"].max(), unit.provenance["measured"])):
        asked = {UNPRUNED.name, cut.name} <= unit.details.get("outcomes", {}).keys()
        if asked and unit.name in item_metrics(unit):
            how = topic_of(unit.name), unit.key["num_fewshot"], unit.key["limit"], unit.key["engine"], opened_as(unit)
            together.setdefault(how, {})[unit.name] = unit
    found = []
    for (topic, shots, *_), by_task in together.items():
        own = list(by_task.values())
        names, metrics = list(by_task), [item_metrics(unit)[unit.name] for unit in own]
        right = [
            np.concatenate([
                right_items(unit.details["outcomes"][name], unit.name, metric)
                for unit, metric in zip(own, metrics, strict=True)
            ])
            for name in (UNPRUNED.name, cut.name)
        ]  # fmt: skip
        described, guessing = described_as(topic, names, shots, len(right[0])), evidence.levels(own, names)
        answers = Answers(described, [UNPRUNED, cut], np.stack(right), guessing, own[0].details["num_layers"])
        found.append(_score(topic, ALONE, answers, own[0], names, cut, None))
    return found


def _losses(evidence: Evidence, cut: Cut, healed: Unit | None) -> list[Score]:
    """Losses on text, which have no level of guessing, and ruin nothing by themselves."""
    found = []
    for unit in evidence.of_kind("loss"):
        rows = unit.rows[unit.rows["metric"] == "loss"]
        if healed is not None:
            mended = healed.rows[(healed.rows["metric"] == "loss") & (healed.rows["task"] == unit.name)]
            loss = {name: unit.key[name] for name in healed.key["loss"]}
            if opened_as(unit) != opened_as(healed) or loss != healed.key["loss"] or mended.empty:
                continue
        whole, pruned = of_cut(rows, UNPRUNED), of_cut(rows, cut)
        known = {(score.asked, score.how) for score in found}  # measured for other cuts too
        if len(whole) and len(pruned) and (f"loss on {unit.name}", _how(unit)) not in known:
            row = pruned.iloc[0]
            found.append(Score(
                f"loss on {unit.name}", f"loss on {unit.name}", "loss", int(row["items"]), _how(unit), _loss(whole),
                _loss(pruned), None if healed is None else _loss(mended),
            ))  # fmt: skip
    return found


def _table(found: list[Score], healed: bool) -> list[str]:
    heads = ["task", "whole model", *(["pruned", "healed, this one"] if healed else ["this one"]), "guessing", "items",
             "measured in"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for score in found:
        columns = [score.whole, score.pruned, *([score.healed] if healed else [])]
        cells = [
            as_markdown(score.asked), *map(in_words, columns),
            "" if score.guessing is None else f"{score.guessing:.2f}", f"{score.items:,}", score.how,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_words(value: Shares) -> str:
    """A number with its interval."""
    return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"


def _share(right: np.ndarray) -> Shares:
    value = float(right.mean())
    return value, *curves.wilson_interval(value, len(right))


def _loss(rows: pd.DataFrame) -> Shares:
    row = rows.iloc[0]
    half = curves.Z * row["stderr"]
    return float(row["value"]), float(row["value"] - half), float(row["value"] + half)


def _how(unit: Unit) -> str:
    dtype, quantization = opened_as(unit)
    return f"{dtype}, weights in {quantization}" if quantization else dtype
