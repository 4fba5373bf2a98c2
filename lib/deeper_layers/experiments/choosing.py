"""Which layers go: what was given, every block, or what a rule chooses from what it needs to know; and rules compared.

What a rule needs is read from results, or measured and kept there. Of a search by loss each step is a result: the
losses of its candidates. So a search goes on where it was interrupted, or to more layers.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deeper_layers import data, export, results, rules, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.distances import drawn_batches, known_distances
from deeper_layers.experiments.experiment import CutsOf, Data, Experiment, distinct_cuts, named
from deeper_layers.experiments.scoring import NUMBERS, answered, data_of, score
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED, RULES, Losses, MergedLayer, choose_merges, price_in_words

if TYPE_CHECKING:  # torch
    from deeper_layers.export.tensors import Changed

FITTED = 64  # of the sequences of the distances, on which a bridge is fitted


@dataclasses.dataclass(frozen=True)
class Unchosen(Cut):  # ty: ignore[subclass-of-dataclass-with-order]  # they are sorted by their fields
    """In a plan, what a rule will drop once it is measured what it needs: it shares nothing with any other cut."""

    rule: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule} {self.size}"

    def runs(self, layer: int) -> str | None:
        return None if layer in self.dropped else self.name


def unchosen(rule: str, sizes: Iterable[int]) -> list[Cut]:
    """What stands in a plan for the cuts of a rule."""
    return [Unchosen(0, size, rule=rule) if size else UNPRUNED for size in sizes]


def blocks(sizes: Iterable[int], num_layers: int, starts: Sequence[int] = ()) -> CutsOf:
    """The whole model and every contiguous block of some sizes, that with the last layer too; or of some starts.

    Raises InputError for a block that the model does not have.
    """
    found = {}
    for size in filter(None, sizes):
        cuts = [Cut(start, size) for start in starts or range(max(1, num_layers - size + 1))]
        for cut in cuts:
            cut.check(num_layers)
        found[f"blocks of {size}"] = [UNPRUNED, *cuts]
    return found


def cuts_of_tasks(experiment: Experiment) -> dict[str, CutsOf]:
    """For each task and text the cuts by rule: those that the parameters name, else what rules choose of its sizes."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if cuts_of := parameters.named_cuts(layers):
        return dict.fromkeys(parameters.asked, cuts_of)
    for task in parameters.task_list if parameters.measure else ():
        if not results.is_measured(task, parameters.folder):
            Data(task).fingerprint(parameters.datasets)  # what can't be read is told of before anything is measured
    return {task: choose_cuts(parameters.size_list(layers, task), experiment) for task in parameters.asked}


def choose_cuts(sizes: Sequence[int], experiment: Experiment) -> CutsOf:
    """The cut of each size under each rule of the parameters; in a plan, where it is not known, what stands for it."""
    found = {}
    for rule in experiment.parameters.rule_list:
        try:
            found[rule] = cuts_of_rule(rule, sizes, experiment.source.num_layers, experiment)
        except NotMeasuredError:
            if experiment.lacking is None:
                raise
            found[rule] = unchosen(rule, sizes)
    return found


def cuts_of_rule(
    rule: str, sizes: Sequence[int], layers: int, experiment: Experiment, *, of_any_dtype: bool = False
) -> list[Cut]:
    """The cut of each size under a rule, of a model of so many layers; what it needs is read, or measured.

    Distances may be of another data type if `of_any_dtype`, where results hold those alone. Raises NotMeasuredError
    where nothing is to be measured and results lack something, InputError for sizes that do not fit.
    """
    chosen, known = REGISTERED[rule], None
    if not any(sizes):  # the whole model, which no rule has to choose
        return [UNPRUNED] * len(sizes)
    if chosen.needs == "distances":
        known = known_distances(experiment, of_any_dtype=of_any_dtype)
    elif chosen.needs == "losses":
        known = _losses(rule, max(sizes), experiment)
    elif chosen.needs:
        known = _looked_at(rule, experiment)
    return chosen.choose(sizes, layers, known)


