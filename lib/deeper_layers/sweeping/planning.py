"""How requests become sequences, and these batches behind shared prefixes; what running them will cost.

The same requests give the same arrangement, so that an interrupted sweep finds its parts again. Needs no torch.
"""

import enum
import itertools
import os
from collections import defaultdict
from dataclasses import dataclass

from deeper_layers.cuts import Cut

BATCH_TOKENS = 4096
PADDING = 0.05  # largest share of a batch's tokens that is padding
SHARED_TOKENS = 48  # a prefix shorter than this, or shared by fewer than SHARED_BY, is not worth a cache
SHARED_BY = 8
JOINED = 512  # tokens after a context, or as many as it has, at most: each attends across all of them
ROWS = 32  # answers that are written together, where memory holds them
HEAD_ELEMENTS = 2**24  # logits in memory at once
MEMORY = 2**31  # bytes beside the weights


class Sharing(enum.IntEnum):
    """What pruned models share; each is more than the one before it."""

    NOTHING = 0  # each runs by itself
    LAYERS = 1  # run one by one, on residuals of ours: what they have in common runs once
    PREFIXES = 2  # and keys and values of a prefix are computed once for many sequences
    MASKS = 3  # and by masks of ours last layers run where something is scored, and branches of a context together


@dataclass(frozen=True)
class Requests:
    """What is asked of a model, in tokens: how likely each continuation is after its context."""

    pairs: list[tuple[list[int], list[int]]]
    max_length: int  # tokens that the model reads at once: of what is longer those on the left are left out


@dataclass(frozen=True)
class Sequence:
    """Tokens to run, and what is scored at which of them.

    Where several continuations follow one context, `tokens` are the context and then the continuations one
    after another, of the lengths `branches`; no continuation sees another. `requests` are (number, positions
    whose logits score it, tokens to be scored there).
    """

    tokens: tuple[int, ...]
    requests: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()
    branches: tuple[int, ...] = ()

    @classmethod
    def join(cls, context, continuations) -> "Sequence":
        """Requests (number, continuation) after one context."""
        tokens, requests = tuple(context), []
        starts: dict[tuple[int, ...], int] = {(): len(context)}
        for number, continuation in continuations:
            continuation = tuple(continuation)
            start = starts.setdefault(tail := continuation[:-1], len(tokens))
            tokens += tail if start == len(tokens) else ()
            # the first token is predicted by the last of the context, the others by the continuation itself
            requests.append((number, (len(context) - 1, *range(start, start + len(tail))), continuation))
        return cls(tokens, tuple(requests), tuple(len(tail) for tail in starts if tail))

    @property
    def is_branched(self) -> bool:
        return len(self.branches) > 1

    @property
    def context(self) -> int:
        """Tokens before the branches."""
        return len(self.tokens) - sum(self.branches)

    @property
    def scored(self) -> range:
        """Positions of `tokens` whose logits are needed: the last of the context, and all that follow."""
        return range(self.context - 1 if self.requests else len(self.tokens), len(self.tokens))

    @property
    def depths(self) -> list[tuple[int, int]]:
        """For each token, how many it has before it on its way from the beginning, and its branch; 0 is the context."""
        branches = [range(self.context), *(range(self.context, self.context + length) for length in self.branches)]
        return [(depth, number) for number, depths in enumerate(branches) for depth in depths]


@dataclass(frozen=True)
class Batch:
    """Sequences that run together, and the prefix with which all of them begin, which is run once for many batches."""

    prefix: tuple[int, ...]  # often none
    sequences: tuple[Sequence, ...]

    @property
    def width(self) -> int:
        """Tokens of the longest sequence, without the prefix."""
        return max(len(s.tokens) for s in self.sequences) - len(self.prefix)

    @property
    def tokens(self) -> int:
        """Tokens to run, without the prefix and without padding."""
        return sum(len(s.tokens) - len(self.prefix) for s in self.sequences)

    @property
    def scored(self) -> int:
        """Positions whose logits are needed."""
        return sum(len(s.scored) for s in self.sequences)

    @property
    def requests(self) -> list[int]:
        """The numbers of its requests, in the order in which they are answered."""
        return [number for s in self.sequences for number, _, _ in s.requests]


