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
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.losses import loss_data, loss_rows, requests_of
from deeper_layers.experiments.scoring import as_cut, score_task
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED, RULES, price_in_words
from deeper_layers.rules.laco import Merged, merged_layers
from deeper_layers.rules.similarity import distance_matrix


def compare_rules(experiment: Experiment) -> None:
    """Of each rule what it drops and what that costs in loss and on every task.

    A rule that does not fit the model is named and left out.
    """
    parameters = experiment.parameters
    sizes = parameters.shares(experiment.source.num_layers)
    for rule in parameters.rule_list:
        try:
            details = choose_by_rule(rule, sizes, experiment).details
        except InputError as error:
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
            continue
        cuts, whole = [Cut.named(name) for name in details["cuts"][rule]], [UNPRUNED] if rule in RULES else []
        changed = _changed_by(rule, details.get("merged", {}), experiment) if REGISTERED[rule].changes else None
        for task in parameters.task_list:
            score_task(task, {rule: [*whole, *cuts]}, experiment, sizes=details.get("sizes"), changed=changed)


def choose_by_rule(rule: str, sizes: list[int], experiment: Experiment) -> Result:
    """What a rule drops of each size, and the loss of what it leaves: read from results, else measured now.

    Rows are the losses, one a size. Details: the cuts, sizes of those of sublayers, which layers were merged, where
    some were, seconds to choose, tokens looked at, passes over them as the rule's price says.
    Raises NotMeasuredError where nothing is to be measured and results hold no such choice, and InputError where the
    rule can't be had of this model or size.
    """
    parameters, layers, chosen = experiment.parameters, experiment.source.num_layers, REGISTERED[rule]
    ((text, asked),) = parameters.loss.items()

    def measure(shards):
        model, tokenizer = experiment.opened()
        sequences = calibration_text(parameters, tokenizer, parameters.calibration_sequences)
        distances, tokens = None, sum(map(len, sequences))
        if chosen.needs == "distances":
            distances = measure_distances(experiment)
            tokens = distances.details["tokens"]
        passes, heads = chosen.passes(max(sizes), layers), chosen.heads(max(sizes), layers)
        print(f"{rule}: {price_in_words(passes, heads)}, over {tokens:,} tokens", file=sys.stderr)
        begin = time.monotonic()
        known: Any = distance_matrix(distances.rows) if distances else sweeping.known_of(model, rule, sequences)
        cuts = chosen.choose(sizes, layers, known)
        seconds, merged = round(time.monotonic() - begin, 2), {}
        requests = requests_of(text, asked, model, tokenizer, parameters.datasets)
        if not chosen.changes:
            rows = loss_rows(text, model, cuts, requests, shards=shards)
        else:
            if chosen.needs == "likeness":
                merged = {str(size): merged_layers(size, layers, known) for size in sizes}
            changed, rows = _changed_by(rule, merged, experiment), []
            for cut in cuts:
                rows += as_cut(loss_rows(text, changed(cut), [UNPRUNED], requests), cut)
        return rows, {
            "cuts": {rule: [cut.name for cut in cuts]},
            "merged": merged,
            "passes": float(passes),
            "tokens": tokens,
            # of cuts of sublayers how many layers they count as
            "sizes": {cut.name: size for size, cut in zip(sizes, cuts, strict=True) if not cut.is_of_layers},
            "seconds": seconds,
            "vocabulary": model.get_output_embeddings().weight.shape[0],
        }

    choice = {"rule": rule, "sizes": sizes, "calibration": parameters.calibration}
    reads = [experiment.text(parameters.corpus, split="train"), loss_data(text, asked, experiment)]
    settings = parameters.key | {"tasks": parameters.loss, "choice": choice}
    return experiment.required(experiment.result("scores", settings, reads, measure), f"the choice of {rule}")


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
