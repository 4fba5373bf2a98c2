"""What results hold about one model, arranged for the claims: answers item by item, losses, distances, healings.

Everything comes from the units of single tasks; a group such as MMLU is what its tasks are together. What is not
there is None or empty, never a number.

Letters in shapes: C cuts, I items, S sequences.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from deeper_layers.cuts import Cut
from deeper_layers.report import paper
from deeper_layers.report.statistics import curves, outcomes
from deeper_layers.report.statistics.healed import asked_alike, by_cut, way_of
from deeper_layers.report.statistics.items import item_metrics, of_topic, right_items
from deeper_layers.report.statistics.topics import TOPICS, described_as, topic_of
from deeper_layers.results.packing import unpack
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import RULES, cuts_of_rule, measured_cuts
from deeper_layers.rules.similarity import distance_matrix

RightAnswers = dict[tuple, np.ndarray]  # by task, data and limit: the number of each item's right choice


@dataclass(frozen=True)
class Answers:
    """Which items of a topic the pruned models of one family got right, in the order of their cuts by size."""

    described: str  # topic, part of it, items, shots
    cuts: list[Cut]
    right: Bool[np.ndarray, "C I"]
    levels: dict[str, float]  # accuracy of guessing, by chance and, for a single task, by the commonest answer
    layers: int
    flipped: Float[np.ndarray, " C"] | None = None  # share of answers other than the whole model's, where any is chosen

    @cached_property
    def means(self) -> Float[np.ndarray, "R C"]:
        """Accuracies of all items, then of items drawn anew (see `outcomes.resampled_means`)."""
        return outcomes.resampled_means(self.right.astype(float))

    @property
    def guessing(self) -> float:
        """Accuracy of the better way to guess."""
        return max(self.levels.values())

    @property
    def fractions(self) -> Float[np.ndarray, " C"]:
        return np.array([cut.size for cut in self.cuts]) / self.layers

    @property
    def whole(self) -> tuple[float, float, float]:
        """Accuracy of the whole model with its 95% interval."""
        value = float(self.right[0].mean())
        return value, *curves.wilson_interval(value, self.right.shape[1])

    @property
    def known(self) -> bool:
        """Whether the whole model is surely better than guessing."""
        return self.whole[1] > self.guessing

    def rows(self, task: str, rule: str) -> pd.DataFrame:
        """As curves: the columns of `deeper_layers.report.statistics.curves.accuracy_by_rule`."""
        items = self.right.shape[1]
        values = self.right.mean(axis=1).tolist()
        intervals = [curves.wilson_interval(value, items) for value in values]
        rows = [
            (task, rule, cut.size, cut.start, cut.size / self.layers, value, *interval, items, "acc")
            for cut, value, interval in zip(self.cuts, values, intervals)
        ]
        return pd.DataFrame(rows, columns=curves.COLUMNS)

    def of(self, cuts: Iterable[Cut]) -> Bool[np.ndarray, "C I"]:
        return self.right[[self.cuts.index(cut) for cut in cuts]]


@dataclass(frozen=True)
class Losses:
    """Loss of each sequence, in nats a token, before healing and, where asked for, after; the whole model first."""

    cuts: list[Cut]
    before: Float[np.ndarray, "C S"]
    after: Float[np.ndarray, "C S"] | None
    layers: int
    guessing: float  # ln V: a loss above it is worse than to know nothing

    @property
    def fractions(self) -> Float[np.ndarray, " C"]:
        return np.array([cut.size for cut in self.cuts]) / self.layers


class Evidence:
    """The units of one model."""

    def __init__(self, units: list[Unit], right: RightAnswers | None = None):
        """`right` as `right_answers` has it, where other models know more of them."""
        self.units = units
        self._right = right_answers(units) if right is None else right
        self.answers, self.healed = functools.cache(self.answers), functools.cache(self.healed)  # asked claim by claim
        self.name = units[0].key["model"]["name"] if units else ""
        self.layers = next((unit.details["num_layers"] for unit in units if "num_layers" in unit.details), 0)

    def of_kind(self, kind: str) -> list[Unit]:
        """The units of one kind."""
        return [unit for unit in self.units if unit.kind == kind]

    def best(self, *kinds: str) -> Unit | None:
        """Of the units of some kinds one: on the paper's text before others, distances by sequence before their means.

        Then not quantized before quantized, that with most cuts, the latest.
        """

        def rank(unit: Unit) -> tuple:
            of_paper, plain = unit.name == paper.CORPUS, unit.key["quantization"] is None
            cuts = len(unit.key.get("cuts", []))
            return of_paper, unit.kind == "distances", plain, cuts, unit.provenance["measured"]

        return max((unit for kind in kinds for unit in self.of_kind(kind)), key=rank, default=None)

    @property
    def topics(self) -> list[str]:
        """What the sweeps ask about: the known topics in their order, then the others."""
        found = dict.fromkeys(topic_of(unit.name) for unit in self.of_kind("sweep") if unit.name in item_metrics(unit))
        return [*(topic for topic in TOPICS if topic in found), *(topic for topic in found if topic not in TOPICS)]

    def sweeps(self, topic: str) -> list[list[Unit]]:
        """Sweeps of a topic's tasks, those of one measurement together; the best last.

        Best is: not quantized, then with most items, most cuts, the latest.
        """
        together: dict[str, dict[str, Unit]] = {}
        for unit in sorted(self.of_kind("sweep"), key=lambda unit: unit.provenance["measured"]):
            if topic_of(unit.name) == topic and unit.name in item_metrics(unit):
                family = curves.SUBJECTS.get(unit.name, unit.name)
                how = unit.settings("task", "data", "version")
                together.setdefault(json.dumps([family, how], sort_keys=True), {})[unit.name] = unit
        found = [[units[name] for name in sorted(units)] for units in together.values()]  # items in one order
        return sorted(found, key=lambda units: (
            units[0].key["quantization"] is None, sum(_items(unit) for unit in units), len(units[0].key["cuts"]),
            max(unit.provenance["measured"] for unit in units),
        ))  # fmt: skip

    def answers(self, topic: str, rule: str) -> Answers | None:
        """What was measured of a topic before healing, for the cuts of a rule; None where there is nothing."""
        of_rule = [found for units in self.sweeps(topic) if (found := self._together(topic, units, rule))]
        return of_rule[-1] if of_rule else None

    def measured(self, topic: str, cut: Cut, healed: Unit | None = None) -> tuple[str, Answers, Unit, list[str]] | None:
        """The best measurement of a topic that has a cut: its rule, the answers, one of its units, names of its tasks.

        With the unit of a healed model, the best of the same items in the same number format. None where there is none.
        """
        every = self.sweeps(topic) if healed is None else self.sweeps_opened_as(healed, topic)
        for units in reversed(every):
            names = [unit.name for unit in units]
            if healed is not None and not asked_alike(healed, units):
                continue
            for rule in units[0].key["rule"].split(", "):
                answers = self._together(topic, units, rule)
                same = healed is None or answers and of_topic(healed, names).shape[0] == answers.right.shape[1]
                if answers and cut in answers.cuts and same:
                    return rule, answers, units[0], names
        return None

    def by_shots(self, topic: str, rule: str) -> dict[int, Answers]:
        """The same by the number of examples in the prompt, where it was asked for; of the same items only.

        Of weights opened alike; of several such sets the widest, then that of most items.
        """
        together: dict[tuple, dict[int, Answers]] = {}
        for units in self.sweeps(topic):
            answers, shots = self._together(topic, units, rule), units[0].key["num_fewshot"]
            if answers and shots is not None:
                alike = tuple(unit.name for unit in units), opened_as(units[0]), answers.right.shape[1]
                together.setdefault(alike, {})[shots] = answers
        alike = max(together, key=lambda alike: (len(together[alike]), alike[-1]), default=None)
        return dict(sorted(together[alike].items())) if alike else {}

    def by_prompt(self, topic: str, setting: str) -> dict[int, Answers]:
        """What was measured under prompts that differ in one setting alone ("num_fewshot", "order"), by its value."""
        together: dict[str, dict[int, Unit]] = {}
        for unit in self.of_kind("shots"):
            if topic_of(unit.key["task"]) == topic and item_metrics(unit):
                how = unit.settings(setting, "data", "model")
                together.setdefault(json.dumps(how, sort_keys=True), {})[unit.key[setting]] = unit
        best, found = max(together.values(), key=len, default={}), {}
        for value, unit in sorted(best.items()):
            cuts = [Cut(*cut) for cut in unit.key["cuts"]]
            of_cuts = [unit.details["outcomes"][cut.name] for cut in cuts]
            metrics = item_metrics(unit)
            right = [np.concatenate([right_items(of_cut, *task) for task in metrics.items()]) for of_cut in of_cuts]
            found[value] = self._answers(topic, [unit], list(metrics), cuts, np.stack(right), unit.key["num_fewshot"])
        return found

    def _together(self, topic: str, units: list[Unit], rule: str) -> Answers | None:
        rules = units[0].key["rule"].split(", ")
        if rule not in rules:
            return None
        cuts = measured_cuts(rules, [Cut(*cut) for cut in units[0].key["cuts"]], self.layers)[rule]
        if len(cuts) < 2 or cuts[0].size:
            return None
        of_cuts = [(unit.name, [unit.details["outcomes"][cut.name] for cut in cuts]) for unit in units]
        names, shots = [unit.name for unit in units], units[0].key["num_fewshot"]
        asked = [(unit.name, item_metrics(unit)[unit.name]) for unit in units]
        right = [
            np.stack([right_items(of_cut, *task) for of_cut in of_unit])
            for task, (_, of_unit) in zip(asked, of_cuts, strict=True)
        ]
        found = self._answers(topic, units, names, cuts, np.concatenate(right, axis=1), shots)
        if not all("chosen" in outcomes[name] for name, of_unit in of_cuts for outcomes in of_unit):
            return found
        chosen = [np.stack([unpack(outcomes[name]["chosen"]) for outcomes in of_unit]) for name, of_unit in of_cuts]
        table = np.concatenate(chosen, axis=1)
        return dataclasses.replace(found, flipped=(table != table[0]).mean(axis=1))

    def _answers(self, topic, units: list[Unit], names: list[str], cuts, right, shots=None) -> Answers:
        guessing = self.levels(units, names)
        described = described_as(topic, names, shots, right.shape[1])
        return Answers(described, list(cuts), right.astype(bool), guessing, self.layers)

    def levels(self, units: list[Unit], names: list[str]) -> dict[str, float]:
        """Accuracies of guessing on some tasks of units together."""
        known = {name: level for unit in units for name, level in unit.details["levels"].items()}
        levels = [known.get(name, {"chance": 0.0}) for name in names]  # nothing that is written is right by chance
        every = {name: self._right.get(task_of(unit, name)) for unit in units for name in unit.details["levels"]}
        answers = [answers for name in names if (answers := every.get(name)) is not None]
        return curves.levels_together(levels, answers if len(answers) == len(names) else [])

    # ---- healing ---------------------------------------------------------------------------------------------

    @cached_property
    def ways(self) -> dict[str, dict[Cut, Unit]]:
        """Healings alike in all but the cut: their settings as JSON, then unit by cut. The first is the widest."""
        together: dict[str, list[Unit]] = {}
        for unit in self.of_kind("healing"):
            together.setdefault(way_of(unit), []).append(unit)
        found = {key: by_cut(units) for key, units in together.items() if _is_usual(json.loads(key)["healing"])}
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))

    def alike_but(self, setting: str) -> dict[int, dict[Cut, Unit]]:
        """Ways that differ from another one in a single setting of healing, by its value; all for the same cuts."""
        together: dict[str, dict[int, dict[Cut, Unit]]] = {}
        for key, units in self.ways.items():
            how = json.loads(key)
            value = how["healing"].pop(setting)
            together.setdefault(json.dumps(how, sort_keys=True), {})[value] = units
        best = max(together.values(), key=len, default={})
        common = set.intersection(*map(set, best.values())) if len(best) > 1 else set()
        return {value: {cut: best[value][cut] for cut in sorted(common)} for value in sorted(best)} if common else {}

    def healed(self, topic: str, rule: str) -> tuple[Answers, Answers] | None:
        """Answers of a family before and after healing: the same cuts, items and number format."""
        for before, after in self._asked_healed(topic, rule):
            if after.right.shape[1] == before.right.shape[1]:
                return dataclasses.replace(before, cuts=after.cuts, right=before.of(after.cuts), flipped=None), after
        return None

    def healed_alone(self, topic: str, rule: str) -> Answers | None:
        """Answers of a family after healing, which may have been asked the first items of a sweep alone."""
        return next((after for _, after in self._asked_healed(topic, rule)), None)

    def _asked_healed(self, topic: str, rule: str) -> Iterator[tuple[Answers, Answers]]:
        """Sweeps, the best first, of what healed models were asked too, and those models' answers."""
        of_cut = next(iter(self.ways.values()), {})
        for units in reversed(self.sweeps_opened_as(next(iter(of_cut.values())), topic) if of_cut else []):
            before = self._together(topic, units, rule)
            if before is None:
                continue
            names = [unit.name for unit in units]
            asked = {cut for cut, unit in of_cut.items() if asked_alike(unit, units)}
            cuts = [cut for cut in before.cuts if cut in asked]
            if len(cuts) < 2 or cuts[0].size:
                continue
            right = [of_topic(of_cut[cut], names) for cut in cuts]
            if len({len(of_model) for of_model in right}) == 1 and len(right[0]) <= before.right.shape[1]:
                shots = units[0].key["num_fewshot"]
                yield before, self._answers(topic, units, names, cuts, np.stack(right), shots)

    def sweeps_opened_as(self, healing: Unit, topic: str) -> list[list[Unit]]:
        return [units for units in self.sweeps(topic) if opened_as(units[0]) == opened_as(healing)]

    def losses(self, rule: str) -> Losses | None:
        """Losses on text before and after healing, for the cuts of a rule that have both."""
        if not self.ways:
            return None
        of_cut = next(iter(self.ways.values()))
        healing = next(iter(of_cut.values()))
        found = []
        for unit in self.of_kind("loss"):
            loss = {name: unit.key[name] for name in healing.key["loss"]}
            if opened_as(unit) == opened_as(healing) and healing.key["loss"] == loss:
                found.append(self._before(unit, rule, of_cut))
        before = max(filter(None, found), key=lambda losses: len(losses.cuts), default=None)
        if before is None or len(before.cuts) < 3:
            return None
        after = [of_cut[cut].details["by_sequence"] for cut in before.cuts]
        return dataclasses.replace(before, after=np.array(after))

    def unhealed_losses(self, rule: str) -> Losses | None:
        """Losses on text before healing, for all cuts of a rule that have one: on the paper's text, where it is one."""
        unit = self.best("loss")
        return self._before(unit, rule) if unit else None

    def _before(self, unit: Unit, rule: str, among: Collection[Cut] | None = None) -> Losses | None:
        cuts = [cut for cut in self._cuts_of(unit, rule) if among is None or cut in among]
        if len(cuts) < 2 or cuts[0].size:
            return None
        before = [unit.details["by_sequence"][cut.name] for cut in cuts]
        guessing = float(np.log(unit.details["vocabulary"]))
        return Losses(cuts, np.array(before), None, self.layers, guessing)

    def _cuts_of(self, unit: Unit, rule: str) -> list[Cut]:
        """The cuts of a rule in a unit of losses, whose key names no rule.

        One of simple is similarity's too where distances say so, or, without any, where others are similarity's.
        """
        found = measured_cuts(RULES, [Cut(*cut) for cut in unit.key["cuts"]], self.layers)
        sizes = [cut.size for cut in found[rule]]
        near = [distance_matrix(one.rows) for one in self.of_kind("similarity") if one.rows["distance"].notna().all()]
        if near:
            alike = {cut for matrix in near for cut in cuts_of_rule(rule, sizes, self.layers, matrix)}
        else:
            alike = found["simple"] if set(found["similarity"]) - set(found["simple"]) else []
        return [cut for cut in found[rule] if rule == "simple" or cut not in found["simple"] or cut in alike]

    # ---- layers ----------------------------------------------------------------------------------------------

    def distances(self) -> Unit | None:
        """The angular distances that claims are judged by."""
        return self.best("similarity", "distances")


