"""Which layers are dropped: a given cut, every block, or the cut that a rule chooses; and a comparison of the rules.

The inputs of a rule are read from results, or measured and kept there. Each step of a search by loss is one result: the
losses of its candidates. So an interrupted search continues, and a finished one extends to more layers.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deeper_layers import data, export, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers_companion import results, rules
from deeper_layers_companion.experiments.distances import draw_batches, require_distance_matrix
from deeper_layers_companion.experiments.experiment import CutsByRule, Data, Experiment, name_cuts, sort_cuts
from deeper_layers_companion.experiments.scoring import MEASURED, list_data, score, score_models
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import REGISTERED, RULES, Losses, choose_merges, describe_price

if TYPE_CHECKING:  # imports torch
    from deeper_layers.export.tensors import Changed

BRIDGE_SEQUENCES = 64  # a bridge is fitted on so many of the sequences of the distances
CALIBRATION: dict = {"split": "train"}  # compared rules are calibrated on this split, and losses are of another


@dataclasses.dataclass(frozen=True)
class UnknownCut(Cut):  # ty: ignore[subclass-of-dataclass-with-order]  # cuts are sorted by their fields
    """A placeholder in a plan, where the inputs of a rule are not measured yet. It shares no work with other cuts."""

    rule: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule} {self.size}"

    def runs(self, layer: int) -> str | None:
        return None if layer in self.dropped else self.name


def list_unknown_cuts(rule: str, sizes: Iterable[int]) -> list[Cut]:
    """The placeholders, in a plan, for the cuts of a rule; size 0 is the whole model."""
    return [UnknownCut(0, size, rule=rule) if size else UNPRUNED for size in sizes]


def list_blocks(sizes: Iterable[int], num_layers: int, starts: Sequence[int] = ()) -> CutsByRule:
    """The whole model and every block of these sizes, or those with these starts; the last layer may be dropped.
    Raises InputError for a block that does not fit into the model."""
    cuts_by_rule = {}
    for size in filter(None, sizes):
        cuts = [Cut(start, size) for start in starts or range(max(1, num_layers - size + 1))]
        for cut in cuts:
            cut.check(num_layers)
        cuts_by_rule[f"blocks of {size}"] = [UNPRUNED, *cuts]
    return cuts_by_rule


def choose_cuts_for_tasks(experiment: Experiment) -> dict[str, CutsByRule]:
    """For each task and text its cuts by rule: those given by the parameters, else those that the rules choose."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if cuts_by_rule := parameters.find_given_cuts(layers):
        return dict.fromkeys(parameters.parsed_tasks, cuts_by_rule)
    for task in parameters.task_list if parameters.measure else ():
        if not results.is_measured(task, parameters.folder):
            Data(task).fingerprint(parameters.datasets)  # fail on unreadable data before anything is measured
    return {task: choose_cuts(parameters.list_sizes(layers, task), experiment) for task in parameters.parsed_tasks}


def choose_cuts(sizes: Sequence[int], experiment: Experiment) -> CutsByRule:
    """The cut of each size under each rule of the parameters; in a plan, a placeholder where it is not known."""
    cuts_by_rule = {}
    for rule in experiment.parameters.rule_list:
        try:
            cuts_by_rule[rule] = choose_cuts_of_rule(rule, sizes, experiment.source.num_layers, experiment)
        except NotMeasuredError:
            if experiment.missing is None:
                raise
            cuts_by_rule[rule] = list_unknown_cuts(rule, sizes)
    return cuts_by_rule


def choose_cuts_of_rule(
    rule: str, sizes: Sequence[int], layers: int, experiment: Experiment, *, any_dtype: bool = False
) -> list[Cut]:
    """The cut of each size under a rule, for a model of `layers` layers. The rule's inputs are read, or measured.

    With `any_dtype`, distances measured in another data type serve too, if results hold no others. Raises
    NotMeasuredError if an input is missing and may not be measured, and InputError for sizes that do not fit.
    """
    rule_entry, inputs = REGISTERED[rule], None
    if not any(sizes):  # only the whole model: there is nothing to choose
        return [UNPRUNED] * len(sizes)
    if rule_entry.needs == "distances":
        inputs = require_distance_matrix(experiment, any_dtype=any_dtype)
    elif rule_entry.needs == "losses":
        inputs = _make_loss_function(rule, max(sizes), experiment)
    elif rule_entry.needs:
        inputs = _measure_inputs(rule, experiment)
    return rule_entry.choose(sizes, layers, inputs)


