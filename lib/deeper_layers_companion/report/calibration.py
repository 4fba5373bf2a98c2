"""Choices with each option's own bias taken off, without looking at right answers. No torch.

A pruned model may choose one letter always and still rank the right one higher than usual. The bias of an option is
its log-probability where nothing is asked, or on average over the items. A choice is calibrated where that bias is
subtracted before the largest log-probability is taken.

- Contextual calibration (Zhao et al. 2021, arXiv 2102.09690) measures the bias on a prompt without the question.
- Batch calibration (Zhou et al. 2024, arXiv 2309.17249) takes the mean over the items of the task. Ours does so in log
  space: the mean log-probability of each letter is subtracted.

Labels are never used, so a model that knows nothing stays at chance. If right answers are unevenly spread over the
letters, the mean holds a part of that, and calibrating loses it.

Letters in shapes: I items, K options, C cuts; leading axes may stand before [I, K]. An option that an item does not
have is NaN: it has no bias and is never chosen.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from deeper_layers_companion.report.pairing import pair_outcomes


def estimate_option_bias(logprobs: Float[np.ndarray, "... I K"]) -> Float[np.ndarray, "... 1 K"]:
    """The bias of each option, in nats: its mean log-probability over the items."""
    return np.nanmean(logprobs, axis=-2, keepdims=True)


def calibrate(
    logprobs: Float[np.ndarray, "... I K"], by: Shaped[np.ndarray, "..."]
) -> Float[np.ndarray, "... I K"]:
    """Log-probabilities less a bias `by`, in nats, of any shape that broadcasts to theirs.

    Of letters: `calibrate(logprobs, estimate_option_bias(logprobs))`. Of words: `calibrate(logprobs, unasked)`, with
    the log-probabilities [..., I, K] of the same choices under the prompt without the question.
    """
    return np.asarray(logprobs, dtype=float) - by


def choose_options(logprobs: Float[np.ndarray, "... I K"]) -> Int[np.ndarray, "... I"]:
    """The option with the largest log-probability; of equal ones the first."""
    return np.where(np.isnan(logprobs), -np.inf, logprobs).argmax(axis=-1)


def score_options(
    logprobs: Float[np.ndarray, "... I K"], target: Int[np.ndarray, " I"]
) -> Float[np.ndarray, "... I"]:
    """1.0 where the chosen option is the right one, `target`, else 0.0."""
    return (choose_options(logprobs) == target).astype(float)


def pair_logprobs(rows: pd.DataFrame) -> tuple[Float[np.ndarray, "C I K"], Int[np.ndarray, " I"]]:
    """The log-probabilities and right options of one measurement, `Measurement.rows`: cuts and items in the order of
    its outcomes. The rows must have log-probabilities."""
    logprobs = pair_outcomes(rows.assign(outcome=rows["logprobs"]))[1]
    targets = pair_outcomes(rows.assign(outcome=rows["target"]))[1]
    return logprobs.astype(float), targets[0].astype(int)