def by_model(units: Iterable[Unit]) -> dict[str, Evidence]:
    """The evidence about each model of some units, by its name."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.key["model"]["name"], []).append(unit)
    right = right_answers(unit for of_model in found.values() for unit in of_model)
    return {name: Evidence(of_model, right) for name, of_model in found.items()}


def task_of(unit: Unit, name: str) -> tuple:
    """What tells the items of a task in a unit from others."""
    return name, unit.key.get("data"), unit.key.get("limit")


def right_answers(units: Iterable[Unit]) -> RightAnswers:
    """The right choices of the subjects of MMLU, by `task_of`, as far as any model named them."""
    found: RightAnswers = {}
    for unit in units:
        if unit.kind not in ("sweep", "shots") or "outcomes" not in unit.details:
            continue
        of_cuts = unit.details["outcomes"]
        for name in next(iter(of_cuts.values())):
            if name in curves.SUBJECTS:
                answers, place = outcomes.right_answers(of_cuts, name), task_of(unit, name)
                known = found.setdefault(place, answers)
                if len(known) == len(answers):
                    found[place] = np.where(known == outcomes.UNKNOWN, answers, known)
    return found


def latest_models(units: Iterable[Unit], most: int) -> tuple[list[Unit], list[str]]:
    """The units of the models whose last sweep is the latest, of so many at most, and the names of the other models."""
    units = list(units)
    measured = {unit.key["model"]["name"]: "" for unit in units}
    for unit in units:
        if unit.kind == "sweep":
            name = unit.key["model"]["name"]
            measured[name] = max(measured[name], unit.provenance["measured"])
    names = sorted(measured, key=lambda name: (measured[name], name), reverse=True)
    return [unit for unit in units if unit.key["model"]["name"] in names[:most]], sorted(names[most:])


def opened_as(unit: Unit) -> tuple[str, str | None]:
    """The number format of a unit's model, and what its weights were quantized to."""
    return unit.key["dtype"], unit.key["quantization"]


def _items(unit: Unit) -> int:
    return int(unit.rows["items"].max())


def _is_usual(settings: dict) -> bool:
    return settings["adapters"] == "all" and not settings["auxiliary"] and "objective" not in settings
