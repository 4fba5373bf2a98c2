"""Loss on text of pruned models, and what rules need to know of a model, measured on sequences of tokens.

Source: Gromov et al., arXiv 2403.17887, figure 3, where losses of models with different vocabularies are
compared after division by ln V, the loss of guessing every one of V tokens alike.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from lm_eval.api.instance import Instance

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.results.shards import Shards
from deeper_layers.rules.changing import likeness_on
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.similarity import saliences, sublayer_cosines, token_cosines
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.planning import BATCH_TOKENS, Requests
from deeper_layers.sweeping.sweeps import check_cuts, loglikelihoods, overflowed
from deeper_layers.sweeping.tree_model import TreeModel

MEASURED = {"cosines": token_cosines, "sublayers": sublayer_cosines, "saliences": saliences}
Losses = tuple[pd.DataFrame, dict[str, list[float]]]


def text_requests(sequences: list[torch.Tensor]) -> Requests:
    """Sequences of tokens, each [T], of which all but the first are predicted.

    Raises InputError where there is no sequence, or one of a single token.
    """
    if not sequences or min(map(len, sequences)) < 2:
        raise InputError("there is no sequence to measure the loss on: give more text, or sequences from two tokens")
    tokens = [sequence.tolist() for sequence in sequences]
    return Requests([ids[:1] for ids in tokens], [ids[1:] for ids in tokens], max(map(len, tokens)))


def answer_requests(model, tokenizer, answers: list[tuple[str, str]]) -> Requests:
    """Pairs of a prompt, which is given, and its answer, which is predicted, in tokens as lm-eval makes them."""
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(answers)]
    return harness.encode(asked, model, tokenizer)


def text_loss(model, cuts: list[Cut], sequences: list[torch.Tensor], **how) -> Losses:
    """Mean cross-entropy, in nats a token, of each pruned model on sequences of tokens, each [T].

    Every token but the first of a sequence is predicted from those before it: see `request_loss`, also for `how`.
    Raises InputError where there is no sequence, or one of a single token, and as `request_loss` does.
    """
    return request_loss(model, cuts, text_requests(sequences), **how)


def request_loss(
    model, cuts: list[Cut], requests: Requests, *, batch_tokens: int | None = None, shards: Shards | None = None
) -> Losses:
    """Mean cross-entropy of what is predicted, in nats a token, under each pruned model.

    Returns a row for each cut, with columns metric ("loss"), start, size, value, stderr (over sequences) and items
    (sequences); and the loss of each sequence, by the cut's `name`. `batch_tokens` is about what is run between
    two shards, which are as in `sweep`.
    Raises InputError where there is no cut, or one that does not fit the model, and for a loss that is not finite.
    """
    check_cuts(model, cuts)
    family, how = TreeModel(model, cuts), {"shards": shards, "what": "loss on text"}
    logprobs, _ = loglikelihoods(family, requests, batch_tokens=batch_tokens or BATCH_TOKENS, **how)
    by_cut, lengths = dict(zip(family.cuts, -logprobs, strict=True)), np.array(list(map(len, requests.continuations)))
    rows, of_sequences = [], {}
    for cut in cuts:
        if not np.isfinite(by_cut[cut]).all():
            raise overflowed("a loss", model, cut)
        losses = by_cut[cut] / lengths
        error = losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        mean = by_cut[cut].sum() / lengths.sum()  # a token counts once, however long its sequence
        rows.append(("loss", cut.start, cut.size, mean, error, len(losses)))
        of_sequences[cut.name] = losses.round(5).tolist()
    return pd.DataFrame(rows, columns=["metric", "start", "size", "value", "stderr", "items"]), of_sequences


def known_of(model, rule: str, sequences: list[torch.Tensor]) -> Any:
    """What a rule needs to know of a model, measured on sequences of tokens, each [T]; None where it needs nothing."""
    needs = REGISTERED[rule].needs
    if needs == "losses":  # in nats a token, for each of some cuts
        return lambda cuts: text_loss(model, cuts, sequences)[0]["value"].tolist()
    if needs == "likeness":
        return likeness_on(model, sequences, REGISTERED[rule].changes)
    return MEASURED[needs](model, sequences) if needs in MEASURED else None
