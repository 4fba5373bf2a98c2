"""What a rule drops and what is lost with it, changed where the rule changes weights: results of the kind "scores".

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
from deeper_layers.experiments.distances import distances_unit
from deeper_layers.experiments.losses import loss_rows, loss_sequences, of_corpus
from deeper_layers.experiments.measurement import Measurement, items_of, text_of
from deeper_layers.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers.experiments.scoring import as_cut, score, score_task
from deeper_layers.models.sources import Source
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED, RULES, cuts_of_rule
from deeper_layers.rules.laco import merged_layers
from deeper_layers.rules.rule import Merged, price_in_words
from deeper_layers.rules.similarity import distance_matrix


def compare_rules(parameters: WhichLayersParameters, source: Source, opened: Callable, distances: Result) -> None:
    """Of each rule what it drops and what that costs in loss and on every task; of the paper's by given distances.

    A rule that does not fit the model is named and left out.
    """
    sizes, found = parameters.shares(source.num_layers), {}
    for rule in parameters.rule_list:
        try:
            found[rule] = choose_by_rule(rule, sizes, parameters, source, opened)
        except InputError as error:
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
    choices = {rule: _cuts_of(result, sizes) for rule, result in found.items() if result}
    known = distance_matrix(distances.rows)
    for rule in set(RULES) & set(choices):
        choices[rule] = dict(zip(sizes, cuts_of_rule(rule, sizes, source.num_layers, known), strict=True))
    made = _changed_models(found, parameters, opened)
    for task in parameters.task_list:
        _score_choices(task, choices, parameters, source, opened, made)


def choose_by_rule(
    rule: str, sizes: list[int], parameters: WhichLayersParameters, source: Source, opened: Callable
) -> Result | None:
    """What a rule drops of each size, and the loss of what it leaves: read from results, else measured now.

    Rows are the losses, one a size. Details: the cuts, sizes of those of sublayers, which layers were merged, where
    some were, seconds to choose, tokens looked at, passes over them as the rule's price says.
    None where nothing is to be measured and results hold no such choice.
    Raises InputError where the rule can't be had of this model or size.
    """

    def measure(shards):
        model, tokenizer = opened()
        text = calibration_text(parameters, tokenizer, parameters.calibration_sequences)
        chosen, distances, tokens = REGISTERED[rule], None, sum(map(len, text))
        if chosen.needs == "distances":
            of_blocks = distances_unit(parameters, source, opened)
            distances, tokens = distance_matrix(of_blocks.rows), of_blocks.details["tokens"]
        size, layers = max(sizes), source.num_layers
        passes = chosen.passes(size, layers)
        price = price_in_words(passes, chosen.heads(size, layers))
        fitted = parameters.bridge_sequences * parameters.loss_length
        fits = f"; for each size {chosen.fits:,.1f} more over {fitted:,}" if chosen.fits else ""
        print(f"{rule}: {price}, over {tokens:,} tokens{fits}", file=sys.stderr)
        begin = time.monotonic()
        known: Any = sweeping.known_of(model, rule, text) if distances is None else distances
        cuts = chosen.choose(sizes, layers, known)
        seconds, merged = round(time.monotonic() - begin, 2), {}
        losses = loss_sequences(tokenizer, parameters.datasets, **parameters.loss_key)
        if not chosen.changes:
            rows = loss_rows(parameters.text, *sweeping.text_loss(model, cuts, losses, shards=shards), cuts)
        else:
            text, rows = calibration_text(parameters, tokenizer, parameters.bridge_sequences), []
            if chosen.needs == "likeness":
                merged = {str(size): merged_layers(size, layers, known) for size in sizes}
            for size, cut in zip(sizes, cuts, strict=True):
                changed = rules.changed_model(model, chosen, cut, merged.get(str(size), []), text)
                whole = loss_rows(parameters.text, *sweeping.text_loss(changed, [UNPRUNED], losses), [UNPRUNED])
                rows += as_cut(whole, cut)
        return rows, {
            "cuts": {rule: [cut.name for cut in cuts]}, "merged": merged, "passes": float(passes), "tokens": tokens,
            "sizes": _sizes(dict(zip(sizes, cuts, strict=True))), "seconds": seconds,
            "vocabulary": model.get_output_embeddings().weight.shape[0],
        }  # fmt: skip

    predicted = of_corpus(parameters.loss_key, parameters.datasets)
    asked = {"rule": rule, "sizes": sizes, "calibration": parameters.calibration}
    return Measurement(
        kind="scores", source=source, measure=measure,
        settings={**parameters.key, "tasks": {predicted.text: predicted.asked}, "choice": asked},
        reads=[text_of(parameters.corpus, parameters.datasets, split="train"), predicted.reads],
    ).result(parameters)  # fmt: skip


def _score_choices(
    task: str, choices: dict[str, dict[int, Cut]], parameters: WhichLayersParameters, source: Source, opened: Callable,
    made: Callable,
) -> None:  # fmt: skip
    """A task under what each rule leaves: `choices` has its cuts by size, `made` the models that it changes."""
    # of the paper's rules there may be a sweep of more sizes
    own = {rule: [UNPRUNED, *choices[rule].values()] for rule in RULES if rule in choices}
    swept = score_task(task, own, parameters.but(measure=False), source, opened) if own else None
    for rule, by_size in choices.items():
        if REGISTERED[rule].changes:
            _score_changed(task, rule, by_size, parameters, source, opened, functools.partial(made, rule))
        elif rule not in RULES:
            score_task(task, {rule: list(by_size.values())}, parameters, source, opened, sizes=_sizes(by_size))
        elif swept is None:
            score_task(task, {rule: own[rule]}, parameters, source, opened)


def _score_changed(
    task: str, rule: str, by_size: dict[int, Cut], parameters: WhichLayersParameters, source: Source, opened: Callable,
    made: Callable,
) -> Result | None:  # fmt: skip
    """A task under the models of a rule that changes weights, `made` of a size and its cut."""

    def measure(shards):
        rows, details = [], {}
        for size, cut in by_size.items():
            changed, tokenizer = made(size, cut), opened()[1]
            of_cut, details = score(changed, tokenizer, task, [UNPRUNED], parameters, shards.part(str(size)))
            rows += as_cut(of_cut, cut)
        return rows, details

    asked = {task: parameters.asked[task].key}
    cuts = {rule: [cut.name for cut in by_size.values()]}
    return Measurement(
        kind="scores", source=source, measure=measure,
        settings={**parameters.key, "tasks": asked, "cuts": cuts, "calibration": parameters.calibration},
        reads=[text_of(parameters.corpus, parameters.datasets, split="train"), *items_of([task], parameters.datasets)],
    ).result(parameters)  # fmt: skip


def _changed_models(
    found: dict[str, Result | None], parameters: WhichLayersParameters, opened: Callable
) -> Callable[[str, int, Cut], object]:
    """What makes the model that a rule leaves of a size and its cut, from what `choose_by_rule` found.

    The last few are kept, as several tasks ask for them.
    """

    @functools.lru_cache(maxsize=8)
    def made(rule: str, size: int, cut: Cut):
        model, tokenizer = opened()
        details = chosen.details if (chosen := found[rule]) else {}
        merged = _tuples(details.get("merged", {}).get(str(size), []))
        text = calibration_text(parameters, tokenizer, parameters.bridge_sequences)
        return rules.changed_model(model, REGISTERED[rule], cut, merged, text)

    return made


def _tuples(layers: list) -> list[Merged]:
    """Merged layers, which JSON has as lists, as tuples."""
    return [tuple(_tuples(layer)) if isinstance(layer, list) else layer for layer in layers]


def calibration_text(parameters: WhichLayersParameters, tokenizer, sequences: int) -> list:
    """So many sequences of the corpus that rules look at, each [T]: none is among those that losses are measured on."""
    documents = data.texts(parameters.corpus, split="train", datasets=parameters.datasets)
    length = parameters.loss_length
    return data.sequences(tokenizer, documents, length=length, tokens=sequences * length)


def _cuts_of(result: Result, sizes: list[int]) -> dict[int, Cut]:
    """What a rule drops, by size, as its result has it."""
    return dict(zip(sizes, map(Cut.named, result.details["cuts"][result.key["choice"]["rule"]]), strict=True))


def _sizes(by_size: dict[int, Cut]) -> dict[str, int]:
    """Of cuts of sublayers how many layers they count as."""
    return {cut.name: size for size, cut in by_size.items() if not cut.is_of_layers}
