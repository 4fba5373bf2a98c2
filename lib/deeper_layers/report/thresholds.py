"""The numbers that claims are judged by, what each means, and the commit that set it.

The paper says "flat", "sharp", "slowly"; these say what we take that to mean. Which came first, a threshold or the
data that it judges, is shown beside it: claims/history.py takes the dates of the data from the units.
"""

from deeper_layers.report import paper

FIRST = ("f3a273f", "2026-11-25T04:18:54+00:00")  # the first version of the claims
SHAPES = ("b666f12", "2026-11-26T20:19:21+00:00")
AUDIT = ("b14764a", "2026-11-28T03:59:38+00:00")  # after a recomputation of everything published


class Threshold(float):
    """A number with what it means, the kinds of units that it judges, and the commit that set it, with its date."""

    meaning: str
    kinds: tuple[str, ...]
    commit: str
    date: str

    def __new__(cls, value: float, meaning: str, kinds: tuple[str, ...], set_by: tuple[str, str]) -> "Threshold":
        made = super().__new__(cls, value)
        made.meaning, made.kinds, (made.commit, made.date) = meaning, kinds, set_by
        return made


EARLIEST = Threshold(
    min(low for low, _ in paper.CLIFFS.values()),
    "share of the layers before which no cliff of the paper lies", ("sweep", "healing"), FIRST,
)  # fmt: skip
LATEST = Threshold(
    max(high for _, high in paper.CLIFFS.values()),
    "share of the layers after which no cliff of the paper lies", ("sweep", "healing"), FIRST,
)  # fmt: skip
FLAT = Threshold(
    0.90, "of what lies above guessing, left half way to the cliff; a straight fall would leave 0.75",
    ("sweep", "healing"), FIRST,
)  # fmt: skip
SHARP = Threshold(
    0.50, "length of the fall from 3/4 to 1/4, over the way to the cliff; for a straight fall 1",
    ("sweep", "healing"), FIRST,
)  # fmt: skip
SIZES = Threshold(
    5.0, "sizes, the whole model among them, from which a shape is told", ("sweep", "healing", "loss"), SHAPES,
)  # fmt: skip
AT_ONCE = Threshold(0.10, "share of the layers from which on a model that collapses at once is down", ("sweep",), FIRST)
LEFT = Threshold(0.50, "of what lies above guessing, that a model which is down keeps at most", ("sweep",), AUDIT)
ALIKE = Threshold(
    0.05, "accuracies no further apart are alike; since 2026-11-29 (commit d0601f8, after the data) a model that is "
    "surely no more than that above guessing has nothing to lose, too",
    ("sweep", "healing", "shots"), FIRST,
)  # fmt: skip
KEPT = Threshold(0.05, "a change of accuracy within it counts as nothing lost", ("sweep",), AUDIT)
SLOWLY = Threshold(0.50, "rise of the healed loss over that of the other, at most", ("healing", "loss"), FIRST)
BENT = Threshold(
    0.05, "how far the parabola through a straight loss hangs from its chord, over its rise; x^1.5 has 0.15, x^2 0.25",
    ("healing",), AUDIT,
)  # fmt: skip
SPAN = Threshold(
    0.25, "share of the layers (until 2026-11-29 of the measured sizes) within which a loss that jumps rises half of "
    "the way to guessing; of a straight one 0.5",
    ("loss",), AUDIT,
)  # fmt: skip
NEAR = Threshold(0.10, "share of the layers between a jump of the loss and a cliff that are near", ("loss",), FIRST)
APART = Threshold(
    0.10, "nats a token that the losses of two rules are apart, at most, to nearly match", ("healing",), AUDIT,
)  # fmt: skip
DEEP = Threshold(2 / 3, "of the depth, from which on a block is deep", ("similarity", "distances"), FIRST)
LAST = Threshold(
    0.90, "of the range of distances of one block size, from which on one is near-maximal",
    ("similarity", "distances"), FIRST,
)  # fmt: skip

THRESHOLDS = {name: value for name, value in list(globals().items()) if isinstance(value, Threshold)}