def safe_cut(rule: str, size: int, layers: int, experiment: Experiment, safe: Callable[[list[Cut]], list[Cut]]) -> Cut:
    """Of the blocks that `safe` gives of some the most similar one, or that nearest to the simple heuristic's."""
    if rule not in RULES:
        raise InputError(f"rule is {rule}, expected one that chooses among blocks: give one of {', '.join(RULES)}")
    if not (blocks := safe([Cut(start, size) for start in range(layers - size)])):
        raise InputError(
            f"size is {size}, and no block of so many layers before the last can go without one of these engines "
            "taking others for what they are not: choose another number, or leave out the engines"
        )
    if not REGISTERED[rule].needs:
        return blocks[-1]
    distances = known_distances(experiment, of_any_dtype=True)
    return min(blocks, key=lambda cut: distances[cut.size - 1, cut.start])


def changed_choice(rule: str, size: int, experiment: Experiment) -> tuple[Cut, "Changed"]:
    """What a rule drops that changes weights too, and what becomes of the layers that stay.

    It looks at the sequences of the distances; a bridge is fitted on the first of them.
    """
    chosen, known, parameters = REGISTERED[rule], _looked_at(rule, experiment), experiment.parameters
    layers, (model, _) = experiment.source.num_layers, experiment.opened()
    cut = chosen.choose([size], layers, known)[0]
    merged = choose_merges(size, layers, known) if chosen.needs == "likeness" else []
    changed = rules.changed_model(model, chosen, cut, merged, _sequences(experiment)[:FITTED])
    looked = f"{parameters.samples} sequences of {parameters.sequence_length} tokens of {parameters.corpus}"
    words = f"{rule}: {chosen.words} ({chosen.source}); it looked at {looked}"
    return cut, export.Changed(rules.changed_tensors(model, changed, cut), words)


def _looked_at(rule: str, experiment: Experiment) -> Any:
    """What a rule needs that one look at the text of the distances gives: measured each time, nothing of it is kept."""
    if not experiment.parameters.measure:
        experiment.required(None, f"the {REGISTERED[rule].needs} that the rule {rule!r} needs")
    return sweeping.known_of(experiment.opened()[0], rule, _sequences(experiment))


