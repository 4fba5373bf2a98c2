"""A GGUF file without some of its layers, for llama.cpp; adapters can be added to the weights that stay.

The tensors that stay are copied as bytes, however they are quantized, and renamed to their new layers. The model is not
opened, and one tensor is in memory at a time. The file appears when it is complete.
"""

import dataclasses
import functools
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import ReaderTensor
from gguf.gguf_writer import GGUFValue, WriterState

from deeper_layers import checks
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.export.adapter_files import Adapter, read_adapter
from deeper_layers.export.engines import find_misreadings
from deeper_layers.export.lineage import check_disk_space, check_no_overlap, show_bytes_written
from deeper_layers.export.llama_cpp import EXACT_TYPES, FILE_TYPES, ROUNDED_TYPES, quantize
from deeper_layers.files import atomic_file, temporary_dir
from deeper_layers.models.gguf_reading import (
    ARCHITECTURES,
    UNIFORM,
    Header,
    read_gguf,
    split_tensor_name,
)
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source, find_model
from deeper_layers.package_index import cache_folder, hash_once

# architectures whose layers are alike, or described one by one in the file, or counted by llama.cpp as in engines.csv
KNOWN_ARCHITECTURES = (*sorted(UNIFORM), "gemma4", "lfm2")
TYPES = {name: GGMLQuantizationType[name.upper()] for name in EXACT_TYPES}
LARGEST_FLOAT16 = 65504  # all types but f32 hold their numbers or scales in float16
# metadata entries
KEPT_LAYERS = "pruning.kept_layers"
ORIGIN = "pruning.source_sha256"
OLD_MARK = "pruning.sha256"  # of the whole file, which earlier versions wrote


class FilePlan(NamedTuple):
    """A file to write: the bytes before its tensors, and for each tensor its source, new type, and the function that
    computes an adapter's update."""

    head: bytes
    tensors: list[tuple[ReaderTensor, GGMLQuantizationType, Callable | None]]
    bytes: int  # size of the whole file


def find_gguf_file(source: Source) -> Path:
    """The path of a model's GGUF file. Raises InputError for a model that is none."""
    if not source.is_gguf:
        raise InputError(
            f"{source.name} is no GGUF file: write a folder, and convert that with llama.cpp"
        )
    return source.gguf or PACKAGED[source.folder].file()


@checks.check_types
def slice_gguf(
    source: str | Path | Source,
    cut: Cut,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    type: str | None = None,
) -> Path:
    """Write a GGUF file without the layers of a cut.

    Args:
        source: a `.gguf` file, or the name of a packaged model ("embedded").
        cut: the layers to drop.
        out: the file to write, which must not exist.
        adapter: a folder of adapters on feed-forward modules, trained after this cut; they are added to the weights.
        type: of the matrices: "f32", "f16" or "q8_0", or one of ROUNDED_TYPES, which llama.cpp's quantizer writes. None
            keeps their types, but writes matrices with adapters in "f16": rounding the sum would undo part of it.

    Raises:
        InputError: an argument is of another type, the source is no whole GGUF file, llama.cpp would take kept layers
            for another kind, the cut or the adapters do not fit, llama.cpp is missing, `out` exists or can't be
            written, or the disk is full.
    """
    out = checks.check_path("out", out)
    source = source if isinstance(source, Source) else find_model(str(source))
    path = find_gguf_file(source)
    check_no_overlap(out, path, adapter)
    advice = "fix this, or name another place"
    with as_input_error(f"can't write {out}", advice, OSError), atomic_file(out) as partial:
        if type in ROUNDED_TYPES:
            with temporary_dir(cache_folder() / "rounded") as folder:
                quantize(
                    slice_gguf(source, cut, folder / "plain.gguf", adapter=adapter),
                    partial,
                    type.upper(),
                )
        else:
            header = read_gguf(path)
            plan = plan_gguf(source, header, cut, type, adapter)
            check_disk_space(plan.bytes, partial.parent, out)
            with open(partial, "wb") as file, show_bytes_written(plan.bytes) as bar:
                bar.update(file.write(plan.head))
                for tensor, new_type, update in plan.tensors:
                    bar.update(file.write(_encode_tensor(tensor, new_type, update).data))
                    bar.update(file.write(bytes(-file.tell() % header.alignment)))
            if f"sha256:{hash_once(path)}" != source.weights:
                raise InputError(f"{path} was changed after it was read for its hash: begin again")
    return out


