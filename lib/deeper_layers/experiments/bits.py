"""Depth by bits: how well pruned models answer whose weights are rounded in several ways, and their bytes: a unit."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from deeper_layers import export, models, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.common_parameters import BITSANDBYTES
from deeper_layers.experiments.measurement import Measurement, items_of
from deeper_layers.experiments.parameters import TakeAwayParameters
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.results.units import Unit

VERSION = 1  # part of every unit's key: raise it when a change here changes numbers


def bits_unit(bits: str, cuts: list[Cut], parameters: TakeAwayParameters, source: Source) -> Unit | None:
    """Scores of pruned models in one kind of weights: read from results, else measured.

    `bits` is a data type ("bfloat16"), a quantization of bitsandbytes ("int8", "nf4"), which computes in bfloat16, or
    a type of llama.cpp's quantizer ("Q8_0", "Q2_K"), dequantized to float32 for the answers. A type that a GGUF file
    has already is that file as it is.

    Rows: task, metric, start, size, value, stderr, items, and bytes of the pruned model's weights. None where nothing
    is to be measured and results hold no such unit.
    """
    plain = bits if bits in DTYPES else "bfloat16" if bits in BITSANDBYTES else "float32"

    def measure(_):
        tables = []
        with _opened(bits, dataclasses.replace(source, dtype=plain), parameters) as (model, tokenizer, bytes_of):
            for task in parameters.task_list:
                tables.append(sweeping.sweep(model, tokenizer, [task], cuts, **parameters.sweep_options(task)))
            bytes = {cut: bytes_of(cut) for cut in cuts}
        rows = pd.concat(tables, ignore_index=True)
        rows["bytes"] = [bytes[Cut(*place)] for place in zip(rows["start"], rows["size"])]
        return rows, {"levels": {task: level for table in tables for task, level in table.attrs["levels"].items()}}

    return Measurement(
        kind="bits", name=bits, version=VERSION, source=source, dtype=plain, measure=measure,
        reads=items_of(parameters.shots, parameters.datasets),
        settings={
            "bits": bits, "tasks": dict(sorted(parameters.shots.items())),
            "cuts": [[cut.start, cut.size] for cut in cuts], "limits": dict(sorted(parameters.limits.items())),
        },
    ).unit(parameters)  # fmt: skip


@contextlib.contextmanager
def _opened(bits: str, source: Source, parameters: TakeAwayParameters) -> Iterator[tuple]:
    """The model in this kind of weights, its tokenizer, and what gives the bytes of it after a cut."""
    from deeper_layers.pruning import drop_layers  # torch, where there is something to measure

    if bits in DTYPES or bits in BITSANDBYTES:
        model, tokenizer = models.load_model(
            source, device=parameters.device, quantization=bits if bits in BITSANDBYTES else None,
            trust_remote_code=parameters.trust_remote_code,
        )  # fmt: skip
        yield model, tokenizer, lambda cut: checkpoint_bytes(drop_layers(model, cut))
    elif bits == source.quantized:
        yield *models.load_model(source, device=parameters.device), lambda cut: export.tensor_bytes(source, cut)
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain = export.slice_gguf(source, UNPRUNED, Path(folder) / "plain.gguf", type="f32")
            path = export.quantize(plain, Path(folder) / f"{source.name}.{bits}.gguf", bits)
            with opened_gguf(path, parameters.device) as found:
                yield *found, lambda cut: export.tensor_bytes(models.find_model(str(path)), cut)


@contextlib.contextmanager
def opened_gguf(path: Path, device: str = "auto") -> Iterator[tuple]:
    """Model and tokenizer of a GGUF file, whose converted weights are not kept in the cache."""
    folder = models.checkpoint_folder(str(path))
    try:
        yield models.load_model(str(path), device=device)
    finally:
        shutil.rmtree(folder)


def checkpoint_bytes(model) -> int:
    """Bytes of what a checkpoint of the model holds, scales of quantized weights included, tied weights once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())
