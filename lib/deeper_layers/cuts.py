"""What is dropped: a cut, its words, and the cut of the simple heuristic. Needs no torch.

Source: Gromov et al., arXiv 2403.17887, section 3.2 (the algorithm), section 4.4 (the simple heuristic).
Layers are counted from 0, and a range of layers has an exclusive end.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from deeper_layers.checks import LAYERS, shown, whole_number
from deeper_layers.errors import InputError


@dataclass(frozen=True, order=True)
class Cut:
    """A block of contiguous layers to drop.

    Args:
        start: first dropped layer, counted from 0 (0 where size is 0: then nothing is dropped).
        size: number of dropped layers, n in the paper; 0 is the whole model.

    Raises:
        InputError: start or size is not a whole number of layers.

    Example:
        >>> from deeper_layers import Cut
        >>> cut = Cut(start=8, size=3)
        >>> cut.describe(num_layers=30)
        'drops layers 8..10 (0-based, 3 of 30), keeps [0:8] and [11:30]'
        >>> cut.kept(num_layers=12)
        [0, 1, 2, 3, 4, 5, 6, 7, 11]
    """

    start: int
    size: int

    def __post_init__(self):
        for name in ("start", "size"):
            value = whole_number(name, getattr(self, name), 0, LAYERS, "Cut(start=8, size=3) drops layers 8, 9 and 10")
            object.__setattr__(self, name, value)
        if self.size == 0:
            object.__setattr__(self, "start", 0)

    @property
    def stop(self) -> int:
        """First layer after the dropped ones (exclusive end)."""
        return self.start + self.size

    def check(self, num_layers: int) -> None:
        """Accept the cut for a model of `num_layers` layers.

        Raises:
            InputError: the cut leaves no layer, or reaches past the last layer.
        """
        check_num_layers(num_layers)
        if not 0 <= self.size < num_layers:
            raise InputError(
                f"size is {self.size}; expected 0 to {num_layers - 1} for a model of {num_layers} layers, as "
                "one layer has to stay; choose a size in that range"
            )
        if not 0 <= self.start <= num_layers - self.size:
            raise InputError(
                f"start is {self.start} with size {self.size}; expected a start from 0 to "
                f"{num_layers - self.size}, as the layers of the model are 0 to {num_layers - 1}; choose a "
                "start in that range or a smaller size"
            )

    def kept(self, num_layers: int) -> list[int]:
        """Original index of every kept layer; its position in the list is the new index.

        Raises:
            InputError: the cut does not fit the model, see `check`.
        """
        self.check(num_layers)
        return [*range(self.start), *range(self.stop, num_layers)]

    def describe(self, num_layers: int) -> str:
        """The cut in words, as in "drops layers 3..7 (0-based, 5 of 30), keeps [0:3] and [8:30]".

        Raises:
            InputError: the cut does not fit the model, see `check`.
        """
        kept = " and ".join(f"[{start}:{stop}]" for start, stop in self._kept_ranges(num_layers))
        if self.size == 0:
            return f"drops no layers (0 of {num_layers}), keeps {kept}"
        dropped = f"layer {self.start}" if self.size == 1 else f"layers {self.start}..{self.stop - 1}"
        return f"drops {dropped} (0-based, {self.size} of {num_layers}), keeps {kept}"

    def mergekit_yaml(self, num_layers: int, model_name: str, revision: str | None = None) -> str:
        """The cut as a passthrough configuration for mergekit; `layer_range` has an exclusive end.

        For mergekit the name is a hub id, of which it can be told a revision, or the path of a folder.

        Raises:
            InputError: the cut does not fit the model, see `check`.
        """
        return mergekit_yaml(self._kept_ranges(num_layers), model_name, revision)

    def _kept_ranges(self, num_layers: int) -> list[tuple[int, int]]:
        self.check(num_layers)
        ranges = [(0, num_layers)] if self.size == 0 else [(0, self.start), (self.stop, num_layers)]
        return [(start, stop) for start, stop in ranges if start < stop]


def mergekit_yaml(ranges: Iterable[tuple[int, int]], model_name: str, revision: str | None = None) -> str:
    """The layers of some ranges, in their order, as a passthrough configuration for mergekit."""
    # in a plain name mergekit takes what stands after + for an adapter, and after @ for a revision
    odd = revision is not None or set("+@") & set(model_name)
    place = {"path": model_name} | ({"revision": revision} if revision is not None else {})
    model, lines = {"model": place} if odd else model_name, ["slices:"]
    for start, stop in ranges:
        # JSON is YAML too, whatever characters the name holds
        lines += ["  - sources:", f"      - model: {json.dumps(model)}", f"        layer_range: [{start}, {stop}]"]
    return "\n".join([*lines, "merge_method: passthrough", ""])


def simple_cut(num_layers: int, size: int) -> Cut:
    """The cut of the simple heuristic: the `size` layers just before the last one, L-1-n .. L-2.

    Source: paper, section 4.4. The last layer is never dropped.

    Args:
        num_layers: number of layers of the whole model, L.
        size: number of layers to drop, n, from 0 to L-1.

    Raises:
        InputError: size is outside of 0 to L-1.

    Example:
        >>> from deeper_layers import simple_cut
        >>> simple_cut(num_layers=30, size=4)
        Cut(start=25, size=4)
    """
    check_size(size, num_layers)
    return Cut(num_layers - 1 - size, size)


def check_num_layers(num_layers: int) -> None:
    whole_number("num_layers", num_layers, 1, LAYERS, "pass the depth of the whole model")


def check_size(size: int, num_layers: int) -> None:
    check_num_layers(num_layers)
    if size not in range(num_layers):
        raise InputError(
            f"size is {shown(size)}; expected 0 to {num_layers - 1} for a model of {num_layers} layers, as the last "
            "layer is never dropped; choose a size in that range"
        )


def check_cut(cut: object) -> None:
    """Raise InputError for what is no Cut."""
    if not isinstance(cut, Cut):
        raise InputError(f"cut is {shown(cut)}; expected a Cut; write Cut(start=8, size=3) to drop layers 8, 9 and 10")