class HeaderWriter(gguf.GGUFWriter):
    """Packs a list at once. Value by value, as gguf does it, a vocabulary takes half a second."""

    def _pack_val(self, val, vtype, add_vtype, sub_type=None):
        if vtype != GGUFValueType.ARRAY or sub_type is None or not len(val):
            return super()._pack_val(val, vtype, add_vtype, sub_type)
        parts = [struct.pack("<I", vtype)] if add_vtype else []
        parts.append(struct.pack("<IQ", sub_type, len(val)))
        if sub_type == GGUFValueType.STRING:
            for text in val:
                encoded = text.encode("utf-8") if isinstance(text, str) else text
                parts += [struct.pack("<Q", len(encoded)), encoded]
        else:
            parts.append(struct.pack(f"<{len(val)}{self._simple_value_packing[sub_type]}", *val))
        return b"".join(parts)


def plan_gguf(
    source: Source,
    header: Header,
    cut: Cut,
    type: str | None,
    adapter: str | Path | None = None,
    healed: bool = False,
) -> FilePlan:
    """The plan of what `slice_gguf` writes from a file with this header; `healed`: adapters will be added later."""
    if type not in (None, *TYPES):
        raise InputError(f"type is {type!r}, expected one of {', '.join((*TYPES, *ROUNDED_TYPES))}")
    unstated = "no GGUF file states a layer without one of its sublayers; drop whole layers"
    cut.check_of_layers(source.num_layers, unstated)
    if header.architecture not in KNOWN_ARCHITECTURES:
        problem = f"{source.name} has the architecture {header.architecture}, whose layers may differ by their number"
        raise InputError(
            f"{problem}: slice its safetensors, or one of {', '.join(KNOWN_ARCHITECTURES)}"
        )
    misreadings = find_misreadings(header.config, cut, ["llama.cpp"])
    if misreadings:
        raise InputError(
            f"{source.name} would be another model: {misreadings[0].why}; drop other layers"
        )
    if adapter is None:
        updates = {}
    else:
        updates = _find_updates(read_adapter(adapter), source, cut, header)
    kept = cut.kept(source.num_layers)
    tensors = []
    size = 0
    head = io.BytesIO()
    writer = HeaderWriter(None, header.architecture)
    writer.data_alignment = header.alignment
    writer.kv_data[0] |= _cut_metadata(header, source, kept, type)
    for name, tensor in _select_tensors(header, kept).items():
        update = updates.pop(name, None)
        shape = tensor.shape[::-1].tolist()
        new_type = tensor.tensor_type
        chosen = type
        if not type and (update or healed and ".ffn_" in name):
            chosen = "f16"
        if chosen and len(shape) > 1:  # f16 where rows are not a multiple of the type's blocks
            fits = shape[-1] % gguf.GGML_QUANT_SIZES[TYPES[chosen]][0] == 0
            new_type = TYPES[chosen if fits else "f16"]
        block, width = gguf.GGML_QUANT_SIZES[new_type]
        stored_bytes = tensor.n_elements // block * width
        writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_bytes, new_type)
        tensors.append((tensor, new_type, update))
        size += writer.ggml_pad(stored_bytes, header.alignment)
    if updates:
        raise InputError(f"the adapters are on {min(updates)}, which {source.name} does not have")
    writer.fout = [head]  # ty: ignore[invalid-assignment]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head.write(bytes(-head.tell() % header.alignment))
    return FilePlan(head.getvalue(), tensors, head.tell() + size)


def count_tensor_bytes(source: Source, cut: Cut) -> int:
    """The bytes of all tensors that a GGUF file keeps after a cut."""
    kept = _select_tensors(read_gguf(find_gguf_file(source)), cut.kept(source.num_layers))
    return sum(tensor.n_bytes for tensor in kept.values())


