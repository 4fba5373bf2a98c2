"""How much each pruned model predicts what the whole model does, token by token, in the pass that measures losses.

The whole model is a path of the tree, and so its logits are there. At a few positions at a time the logits of all cuts
are compared with its own, and then forgotten. Three numbers of each token, with p the whole model's probabilities of
all tokens of the vocabulary and q those of a cut:

- agreement: whether the most likely token is the same, which a draft needs where tokens are chosen greedily;
- overlap: the sum of min(p, q), the chance that speculative decoding accepts a token drawn by the cut (Leviathan et
  al., arXiv 2211.17192);
- kl: the divergence of q from p, the sum of p ln(p / q), in nats.

Letters in shapes: N scored positions of a batch, P of them at a time, V vocabulary, C cuts, R requests.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.models.network import Network
from deeper_layers.sweeping.forward import are_most_likely
from deeper_layers.sweeping.planning import FEW_ROWS, HEAD_ELEMENTS, Batch

MEASURES = ("agreement", "overlap", "kl")
LEAST = torch.finfo(torch.float32).min


class Whole(NamedTuple):
    """What the whole model predicts at some positions."""

    probabilities: Float[torch.Tensor, "P V"]
    negative_entropy: Float[torch.Tensor, " P"]  # the sum of p ln(p), in nats
    choices: Int[torch.Tensor, " P"]  # the most likely token; of equal ones the first


class Part(NamedTuple):
    """The logits of one cut at some positions, beside the whole model's."""

    number: int  # of the cut
    first: int  # of the positions
    logits: Float[torch.Tensor, "P V"]
    whole: Whole


def describe_whole(logits: Float[torch.Tensor, "P V"]) -> Whole:
    """What comparing needs of the whole model's logits, computed once for all cuts."""
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
    return Whole(
        probabilities, -torch.special.entr(probabilities).sum(dim=-1), logits.argmax(dim=-1)
    )


def compare_with_whole(
    whole: Whole, logits: Float[torch.Tensor, "P V"], logprobs: Float[torch.Tensor, "P V"]
) -> tuple[torch.Tensor, ...]:
    """Agreement, overlap and kl at each position, [P] each, from a cut's logits and their log-probabilities, which are
    overwritten."""
    agreement = are_most_likely(
        logits, torch.arange(len(logits), device=logits.device), whole.choices
    )
    cross = torch.linalg.vecdot(whole.probabilities, logprobs)
    # a token that both rule out adds 0, and not 0 times infinity; to ask whether there is one would wait for a card
    if logits.device.type != "cpu" or not cross.isfinite().all():
        cross = torch.linalg.vecdot(whole.probabilities, logprobs.clamp(min=LEAST))
    common = torch.minimum(logprobs.exp_(), whole.probabilities, out=logprobs)
    return agreement, common.sum(dim=-1).clamp(max=1), (whole.negative_entropy - cross).clamp(min=0)


def compare_states(network: Network, states: torch.Tensor, whole: int) -> Iterator[Part]:
    """Parts of the logits of states [..., C, N, D] that leave last layers: all cuts at a few positions, then at the
    next; `whole` is the number of the whole model among the cuts. At most HEAD_ELEMENTS logits are in memory, or those
    of one position."""
    cuts, positions = states.shape[-3:-1]
    at_once = max(1, HEAD_ELEMENTS // network.head.weight.shape[0] // cuts)
    for start in range(0, positions, at_once):
        chunk = states[..., start : start + at_once, :]
        logits = network.logits(chunk.flatten(-3, -2)).unflatten(0, (cuts, -1))
        for first in range(0, logits.shape[1], FEW_ROWS):
            few = logits[:, first : first + FEW_ROWS]
            described = describe_whole(few[whole])
            for number in range(cuts):
                yield Part(number, start + first, few[number], described)


def compare_alone(run_alone: Callable[[Cut], torch.Tensor], cuts: list[Cut]) -> Iterator[Part]:
    """The same parts where each pruned model runs by itself: of two models at once all logits [N, V] are in memory."""
    whole = run_alone(UNPRUNED)
    for number, cut in enumerate(cuts):
        logits = whole if cut == UNPRUNED else run_alone(cut)
        for first in range(0, len(logits), FEW_ROWS):
            described = describe_whole(whole[first : first + FEW_ROWS])
            yield Part(number, first, logits[first : first + FEW_ROWS], described)


def score_beside_whole(
    batch: Batch, cuts: int, parts: Iterable[Part], dtype: np.dtype
) -> np.ndarray:
    """Answers [C, R] to the requests of a batch: summed log-probabilities, and the summed measures of their tokens."""
    rows, tokens, starts = batch.scored_tokens
    by_row = rows.argsort(kind="stable")
    of_tokens = np.empty((cuts, len(rows)), dtype)
    places: list[tuple[int, np.ndarray]] = []
    found: list[torch.Tensor] = []  # [M, K] of each part, M measures
    for number, first, logits, whole in parts:
        here = by_row[slice(*np.searchsorted(rows, (first, first + len(logits)), sorter=by_row))]
        row, token = (
            torch.from_numpy(of).to(logits.device) for of in (rows[here] - first, tokens[here])
        )
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        # before logprobs are overwritten
        scores = [
            logprobs[row, token],
            are_most_likely(logits, row, token),
        ]
        scores += [values[row] for values in compare_with_whole(whole, logits, logprobs)]
        places.append((number, here))
        found.append(torch.stack([values.float() for values in scores]))
    # the one copy of a batch: a card is waited for at each
    measured = torch.cat(found, dim=1).cpu().numpy()
    first = 0
    for number, here in places:
        of_part = measured[:, first : first + len(here)]
        for name, values in zip(("logprob", "greedy", *MEASURES), of_part, strict=True):
            of_tokens[name][number, here] = values
        first += len(here)
    answers = np.empty((cuts, len(starts)), dtype)
    for name in dtype.names or ():
        add = np.logical_and if name == "greedy" else np.add
        answers[name] = add.reduceat(of_tokens[name], starts, axis=1)
    return answers