def choose_safe_cut(
    rule: str, size: int, layers: int, experiment: Experiment, safe: Callable[[list[Cut]], list[Cut]]
) -> Cut:
    """The most similar block among those that `safe` keeps; the last of them for a rule that needs no distances."""
    if rule not in RULES:
        raise InputError(f"rule is {rule}, expected one that chooses among blocks: give one of {', '.join(RULES)}")
    if not (blocks := safe([Cut(start, size) for start in range(layers - size)])):
        raise InputError(
            f"size is {size}, and no block of so many layers before the last can go without one of these engines "
            "taking others for what they are not: choose another number, or leave out the engines"
        )
    if not REGISTERED[rule].needs:
        return blocks[-1]
    distances = require_distance_matrix(experiment, any_dtype=True)
    return min(blocks, key=lambda cut: distances[cut.size - 1, cut.start])


def choose_cut_and_changes(rule: str, size: int, experiment: Experiment) -> tuple[Cut, "Changed"]:
    """The cut of a rule that also changes weights, and the changed weights of the layers that stay. The rule is
    calibrated on the sequences of the distances; a bridge is fitted on the first of them."""
    rule_entry, inputs, parameters = REGISTERED[rule], _measure_inputs(rule, experiment), experiment.parameters
    layers, (model, _) = experiment.source.num_layers, experiment.open_model()
    cut = rule_entry.choose([size], layers, inputs)[0]
    merged = choose_merges(size, layers, inputs) if rule_entry.needs == "likeness" else []
    changed = rules.change_model(model, rule_entry, cut, merged, _draw_sequences(experiment)[:BRIDGE_SEQUENCES])
    looked = f"{parameters.samples} sequences of {parameters.sequence_length} tokens of {parameters.corpus}"
    words = f"{rule}: {rule_entry.words} ({rule_entry.source}); it looked at {looked}"
    return cut, export.Changed(rules.find_changed_tensors(model, changed, cut), words)


def _measure_inputs(rule: str, experiment: Experiment) -> Any:
    """The inputs of a rule from one pass over the sequences of the distances: measured each time, and not kept."""
    if not experiment.parameters.measure:
        experiment.require(None, f"the {REGISTERED[rule].needs} that the rule {rule!r} needs")
    return rules.measure_rule_needs(experiment.open_model()[0], rule, _draw_sequences(experiment))


