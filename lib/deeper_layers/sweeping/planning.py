"""Arrange requests in sequences, and sequences in batches after shared prefixes; plan what running them costs.

The same requests give the same batches, so that an interrupted sweep finds its parts again. Needs no torch.
"""

import enum
import itertools
import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from deeper_layers.cuts import Cut

BATCH_TOKENS = 4096
PADDING = 0.05  # of a batch's tokens, at most
SHARED_TOKENS = (
    48  # a prefix shorter than this, or shared by fewer than SHARED_BY, is not worth a cache
)
SHARED_BY = 8
JOINED = 512  # most tokens after a context, or as many as it has: each attends across all of them
ROWS = 32  # answers that are written together, where memory holds them
HEAD_ELEMENTS = 2**24  # logits in memory at once
FEW_ROWS = 16  # of logits, whose logarithms fit into a processor's cache
MEMORY = 2**31  # bytes beside the weights


class Sharing(enum.IntEnum):
    """What pruned models share; each level includes the one before it."""

    NOTHING = 0  # each model runs by itself
    LAYERS = 1  # layers run one by one on given residuals: common work runs once
    PREFIXES = 2  # keys and values of a prefix are computed once for many sequences
    MASKS = 3  # given masks: last layers run at scored positions only, and branches of a context run together


@dataclass(frozen=True)
class Requests:
    """Requests to a model in tokens: how likely is each continuation after its context?"""

    pairs: list[tuple[list[int], list[int]]]
    max_length: int  # tokens that the model reads at once: longer requests are cut on the left


@dataclass(frozen=True)
class Sequence:
    """Tokens to run, and what is scored at which positions.

    Where several continuations follow one context, `tokens` holds the context and then one continuation after
    another, of the lengths `branches`; no continuation sees another. `requests` holds (number, positions whose
    logits score it, tokens to score there).
    """

    tokens: tuple[int, ...]
    requests: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()
    branches: tuple[int, ...] = ()

    @classmethod
    def join(cls, context, continuations) -> "Sequence":
        """The sequence of several requests (number, continuation) after one context."""
        tokens = tuple(context)
        requests = []
        starts: dict[tuple[int, ...], int] = {(): len(context)}
        for number, continuation in continuations:
            continuation = tuple(continuation)
            start = starts.setdefault(tail := continuation[:-1], len(tokens))
            tokens += tail if start == len(tokens) else ()
            # the first token is predicted by the last of the context, the others by the continuation itself
            requests.append(
                (number, (len(context) - 1, *range(start, start + len(tail))), continuation)
            )
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
        """Positions of `tokens` whose logits are needed: the last one of the context and all that follow."""
        return range(self.context - 1 if self.requests else len(self.tokens), len(self.tokens))

    @property
    def depths(self) -> list[tuple[int, int]]:
        """For each token its position on the path through its branch, and the branch's number; 0 is the context."""
        found = [(depth, 0) for depth in range(self.context)]
        for number, length in enumerate(self.branches, 1):
            found += [(self.context + place, number) for place in range(length)]
        return found