def _sequences(experiment: Experiment) -> list:
    """The sequences of the distances, each [T], without padding."""
    batches = drawn_batches(experiment)
    return [ids[mask.bool()] for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def _losses(rule: str, size: int, experiment: Experiment) -> Losses:
    """What gives the losses of candidates on the text of the distances: each step read from results, else measured."""
    parameters = experiment.parameters
    asked = {parameters.corpus: {"limit": parameters.samples, "length": parameters.sequence_length}}

    @functools.cache
    def sequences() -> list:
        price = price_in_words(*REGISTERED[rule].price(size, experiment.source.num_layers))
        tokens = parameters.samples * parameters.sequence_length
        print(f"{rule}: {price}, over at most {tokens:,} tokens; each step is kept in results", file=sys.stderr)
        return _sequences(experiment)

    def losses(cuts: list[Cut]) -> list[float]:
        cuts_of = {GIVEN: cuts}

        def measure(shards):
            distinct, texts = distinct_cuts(cuts_of), sequences()
            table, _ = sweeping.text_loss(experiment.opened()[0], distinct, texts, shards=shards)
            rows = table[[*NUMBERS]].to_dict("records")
            rows = [row | {"task": parameters.corpus, "cut": cut.name} for cut, row in zip(distinct, rows)]
            return rows, {"tokens": sum(map(len, texts))}

        settings = parameters.key | {"seed": parameters.seed, "tasks": asked, "cuts": named(cuts_of)}
        found = experiment.result("scores", settings, [Data(parameters.corpus)], measure)
        rows = experiment.required(found, f"the losses of {len(cuts)} candidates").rows
        return rows.set_index("cut")["value"][[cut.name for cut in cuts]].tolist()

    return losses


# ---- rules compared ----------------------------------------------------------------------------------------------


def compare_rules(experiment: Experiment) -> None:
    """Of each rule what it drops and what that costs in loss and on every task, changed where it changes weights.

    Where weights stay as they are, scores are those of a sweep. A rule that does not fit the model is named and left
    out.
    """
    parameters = experiment.parameters
    sizes = parameters.shares(experiment.source.num_layers)
    for rule in parameters.rule_list:
        try:
            found = choose_by_rule(rule, sizes, experiment)
        except InputError as error:
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
            continue
        details = found.details if found else {}
        cuts = [Cut.named(name) for name in details["cuts"][rule]] if found else unchosen(rule, sizes)
        how: dict = {"details": {"sizes": details.get("sizes", {})}}
        if REGISTERED[rule].changes:
            how["changed"] = _changed_by(rule, details.get("merged", {}), experiment)
            how |= {"reads": [_looked_on(parameters)], "calibration": parameters.calibration}
        for task in parameters.task_list:
            score([task], {rule: [UNPRUNED] * (rule in RULES) + cuts}, experiment, **how)


def choose_by_rule(rule: str, sizes: list[int], experiment: Experiment) -> Result | None:
    """What a rule drops of each size, and the loss of what it leaves.

    Rows are the losses, one a size. Details: the cuts, sizes of those of sublayers, which layers were merged. Raises
    InputError where the rule can't be had of this model or size.
    """
    parameters, layers, chosen = experiment.parameters, experiment.source.num_layers, REGISTERED[rule]

    def measure(shards):
        opened, merged = experiment.opened(), {}
        if chosen.needs == "distances":
            known = known_distances(experiment)
        else:
            sequences = calibration_text(parameters, opened[1], parameters.calibration_sequences)
            known = sweeping.known_of(opened[0], rule, sequences)
            if chosen.needs == "likeness":
                merged = {str(size): choose_merges(size, layers, known) for size in sizes}
        cuts = chosen.choose(sizes, layers, known)
        changed = _changed_by(rule, merged, experiment) if chosen.changes else None
        rows, details = answered(parameters.texts, opened, cuts, parameters, shards, changed=changed)
        # of cuts of sublayers how many layers they count as
        counted = {cut.name: size for size, cut in zip(sizes, cuts, strict=True) if not cut.is_of_layers}
        return rows, details | {"cuts": named({rule: cuts}), "merged": merged, "sizes": counted}

    choice = {"rule": rule, "sizes": sizes, "calibration": parameters.calibration}
    settings = parameters.key | {"tasks": parameters.texts, "choice": choice}
    return experiment.result("scores", settings, [_looked_on(parameters), *data_of(parameters.texts)], measure)


def _changed_by(rule: str, merged: dict[str, list], experiment: Experiment) -> Callable[[Cut], object]:
    """What makes the model that a rule leaves after a cut; each is kept, as several tasks ask for it.

    `merged` has by size the layers that are left, where the rule merges some.
    """

    @functools.cache
    def changed(cut: Cut):
        model, tokenizer = experiment.opened()
        text = calibration_text(experiment.parameters, tokenizer, experiment.parameters.bridge_sequences)
        return rules.changed_model(model, REGISTERED[rule], cut, _tuples(merged.get(str(cut.size), [])), text)

    return changed


def _tuples(layers: list) -> list[MergedLayer]:
    """Merged layers, which JSON has as lists, as tuples."""
    return [tuple(_tuples(layer)) if isinstance(layer, list) else layer for layer in layers]


def _looked_on(parameters) -> Data:
    """The text that rules look at where they are compared: none of it is among that which losses are measured on."""
    return Data(parameters.corpus, {"split": "train"})


def calibration_text(parameters, tokenizer, sequences: int) -> list:
    """So many sequences of it, each [T]."""
    documents = data.texts(parameters.corpus, split="train", datasets=parameters.datasets)
    length = parameters.loss_length
    return data.sequences(tokenizer, documents, length=length, tokens=sequences * length)
