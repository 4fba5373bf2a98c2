"""How requests become sequences, shared prefixes and batches, and what running them will cost.

The same requests give the same arrangement, so that an interrupted sweep finds its pieces again.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

BATCH_TOKENS = 4096
LEAST_TOKENS = 64  # of a batch, where memory is short: most are of one sequence then
PADDING = 0.05  # largest share of a batch's tokens that is padding
SHARED_TOKENS = 48  # a prefix shorter than this, or shared by fewer than SHARED_BY, is not worth a cache
SHARED_BY = 8
KEYS_OF_A_LAYER = 4096  # attending to so many costs about what a layer costs a token otherwise, 6 times its width
HEAD_ELEMENTS = 2**24  # logits in memory at once
MEMORY = 2**31  # bytes beside the weights


@dataclass(frozen=True)
class Sequence:
    """Tokens to run, and what is scored at which of them.

    Where several continuations follow one context, `tokens` are the context and then the continuations one
    after another, of the lengths `branches`; no continuation sees another. `requests` are (number, positions
    whose logits score it, tokens to be scored there).
    """

    tokens: tuple[int, ...]
    requests: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    branches: tuple[int, ...] = ()

    @classmethod
    def joined(cls, context, continuations) -> "Sequence":
        """Requests (number, continuation) after one context."""
        tails = dict.fromkeys(tuple(continuation[:-1]) for _, continuation in continuations if len(continuation) > 1)
        tokens, starts = tuple(context), {(): len(context)}
        for tail in tails:
            starts[tail] = len(tokens)
            tokens += tail
        requests = []
        for number, continuation in continuations:
            start = starts[tuple(continuation[:-1])]
            # the first token is predicted by the last of the context, the others by the continuation itself
            places = (len(context) - 1, *range(start, start + len(continuation) - 1))
            requests.append((number, places, tuple(continuation)))
        return cls(tokens, tuple(requests), tuple(map(len, tails)) if len(tails) > 1 else ())

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """Positions of `tokens` whose logits are needed."""
        return tuple(sorted({place for _, places, _ in self.requests for place in places}))

    @property
    def context(self) -> int:
        """Number of tokens before the branches."""
        return len(self.tokens) - sum(self.branches)

    @property
    def depths(self) -> list[tuple[int, int]]:
        """For each token, how many it has before it on its way from the beginning, and its branch; 0 is the context."""
        depths = [(depth, 0) for depth in range(self.context)]
        for number, length in enumerate(self.branches, start=1):
            depths += [(depth, number) for depth in range(self.context, self.context + length)]
        return depths


@dataclass(frozen=True)
class Piece:
    """Batches that share a prefix (often none): the unit of resuming."""

    prefix: tuple[int, ...]
    batches: tuple[tuple[Sequence, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens to run, without the prefix."""
        return sum(len(s.tokens) - len(self.prefix) for batch in self.batches for s in batch)

    @property
    def padded(self) -> int:
        """Tokens with padding."""
        return sum(len(batch) * (max(len(s.tokens) for s in batch) - len(self.prefix)) for batch in self.batches)

    @property
    def scored(self) -> int:
        """Positions whose logits are needed."""
        return sum(len(s.scored) for batch in self.batches for s in batch)

    @property
    def requests(self) -> list[int]:
        return [number for batch in self.batches for s in batch for number, _, _ in s.requests]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its sequences: by their numbers alone requests are the same in another prompt."""
        return hashlib.sha256(repr([s for batch in self.batches for s in batch]).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a sweep will do and cost, known before it is paid.

    One layer-step is one decoder layer run on one token.
    """

    cuts: list
    parts: list[tuple[list, list[Piece]]]  # cuts and pieces that run together: what is kept must fit
    layers: int  # of the whole model
    layer_steps: int
    bytes: int  # needed at most beside the weights
    seconds: float | None = None  # predicted on this machine, from one small batch; None where nothing is to be run
    reads: int = 0  # bytes of weights to be read from disk, where layers stay there
    requests: int = 0
    generated: int = 0  # requests to be answered by generation, which are not in the layer-steps

    @property
    def pieces(self) -> list[Piece]:
        """Every piece once."""
        return list(dict.fromkeys(piece for _, pieces in self.parts for piece in pieces))

    @property
    def tokens(self) -> int:
        """Distinct tokens of the requests."""
        return tokens_of(self.pieces)

    @property
    def padding(self) -> float:
        """Share of the tokens in batches that is padding."""
        padded = sum(piece.padded for piece in self.pieces)
        return 1 - sum(piece.tokens for piece in self.pieces) / padded if padded else 0.0

    def __str__(self) -> str:
        passes = self.layer_steps / (self.tokens * self.layers) if self.tokens else 0.0
        parts = [
            f"{len(self.cuts)} pruned models",
            f"{self.requests:,} requests",
            f"{self.tokens:,} distinct tokens, {self.padding:.1%} padding",
            f"{self.layer_steps / 1e6:,.1f} million layer-steps ({passes:.1f} passes of the whole model)",
            f"{self.bytes / 2**20:,.0f} MiB needed",
        ]
        if self.reads:
            parts.append(f"{self.reads / 1e9:,.1f} GB of weights to read in {len(self.parts)} rounds")
        if self.seconds is not None:
            parts.append(f"about {self.seconds / 60:,.1f} min")
        if self.generated:
            parts.append(f"{self.generated:,} answers to generate for each pruned model")
        return "; ".join(parts)


