"""A GGUF file without some of its layers, with healed adapters added where there are any, for llama.cpp.

The tensors that stay are copied as bytes, however they are quantized, under the numbers of their new layers. The
model is not opened, and one tensor is in memory at a time. The file appears when it is complete.
"""

import dataclasses
import hashlib
import io
import os
import struct
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import ReaderTensor
from gguf.gguf_writer import GGUFValue, WriterState

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, telling
from deeper_layers.export.adapter_files import Adapter, read_adapter
from deeper_layers.export.engines import wrong_in
from deeper_layers.export.lineage import check_apart, writing
from deeper_layers.export.llama_cpp import EXACT, FILE_TYPES, ROUNDED, quantize
from deeper_layers.files import atomic_file, check_absent, passing_dir
from deeper_layers.models.gguf_reading import ARCHITECTURES, MOST_BYTES, UNIFORM, Header, placed, read_gguf
from deeper_layers.models.sources import PACKAGED, Source, find_model
from deeper_layers.package_index import cache_folder, hash_once

# architectures whose layers are alike, or counted by llama.cpp as engines.csv says, or described one by one in a file
KNOWN = (*sorted(UNIFORM), "gemma4", "lfm2")
TYPES = {name: GGMLQuantizationType[name.upper()] for name in EXACT}
LARGEST = 65504  # in float16, in which all types but f32 hold their numbers or their scales
KEPT, ORIGIN = "pruning.kept_layers", "pruning.source_sha256"
MARK = "pruning.sha256"  # our mark: of the whole file as it was written, with zeros in the place of this
ZEROS = "0" * 64
# as MARK stands in a file before its value: the name, the type, the length
BEFORE_MARK = MARK.encode() + struct.pack("<IQ", GGUFValueType.STRING, len(ZEROS))
Added = tuple[np.ndarray, np.ndarray, float]


class Plan(NamedTuple):
    """A file to write: its beginning; of each tensor what it was, its new type, and what is added to it."""

    head: bytes
    tensors: list[tuple[ReaderTensor, GGMLQuantizationType, Added | None]]
    bytes: int  # of the whole


def gguf_file(source: Source) -> Path:
    """The GGUF file of a model that has one. Raises InputError for any other."""
    if not source.is_gguf:
        raise InputError(f"{source.name} is no GGUF file: write a folder, and convert that with llama.cpp")
    return source.gguf or PACKAGED[source.folder].file()


