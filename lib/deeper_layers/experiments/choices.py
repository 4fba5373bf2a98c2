"""What a rule drops and the loss of what it leaves, changed where the rule changes weights: a measured unit."""

import sys
import time
from collections.abc import Callable

import pandas as pd

from deeper_layers import bridges, data, evaluation
from deeper_layers.cuts import Cut
from deeper_layers.experiments.block_parameters import WhichLayersParameters
from deeper_layers.experiments.distances import distances_unit
from deeper_layers.experiments.losses import loss_sequences
from deeper_layers.experiments.measurement import Measurement, text_of
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.rules.laco import merged_layers
from deeper_layers.rules.rule import LAST_TAKEN, MERGED
from deeper_layers.rules.similarity import distance_matrix

VERSION = 1  # part of every unit's key: raise it when a change here, in rules or in bridges changes numbers


def choice_unit(
    rule: str, sizes: list[int], parameters: WhichLayersParameters, source: Source, opened: Callable
) -> Unit | None:
    """What a rule drops of each size, and the loss of what it leaves: read from results, else measured now.

    Rows: task, metric "loss", size, layers, attention and mlp (what is dropped), value, stderr, items. Details: losses
    by sequence for each size, seconds to choose, tokens looked at, passes over them as the rule's price says.
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
        print(f"{rule}: {price}, over {tokens:,} tokens", file=sys.stderr)
        begin = time.monotonic()
        found = evaluation.known_of(model, rule, text, **known)
        cuts = chosen.choose(sizes, found)
        seconds = round(time.monotonic() - begin, 2)
        losses = loss_sequences(parameters, tokenizer)
        if not chosen.changes:
            rows, by_cut = evaluation.text_loss(model, cuts, losses, shards=shards)
            by_sequence = {str(size): by_cut[cut.name] for size, cut in zip(sizes, cuts, strict=True)}
        else:
            text = calibration_text(parameters, tokenizer, parameters.bridge_sequences)
            tables, by_sequence = [], {}
            for size, cut in zip(sizes, cuts, strict=True):
                changed = model
                if chosen.changes in (MERGED, LAST_TAKEN) and found.likeness:
                    layers = merged_layers(size, found.layers, found.likeness)
                    changed = bridges.merged_model(model, layers, chosen.changes)
                elif size:
                    changed = bridges.bridged(model, cut, text, chosen.changes)
                table, by_whole = evaluation.text_loss(changed, [Cut(0, 0)], losses)
                tables.append(table)
                by_sequence[str(size)] = by_whole[Cut(0, 0).name]
            rows = pd.concat(tables, ignore_index=True)
        rows = rows[["metric", "value", "stderr", "items"]]
        rows.insert(0, "task", parameters.text)
        for place, (name, values) in enumerate(parts_of(sizes, cuts).items(), 2):
            rows.insert(place, name, values)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        counted = {"passes": float(passes), "tokens": tokens, "seconds": seconds}
        return rows, {"by_sequence": by_sequence, "vocabulary": vocabulary} | counted

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
