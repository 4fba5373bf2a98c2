"""How requests become sequences, shared beginnings and batches, for `lib.sweep`.

The same requests give the same plan, so that an interrupted sweep finds its pieces again.
"""

from dataclasses import dataclass

BATCH_TOKENS = 2048
SHARED_TOKENS = 48  # a beginning shorter than this, or shared by fewer than SHARED_BY, is not worth a cache
SHARED_BY = 8
HEAD_ELEMENTS = 2**25  # logits in memory at once


@dataclass(frozen=True)
class Sequence:
    """Tokens to run, and the requests that are scored at its end: (request number, tokens to score)."""

    tokens: tuple[int, ...]
    requests: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def scored(self) -> int:
        return max(len(continuation) for _, continuation in self.requests)


@dataclass(frozen=True)
class Piece:
    """Batches that share a beginning (often none): the unit of resuming."""

    shared: tuple[int, ...]
    batches: tuple[tuple[Sequence, ...], ...]

    @property
    def tokens(self) -> int:
        return len(self.shared) + sum(len(s.tokens) - len(self.shared) for batch in self.batches for s in batch)

    @property
    def requests(self) -> list[int]:
        return [number for batch in self.batches for s in batch for number, _ in s.requests]


def plan_pieces(
    contexts: list[list[int]],
    continuations: list[list[int]],
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    vocabulary: int = 50_000,
) -> list[Piece]:
    """Arrange requests into sequences, shared beginnings and batches; the same requests give the same plan."""
    merged: dict[tuple[int, ...], list] = {}
    for number, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        merged.setdefault(tokens, []).append((number, tuple(continuation)))
    sequences = [Sequence(tokens, tuple(requests)) for tokens, requests in sorted(merged.items())]
    alone: list[Sequence] = []
    pieces: list[Piece] = []
    for shared, group in _shared_beginnings(sequences):
        if shared == 0:
            alone += group
        else:
            pieces += _fill(group[0].tokens[:shared], group, batch_tokens, vocabulary)
    return _fill((), alone, batch_tokens, vocabulary) + pieces


def _shared_beginnings(sequences: list[Sequence]) -> list[tuple[int, list[Sequence]]]:
    """Sorted sequences in runs that share a beginning: (its length in tokens, the run); length 0 is not shared."""

    def usable(s: Sequence) -> int:
        # a scored position has to be run, not remembered
        return len(s.tokens) - s.scored

    runs: list[tuple[int, list[Sequence]]] = []
    for s in sequences:
        if runs:
            length, run = runs[-1]
            common = min(_common(run[-1].tokens, s.tokens), usable(s), length)
            if common >= SHARED_TOKENS:
                run.append(s)
                runs[-1] = (common, run)
                continue
        runs.append((usable(s), [s]))
    return [(length if len(run) >= SHARED_BY else 0, run) for length, run in runs]


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _fill(shared, sequences: list[Sequence], batch_tokens: int, vocabulary: int) -> list[Piece]:
    """Batches filled by tokens, longest first so that memory runs out early or never, in pieces to resume by."""
    sequences = sorted(sequences, key=lambda s: (-len(s.tokens), s.tokens))
    pieces, batches, piece_tokens, start = [], [], 0, 0
    piece_size = max(2 * batch_tokens, 4 * len(shared))
    while start < len(sequences):
        width = len(sequences[start].tokens) - len(shared)
        rows = max(1, batch_tokens // width)
        batch: list[Sequence] = []
        scored = 0
        for s in sequences[start : start + rows]:
            scored += s.scored
            if batch and scored * vocabulary > HEAD_ELEMENTS:
                break
            batch.append(s)
        batches.append(tuple(batch))
        start += len(batch)
        piece_tokens += width * len(batch)
        if piece_tokens >= piece_size:
            pieces.append(Piece(tuple(shared), tuple(batches)))
            batches, piece_tokens = [], 0
    if batches:
        pieces.append(Piece(tuple(shared), tuple(batches)))
    return pieces
