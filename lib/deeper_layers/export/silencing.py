"""Sublayers that no configuration leaves out: zeros in the tensors by which they write into the residual."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.export.casting import BLOCK, BYTES
from deeper_layers.export.layer_tensors import Layout
from deeper_layers.models.checkpoint_files import NUMBERED, Shard, Tensor
from deeper_layers.models.configuration import text_part
from deeper_layers.models.sublayers import ends_sublayer


def silenced(shards: list[Shard], layout: Layout, cut: Cut, folder: Path) -> list[Shard]:
    """The kept tensors, under their new names, with zeros where the sublayers of a cut end.

    Raises InputError where no such tensor of a known name is found, or one is quantized.
    """
    silent = {
        (layout.numbers[layer], part)
        for part, layers in ((ATTENTION, cut.attention), (MLP, cut.mlp)) for layer in layers
    }  # fmt: skip
    known = {tensor.entry["dtype"] for shard in shards for tensor in shard.tensors} <= set(BYTES)
    if not known or any("quantization_config" in part for part in (layout.config, text_part(layout.config))):
        raise InputError(
            f"{folder} holds quantized weights, and which of their bytes are zeros is not known: silence the "
            "checkpoint that it was made of"
        )
    found = set()

    def changed(tensor: Tensor) -> Tensor:
        place = NUMBERED.match(tensor.name)
        if place is None or place["prefix"] != layout.prefix:
            return tensor
        ended = {one for one in silent if one[0] == int(place["number"]) and ends_sublayer(place["rest"], one[1])}
        if not ended:
            return tensor
        found.update(ended)
        return dataclasses.replace(tensor, update=_zeros(tensor.bytes))

    shards = [dataclasses.replace(shard, tensors=tuple(map(changed, shard.tensors))) for shard in shards]
    if missing := sorted(silent - found):
        number, part = missing[0]
        raise InputError(
            f"{folder} has no tensor of a known name that ends the {part} of its layer {layout.kept[number]}: drop "
            "whole layers"
        )
    return shards


def _zeros(total: int) -> Callable:
    def update(read: Callable[[int], bytes]) -> Iterator[bytes]:
        for place in range(0, total, BLOCK):
            yield bytes(min(BLOCK, total - place))

    return update
