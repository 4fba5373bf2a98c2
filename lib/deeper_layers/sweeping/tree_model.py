"""Answer requests by a model and the pruned models made of its layers, all together.

A batch goes through the tree of layers (tree.py) once: what pruned models share runs once (forward.py). There are four
more savings, each used where a trial on a few tokens gives the plain result with it:

- a prefix that many sequences share runs once at each node, and all of them read its keys and values;
- the last layer computes keys and values everywhere, but queries and output only where something is scored; so
  does the head;
- choices after one context are branches of one sequence: each sees the context and itself;
- layers that stay on disk are read once for as many batches as memory holds.

In the plain way each pruned model runs alone, as `drop_layers` makes it, through its own forward.

Letters in shapes: N scored positions of a batch, V vocabulary, C cuts, R requests, K tokens of their continuations.
"""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.decoder import first_layer_of_each_kind, num_layers
from deeper_layers.models.network import Network, holding_weights, is_streamed
from deeper_layers.pruning import drop_layers, zero_sublayers
from deeper_layers.sweeping import agreement
from deeper_layers.sweeping.attention import PrefixCache, takes_masks
from deeper_layers.sweeping.forward import (
    Forward,
    PaddedBatch,
    are_most_likely,
    logits_in_parts,
    run_layers,
)
from deeper_layers.sweeping.parts import LEAST_ROWS, MemoryEstimate, run_in_halves
from deeper_layers.sweeping.planning import FEW_ROWS, MEMORY, Batch, Sequence, Sharing
from deeper_layers.sweeping.tree import Tree

FEW_TOKENS = 512  # before fewer tokens run together, fewer models do
# of an answer its log-probability in nats, and whether greedy decoding gives it
ANSWER = np.dtype([("logprob", np.float64), ("greedy", np.bool_)])
# where models are compared with the whole one, also the sums over its tokens of what agreement.py measures
COMPARED = np.dtype([*ANSWER.descr, *((name, np.float64) for name in agreement.MEASURES)])


