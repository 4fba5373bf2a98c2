"""A model and the pruned models made of its layers, run on one batch after another.

The whole model runs once and keeps the residual entering the layers above each cut; a pruned model then runs
only the layers it has there, its *tail*, from that residual. Three savings more, each of them through the
model's own modules, each tried on a few tokens first and left out where the result is not the plain one:

- a beginning that many sequences share runs once for each cut, and its keys and values are lent to all;
- the last layer gives keys and values everywhere, but queries, output and what follows only where something
  is scored; so does the head;
- choices that follow one context are branches of one sequence: each sees the context and itself.

The residual enters a tail through a hook on its first layer, so the model's own forward builds masks,
positions and everything else, in any family. Where layers can't be run without those below them, by their
configuration or because the residual is not all that they get, the pruned model runs whole.

Letters in shapes: N scored positions of a batch, D width, V vocabulary, C cuts, R requests.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.family.network import Batch, Network, ScoredOnly, unknown_windows
from deeper_layers.family.planning import HEAD_ELEMENTS, Piece, Sequence
from deeper_layers.models.decoder import num_layers, text_config
from deeper_layers.pruning import drop_layers

MASKABLE = ("sdpa", "eager")  # attention that takes a mask of ours


class PrunedFamily:
    """A model and the pruned models made of its layers, ready to answer."""

    def __init__(self, model, cuts: list[Cut], can: "Abilities | None" = None):
        layers = num_layers(model)
        self.whole, self.cuts = Network(model), cuts
        # cuts that end at the same layer have the same layers above: under the simple rule all but the whole model
        made = functools.cache(lambda blocks: Network(functools.reduce(drop_layers, blocks, model)))
        tails = {cut: _tail(cut, layers, made) for cut in cuts}
        split = can.split if can else _agrees(self.whole, tails)
        if not split:
            tails = {cut: (0, made((cut,)) if cut.size else None) for cut in cuts}
        self.entries = {cut: entry for cut, (entry, _) in tails.items()}
        self.entry, self.tails = [self.entries[cut] for cut in cuts], [tails[cut][1] for cut in cuts]
        self.layer_steps = self.layer_steps_of(cuts)
        self.progress: Callable[[float], object] = lambda steps: None
        self.head = self.whole
        with contextlib.suppress(InputError):
            self.head = made((Cut(0, layers - 1),))  # the shallowest model that has the head
        self.device = self.whole.device
        # a tail ends as the whole model does, unless its cut takes the end away
        ends = [tail for tail, cut in zip(self.tails, cuts, strict=True) if cut.stop == layers and cut.size]
        self.can = can or Abilities.of(split, self.whole, *ends)
        self._remembered: tuple = (None, None, [])

    def layer_steps_of(self, cuts: list[Cut]) -> int:
        """Layers that one token passes: the whole model, then each pruned one above its entry."""
        layers = len(self.whole.layers)
        return layers + sum(layers - cut.size - self.entries[cut] for cut in cuts if cut.size)

    @functools.cached_property
    def head_layers(self) -> float:
        """How many layers the head is worth, by the numbers of their parameters."""
        of_layers = self.whole.model.base_model.num_parameters(exclude_embeddings=True)
        return self.whole.head.weight.numel() * len(self.whole.layers) / of_layers

    def steps_of(self, piece: Piece) -> float:
        """Layer-steps of a piece without its beginning, those that the head is worth among them."""
        return piece.tokens * self.layer_steps + piece.scored * len(self.cuts) * self.head_layers

    def bytes_kept(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """Memory for residuals, and for keys and values of a beginning, when these cuts are run together."""
        beginning = max((len(piece.shared) for piece in pieces), default=0)
        batch = max((len(b) * max(len(s.tokens) for s in b) for piece in pieces for b in piece.batches), default=0)
        width = text_config(self.whole.model.config).hidden_size * self.whole.dtype.itemsize
        residuals = len({self.entries[cut] for cut in cuts}) * max(batch, beginning) * width
        return int(residuals + beginning * self.layer_steps_of(cuts) * self.whole.bytes_remembered)

    @property
    def bytes_of_a_prompt_token(self) -> int:
        """Memory that generation keeps for a token of a prompt: for the whole model, one tail, and the residuals."""
        tail = max((len(tail.layers) for tail in self.tails if tail is not None), default=0)
        width = text_config(self.whole.model.config).hidden_size * self.whole.dtype.itemsize
        return int((len(self.whole.layers) + tail) * self.whole.bytes_remembered + len(set(self.entry)) * width)

    def run(
        self, piece: Piece, progress: Callable[[float], object] = lambda steps: None
    ) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
        """Answers to the requests of a piece, in its order; `progress` is told of layer-steps as they are done.

        Raises InputError where even one sequence does not fit into memory.
        """
        self.progress = progress
        with torch.inference_mode():
            whole_cache, caches = self.remember(piece.shared)
            parts = [
                part
                for batch in piece.batches
                for part in self._run_with_room(batch, len(piece.shared), whole_cache, caches)
            ]
        return np.concatenate([p for p, _ in parts], axis=1), np.concatenate([g for _, g in parts], axis=1)

    def remember(self, shared: tuple[int, ...]):
        """Keys and values of a beginning, for the whole model and for every tail; kept until the next beginning."""
        if self._remembered[0] != shared:
            self._remembered = (shared, None, [None] * len(self.cuts))
            if shared:
                self._remembered = (shared, *_with_room(lambda: self._run_shared(shared), len(shared)))
                self.progress(len(shared) * self.layer_steps)
        return self._remembered[1:]

    def forget(self) -> None:
        """Give the memory of the last beginning back."""
        self._remembered = (None, None, [])

    def _run_shared(self, shared: tuple[int, ...]):
        ids = torch.tensor([shared], device=self.device)
        with torch.inference_mode():
            with self.whole.recording(set(self.entry)) as residuals:
                whole = self.whole.remember(ids)
            return whole, [
                None if tail is None else tail.remember(ids, residuals[entry])
                for tail, entry in zip(self.tails, self.entry, strict=True)
            ]

    def _run_with_room(self, sequences, shared: int, whole_cache, caches) -> list:
        """A batch, or its two halves where memory runs out."""
        if len(sequences) == 1:
            run = lambda: [self._run_batch(sequences, shared, whole_cache, caches)]  # noqa: E731
            return _with_room(run, len(sequences[0].tokens))
        try:
            return [self._run_batch(sequences, shared, whole_cache, caches)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(sequences) // 2
        return [
            part
            for rows in (sequences[:half], sequences[half:])
            for part in self._run_with_room(rows, shared, whole_cache, caches)
        ]

    def _run_batch(self, sequences, shared: int, whole_cache, caches):
        batch = Batch.of(sequences, shared, self.device)
        how = {"scored_only": self.can.score_only, "apart": self.can.apart}
        tokens = sum(len(s.tokens) - shared for s in sequences)
        with self.whole.recording(set(self.entry)) as residuals:
            whole = self.whole.scored_states(batch, whole_cache, **how)
        self.progress(tokens * len(self.whole.layers))
        states = []
        for tail, entry, cache in zip(self.tails, self.entry, caches, strict=True):
            if tail is None:
                states.append(whole)
                continue
            states.append(tail.scored_states(batch, cache, residuals[entry], **how))
            self.progress(tokens * len(tail.layers))
        return self._answers(sequences, torch.stack(states))

    def _answers(self, sequences, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For states [C, N, D], per cut and request: summed log-probability, and whether every token is the likeliest.

        The head runs once for the states of all cuts: its matrix is most of what there is to read from memory.
        """
        cuts, scored, width = states.shape
        positions, targets, lengths, row = [], [], [], 0
        for s in sequences:
            slot = {place: row + i for i, place in enumerate(s.scored)}
            row += len(slot)
            for _, places, tokens in s.requests:
                positions += [slot[place] for place in places]
                targets += tokens
                lengths.append(len(tokens))
        order = np.argsort(positions, kind="stable")
        rows = (np.arange(cuts)[:, None] * scored + np.array(positions)[order]).ravel()
        wanted = np.tile(np.array(targets)[order], cuts)
        logprobs, hits = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
        at_once = max(1, HEAD_ELEMENTS // self.whole.head.weight.shape[0])
        for first in range(0, cuts * scored, at_once):
            logits = self.head.logits(states.view(-1, width)[first : first + at_once])
            self.progress(len(logits) * self.head_layers)
            # a few rows at a time stay in the processor's cache
            for start in range(first, first + len(logits), 16):
                some = logits[start - first : start - first + 16]
                span = slice(*np.searchsorted(rows, (start, start + len(some))))
                row = torch.from_numpy(rows[span] - start).to(some.device)
                target = torch.from_numpy(wanted[span]).to(some.device)
                found = torch.log_softmax(some, dim=-1, dtype=torch.float32)[row, target]
                logprobs[span] = found.double().cpu().numpy()
                hits[span] = _likeliest(some, row, target).cpu().numpy()
        back = np.argsort(order, kind="stable")
        logprobs, hits = (values.reshape(cuts, -1)[:, back] for values in (logprobs, hits))
        starts = np.cumsum([0, *lengths[:-1]])
        return np.add.reduceat(logprobs, starts, axis=1), np.logical_and.reduceat(hits, starts, axis=1)


@dataclass(frozen=True)
class Abilities:
    """Which savings give on this model what the plain way gives: found out by trying, not from a list of names."""

    share: bool  # lend keys and values of a beginning
    apart: bool  # attend to a lent beginning without copying it for each sequence
    score_only: ScoredOnly | None  # run the last layer where something is scored
    branch: bool  # run several continuations of one context as one sequence
    split: bool = True  # run the layers above a cut from the residual that the whole model has there

    @classmethod
    def of(cls, split: bool, *networks: Network) -> "Abilities":
        """What can be done on every one of these, where it is known whether they can be split."""
        trials = [_Trial(_shallow(network)) for network in networks]

        def same(**how) -> bool:
            return all(trial.same(**how) for trial in trials)

        ways = (way for way in (ScoredOnly(narrow=True), ScoredOnly(narrow=False)) if same(way=way))
        way = next(ways, None)
        return cls(
            share=same(shared=8), apart=same(shared=8, apart=True, way=way), score_only=way, branch=same(joined=True),
            split=split,
        )  # fmt: skip


class _Trial:
    """Two short requests after one context on one network, and their logits the plain way."""

    def __init__(self, network: Network):
        vocabulary = network.head.weight.shape[0]
        tokens = [(7919 * i + 13) % vocabulary for i in range(23)]
        self.network, self.context = network, tokens[:16]
        first, second = (0, tokens[16:20]), (1, tokens[20:])
        self.alone = tuple(Sequence.joined(self.context, [request]) for request in (first, second))
        self.joined = (Sequence.joined(self.context, [first, second]),)
        self.plain = self.logits(self.alone)
        # rounding moves logits a little; a wrong mask or position as much as they differ among themselves
        self.allowed = self.plain.std() * (1e-3 if network.dtype == torch.float32 else 0.15)

    @torch.inference_mode()
    def logits(self, sequences, shared: int = 0, **how) -> torch.Tensor:
        device, beginning = self.network.device, None
        if shared:
            beginning = self.network.remember(torch.tensor([self.context[:shared]], device=device))
        states = self.network.scored_states(Batch.of(sequences, shared, device), beginning, **how)
        return self.network.logits(states).float()

    def agrees(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether the logits of every position are equal but for rounding."""
        return bool(((found - expected).square().mean(dim=-1).sqrt() <= self.allowed).all())

    def same(self, *, shared=0, joined=False, way: ScoredOnly | None = None, apart=False) -> bool:
        """Whether the logits are the same this way."""
        config = text_config(self.network.model.config)
        if (way or joined or apart) and (config._attn_implementation not in MASKABLE or unknown_windows(config)):
            return False
        expected = self.plain
        if joined:  # the last token of the context is then scored once for both
            length = len(self.alone[0].scored)
            expected = torch.cat([expected[:length], expected[length + 1 :]])
        try:
            return self.agrees(
                self.logits(self.joined if joined else self.alone, shared, scored_only=way, apart=apart), expected
            )
        except Exception:  # whatever a family's code raises, the plain way is left
            return False


def _shallow(network: Network) -> Network:
    """Layers of every kind out of a network, for a trial; the network itself in float32, or if they can't be dropped.

    Rounding to 16 bits grows from layer to layer until logits of 30 layers differ as much as by a fault, on some
    processors more than on others; after a few layers it is a small part of that.
    """
    if network.dtype == torch.float32:
        return network
    count = len(network.layers)
    kinds = getattr(text_config(network.model.config), "layer_types", None) or [""] * count
    made_of = [(kind, *map(type, layer.modules())) for kind, layer in zip(kinds, network.layers, strict=True)]
    kept = {0, 1, 2, count - 2, count - 1, *(made_of.index(kind) for kind in made_of)}
    blocks = [Cut(layer, 1) for layer in reversed(range(count)) if layer not in kept]
    with contextlib.suppress(InputError):
        return Network(functools.reduce(drop_layers, blocks, network.model))
    return network


def _likeliest(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether each target is what greedy decoding takes in its row: the first of the largest logits."""
    # finding the place of the largest costs ten times as much as finding the largest: only where it may be the target
    found = logits[rows, targets] == logits.amax(dim=-1)[rows]
    for index in found.nonzero().flatten().tolist():
        found[index] = logits[rows[index]].argmax() == targets[index]
    return found


def _tail(cut: Cut, layers: int, made: Callable) -> tuple[int, Network | None]:
    """Where the residual enters for a cut, and the layers above, `made` of blocks to drop; None is the whole model."""
    if cut.size == 0:
        return 0, None
    with contextlib.suppress(InputError):
        return _entry(cut, layers), made(_above(cut, layers))
    return 0, made((cut,))


@torch.inference_mode()
def _agrees(whole: Network, tails: dict[Cut, tuple[int, Network | None]]) -> bool:
    """Whether a pruned model by itself gives what its tail gives, entered by the residual: tried on the longest."""
    entered = [cut for cut, (entry, _) in tails.items() if entry]
    if not entered:
        return True
    cut = max(entered, key=lambda cut: len(tails[cut][1].layers))
    entry, tail = tails[cut]
    shallow = _shallow(whole)
    if len(shallow.layers) < len(whole.layers):
        whole, cut = shallow, Cut(1, 1)
        entry, tail = 1, Network(drop_layers(whole.model, Cut(0, 2)))
    trial = _Trial(Network(drop_layers(whole.model, cut)))
    batch = Batch.of(trial.alone, 0, whole.device)
    with whole.recording({entry}) as residuals:
        whole.scored_states(batch)
    found = tail.scored_states(batch, residual=residuals[entry])
    return trial.agrees(trial.network.logits(found).float(), trial.plain)


def _entry(cut: Cut, layers: int) -> int:
    """Where the residual enters: above the dropped block, or one layer below it where nothing lies above."""
    return cut.start if cut.stop < layers else max(cut.start - 1, 0)


def _above(cut: Cut, layers: int) -> tuple[Cut, ...]:
    """What to drop, one after another, to be left with the layers from the entry up that the pruned model has."""
    if cut.stop < layers:
        return (Cut(0, cut.stop),)
    entry = _entry(cut, layers)
    return (cut, Cut(0, entry)) if entry else (cut,)


def _with_room(run: Callable, tokens: int):
    """What `run` gives; InputError where one sequence of so many tokens does not fit into memory."""
    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            f"out of memory on one sequence of {tokens} tokens: use a smaller model or data type, fewer examples "
            "in the prompt, or a larger machine"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error)
