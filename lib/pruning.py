"""Cuts: which contiguous layers to drop, and a model without them.

Source: Gromov et al., arXiv 2403.17887, section 3.2 (the algorithm), section 4.4 (the simple heuristic).
Layers are counted from 0, and a range of layers has an exclusive end.
"""

import copy
import functools
import json
import operator
import types
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from lib.decoder import decoder_layers, num_layers
from lib.errors import InputError
from lib.per_layer import renumber_configs


@dataclass(frozen=True, order=True)
class Cut:
    """A block of contiguous layers to drop.

    Args:
        start: first dropped layer, counted from 0 (0 where size is 0: then nothing is dropped).
        size: number of dropped layers, n in the paper; 0 is the whole model.

    Raises:
        InputError: start or size is not a whole number.
    """

    start: int
    size: int

    def __post_init__(self):
        for name in ("start", "size"):
            value = getattr(self, name)
            try:
                # a plain integer also where an integer of numpy or torch comes in
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise InputError(
                    f"{name} is {value!r}; expected a whole number of layers; write Cut(start=8, size=3) to "
                    "drop layers 8, 9 and 10"
                ) from None
        if self.size == 0:
            object.__setattr__(self, "start", 0)

    @property
    def stop(self) -> int:
        """First layer after the dropped ones (exclusive end)."""
        return self.start + self.size

    def check(self, num_layers: int) -> None:
        """Accept the cut for a model of `num_layers` layers.

        Raises:
            InputError: the cut has a negative size or start, leaves no layer, or reaches past the last layer.
        """
        _check_number_of_layers(num_layers)
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

    def mergekit_yaml(self, num_layers: int, model_name: str) -> str:
        """The cut as a passthrough configuration for mergekit; `layer_range` has an exclusive end.

        Raises:
            InputError: the cut does not fit the model, see `check`.
        """
        lines = ["slices:"]
        for start, stop in self._kept_ranges(num_layers):
            # a JSON string is a YAML string too, whatever characters the name holds
            lines += ["  - sources:", f"      - model: {json.dumps(model_name)}"]
            lines += [f"        layer_range: [{start}, {stop}]"]
        return "\n".join([*lines, "merge_method: passthrough", ""])

    def _kept_ranges(self, num_layers: int) -> list[tuple[int, int]]:
        self.check(num_layers)
        ranges = [(0, num_layers)] if self.size == 0 else [(0, self.start), (self.stop, num_layers)]
        return [(start, stop) for start, stop in ranges if start < stop]


def simple_cut(num_layers: int, size: int) -> Cut:
    """The cut of the simple heuristic: the `size` layers just before the last one, L-1-n .. L-2.

    Source: paper, section 4.4. The last layer is never dropped.

    Args:
        num_layers: number of layers of the whole model, L.
        size: number of layers to drop, n, from 0 to L-1.

    Raises:
        InputError: size is outside of 0 to L-1.
    """
    _check_size(size, num_layers)
    return Cut(num_layers - 1 - size, size)


def similarity_cut(distances: Float[np.ndarray, "L L"], size: int) -> Cut:
    """The cut of `size` layers with the smallest angular distance, l*(n) = argmin over l of d(l, n).

    Source: paper, section 3.2, step 2. As the last layer is never dropped, the candidates are the starts l
    with l + n <= L - 1: a block with l + n = L would contain the last layer. Of equal distances the smallest
    start is taken.

    Args:
        distances: array (L, L) of angular distances in units of pi; row n-1 belongs to block size n = 1..L,
            column l to the start l = 0..L-1; nan where l + n > L.
        size: number of layers to drop, n, from 0 to L-1.

    Raises:
        InputError: the array is not square, size is outside of 0 to L-1, or a candidate has no distance.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise InputError(
            f"distances has shape {distances.shape}; expected (L, L) for a model of L layers, sizes 1..L by "
            "starts 0..L-1; pass the whole array that angular_distances returns"
        )
    length = distances.shape[0]
    _check_size(size, length)
    if size == 0:
        return Cut(0, 0)
    candidates = distances[size - 1, : length - size]
    if np.isnan(candidates).any():
        raise InputError(
            f"distances holds nan for size {size} at start {int(np.isnan(candidates).argmax())}; expected a "
            f"number for every start from 0 to {length - size - 1}; measure them again with angular_distances"
        )
    return Cut(int(candidates.argmin()), size)


def drop_layers(model: nn.Module, cut: Cut) -> PreTrainedModel:
    """A model without the layers of a cut: the old input of layer `start` now feeds layer `stop`.

    Source: paper, section 3.2, step 3. The new model has its own modules and its own configuration, with
    layers renumbered from 0 and every per-layer entry of the configuration cut alike. It shares the
    parameters and buffers of the original, so that it costs no memory: training, moving or casting one
    changes the other (`copy.deepcopy` makes it independent). The original stays as it was.

    Two empty models, built from the old and the new configuration, show everything that depends on a layer's
    position. A position itself (`layer_idx`, wherever it is stored) is renumbered; any other difference in a
    kept layer means that a reloaded model would compute something else than the kept layers did.

    Args:
        model: a decoder-only transformers model with L layers.
        cut: the layers to drop.

    Returns:
        A model of the same class with L - cut.size layers.

    Raises:
        InputError: the model is not a decoder-only transformers model, the cut does not fit it, or its
            configuration cannot describe the kept layers.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"the model is a {type(model).__name__}; expected a transformers PreTrainedModel; unwrap it "
            "first (adapters: model.merge_and_unload())"
        )
    kept = cut.kept(num_layers(model))
    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."

    pruned = _shared_copy(model)
    renumber_configs(pruned, kept)
    words = cut.describe(len(layers))
    before, after = _empty_model(model, words), _empty_model(pruned, words)
    del decoder_layers(before)[cut.start : cut.stop]
    del pruned.get_submodule(prefix[:-1])[cut.start : cut.stop]
    _adopt_differences(pruned, before, after, kept, prefix, words)
    return pruned