class TreeModel:
    """A model and the pruned models made of its layers, ready to answer requests.

    Attributes:
        network: the whole model as a list of layers.
        cuts: the pruned models, each once.
        tree: the nodes of all pruned models.
        sharing: what works for the model, found by trying, not from a list of names.
        compares: whether answers say, too, how much each model predicts what the whole one does (agreement.py).
    """

    def __init__(
        self, model, cuts: list[Cut], sharing: Sharing | None = None, *, compares: bool = False
    ):
        self.network = Network(model)
        self.is_streamed = is_streamed(model)
        self.sharing = try_sharing(model, cuts) if sharing is None else sharing
        self.estimate = MemoryEstimate(self.network)
        self.compares = compares
        self.cuts = list(dict.fromkeys(cuts))
        self.tree = Tree(self.cuts, len(self.network.layers))
        self._prefixes: dict[tuple[int, ...], PrefixCache] = {}
        self._selection = self

    def for_cuts(self, cuts: list[Cut]) -> "TreeModel":
        """The TreeModel of some of the cuts. The last one is remembered, with the prefixes that it has run."""
        if cuts == self.cuts:
            return self
        if cuts != self._selection.cuts:
            self._selection = copy.copy(self)
            vars(self._selection).update(
                cuts=cuts, tree=Tree(cuts, self.tree.layers), _prefixes={}, _selection=self
            )
        return self._selection

    def forget(self) -> None:
        """Forget the prefixes that were run: the model may have changed since."""
        self._prefixes = {}
        self._selection = self

    @property
    def answer_dtype(self) -> np.dtype:
        return COMPARED if self.compares else ANSWER

    @property
    def layer_steps(self) -> int:
        """Layers that one token passes: the nodes of the tree, or without sharing all layers of each model."""
        return (
            self.tree.nodes
            if self.sharing
            else sum(self.tree.layers - cut.size for cut in self.cuts)
        )

    def bytes_needed(self, batches: list[Batch]) -> int:
        """Most bytes beside the weights when batches go through the layers, all together where layers are on disk."""
        tree = self.tree if self.sharing else Tree(self.cuts[:1], self.tree.layers)
        groups = [batches] if self.is_streamed else [[batch] for batch in batches]
        return max((self.estimate.scoring_bytes(tree, group) for group in groups), default=0)

    def answer(
        self,
        batches: list[Batch],
        progress: Callable[[float], object] = lambda steps: None,
        memory: int = MEMORY,
    ) -> np.ndarray:
        """Answers [C, R] of dtype `answer_dtype` to the requests of batches that go through each layer together.

        Where memory does not hold them or runs out, the batches or the cuts are halved. `progress` is called with the
        layer-steps done. Raises InputError where even one sequence of one pruned model does not fit, and where layers
        on disk can't run one by one.
        """
        if self.is_streamed and not self.sharing:
            raise InputError(
                f"the layers of {type(self.network.model).__name__} can't be run one by one, and so not from disk: use "
                "a machine whose memory holds the model"
            )

        def grouped(sequences: list[tuple[Batch, Sequence]]) -> list[Batch]:
            batches = []
            for batch, pairs in itertools.groupby(sequences, key=lambda pair: pair[0]):
                batches.append(Batch(batch.prefix, tuple(s for _, s in pairs)))
            return batches

        # a half of the cuts has the whole model beside it, too
        def select(
            cuts: list[Cut],
        ) -> TreeModel:
            return self.for_cuts(
                [UNPRUNED, *cuts] if self.compares and UNPRUNED not in cuts else cuts
            )

        def run(sequences, cuts: list[Cut]) -> np.ndarray:
            return select(cuts)._answer_at_once(grouped(sequences), progress)[-len(cuts) :]

        def fits(sequences, cuts: list[Cut]) -> bool:
            return select(cuts).bytes_needed(grouped(sequences)) <= memory

        sequences: list[tuple[Batch, Sequence]] = []
        for batch in batches:
            sequences += [(batch, s) for s in batch.sequences]
        least = min(LEAST_ROWS, max(1, FEW_TOKENS // max(batch.width for batch in batches)))
        return run_in_halves(run, sequences, self.cuts, fits, least)

    @torch.inference_mode()
    def _answer_at_once(self, batches: list[Batch], progress: Callable) -> np.ndarray:
        forwards = self.run(batches, progress) if self.sharing else []
        answers = []
        for forward, batch in itertools.zip_longest(forwards, batches):
            if forward is None:
                progress(self.layer_steps * batch.tokens)
            score = self._score_beside_whole if self.compares else self._score
            answers.append(score(batch, forward))
        return np.concatenate(answers, axis=1)

    def _score(self, batch: Batch, forward: Forward | None) -> np.ndarray:
        """Answers [C, R] of dtype ANSWER, from what went through the tree, or else from each model alone."""
        if forward is not None:
            logits = logits_in_parts(self.network, forward.states.flatten(-3, -2))
        else:
            logits = (run_alone(self.network.model, cut, batch) for cut in self.cuts)
        return _score_requests(batch, len(self.cuts), logits)

    def _score_beside_whole(self, batch: Batch, forward: Forward | None) -> np.ndarray:
        """The same of dtype COMPARED."""
        if forward is not None:
            parts = agreement.compare_states(
                self.network, forward.states, self.cuts.index(UNPRUNED)
            )
        else:
            parts = agreement.compare_alone(
                lambda cut: run_alone(self.network.model, cut, batch), self.cuts
            )
        return agreement.score_beside_whole(batch, len(self.cuts), parts, COMPARED)

    def run(
        self, batches: list[Batch], progress: Callable = lambda steps: None, *, keeps=False
    ) -> list[Forward]:
        """Take batches through the tree together, after their prefixes, which later batches may share."""
        start = functools.partial(
            Forward, self.network, self.tree, scored_only=self.sharing == Sharing.MASKS
        )
        prefixes = {batch.prefix for batch in batches if batch.prefix}
        new_prefixes = {
            p: start(Batch((), (Sequence(p),)), keeps=True)
            for p in prefixes - self._prefixes.keys()
        }
        caches = {
            p: new_prefixes[p].cache if p in new_prefixes else self._prefixes[p] for p in prefixes
        }
        forwards = [start(batch, caches.get(batch.prefix), keeps=keeps) for batch in batches]
        run_layers([*new_prefixes.values(), *forwards], progress)
        self._prefixes = caches
        return forwards


@torch.inference_mode()
def run_alone(model, cut: Cut, batch: Batch) -> torch.Tensor:
    """Logits [N, V] of a pruned model, by its own forward, at the scored positions of a batch without branches."""
    pruned = model if cut == UNPRUNED else zero_sublayers(model, cut)
    padded = PaddedBatch(batch, pruned.get_input_embeddings().weight.device)

    def keep_scored(_, arguments):
        return (
            arguments[0][padded.rows, padded.places[padded.rows, padded.slots]].unsqueeze(0),
            *arguments[1:],
        )

    with pruned.get_output_embeddings().register_forward_pre_hook(keep_scored):
        return pruned(input_ids=padded.ids, use_cache=False).logits[0]


def _score_requests(batch: Batch, cuts: int, logits: Iterable[torch.Tensor]) -> np.ndarray:
    """Answers [C, R]: the summed log-probability of each request's tokens, from all logits [C * N, V] in parts."""
    token_rows, token_ids, starts = batch.scored_tokens
    rows = (np.arange(cuts)[:, None] * batch.scored + token_rows).ravel()  # [C * K]
    by_row = rows.argsort()
    sorted_rows = rows[by_row]
    sorted_tokens = np.tile(token_ids, cuts)[by_row]
    found = []
    first = 0
    for part in itertools.chain.from_iterable(map(_split_for_cache, logits)):
        here = slice(*np.searchsorted(sorted_rows, (first, first + len(part))))
        indices = torch.from_numpy(np.stack([sorted_rows[here] - first, sorted_tokens[here]]))
        row, token = indices.to(part.device)
        logprobs = torch.log_softmax(part, dim=-1, dtype=torch.float32)[row, token]
        found.append(torch.stack([logprobs, are_most_likely(part, row, token).float()]))
        first += len(part)
    token_answers = np.empty((cuts, len(token_rows)), ANSWER)
    # the one copy of a batch: a card is waited for at each
    logprobs, is_greedy = torch.cat(found, dim=1).cpu().numpy()
    token_answers["logprob"].flat[by_row] = logprobs
    token_answers["greedy"].flat[by_row] = is_greedy
    answers = np.empty((cuts, len(starts)), ANSWER)
    answers["logprob"] = np.add.reduceat(token_answers["logprob"], starts, axis=1)
    answers["greedy"] = np.logical_and.reduceat(token_answers["greedy"], starts, axis=1)
    return answers


def _split_for_cache(logits: torch.Tensor) -> Iterable[torch.Tensor]:
    """Logits in parts of FEW_ROWS rows on a processor. A card takes them all at once."""
    return logits.split(FEW_ROWS) if logits.device.type == "cpu" else [logits]


def try_sharing(model, cuts: list[Cut]) -> Sharing:
    """The most sharing with which these pruned models give the plain log-probabilities, except for rounding. Raises
    InputError where the configuration can't state one of the models that are tried."""
    # tried each time: between two calls attention, hooks or weights of a model may change
    trial_model, trial_cuts = _shrink_for_trial(model, cuts)
    network = Network(trial_model)
    tokens = [(7919 * i + 13) % network.head.weight.shape[0] for i in range(38)]
    requests = [(number, tokens[20 + 3 * number : 23 + 3 * number]) for number in range(6)]
    # two contexts with the same beginning
    contexts = [(tokens[:12], requests[:3]), (tokens[:8] + tokens[12:20], requests[3:])]
    apart = []
    branched = []
    for context, group in contexts:
        apart += [Sequence.join(context, [request]) for request in group]
        branched.append(Sequence.join(context, group))

    def answers(sharing: Sharing) -> np.ndarray:
        """Log-probabilities [C, ways, requests]: one sequence a request, and where masks are given as branches too."""
        prefix = tuple(tokens[:8]) if sharing >= Sharing.PREFIXES else ()
        ways = [apart, branched] if sharing == Sharing.MASKS else [apart]
        results = TreeModel(trial_model, trial_cuts, sharing).answer(
            [Batch(prefix, tuple(way)) for way in ways]
        )
        return results["logprob"].reshape(len(trial_cuts), -1, 6)

    with contextlib.ExitStack() as stack:
        for layer in network.layers:  # layers on disk are read once for all trials
            stack.enter_context(holding_weights(layer))
        problem = f"{type(model).__name__} can't run on a few tokens"
        with as_input_error(problem, "give all weights one data type and place", RuntimeError):
            plain = answers(Sharing.NOTHING)
        # rounding changes them a little; a wrong mask or position as much as they differ from each other
        allowed = (1e-3 if network.dtype == torch.float32 else 0.15) * plain.std(axis=(1, 2))
        for sharing in sorted(Sharing, reverse=True)[:-1]:
            # whatever a family's code raises: the plain way remains
            with contextlib.suppress(Exception):
                is_equal = np.sqrt(np.square(answers(sharing) - plain).mean(axis=(1, 2))) <= allowed
                if is_equal.all() and (sharing < Sharing.MASKS or takes_masks(trial_model.config)):
                    return sharing
    return Sharing.NOTHING


def _shrink_for_trial(model, cuts: list[Cut]) -> tuple[torch.nn.Module, list[Cut]]:
    """The model for a trial, with layers of every kind, and cuts of it; else the model itself and two of its cuts. A
    trial on all layers takes long, and rounding to 16 bits grows with depth until it is as large as a fault."""
    count = num_layers(model)
    kept_layers = {0, 1, count - 1} if is_streamed(model) else {0, 1, 2, count - 2, count - 1}
    dropped = set(range(count)) - kept_layers - {*first_layer_of_each_kind(model)}
    # a configuration may state the cut of the model, but none of the small model
    with contextlib.suppress(InputError):
        small_model = drop_layers(model, Cut.of(dropped)) if dropped else model
        trial_cuts = [Cut(1, 1), Cut.of([0, num_layers(small_model) - 1])]
        for cut in trial_cuts:
            drop_layers(small_model, cut)
        return small_model, trial_cuts
    # sublayers are not tried: their output is zero in either way
    whole_layers = [Cut.of(cut.dropped) for cut in cuts]
    by_start = sorted(whole_layers, key=lambda cut: cut.start)
    return model, list(dict.fromkeys([by_start[0], by_start[-1]]))