def count_tokens(batches: list[Batch]) -> int:
    """Distinct tokens of some batches, each prefix counted once."""
    return sum(batch.tokens for batch in batches) + sum(map(len, {batch.prefix for batch in batches}))


@dataclass(frozen=True)
class Plan:
    """What a sweep will do and cost, known before it is paid.

    One layer-step is one decoder layer run on one token.
    """

    cuts: list[Cut]
    parts: list[list[Batch]]  # what goes through the layers together, and is kept when it is finished
    layers: int  # of the whole model
    tokens: int  # distinct ones of the requests
    layer_steps: int
    bytes: int  # needed at most beside the weights
    requests: int
    reads: int = 0  # bytes of weights to be read from disk, where layers stay there
    seconds: float | None = None  # predicted on this machine, from one small batch; None where nothing is to be run
    generated: int = 0  # requests to be answered by generation, which are not in the layer-steps

    def __str__(self) -> str:
        passes = self.layer_steps / (self.tokens * self.layers) if self.tokens else 0.0
        phrases = (
            f"{len(self.cuts)} pruned models; {self.requests:,} requests; {self.tokens:,} distinct tokens",
            f"{self.layer_steps / 1e6:,.1f} million layer-steps ({passes:.1f} passes of the whole model)",
            f"{self.bytes / 2**20:,.0f} MiB needed",
            f"{self.reads / 1e9:,.1f} GB of weights to read in {len(self.parts)} rounds" if self.reads else "",
            f"about {self.seconds / 60:,.1f} min" if self.seconds else "",
            f"{self.generated:,} answers to generate for each pruned model" if self.generated else "",
        )
        return "; ".join(filter(None, phrases))


def plan_batches(wanted: Requests, batch_tokens: int = BATCH_TOKENS, sharing: Sharing = Sharing.MASKS) -> list[Batch]:
    """Arrange requests into sequences and batches, as far as they share; those of one prefix come one after another."""
    by_context: dict[tuple[int, ...], list] = defaultdict(list)
    for number, (context, continuation) in enumerate(wanted.pairs):
        tokens = tuple((context + continuation)[-(wanted.max_length + 1) :][:-1])
        by_context[tokens[: len(tokens) - len(continuation) + 1]].append((number, tuple(continuation)))
    by_beginning, by_prefix, tail = defaultdict(list), defaultdict(list), lambda request: request[1][:-1]
    for context, requests in sorted(by_context.items()):
        joined = [Sequence.join(context, requests)]
        is_small = sum(joined[0].branches) <= max(JOINED, len(context)) and len(joined[0].tokens) <= batch_tokens
        if not is_small or sharing < Sharing.MASKS:  # requests that differ in their last token alone share a sequence
            groups = itertools.groupby(sorted(requests, key=tail), tail)
            joined = [Sequence.join(context, group) for _, group in groups]
        for s in joined:  # a scored position has to be run, not remembered
            by_beginning[s.tokens[:SHARED_TOKENS] if s.scored[0] >= SHARED_TOKENS else ()].append(s)
    for beginning, group in by_beginning.items():
        length = min(len(os.path.commonprefix([s.tokens for s in group])), *(s.scored[0] for s in group))
        is_shared = sharing >= Sharing.PREFIXES and beginning and len(group) >= SHARED_BY
        by_prefix[group[0].tokens[:length] if is_shared else ()] += group
    return [batch for prefix, group in by_prefix.items() for batch in _fill_batches(prefix, group, batch_tokens)]


def _fill_batches(prefix: tuple[int, ...], sequences: list[Sequence], batch_tokens: int) -> list[Batch]:
    """Batches filled by tokens, longest first so that memory runs out early or never.

    Those with branches, which need a mask, apart from those without.
    """
    batches: list[Batch] = []
    for s in sorted(sequences, key=lambda s: (s.is_branched, -len(s.tokens), s.tokens)):
        last = batches.pop() if batches else Batch(prefix, ())
        extended = Batch(prefix, (*last.sequences, s))
        padded, is_alike = len(extended.sequences) * extended.width, extended.sequences[0].is_branched == s.is_branched
        if not last.sequences or is_alike and padded <= batch_tokens and extended.tokens >= (1 - PADDING) * padded:
            batches.append(extended)
        else:
            batches += [last, Batch(prefix, (s,))]
    return batches
