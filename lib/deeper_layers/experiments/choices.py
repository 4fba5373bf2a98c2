"""What a rule drops and what is lost with it, changed where the rule changes weights: measured units.

Of each rule one unit has its cuts and the loss of what they leave; of each rule and task one has the scores. Where
weights stay as they are, those are the units of a sweep, and the paper's own rules have them already.
"""

import functools
import sys
import time
from collections.abc import Callable

import pandas as pd

from deeper_layers import data, rules, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.block_parameters import WhichLayersParameters
from deeper_layers.experiments.distances import distances_unit
from deeper_layers.experiments.losses import loss_sequences
from deeper_layers.experiments.measurement import Measurement, items_of, text_of
from deeper_layers.experiments.sweeps import sweep_unit
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import REGISTERED, RULES
from deeper_layers.rules.laco import merged_layers
from deeper_layers.rules.rule import Merged
from deeper_layers.rules.similarity import distance_matrix

VERSION = 1  # part of every unit's key: raise it when a change here, in rules or in bridges changes numbers


def choice_unit(
    rule: str, sizes: list[int], parameters: WhichLayersParameters, source: Source, opened: Callable
) -> Unit | None:
    """What a rule drops of each size, and the loss of what it leaves: read from results, else measured now.

    Rows: task, metric "loss", size, layers, attention and mlp (what is dropped), value, stderr, items. Details: losses
    by sequence for each size, which layers were merged, where some were, seconds to choose, tokens looked at, passes
    over them as the rule's price says.
    None where nothing is to be measured and results hold no such unit.
    Raises InputError where the rule can't be had of this model or size.
    """

    def measure(shards):
        model, tokenizer = opened()
        text = calibration_text(parameters, tokenizer, parameters.calibration_sequences)
        chosen, known, tokens = REGISTERED[rule], {}, sum(map(len, text))
        if chosen.needs == "distances":
            unit = distances_unit(parameters, source, opened)
            known, tokens = {"distances": distance_matrix(unit.rows)}, unit.details["tokens"]
        passes, price = (of(max(sizes), source.num_layers) for of in (chosen.passes, chosen.price))
        fitted = parameters.bridge_sequences * parameters.loss_length
        fits = f"; for each size {chosen.fits:,.1f} more over {fitted:,}" if chosen.fits else ""
        print(f"{rule}: {price}, over {tokens:,} tokens{fits}", file=sys.stderr)
        begin = time.monotonic()
        found = sweeping.known_of(model, rule, text, **known)
        cuts = chosen.choose(sizes, found)
        seconds, merged = round(time.monotonic() - begin, 2), {}
        losses = loss_sequences(tokenizer, parameters.datasets, **parameters.loss_key)
        if not chosen.changes:
            rows, by_cut = sweeping.text_loss(model, cuts, losses, shards=shards)
            by_sequence = {str(size): by_cut[cut.name] for size, cut in zip(sizes, cuts, strict=True)}
        else:
            text = calibration_text(parameters, tokenizer, parameters.bridge_sequences)
            tables, by_sequence = [], {}
            if found.likeness:
                merged = {str(size): merged_layers(size, found.layers, found.likeness) for size in sizes}
            for size, cut in zip(sizes, cuts, strict=True):
                changed = rules.changed_model(model, chosen, cut, merged.get(str(size), []), text)
                table, by_whole = sweeping.text_loss(changed, [UNPRUNED], losses)
                tables.append(table)
                by_sequence[str(size)] = by_whole[UNPRUNED.name]
            rows = pd.concat(tables, ignore_index=True)
        rows = rows[["metric", "value", "stderr", "items"]]
        rows.insert(0, "task", parameters.text)
        for place, (name, values) in enumerate(parts_of(sizes, cuts).items(), 2):
            rows.insert(place, name, values)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        counted = {"passes": float(passes), "tokens": tokens, "seconds": seconds}
        return rows, {"by_sequence": by_sequence, "vocabulary": vocabulary, "merged": merged} | counted

    return Measurement(
        kind="choice", name=rule, version=VERSION, source=source, measure=measure,
        settings={
            **parameters.key, "rule": rule, "sizes": sizes, "calibration": parameters.calibration,
            **parameters.loss_key,
        },
        reads=[
            text_of(parameters.corpus, parameters.datasets, split="train"),
            text_of(parameters.text, parameters.datasets, split="validation"),
        ],
    ).unit(parameters)  # fmt: skip