def slice_gguf(
    source: str | Path | Source,
    cut: Cut,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    type: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a GGUF file without the layers of a cut.

    Args:
        source: a `.gguf` file, or the name of a packaged model ("embedded").
        cut: the layers to drop.
        out: the file to write, which must not exist; with `overwrite` it may be one that was written here, unchanged.
        adapter: a folder of adapters on feed-forward modules, trained after this cut; they are added to the weights.
        type: of the matrices: "f32", "f16" or "q8_0", or one of ROUNDED, to which llama.cpp's quantizer rounds them
            in the end; None leaves them as they are, and makes those that an adapter is added to "f16", since rounding
            the sum as before would undo part of it.

    Raises:
        InputError: the source is no whole GGUF file, llama.cpp would take kept layers for others, the cut or the
            adapters do not fit, llama.cpp is needed and not installed, `out` exists or can't be written, or the disk is
            too full.
    """
    source, out = source if isinstance(source, Source) else find_model(str(source)), Path(out)
    check, path = check_our_gguf if overwrite else check_absent, gguf_file(source)
    check_apart(out, path, Path(adapter or path))
    mend = "mend that, or name another place"
    with telling(f"can't write {out}", mend, OSError), atomic_file(out, check) as made:
        if type in ROUNDED:
            with passing_dir(cache_folder() / "rounded") as folder:
                quantize(slice_gguf(source, cut, folder / "plain.gguf", adapter=adapter), made, type.upper())
        else:
            header = read_gguf(path)
            plan = plan_gguf(source, header, cut, type, adapter)
            with open(made, "wb") as file, writing(plan.bytes, made.parent, out) as bar:
                bar.update(file.write(plan.head))
                for tensor, kind, update in plan.tensors:
                    bar.update(file.write(_content(tensor, kind, update).data))
                    bar.update(file.write(bytes(-file.tell() % header.alignment)))
            if f"sha256:{hash_once(path)}" != source.weights:
                raise InputError(f"{path} was changed after it was read for its hash: begin again")
        place, _, mark = _mark_of(made)
        with open(made, "r+b") as file:
            file.seek(place)
            file.write(mark.encode())
    return out


def plan_gguf(
    source: Source, header: Header, cut: Cut, type: str | None, adapter: str | Path | None = None, healed: bool = False
) -> Plan:
    """What `slice_gguf` will write, of a file with this header; `healed`: with adapters that are not there yet."""
    if type not in (None, *TYPES):
        raise InputError(f"type is {type!r}, expected one of {', '.join((*TYPES, *ROUNDED))}")
    cut.check_of_layers(
        source.num_layers, "no GGUF file states a layer without one of its sublayers; drop whole layers"
    )
    if header.architecture not in KNOWN:
        said = f"{source.name} has the architecture {header.architecture}, whose layers may differ by their number"
        raise InputError(f"{said}: slice its safetensors, or one of {', '.join(KNOWN)}")
    if wrong := wrong_in(header.config, cut, ["llama.cpp"]):
        raise InputError(f"{source.name} would be another model: {wrong[0].why}; drop other layers")
    added = {} if adapter is None else _updates(read_adapter(adapter), source, cut, header)
    kept, tensors, size, head = cut.kept(source.num_layers), [], 0, io.BytesIO()
    writer = gguf.GGUFWriter(None, header.architecture)
    writer.data_alignment = header.alignment
    writer.kv_data[0] |= _metadata(header, source, kept, type)
    for name, tensor in _kept_tensors(header, kept).items():
        update, shape, kind = added.pop(name, None), tensor.shape[::-1].tolist(), tensor.tensor_type
        wanted = type or ("f16" if update or healed and ".ffn_" in name else None)
        if wanted and len(shape) > 1:  # where a type's blocks do not divide the rows it is f16
            fits = shape[-1] % gguf.GGML_QUANT_SIZES[TYPES[wanted]][0] == 0
            kind = TYPES[wanted if fits else "f16"]
        block, width = gguf.GGML_QUANT_SIZES[kind]
        stored = tensor.n_elements // block * width
        writer.add_tensor_info(name, shape, np.dtype(np.float32), stored, kind)
        tensors.append((tensor, kind, update))
        size += writer.ggml_pad(stored, header.alignment)
    if added:
        raise InputError(f"the adapters are on {min(added)}, which {source.name} does not have")
    writer.fout, writer.state = [head], WriterState.EMPTY  # ty: ignore[invalid-assignment]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head.write(bytes(-head.tell() % header.alignment))
    return Plan(head.getvalue(), tensors, head.tell() + size)


def tensor_bytes(source: Source, cut: Cut) -> int:
    """Bytes of the tensors that a GGUF file keeps after a cut."""
    kept = _kept_tensors(read_gguf(gguf_file(source)), cut.kept(source.num_layers))
    return sum(tensor.n_bytes for tensor in kept.values())


def check_our_gguf(out: Path) -> None:
    """Raise InputError where OUT is there, and is not a GGUF file that we wrote and nobody changed since."""
    if not os.path.lexists(out):
        return
    _, said, expected = _mark_of(out) if out.is_file() and not out.is_symlink() else (0, b"", "?")
    if said != expected.encode():
        raise InputError(f"{out} exists and is no GGUF file with a {MARK} of ours, as it was written: move it away")


def _mark_of(path: Path) -> tuple[int, bytes, str]:
    """Where MARK's value lies in a file, what it is, and what it has to be: the file's SHA-256 with zeros there."""
    with open(path, "rb") as file:
        head = file.read(MOST_BYTES)
        place = head.find(BEFORE_MARK) + len(BEFORE_MARK)
        end = place + len(ZEROS)
        digest = hashlib.sha256(head[:place] + ZEROS.encode() + head[end:])
        return place, head[place:end], hashlib.file_digest(file, lambda: digest).hexdigest()


def _content(tensor: ReaderTensor, kind: GGMLQuantizationType, update: Added | None) -> np.ndarray:
    """What is written of a tensor: its own bytes, or its numbers in another type, with what an adapter adds."""
    if update is None and kind == tensor.tensor_type:
        return tensor.data
    with telling(f"{tensor.name} is {tensor.tensor_type.name}", "leave its type as it is", NotImplementedError):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if update:
        up, down, scale = update
        if (shape := (len(up), down.shape[1])) != values.shape:
            raise InputError(f"{tensor.name} has the shape {values.shape}, its adapter {shape}")
        values = values + scale * (up @ down)
    largest = np.abs(values).max()
    if not largest <= (np.finfo(np.float32).max if kind == TYPES["f32"] else LARGEST):
        raise InputError(f"{tensor.name} would hold {largest}, too large for {kind.name}: give the type f32")
    return gguf.quants.quantize(values.astype(np.float32), kind)


def _kept_tensors(header: Header, kept: list[int]) -> dict[str, ReaderTensor]:
    """The tensors that stay, by their new names."""
    found = {}
    for tensor in header.tensors:
        number, name = placed(tensor.name)
        if number is None or number in kept:
            found[name if number is None else f"blk.{kept.index(number)}.{name}"] = tensor
    return found


def _metadata(header: Header, source: Source, kept: list[int], type: str | None) -> dict[str, GGUFValue]:
    """What the file says of itself: entries with one value a layer are cut, and what was done is added."""
    layers, arch = source.num_layers, header.architecture
    before = header.get(KEPT, [*range(layers)])
    if not isinstance(before, list) or len(before) != layers:
        raise InputError(f"{source.name} has the {KEPT} {before!r}: expected {layers} numbers of layers")
    entries = {MARK: GGUFValue(ZEROS, GGUFValueType.STRING)}
    for key, entry in header.entries.items():
        value = entry.value
        if key == f"{arch}.block_count":
            value = len(kept)
        elif key == "general.file_type" and type:
            value = FILE_TYPES.get(type.upper(), 0)  # of f32
        elif isinstance(value, list) and len(value) == layers and key.startswith(f"{arch}."):
            value = [value[index] for index in kept]
        # the writer makes the second of these itself, and no empty lists; the size in words is no longer true
        if key not in (MARK, "general.architecture", "general.size_label") and value != []:
            entries[key] = dataclasses.replace(entry, value=value)
    entries[KEPT] = GGUFValue([before[index] for index in kept], GGUFValueType.ARRAY, GGUFValueType.UINT32)
    entries.setdefault(ORIGIN, GGUFValue(source.weights.removeprefix("sha256:"), GGUFValueType.STRING))
    return entries


def _updates(adapter: Adapter, source: Source, cut: Cut, header: Header) -> dict[str, Added]:
    """What is added to each adapted tensor, by its new name in a GGUF file: two factors, and their scale."""
    if adapter.base:  # the same weights can go by the name of the model and that of the file
        adapter.check(adapter.base | {"weights": source.weights}, cut)
    names = gguf.get_tensor_name_map(ARCHITECTURES[header.architecture], source.num_layers - cut.size)
    found = {}
    for module, (down, up) in adapter.factors.items():
        tensor = names.get_name(module)
        # others may lie in a file in an order of rows that is llama.cpp's own
        if tensor is None or ".ffn_" not in tensor or adapter.settings.get("fan_in_fan_out"):
            said = f"the adapters in {adapter.folder} are on {module}: expected feed-forward modules only"
            raise InputError(f"{said}; merge them into safetensors and convert those")
        found[f"{tensor}.weight"] = up.numpy(), down.numpy(), adapter.scale(len(down))
    return found