@dataclass(frozen=True)
class Batch:
    """Sequences that run together, and the prefix of all of them, which runs once for many batches."""

    prefix: tuple[int, ...]  # often empty
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
        """The numbers of its requests, in the order of their answers."""
        numbers = []
        for s in self.sequences:
            numbers += [number for number, _, _ in s.requests]
        return numbers

    @property
    def scored_tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each token of its requests which scored position predicts it, and the token itself; and where among them
        each request begins."""
        rows: list[int] = []
        tokens: list[int] = []
        starts: list[int] = []
        scored = 0
        for s in self.sequences:
            for _, places, continuation in s.requests:
                starts.append(len(rows))
                rows += [scored + s.scored.index(place) for place in places]
                tokens += continuation
            scored += len(s.scored)
        return np.array(rows), np.array(tokens), np.array(starts)


def count_tokens(batches: list[Batch]) -> int:
    """Number of distinct tokens of batches, each prefix counted once."""
    return sum(batch.tokens for batch in batches) + sum(
        map(len, {batch.prefix for batch in batches})
    )


@dataclass(frozen=True)
class Plan:
    """What a sweep will do and cost, known before it runs.

    One layer-step is one decoder layer run on one token.
    """

    cuts: list[Cut]
    # batches that go through the layers together, and are stored when finished
    parts: list[list[Batch]]
    layers: int  # of the whole model
    tokens: int  # distinct ones of the requests
    layer_steps: int
    bytes: int  # most that are needed beside the weights
    requests: int
    reads: int = 0  # bytes of weights to be read from disk, where layers stay there
    seconds: float | None = (
        None  # predicted on this machine, from one small batch; None where nothing runs
    )
    generated: int = 0  # requests that are answered with text, not counted in the layer-steps

    def __str__(self) -> str:
        passes = self.layer_steps / (self.tokens * self.layers) if self.tokens else 0.0
        phrases = (
            f"{len(self.cuts)} pruned models; {self.requests:,} requests; {self.tokens:,} distinct tokens",
            f"{self.layer_steps / 1e6:,.1f} million layer-steps ({passes:.1f} passes of the whole model)",
            f"{self.bytes / 2**20:,.0f} MiB needed",
            f"{self.reads / 1e9:,.1f} GB of weights to read in {len(self.parts)} rounds"
            if self.reads
            else "",
            f"about {self.seconds / 60:,.1f} min" if self.seconds else "",
            f"{self.generated:,} answers to generate for each pruned model"
            if self.generated
            else "",
        )
        return "; ".join(filter(None, phrases))


def plan_batches(
    wanted: Requests, batch_tokens: int = BATCH_TOKENS, sharing: Sharing = Sharing.MASKS
) -> list[Batch]:
    """Arrange requests in sequences and batches, by what `sharing` allows; batches of a prefix follow each other."""
    by_context: dict[tuple[int, ...], list] = defaultdict(list)
    for number, (context, continuation) in enumerate(wanted.pairs):
        tokens = tuple((context + continuation)[-(wanted.max_length + 1) :][:-1])
        by_context[tokens[: len(tokens) - len(continuation) + 1]].append(
            (number, tuple(continuation))
        )
    by_beginning = defaultdict(list)
    by_prefix = defaultdict(list)

    def get_all_but_last(request: tuple) -> tuple:
        return request[1][:-1]

    for context, requests in sorted(by_context.items()):
        joined = [Sequence.join(context, requests)]
        is_small = (
            sum(joined[0].branches) <= max(JOINED, len(context))
            and len(joined[0].tokens) <= batch_tokens
        )
        # requests that differ in their last token alone share a sequence
        if not is_small or sharing < Sharing.MASKS:
            groups = itertools.groupby(sorted(requests, key=get_all_but_last), get_all_but_last)
            joined = [Sequence.join(context, group) for _, group in groups]
        for s in joined:  # a scored position has to run, and can't be in a prefix
            by_beginning[s.tokens[:SHARED_TOKENS] if s.scored[0] >= SHARED_TOKENS else ()].append(s)
    for beginning, group in by_beginning.items():
        common = os.path.commonprefix([s.tokens for s in group])
        first_scored = min(s.scored[0] for s in group)
        length = min(len(common), first_scored)
        is_shared = sharing >= Sharing.PREFIXES and beginning and len(group) >= SHARED_BY
        by_prefix[group[0].tokens[:length] if is_shared else ()] += group
    return [
        batch
        for prefix, group in by_prefix.items()
        for batch in _fill_batches(prefix, group, batch_tokens)
    ]


def _fill_batches(
    prefix: tuple[int, ...], sequences: list[Sequence], batch_tokens: int
) -> list[Batch]:
    """Fill batches with sequences, longest first, so that memory runs out early or never. Sequences with branches need
    a mask, and are not in a batch with others."""
    batches: list[Batch] = []
    for s in sorted(sequences, key=lambda s: (s.is_branched, -len(s.tokens), s.tokens)):
        last = batches.pop() if batches else Batch(prefix, ())
        extended = Batch(prefix, (*last.sequences, s))
        padded = len(extended.sequences) * extended.width
        is_alike = extended.sequences[0].is_branched == s.is_branched
        if (
            not last.sequences
            or is_alike
            and padded <= batch_tokens
            and extended.tokens >= (1 - PADDING) * padded
        ):
            batches.append(extended)
        else:
            batches += [last, Batch(prefix, (s,))]
    return batches
