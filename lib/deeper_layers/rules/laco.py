"""Merge layers into one below them, from the top down, as long as the final states stay alike (LaCo).

Source: Yang et al., arXiv 2402.11187, algorithm 1; the order of the trials is that of the authors' notebook for
Llama-2-13B, which merges 7 of 40 layers at a time and then goes one layer down. The same share is merged here. Their
threshold sets how many layers go; here the number is given, the highest threshold that reaches it is taken, and the
last trials merge no more than is left to drop, from the same place on: of a size below that share the top layers stay.
"""

from collections.abc import Callable, Sequence

from deeper_layers.cuts import Cut, check_size

SHARE = 7 / 40  # of the layers that become one at a time
THRESHOLDS = tuple(round(0.95 - 0.05 * step, 2) for step in range(20))  # of the likeness, the last is 0
# a layer by its number, or layers merged into the first of them, each of which may be such a merged one
Merged = int | tuple
Likeness = Callable[[list[Merged]], float]  # cosine of the final states of a model of these layers with the whole one's


def merged_layers(size: int, layers: int, likeness: Likeness) -> list[Merged]:
    """The layers of a model of which `size` were merged into others."""
    check_size(size, layers)
    whole: list[Merged] = list(range(layers))
    for threshold in THRESHOLDS:
        if len(found := _walk(whole, layers - size, likeness, threshold)) == layers - size:
            return found
    while len(whole) > layers - size:  # whatever becomes of it
        whole = _walk(whole, layers - size, lambda _: 1.0, 0.0)
    return whole


def first_of(layer: Merged) -> int:
    """The layer into which others were merged, or a layer itself."""
    return layer if isinstance(layer, int) else first_of(layer[0])


def cut_of(left: Sequence[Merged], layers: int) -> Cut:
    """The layers that were merged into others, as a cut."""
    return Cut.of(set(range(layers)) - set(map(first_of, left)))


def _walk(found: list[Merged], wanted: int, likeness: Likeness, threshold: float) -> list[Merged]:
    """One way down through some layers, until as many as wanted are left."""
    together = max(2, round(SHARE * (max(map(first_of, found)) + 1)))
    at = max(0, len(found) - 1 - together)
    while at >= 0 and (left := len(found) - wanted):
        end = min(at + together, at + 1 + left, len(found))
        tried = [*found[:at], tuple(found[at:end]), *found[end:]]
        if end > at + 1 and likeness(tried) > threshold:
            found = tried
        at -= 1
        if at >= len(found):
            at = max(0, len(found) - 1 - together)
    return found
