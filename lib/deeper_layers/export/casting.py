"""Weights in another data type, cast while they are copied, some megabytes of a tensor at a time."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import Shard, Tensor
from deeper_layers.models.configuration import text_part

BLOCK = 2**22  # bytes cast at a time
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # in a safetensors file
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
TORCH = {"F64": "float64"} | {name: dtype for dtype, name in NAMES.items()}
AS_IT_IS = "auto"
STATED = ("dtype", "torch_dtype")  # entries of config.json


def written_bytes(tensor: Tensor) -> int:
    """How many bytes a tensor has where it is written."""
    known = BYTES.get(tensor.entry["dtype"])
    return tensor.bytes if known is None or tensor.update is None else known * math.prod(tensor.entry["shape"])


def cast_shard(shard: Shard, dtype: str) -> Shard:
    """A shard whose real numbers are cast when it is copied; whole numbers stay as they are."""
    cast = (_cast(tensor, NAMES[dtype]) if tensor.entry["dtype"] in BYTES else tensor for tensor in shard.tensors)
    return dataclasses.replace(shard, tensors=tuple(cast))


def check_castable(folder: Path, config: dict, shards: list[Shard]) -> None:
    """Raise InputError for a quantized checkpoint, whose numbers mean nothing without their scales."""
    known = any("quantization_config" in part for part in (config, text_part(config)))
    rounded = [t for shard in shards for t in shard.tensors if t.entry["dtype"].startswith(("F8", "F6", "F4"))]
    if known or rounded:
        raise InputError(
            f"dtype is given, and {folder} holds quantized weights, which can't be cast: leave it out, and they are "
            "copied as they are"
        )


def smallest_dtype(shards: list[Shard]) -> str:
    """The smallest of NAMES that holds every real number of a checkpoint in float32 exactly.

    The weights of a GGUF file become float32, and are what they were if it held 16 bits. Those that it held in fewer
    are products of a scale of 16 bits and small whole numbers, which 16 bits seldom hold: then it is float32.
    """
    import torch  # slow

    fitting = {"bfloat16", "float16"}
    for shard in shards:
        with open(shard.path, "rb") as file:
            for tensor in (tensor for tensor in shard.tensors if tensor.entry["dtype"] == "F32"):
                file.seek(shard.start + tensor.entry["data_offsets"][0])
                for block in _blocks(file.read, tensor.bytes):
                    values = torch.frombuffer(block, dtype=torch.float32)
                    fitting = {name for name in fitting if torch.equal(values.to(getattr(torch, name)).float(), values)}
                    if not fitting:
                        return "float32"
    return min(fitting)


def stated_dtype(config: dict, dtype: str) -> dict:
    """A config.json that states a data type where it stated another, and in one place at least."""
    config = {name: dtype if name in STATED else value for name, value in config.items()}
    for part, value in config.items():
        if isinstance(value, dict) and any(name in value for name in STATED):
            config[part] = value | {name: dtype for name in STATED if name in value}
    return config if any(name in config for name in STATED) else config | {"torch_dtype": dtype}


def _cast(tensor: Tensor, name: str) -> Tensor:
    given = tensor.entry["dtype"]
    if given == name:
        return tensor

    def update(read: Callable[[int], bytes]) -> Iterator[bytes]:
        import torch  # slow

        old, new = getattr(torch, TORCH[given]), getattr(torch, TORCH[name])
        blocks = _blocks(read, tensor.bytes) if tensor.update is None else map(bytearray, tensor.update(read))
        for block in blocks:
            values = torch.frombuffer(block, dtype=old)
            cast = values.to(new)
            if not cast.isfinite().all() and values.isfinite().all():
                raise InputError(
                    f"dtype is {TORCH[name]}, and {tensor.name} holds {values.abs().max().item():g}, too large for it: "
                    "give bfloat16 or float32"
                )
            yield cast.view(torch.uint8).numpy().tobytes()

    return dataclasses.replace(tensor, entry=tensor.entry | {"dtype": name}, update=update)


def _blocks(read: Callable[[int], bytes], total: int) -> Iterator[bytearray]:
    for place in range(0, total, BLOCK):
        yield bytearray(read(min(BLOCK, total - place)))
