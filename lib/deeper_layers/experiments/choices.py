"""What each rule drops and what is lost with it, changed where the rule changes weights: results of the kind "scores".

Of each rule one result has its cuts and the loss of what they leave; of each rule and task one has the scores. Where
weights stay as they are, those are the ones of a sweep, and the paper's own rules have them already.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from deeper_layers import data, rules, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.choosing import unchosen
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.scoring import answered, data_of, score
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED, RULES, Merged, merged_layers, price_in_words
from deeper_layers.rules.similarity import distance_matrix


def compare_rules(experiment: Experiment) -> None:
    """Of each rule what it drops and what that costs in loss and on every task.

    A rule that does not fit the model is named and left out.
    """
    parameters = experiment.parameters
    sizes, looked = parameters.shares(experiment.source.num_layers), [experiment.text(parameters.corpus, split="train")]
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
            changed = _changed_by(rule, details.get("merged", {}), experiment)
            how |= {"changed": changed, "reads": looked, "calibration": parameters.calibration}
        for task in parameters.task_list:
            score([task], {rule: [UNPRUNED] * (rule in RULES) + cuts}, experiment, **how)


def choose_by_rule(rule: str, sizes: list[int], experiment: Experiment) -> Result | None:
    """What a rule drops of each size, and the loss of what it leaves.

    Rows are the losses, one a size. Details: the cuts, sizes of those of sublayers, which layers were merged, where
    some were, seconds to choose, tokens looked at, passes over them as the rule's price says. Raises InputError where
    the rule can't be had of this model or size.
    """
    parameters, layers, chosen = experiment.parameters, experiment.source.num_layers, REGISTERED[rule]

    def measure(shards):
        opened = experiment.opened()
        sequences = calibration_text(parameters, opened[1], parameters.calibration_sequences)
        tokens, distances = sum(map(len, sequences)), None
        if chosen.needs == "distances":
            distances = experiment.required(measure_distances(experiment), "the distances")
            tokens = distances.details["tokens"]
        passes, heads = chosen.price(max(sizes), layers)
        print(f"{rule}: {price_in_words(passes, heads)}, over {tokens:,} tokens", file=sys.stderr)
        begin = time.monotonic()
        known: Any = distance_matrix(distances.rows) if distances else sweeping.known_of(opened[0], rule, sequences)
        cuts = chosen.choose(sizes, layers, known)
        seconds, merged = round(time.monotonic() - begin, 2), {}
        if chosen.needs == "likeness":
            merged = {str(size): merged_layers(size, layers, known) for size in sizes}
        changed = _changed_by(rule, merged, experiment) if chosen.changes else None
        rows, details = answered(parameters.texts, opened, cuts, parameters, shards, changed=changed)
        return rows, details | {
            "cuts": {rule: [cut.name for cut in cuts]},
            "merged": merged,
            "passes": float(passes),
            "tokens": tokens,
            # of cuts of sublayers how many layers they count as
            "sizes": {cut.name: size for size, cut in zip(sizes, cuts, strict=True) if not cut.is_of_layers},
            "seconds": seconds,
        }

    choice = {"rule": rule, "sizes": sizes, "calibration": parameters.calibration}
    reads = [experiment.text(parameters.corpus, split="train"), *data_of(parameters.texts, experiment)]
    settings = parameters.key | {"tasks": parameters.texts, "choice": choice}
    return experiment.result("scores", settings, reads, measure)


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


def _tuples(layers: list) -> list[Merged]:
    """Merged layers, which JSON has as lists, as tuples."""
    return [tuple(_tuples(layer)) if isinstance(layer, list) else layer for layer in layers]


def calibration_text(parameters, tokenizer, sequences: int) -> list:
    """So many sequences of the corpus that rules look at, each [T]: none is among those that losses are measured on."""
    documents = data.texts(parameters.corpus, split="train", datasets=parameters.datasets)
    length = parameters.loss_length
    return data.sequences(tokenizer, documents, length=length, tokens=sequences * length)