def logits_at_once(vocabulary: int) -> int:
    """Positions whose logits are in memory at once."""
    return max(1, HEAD_ELEMENTS // vocabulary)


def tokens_of(pieces: list[Piece]) -> int:
    """Distinct tokens of some pieces, each prefix counted once."""
    return sum(piece.tokens for piece in pieces) + sum(map(len, {piece.prefix for piece in pieces}))


def plan_pieces(
    contexts: list[list[int]],
    continuations: list[list[int]],
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    *,
    share: bool = True,
    branch: bool = True,
) -> list[Piece]:
    """Arrange requests into sequences, shared prefixes and batches; the same requests give the same plan.

    `share` and `branch` say whether the model can use a prefix cache, and continuations joined.
    """
    by_context: dict[tuple[int, ...], list] = {}
    for number, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        context = tokens[: len(tokens) - len(continuation) + 1]
        by_context.setdefault(context, []).append((number, tuple(continuation)))
    sequences = []
    for context, requests in sorted(by_context.items()):
        together = Sequence.joined(context, requests)
        if branch and _is_worth_joining(together, batch_tokens):
            sequences.append(together)
            continue
        # what differs in nothing but its last token is one sequence in any case
        ends: dict[tuple[int, ...], list] = {}
        for number, continuation in requests:
            ends.setdefault(continuation[:-1], []).append((number, continuation))
        sequences += [Sequence.joined(context, group) for group in ends.values()]
    alone: list[Sequence] = []
    pieces: list[Piece] = []
    for length, group in _by_prefix(sequences):
        if length and share:
            pieces += _fill(group[0].tokens[:length], group, batch_tokens)
        else:
            alone += group
    return _fill((), alone, batch_tokens) + pieces


def _is_worth_joining(together: Sequence, batch_tokens: int) -> bool:
    """Whether not running the context again saves more than it costs to attend across branches.

    A text of which every token is scored follows a context of one token: hundreds of such would be one sequence.
    """
    length = len(together.tokens)
    apart = sum((together.context + branch) ** 2 for branch in together.branches)
    saved = together.context * (len(together.branches) - 1)
    return not together.branches or (length <= batch_tokens and length**2 - apart <= KEYS_OF_A_LAYER * saved)


def _by_prefix(sequences: list[Sequence]) -> list[tuple[int, list[Sequence]]]:
    """Sorted sequences in runs that share a prefix: (its length in tokens, the run); length 0 is not shared."""
    runs: list[tuple[int, list[Sequence]]] = []
    for s in sequences:
        usable = s.scored[0]  # a scored position has to be run, not remembered
        if runs:
            length, run = runs[-1]
            common = min(common_prefix([run[-1].tokens, s.tokens]), usable, length)
            if common >= SHARED_TOKENS:
                run.append(s)
                runs[-1] = (common, run)
                continue
        runs.append((usable, [s]))
    return [(length if len(run) >= SHARED_BY else 0, run) for length, run in runs]


def common_prefix(rows: list) -> int:
    """Number of tokens that all rows begin with."""
    alike = (len(set(column)) == 1 for column in zip(*rows, strict=False))
    return next((place for place, same in enumerate(alike) if not same), min(map(len, rows)))


def _fill(prefix: tuple[int, ...], sequences: list[Sequence], batch_tokens: int) -> list[Piece]:
    """Batches filled by tokens, longest first so that memory runs out early or never, in pieces to resume by.

    Those with branches, which need a mask, apart from those without.
    """
    sequences = sorted(sequences, key=lambda s: (bool(s.branches), -len(s.tokens), s.tokens))
    batches: list[list[Sequence]] = []
    for s in sequences:
        batch = batches[-1] if batches else []
        if batch and bool(s.branches) == bool(batch[0].branches):
            width = len(batch[0].tokens) - len(prefix)
            room, tokens = width * (len(batch) + 1), sum(len(other.tokens) - len(prefix) for other in [*batch, s])
            if room <= batch_tokens and tokens >= (1 - PADDING) * room:
                batch.append(s)
                continue
        batches.append([s])
    pieces: list[Piece] = []
    waiting: list[tuple[Sequence, ...]] = []
    for batch in batches:
        waiting.append(tuple(batch))
        piece = Piece(prefix, tuple(waiting))
        if piece.padded >= 2 * batch_tokens or batch is batches[-1]:
            pieces.append(piece)
            waiting = []
    return pieces
