"""Loss on text of a family of pruned models: cross-entropy of the next token over fixed sequences.

Source: Gromov et al., arXiv 2403.17887, figure 3, where losses of models with different vocabularies are
compared after division by ln V, the loss of guessing every one of V tokens alike.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from lib import corpora
from lib.errors import InputError
from lib.models import Source
from lib.parameters import HealingParameters
from lib.pruning import Cut
from lib.results import Shards, Unit, measure_or_load
from lib.sweep import loglikelihoods

VERSION = 2  # part of every unit's key: raise it when a change here changes numbers
METRIC = "loss"


def text_loss(
    model, cuts: list[Cut], sequences: list[torch.Tensor], *, shards: Shards | None = None
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """Mean cross-entropy, in nats a token, of each pruned model on sequences of tokens, each [T].

    Every token but the first of a sequence is foretold from those before it. Returns a row for each cut, with
    columns metric ("loss"), start, size, value, stderr (over sequences) and items (sequences); and the loss of
    each sequence, by cut "start,size".
    Raises InputError where there is no sequence, or a cut does not fit the model.
    """
    if not sequences:
        raise InputError("there is no sequence to measure the loss on: give more text, or shorter sequences")
    tokens = [sequence.tolist() for sequence in sequences]
    logprobs, _ = loglikelihoods(
        model, [ids[:1] for ids in tokens], [ids[1:] for ids in tokens], cuts,
        max_length=max(map(len, tokens)), shards=shards, what="loss on text",
    )  # fmt: skip
    lengths = np.array([len(ids) - 1 for ids in tokens])
    rows, of_sequences = [], {}
    for cut, summed in zip(cuts, -logprobs, strict=True):
        losses = summed / lengths
        # a token counts once, however long its sequence
        mean = float(summed.sum() / lengths.sum())
        error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else math.nan
        rows.append(
            {
                "metric": METRIC,
                "start": cut.start,
                "size": cut.size,
                "value": mean,
                "stderr": error,
                "items": len(losses),
            }
        )
        of_sequences[f"{cut.start},{cut.size}"] = [round(float(loss), 5) for loss in losses]
    return pd.DataFrame(rows), of_sequences


def loss_sequences(parameters: HealingParameters, tokenizer) -> list[torch.Tensor]:
    """The fixed sequences of the validation split on which losses are measured.

    Raises InputError where the corpus has too few.
    """
    wanted, length = parameters.loss_sequences, parameters.loss_length
    documents = corpora.texts(parameters.text, split="validation", datasets=parameters.datasets)
    found = corpora.sequences(tokenizer, documents, length=length, tokens=wanted * length)
    if len(found) < wanted:
        raise InputError(
            f"loss_sequences is {wanted}, but the corpus fills {len(found)} of {length} tokens: ask for fewer"
        )
    return found


def loss_unit(cuts: list[Cut], parameters: HealingParameters, source: Source, opened: Callable) -> Unit:
    """The loss of pruned models before healing: read from results, else measured on what `opened()` returns.

    Raises InputError where nothing is to be measured and results hold no such unit.
    """
    key = {
        "model": source.key,
        "dtype": source.dtype,
        **parameters.key,
        **parameters.loss_key,
        "cuts": [[cut.start, cut.size] for cut in cuts],
        "version": VERSION,
    }
    data = functools.partial(
        corpora.text_fingerprint, parameters.text, split="validation", datasets=parameters.datasets
    )

    def measure(shards):
        model, tokenizer = opened()
        rows, of_sequences = text_loss(model, cuts, loss_sequences(parameters, tokenizer), shards=shards)
        rows.insert(0, "task", parameters.text)
        return rows, {
            "by_sequence": of_sequences,
            "vocabulary": model.get_output_embeddings().weight.shape[0],
            "num_layers": source.num_layers,
            "weights": source.quantized,
        }

    unit = measure_or_load(
        "loss", parameters.text, key, measure, parameters.results_folder,
        data=data, at_hand=corpora.is_at_hand(parameters.text, parameters.datasets), allowed=parameters.measure,
    )  # fmt: skip
    if unit is None:
        raise InputError(f"not measured: the loss of {source.name} on {parameters.text} in {source.dtype}")
    return unit