def _draw_sequences(experiment: Experiment) -> list:
    """The token ids of the sequences of the distances, each [T], without padding."""
    batches = draw_batches(experiment)
    return [ids[mask.bool()] for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def _make_loss_function(rule: str, size: int, experiment: Experiment) -> Losses:
    """A function from candidates to their losses on the text of the distances: read from results, else measured."""
    parameters = experiment.parameters
    tasks = {parameters.corpus: {"limit": parameters.samples, "length": parameters.sequence_length}}

    @functools.cache
    def sequences() -> list:
        price = describe_price(*REGISTERED[rule].price(size, experiment.source.num_layers))
        tokens = parameters.samples * parameters.sequence_length
        print(f"{rule}: {price}, over at most {tokens:,} tokens; each step is kept in results", file=sys.stderr)
        return _draw_sequences(experiment)

    def losses(cuts: list[Cut]) -> list[float]:
        given = {GIVEN: cuts}

        def measure(shards):
            distinct, texts = sort_cuts(given), sequences()
            table, _ = sweeping.text_loss(experiment.open_model()[0], distinct, texts, shards=shards)
            rows = table[[*MEASURED]].to_dict("records")
            rows = [row | {"task": parameters.corpus, "cut": cut.name} for cut, row in zip(distinct, rows)]
            return rows, {"tokens": sum(map(len, texts))}

        settings = parameters.base_settings | {"seed": parameters.seed, "tasks": tasks, "cuts": name_cuts(given)}
        result = experiment.find_or_measure("scores", settings, [Data(parameters.corpus)], measure)
        rows = experiment.require(result, f"the losses of {len(cuts)} candidates").rows
        return rows.set_index("cut")["value"][[cut.name for cut in cuts]].tolist()

    return losses


# ---- rules compared ----------------------------------------------------------------------------------------------


def compare_rules(experiment: Experiment) -> None:
    """Measure the cuts of every rule, and the losses and task scores of the models that they leave. A rule that changes
    no weights shares its scores with sweeps. A rule that does not fit the model is skipped, with a message on stderr.
    """
    parameters = experiment.parameters
    sizes = parameters.list_share_sizes(experiment.source.num_layers)
    for rule in parameters.rule_list:
        try:
            choice = measure_choice(rule, sizes, experiment)
        except InputError as error:
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
            continue
        details = choice.details if choice else {}
        cuts = [Cut.named(name) for name in details["cuts"][rule]] if choice else list_unknown_cuts(rule, sizes)
        options: dict = {"details": {"sizes": details.get("sizes", {})}}
        if REGISTERED[rule].changes:
            options["changed"] = _make_model_changer(rule, details.get("merged", {}), experiment)
            options |= {"reads": [Data(parameters.corpus, CALIBRATION)], "calibration": parameters.calibration}
        for task in parameters.task_list:
            score([task], {rule: [UNPRUNED] * (rule in RULES) + cuts}, experiment, **options)


def measure_choice(rule: str, sizes: list[int], experiment: Experiment) -> Result | None:
    """The result with the cuts of a rule, one for each size, and the losses of the pruned models.

    Rows are the losses. Details hold the cuts, the sizes of cuts of sublayers, and the merged layers. Raises InputError
    if the rule does not fit the model or a size.
    """
    parameters, layers, rule_entry = experiment.parameters, experiment.source.num_layers, REGISTERED[rule]

    def measure(shards):
        opened, merged = experiment.open_model(), {}
        if rule_entry.needs == "distances":
            inputs = require_distance_matrix(experiment)
        else:
            text = _read_calibration_text(experiment, parameters.calibration_sequences)
            inputs = rules.measure_rule_needs(opened[0], rule, text, shards)
            if rule_entry.needs == "likeness":
                merged = {str(size): choose_merges(size, layers, inputs) for size in sizes}
        cuts = rule_entry.choose(sizes, layers, inputs)
        changed = _make_model_changer(rule, merged, experiment) if rule_entry.changes else None
        rows, details = score_models(parameters.texts, opened, cuts, parameters, shards, changed=changed)
        # how many layers a cut of sublayers counts as
        counted = {cut.name: size for size, cut in zip(sizes, cuts, strict=True) if not cut.is_of_layers}
        return rows, details | {"cuts": name_cuts({rule: cuts}), "merged": merged, "sizes": counted}

    choice = {"rule": rule, "sizes": sizes, "calibration": parameters.calibration}
    settings = parameters.base_settings | {"tasks": parameters.texts, "choice": choice}
    reads = [Data(parameters.corpus, CALIBRATION), *list_data(parameters.texts)]
    return experiment.find_or_measure("scores", settings, reads, measure)


def _make_model_changer(rule: str, merged: dict[str, list], experiment: Experiment) -> Callable[[Cut], object]:
    """A function from a cut to the changed model of a rule. Models are cached, as several tasks need the same one.
    `merged` maps a size to the layers that are left, for a rule that merges layers."""
    parameters = experiment.parameters

    @functools.cache
    def changed(cut: Cut):
        model, text = experiment.open_model()[0], _read_calibration_text(experiment, parameters.bridge_sequences)
        return rules.change_model(model, REGISTERED[rule], cut, merged.get(str(cut.size), []), text)

    return changed


def _read_calibration_text(experiment: Experiment, sequences: int) -> list:
    """The token ids of the first `sequences` sequences on which compared rules are calibrated, each [T]."""
    parameters, length = experiment.parameters, experiment.parameters.loss_length
    documents = data.texts(parameters.corpus, datasets=parameters.datasets, **CALIBRATION)
    return data.token_sequences(experiment.open_model()[1], documents, length=length, tokens=sequences * length)