def _shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same tree of new modules and configurations, over the same parameters, buffers and all else."""
    memo: dict = {}
    for module in model.modules():
        memo[id(module)] = object.__new__(type(module))
        for value in vars(module).values():
            if isinstance(value, PreTrainedConfig | GenerationConfig):
                # one memo for all, as the modules of a model hold the same object or parts of it
                copy.deepcopy(value, memo)
    for module in model.modules():
        attributes = vars(memo[id(module)])
        for name, value in vars(module).items():
            if id(value) in memo:
                value = memo[id(value)]
            elif isinstance(value, dict):
                # children, and the tables of parameters, buffers and hooks, each to change independently
                value = copy.copy(value)
                value.update((key, memo[id(entry)]) for key, entry in list(value.items()) if id(entry) in memo)
            elif isinstance(value, types.MethodType | functools.partial):
                # a forward that was replaced on the module, as accelerate does, is bound to the old module
                value = copy.deepcopy(value, memo)
            attributes[name] = value
    return memo[id(model)]


def _empty_model(model: PreTrainedModel, cut: str) -> PreTrainedModel:
    """What saving and reloading the model would build, without weights."""
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            return type(model)(config)
    except Exception as error:  # the configuration classes of transformers raise many kinds
        raise InputError(
            f"a cut that {cut} does not fit the configuration of {type(model).__name__} ({error}); expected "
            "one that can be saved and reloaded; choose another cut or model"
        ) from error


def _adopt_differences(
    pruned: PreTrainedModel,
    before: PreTrainedModel,
    after: PreTrainedModel,
    kept: list[int],
    prefix: str,
    cut: str,
) -> None:
    """Set in `pruned` every plain attribute in which two empty models of equal depth differ.

    `before` is built from the old configuration and cut, `after` is built from the new one. Outside of the
    layers such an attribute follows from the configuration (whether any layer has a sliding window); inside
    it may only be the layer's position.
    """

    def refuse(what: str) -> InputError:
        return InputError(
            f"a cut that {cut} changes {what} of {type(pruned).__name__}, which depends on the depth in a "
            "way that its configuration cannot describe; expected layers that reload unchanged; choose "
            "another cut or model"
        )

    old_saved, new_saved = _saved_shapes(before), _saved_shapes(after)
    if unequal := old_saved.items() ^ new_saved.items():
        raise refuse(min(name for name, _ in unequal))
    old_modules = dict(before.named_modules())
    for name, new in after.named_modules():
        old = old_modules.get(name)
        if type(old) is not type(new):
            raise refuse(name)
        position = int(name[len(prefix) :].split(".")[0]) if name.startswith(prefix) else None
        for attribute, value in vars(new).items():
            old_value = vars(old).get(attribute)
            if not isinstance(value, int | float | str | None) or old_value == value:
                continue
            if position is not None and (type(value) is not int or (old_value, value) != (kept[position], position)):
                raise refuse(f"{name}.{attribute}")
            setattr(pruned.get_submodule(name), attribute, value)


def _saved_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Name and shape of everything that a checkpoint of the model holds."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_number_of_layers(num_layers: int) -> None:
    if num_layers < 1:
        raise InputError(f"num_layers is {num_layers}; expected at least 1; pass the depth of the whole model")


def _check_size(size: int, num_layers: int) -> None:
    _check_number_of_layers(num_layers)
    if not 0 <= size <= num_layers - 1:
        raise InputError(
            f"size is {size}; expected 0 to {num_layers - 1} for a model of {num_layers} layers, as the last "
            "layer is never dropped; choose a size in that range"
        )


if __name__ == "__main__":
    from lib.command import main  # a floor above this file, which has the name that people know the method by

    main()