def _encode_tensor(
    tensor: ReaderTensor, new_type: GGMLQuantizationType, update: Callable | None
) -> np.ndarray:
    """A tensor as it is written: its own bytes, or its numbers plus an adapter's update, in a new type."""
    if update is None and new_type == tensor.tensor_type:
        return tensor.data
    with as_input_error(
        f"{tensor.name} is {tensor.tensor_type.name}",
        "leave its type as it is",
        NotImplementedError,
    ):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if update:
        added = update().numpy()
        if added.shape != values.shape:
            raise InputError(
                f"{tensor.name} has the shape {values.shape}, its adapter {added.shape}"
            )
        values = values + added
    largest = np.abs(values).max()
    most = np.finfo(np.float32).max if new_type == TYPES["f32"] else LARGEST_FLOAT16
    if not largest <= most:
        raise InputError(
            f"{tensor.name} would hold {largest}, too large for {new_type.name}: give the type f32"
        )
    return gguf.quants.quantize(values.astype(np.float32), new_type)


def _select_tensors(header: Header, kept: list[int]) -> dict[str, ReaderTensor]:
    """The tensors that stay, by their new names."""
    tensors = {}
    for tensor in header.tensors:
        number, name = split_tensor_name(tensor.name)
        if number is None:
            tensors[name] = tensor
        elif number in kept:
            tensors[f"blk.{kept.index(number)}.{name}"] = tensor
    return tensors


def _cut_metadata(
    header: Header, source: Source, kept: list[int], type: str | None
) -> dict[str, GGUFValue]:
    """The metadata of the new file: entries with a value for each layer are cut, and the record of the cut is added."""
    layers = source.num_layers
    architecture = header.architecture
    old_numbers = header.get(KEPT_LAYERS, [*range(layers)])
    if not isinstance(old_numbers, list) or len(old_numbers) != layers:
        raise InputError(
            f"{source.name} has the {KEPT_LAYERS} {old_numbers!r}: expected {layers} numbers of layers"
        )
    entries = {}
    for key, entry in header.entries.items():
        value = entry.value
        if key == f"{architecture}.block_count":
            value = len(kept)
        elif key == "general.file_type" and type:
            value = FILE_TYPES.get(type.upper(), 0)  # 0: f32
        elif (
            isinstance(value, list) and len(value) == layers and key.startswith(f"{architecture}.")
        ):
            value = [value[index] for index in kept]
        # the writer adds the architecture itself and can't write empty lists; the size label is no longer true
        if key not in (OLD_MARK, "general.architecture", "general.size_label") and value != []:
            entries[key] = dataclasses.replace(entry, value=value)
    entries[KEPT_LAYERS] = GGUFValue(
        [old_numbers[index] for index in kept], GGUFValueType.ARRAY, GGUFValueType.UINT32
    )
    entries.setdefault(
        ORIGIN, GGUFValue(source.weights.removeprefix("sha256:"), GGUFValueType.STRING)
    )
    return entries


def _find_updates(
    adapter: Adapter, source: Source, cut: Cut, header: Header
) -> dict[str, Callable]:
    """The update of each adapted tensor, by its new name in a GGUF file."""
    # only weights are compared: one model can have two names, its own and the file's
    if adapter.base:
        adapter.check(adapter.base | {"weights": source.weights}, cut)
    if adapter.weights:
        raise InputError(
            f"{adapter.folder} holds whole modules, expected adapters: write a folder, and convert that"
        )
    names = gguf.get_tensor_name_map(
        ARCHITECTURES[header.architecture], source.num_layers - cut.size
    )
    updates = {}
    for module in adapter.factors:
        tensor = names.get_name(module)
        # llama.cpp may store rows of other modules in its own order
        if tensor is None or ".ffn_" not in tensor or adapter.settings.get("fan_in_fan_out"):
            problem = f"the adapters in {adapter.folder} are on {module}: expected feed-forward modules only"
            raise InputError(f"{problem}; merge them into safetensors and convert those")
        updates[f"{tensor}.weight"] = functools.partial(adapter.compute_update, module)
    return updates
