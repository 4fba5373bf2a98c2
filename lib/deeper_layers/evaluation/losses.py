"""Loss on text of a family of pruned models: cross-entropy of the next token over fixed sequences.

Source: Gromov et al., arXiv 2403.17887, figure 3, where losses of models with different vocabularies are
compared after division by ln V, the loss of guessing every one of V tokens alike.
"""

import math

import numpy as np
import pandas as pd
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.evaluation.sweeps import loglikelihoods
from deeper_layers.family.planning import BATCH_TOKENS
from deeper_layers.results.shards import Shards

METRIC = "loss"


def text_loss(
    model, cuts: list[Cut], sequences: list[torch.Tensor], *, shards: Shards | None = None,
    batch_tokens: int | None = None,
) -> tuple[pd.DataFrame, dict[str, list[float]]]:  # fmt: skip
    """Mean cross-entropy, in nats a token, of each pruned model on sequences of tokens, each [T].

    Every token but the first of a sequence is foretold from those before it. Twice `batch_tokens` is about what is run
    between two shards. Returns a row for each cut, with
    columns metric ("loss"), start, size, value, stderr (over sequences) and items (sequences); and the loss of
    each sequence, by cut "start,size".
    Raises InputError where there is no sequence, or one of a single token, no cut, or a cut does not fit the model.
    """
    if not cuts:
        raise InputError("cuts is empty, expected at least one: [Cut(0, 0)] is the whole model")
    if not sequences or min(map(len, sequences)) < 2:
        raise InputError("there is no sequence to measure the loss on: give more text, or sequences from two tokens")
    tokens = [sequence.tolist() for sequence in sequences]
    logprobs, _ = loglikelihoods(
        model, [ids[:1] for ids in tokens], [ids[1:] for ids in tokens], cuts,
        max_length=max(map(len, tokens)), batch_tokens=batch_tokens or BATCH_TOKENS, shards=shards, what="loss on text",
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
        of_sequences[cut.name] = [round(float(loss), 5) for loss in losses]
    return pd.DataFrame(rows), of_sequences
