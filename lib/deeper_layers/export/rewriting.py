"""Tensors of the layers that stay which a rule changed: they are written in place of the source's own."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import DTYPES
from deeper_layers.export.layer_tensors import Layout
from deeper_layers.models.checkpoint_files import Shard, Tensor

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Changed:
    """What a rule made of the layers that stay.

    Attributes:
        tensors: by "number of the layer in what is left.name in it".
        words: which rule, and what it did.
    """

    tensors: Mapping[str, "torch.Tensor"]
    words: str

    @property
    def fingerprint(self) -> str:
        """Of all that is written in place of the source's own."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(_bytes(self.tensors[name].float()))
        return digest.hexdigest()


def rewritten(shards: list[Shard], layout: Layout, changed: Changed) -> list[Shard]:
    """The kept tensors, under their new names, with those that a rule changed in place of the source's own.

    Raises InputError for one that the source has not, or has of another shape or quantized, or that is too large for
    the source's data type.
    """
    wanted = {f"{layout.prefix}{name}": tensor for name, tensor in changed.tensors.items()}
    entries = {tensor.name: tensor.entry for shard in shards for tensor in shard.tensors}
    for name, tensor in wanted.items():
        entry = entries.get(name)
        if entry is None or entry["shape"] != list(tensor.shape) or entry["dtype"] not in DTYPES:
            found = "no such tensor" if entry is None else f"one of shape {entry['shape']} in {entry['dtype']}"
            raise InputError(
                f"the rule changed {name} of shape {list(tensor.shape)}, and the source has {found}: save the changed "
                "model with save_pretrained, or choose a rule that drops layers alone"
            )

    def new(tensor: Tensor) -> Tensor:
        if tensor.name not in wanted:
            return tensor
        return dataclasses.replace(tensor, update=_instead(tensor, wanted[tensor.name]))

    return [dataclasses.replace(shard, tensors=tuple(map(new, shard.tensors))) for shard in shards]


def _instead(tensor: Tensor, values: "torch.Tensor") -> Callable:
    def update(read: Callable[[int], bytes]) -> Iterator[bytes]:
        import torch  # slow: what is copied alone needs none

        cast = values.to(getattr(torch, DTYPES[tensor.entry["dtype"]]))
        if not torch.isfinite(cast).all():
            raise InputError(f"{tensor.name} as the rule changed it is not finite in {cast.dtype}: choose another rule")
        yield _bytes(cast)

    return update


def _bytes(values: "torch.Tensor") -> bytes:
    import torch

    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
