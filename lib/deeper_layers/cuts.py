"""Cuts: which layers or sublayers are dropped, their names and words; and the paper's two rules. Needs no torch.

Source: Gromov et al., arXiv 2403.17887, section 3.2 (the most similar block), section 4.4 (the simple heuristic).
Layers are counted from 0, and a range of layers has an exclusive end.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from deeper_layers.checks import LAYERS, check_whole_number, short_repr
from deeper_layers.errors import InputError, as_input_error

# the part of a layer that runs: all of it, or one sublayer
WHOLE = "whole"
ATTENTION = "attention"
MLP = "mlp"


@dataclass(frozen=True, order=True)
class Cut:
    """What to drop: a block of contiguous layers; any other layers, or sublayers, with `Cut.of`.

    Raises InputError where start or size is not a whole number of layers, and where the fields contradict each other.

    Example:
        >>> from deeper_layers import Cut
        >>> cut = Cut(start=8, size=3)
        >>> cut.describe(num_layers=30)
        'drops layers 8..10 (0-based, 3 of 30), keeps [0:8] and [11:30]'
        >>> cut.kept(num_layers=12)
        [0, 1, 2, 3, 4, 5, 6, 7, 11]
    """

    start: int  # first dropped layer, counted from 0; 0 where none is dropped
    size: int  # number of dropped layers, n in the paper; 0 is the whole model
    scattered: tuple[int, ...] = ()  # the dropped layers, where they are no block
    attention: tuple[int, ...] = ()  # layers that lose their attention, and keep their MLP
    mlp: tuple[int, ...] = ()  # layers that lose their MLP, and keep their attention

    def __post_init__(self):
        for name in ("start", "size"):
            value = check_whole_number(
                name,
                getattr(self, name),
                0,
                LAYERS,
                "Cut(start=8, size=3) drops layers 8, 9 and 10",
            )
            object.__setattr__(self, name, value)
        if self.size == 0:
            object.__setattr__(self, "start", 0)
        if not (type(self.scattered) is type(self.attention) is type(self.mlp) is tuple):
            raise InputError(
                f"{short_repr(self)} holds what is no tuple of layers: Cut.of(layers=[1, 9]) makes one"
            )
        if self.scattered or self.attention or self.mlp:
            self._check_lists()

    def _check_lists(self) -> None:
        """Raise InputError where the fields are not those that `Cut.of` gives for what is dropped."""
        fields = self.start, self.size, self.scattered, self.attention, self.mlp
        expected = _find_fields(self.dropped, self.attention, self.mlp)
        if fields != expected:
            raise InputError(
                f"{self!r} contradicts itself; expected sorted layers, none of them twice, and their number as size: "
                "Cut.of(layers=[1, 9]) sorts and counts them"
            )
        # plain integers
        for name, value in zip(("start", "size", "scattered", "attention", "mlp"), expected):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        fields = [
            f"{name}={value}"
            for name, value in vars(self).items()
            if value or name in ("start", "size")
        ]
        return f"Cut({', '.join(fields)})"

    @classmethod
    def of(
        cls, layers: Iterable[int] = (), attention: Iterable[int] = (), mlp: Iterable[int] = ()
    ) -> "Cut":
        """The cut that drops these layers, and the attention or the MLP of others, in any order.

        Raises InputError where an index is not that of a layer.

        Example:
            >>> Cut.of(layers=[4, 3, 5])
            Cut(start=3, size=3)
            >>> Cut.of(layers=[2, 7], mlp=[5]).describe(num_layers=9)
            'drops layers 2, 7 (0-based, 2 of 9) and the MLP of layer 5, keeps [0:2], [3:7] and [8:9]'
        """
        return cls(*_find_fields(layers, attention, mlp))

    @classmethod
    def named(cls, name: str | list[int]) -> "Cut":
        """The cut with this `name` or `key`. Raises ValueError where no cut has it.

        Example:
            >>> Cut.named("layers 2 7; mlp 5") == Cut.of(layers=[2, 7], mlp=[5])
            True
        """
        if isinstance(name, list) or "," in name:
            start, size = map(int, name.split(",") if isinstance(name, str) else name)
            cut = cls(start, size)
        else:
            parts = dict(part.split(" ", 1) for part in name.split("; "))
            cut = cls.of(**{part: map(int, indices.split()) for part, indices in parts.items()})
        if name not in (cut.name, cut.key):
            raise ValueError(f"{name!r} is no name of a cut, expected {cut.name!r}")
        return cut

    @property
    def is_block(self) -> bool:
        """Whether it drops contiguous layers and nothing else, as the paper does."""
        return self.is_of_layers and not self.scattered

    @property
    def is_of_layers(self) -> bool:
        """Whether it drops whole layers and nothing else, contiguous or not."""
        return not (self.attention or self.mlp)

    @property
    def name(self) -> str:
        """A name that no other cut has: "start,size" for a block, else a list of all that it drops."""
        if self.is_block:
            return f"{self.start},{self.size}"
        return "; ".join(
            f"{part} {' '.join(map(str, indices))}"
            for part, indices in self.parts.items()
            if indices
        )

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """All that it drops, as `Cut.of` takes it."""
        return {"layers": self.dropped, "attention": self.attention, "mlp": self.mlp}

    @property
    def key(self) -> list[int] | str:
        """The cut in JSON: [start, size] for a block, else its name."""
        return [self.start, self.size] if self.is_block else self.name

    @property
    def dropped(self) -> tuple[int, ...]:
        """Every layer that is dropped as a whole."""
        return self.scattered or tuple(range(self.start, self.stop))

    @property
    def stop(self) -> int:
        """First layer after the dropped ones (exclusive end)."""
        return self.scattered[-1] + 1 if self.scattered else self.start + self.size

    def runs(self, layer: int) -> str | None:
        """The part of a layer that runs: WHOLE, ATTENTION or MLP; None where the layer is dropped."""
        if layer in self.dropped:
            return None
        if layer in self.attention:
            return MLP
        return ATTENTION if layer in self.mlp else WHOLE

    def check(self, num_layers: int) -> None:
        """Raise InputError where the cut drops all layers of a model of this depth, or reaches past the last one."""
        check_size(self.size, num_layers)
        last = max((*self.dropped, *self.attention, *self.mlp), default=0)
        if last >= num_layers:
            raise InputError(
                f"the cut is of layer {last}; expected layers 0 to {num_layers - 1}, as the model has {num_layers}"
            )

    def kept(self, num_layers: int) -> list[int]:
        """The original index of every kept layer; the position in the list is the new index. Raises as `check` does."""
        self.check(num_layers)
        return [layer for layer in range(num_layers) if layer not in self.dropped]

    def describe(self, num_layers: int) -> str:
        """The cut in words: "drops layers 3..7 (0-based, 5 of 30), keeps [0:3] and [8:30]". Raises as `check` does."""
        *kept, last = [f"[{start}:{stop}]" for start, stop in find_ranges(self.kept(num_layers))]
        if kept:
            last = f"{', '.join(kept)} and {last}"
        sublayers = {"attention": self.attention, "MLP": self.mlp}
        parts = []
        if self.size:
            parts.append(f"{describe_layers(self.dropped)} (0-based, {self.size} of {num_layers})")
        parts += [
            f"the {name} of {describe_layers(indices)}"
            for name, indices in sublayers.items()
            if indices
        ]
        dropped = " and ".join(parts) or f"no layers (0 of {num_layers})"
        return f"drops {dropped}, keeps {last}"

    def check_of_layers(self, num_layers: int, why: str) -> None:
        """Raise InputError, with the reason `why`, for a cut that drops sublayers. Raises as `check` does."""
        if not self.is_of_layers:
            raise InputError(f"the cut {self.describe(num_layers)}: {why}")

    def mergekit_yaml(self, num_layers: int, model_name: str, revision: str | None = None) -> str:
        """The cut as mergekit's passthrough configuration for a hub id and its revision, or for a folder's path.

        Raises as `check` does, and InputError for a cut that drops sublayers, which mergekit can't.
        """
        self.check_of_layers(
            num_layers, "mergekit's passthrough takes whole layers; drop whole layers"
        )
        return mergekit_yaml(find_ranges(self.kept(num_layers)), model_name, revision)


def _find_fields(layers: Iterable[int], attention: Iterable[int], mlp: Iterable[int]) -> tuple:
    """The five fields of the cut that drops these layers, and these sublayers of others, all in any order."""
    dropped = _check_indices("layers", layers)
    without_attention = _check_indices("attention", attention)
    without_mlp = _check_indices("mlp", mlp)
    dropped |= without_attention & without_mlp  # a layer that loses both is dropped
    block = tuple(sorted(dropped))
    scattered = block if len(find_ranges(block)) > 1 else ()
    attention = tuple(sorted(without_attention - dropped))
    mlp = tuple(sorted(without_mlp - dropped))
    return min(block, default=0), len(block), scattered, attention, mlp


def _check_indices(name: str, indices: Iterable[int]) -> set[int]:
    """Some indices of layers, each once. Raises InputError where one is not that of a layer."""
    if not isinstance(indices, Iterable):
        raise InputError(
            f"{name} is {short_repr(indices)}; expected a list of layers; put one into a list"
        )
    return {
        check_whole_number(name, index, 0, LAYERS - 1, "layers are counted from 0")
        for index in indices
    }


UNPRUNED = Cut(0, 0)  # drops nothing: the whole model


def find_ranges(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Group rising indices into ranges (start, exclusive end)."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        start = ranges.pop()[0] if ranges and ranges[-1][1] == index else index
        ranges.append((start, index + 1))
    return ranges


def describe_layers(indices: Iterable[int]) -> str:
    """Name layers in words: "layer 3", "layers 3..7", "layers 2, 5..7"."""
    parts = [
        str(start) if stop - start == 1 else f"{start}..{stop - 1}"
        for start, stop in find_ranges(indices)
    ]
    if parts[0].isdigit() and len(parts) == 1:
        return f"layer {parts[0]}"
    return f"layers {', '.join(parts)}"


def mergekit_yaml(
    ranges: Iterable[tuple[int, int]], model_name: str, revision: str | None = None
) -> str:
    """A passthrough configuration for mergekit with the layers of some ranges, in their order."""
    # in a plain name mergekit reads an adapter after +, and a revision after @
    needs_mapping = revision is not None or set("+@") & set(model_name)
    location = {"path": model_name} | ({"revision": revision} if revision is not None else {})
    model = {"model": location} if needs_mapping else model_name
    lines = ["slices:"]
    for start, stop in ranges:
        # JSON is YAML too, whatever characters the name holds
        lines += [
            "  - sources:",
            f"      - model: {json.dumps(model)}",
            f"        layer_range: [{start}, {stop}]",
        ]
    return "\n".join([*lines, "merge_method: passthrough", ""])


def simple_cut(num_layers: int, size: int) -> Cut:
    """The cut of the simple heuristic: the `size` layers just before the last one, L-1-n .. L-2.

    Source: paper, section 4.4. The last layer is never dropped.

    Args:
        num_layers: number of layers of the whole model, L.
        size: number of layers to drop, n, from 0 to L-1; InputError for any other.

    Example:
        >>> from deeper_layers import simple_cut
        >>> simple_cut(num_layers=30, size=4)
        Cut(start=25, size=4)
    """
    check_size(size, num_layers)
    return Cut(num_layers - 1 - size, size)


def similarity_cut(distances: Float[np.ndarray, "L L"], size: int) -> Cut:
    """The cut of `size` layers with the smallest angular distance, l*(n) = argmin over l of d(l, n).

    Source: paper, section 3.2, step 2. As the last layer is never dropped, the candidates are the starts l
    with l + n <= L - 1. Of equal distances the smallest start is taken.

    Args:
        distances: array (L, L) of angular distances in units of pi; row n-1 belongs to block size n = 1..L,
            column l to the start l = 0..L-1; nan where l + n > L.
        size: number of layers to drop, n, from 0 to L-1.

    Raises:
        InputError: the array is not square, size is outside of 0 to L-1, or a candidate has no distance.

    Example:
        Of three layers, the second turns the residual least:

        >>> import numpy as np
        >>> from deeper_layers import similarity_cut
        >>> nan = np.nan
        >>> similarity_cut(np.array([[0.3, 0.1, 0.2], [0.4, 0.2, nan], [0.5, nan, nan]]), size=1)
        Cut(start=1, size=1)
    """
    with as_input_error(
        f"distances is {short_repr(distances)}", "pass what angular_distances returns"
    ):
        matrix = np.asarray(distances, dtype=np.float64)
    layers = len(matrix) if matrix.ndim else 0
    if matrix.shape != (layers, layers):
        raise InputError(
            f"distances is of shape {matrix.shape}; expected (L, L) for a model of L layers; pass the whole array that "
            "angular_distances returns"
        )
    check_size(size, layers)
    if size == 0:
        return UNPRUNED
    candidates = matrix[size - 1, : layers - size]
    if np.isnan(candidates).any():
        raise InputError(
            f"distances holds nan for size {size} at start {int(np.isnan(candidates).argmax())}; expected a "
            f"number for every start from 0 to {layers - size - 1}; measure them again with angular_distances"
        )
    return Cut(int(candidates.argmin()), size)


def check_size(size: int, num_layers: int) -> None:
    """Raise InputError for a number of layers that a model of `num_layers` layers can't lose."""
    check_whole_number("num_layers", num_layers, 1, LAYERS, "pass the depth of the whole model")
    if size not in range(num_layers):
        raise InputError(
            f"size is {short_repr(size)}; expected 0 to {num_layers - 1} for a model of {num_layers} layers, as one "
            "layer has to stay; choose a size in that range"
        )


def check_cut(cut: object) -> None:
    """Raise InputError for anything but a Cut."""
    if not isinstance(cut, Cut):
        raise InputError(
            f"cut is {short_repr(cut)}; expected a Cut; write Cut(start=8, size=3) to drop layers 8, 9 and 10"
        )