def score_units(
    task: str, choices: dict[str, dict[int, Cut]], units: dict[str, Unit], parameters: WhichLayersParameters,
    source: Source, opened: Callable, made: Callable,
) -> dict[str, Unit]:  # fmt: skip
    """By rule, what is scored on a task of what each leaves: read from results, else measured now.

    `choices` has the cuts of each rule by size, `units` what `choice_unit` gave, and `made` the models of rules that
    change weights, as `changed_models` has them. A rule is left out where nothing is to be measured and results hold no
    such unit.
    """
    # of the paper's rules there may be a sweep of more sizes
    own = {rule: [UNPRUNED, *choices[rule].values()] for rule in RULES if rule in choices}
    published = sweep_unit(task, own, parameters.but(measure=False), source, opened) if own else None
    found: dict[str, Unit | None] = {} if published is None else dict.fromkeys(own, published)
    for rule, by_size in choices.items():
        if rule in found:
            continue
        if not REGISTERED[rule].changes:
            by_size = by_size if rule not in RULES else {0: UNPRUNED, **by_size}
            found[rule] = sweep_unit(task, {rule: list(by_size.values())}, parameters, source, opened, kind="cuts")
        elif rule in units:
            models = functools.partial(made, rule)
            found[rule] = _changed_unit(task, rule, by_size, parameters, source, opened, models)
    return {rule: unit for rule, unit in found.items() if unit is not None}


def _changed_unit(
    task: str, rule: str, by_size: dict[int, Cut], parameters: WhichLayersParameters, source: Source, opened: Callable,
    made: Callable,
) -> Unit | None:  # fmt: skip
    """A task under the models of a rule that changes weights, `made` of a size and its cut; rows as of a sweep."""

    def measure(shards):
        tables, outcomes = [], {}
        for size, cut in by_size.items():
            options, parts = parameters.sweep_options(task), shards.part(str(size))
            table = sweeping.sweep(made(size, cut), opened()[1], [task], [UNPRUNED], shards=parts, **options)
            levels, outcomes[cut.name] = table.attrs["levels"], table.attrs["outcomes"][UNPRUNED.name]
            tables.append(table.assign(start=cut.start, size=cut.size, cut=cut.name))
        return pd.concat(tables, ignore_index=True), {"outcomes": outcomes, "levels": levels}

    return Measurement(
        kind="changed", name=task, version=VERSION, source=source, measure=measure,
        settings={
            **parameters.key, "rule": rule, "cuts": [cut.name for cut in by_size.values()], "task": task,
            "calibration": parameters.calibration, "limit": parameters.limits[task],
            "num_fewshot": parameters.shots[task], "engine": None,
        },
        reads=[text_of(parameters.corpus, parameters.datasets, split="train"), *items_of([task], parameters.datasets)],
    ).unit(parameters)  # fmt: skip


def changed_models(
    units: dict[str, Unit], parameters: WhichLayersParameters, opened: Callable
) -> Callable[[str, int, Cut], object]:
    """What makes the model that a rule leaves of a size and its cut, from what `choice_unit` found.

    The last few are kept, as several tasks ask for them.
    """

    @functools.lru_cache(maxsize=8)
    def made(rule: str, size: int, cut: Cut):
        model, tokenizer = opened()
        merged = _tuples(units[rule].details.get("merged", {}).get(str(size), []))
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


def parts_of(sizes: list[int], cuts: list[Cut]) -> dict[str, list]:
    """The columns that say what is dropped."""
    return {
        "size": sizes,
        "layers": [list(cut.dropped) for cut in cuts],
        "attention": [list(cut.attention) for cut in cuts],
        "mlp": [list(cut.mlp) for cut in cuts],
    }
