"""A GGUF file without some of its layers, with healed adapters added where there are any, for llama.cpp.

The tensors that stay are copied as bytes, however they are quantized, under the numbers of their new layers. The
model is not opened, and one tensor is in memory at a time. The file appears when it is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import mmap
import os
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from tqdm import tqdm

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, in_bytes
from deeper_layers.export.adapter_files import read_adapter
from deeper_layers.export.engines import nth, of_another_kind, periods
from deeper_layers.export.lineage import check_apart
from deeper_layers.export.tensor_writer import CHUNK, HashedFile
from deeper_layers.files import atomic_file, check_absent, clear
from deeper_layers.models.gguf_header import UNIFORM, Entry, Header, Tensor, architecture, layer_of, read_gguf
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source, find_model
from deeper_layers.package_index import hash_once

# After how many layers llama.cpp repeats their kinds, by architecture: it knows the kind of a layer by its number.
# 1: all layers are alike.
PERIODS: dict[str, int] = {arch: periods("llama.cpp").get(arch, 1) for arch in sorted(UNIFORM)}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
TYPES |= {"q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's numbers for a file mostly of this type
# the largest number that such a type can hold
LARGEST = {TYPES["f16"]: 65504, TYPES["q8_0"]: 127 * 65504}
KEPT, ORIGIN = "pruning.kept_layers", "pruning.source_sha256"
MARK = "pruning.sha256"  # our mark: of the whole file as it was written, with zeros in the place of this
ZEROS = "0" * 64
# as MARK stands in a file before its value: the name, the type, the length
BEFORE_MARK = MARK.encode() + struct.pack("<IQ", gguf.GGUFValueType.STRING, len(ZEROS))


def gguf_file(source: Source) -> Path:
    """The GGUF file of a model that has one. Raises InputError for any other."""
    if not source.is_gguf:
        raise InputError(
            f"{source.name} is no GGUF file: give a folder to write, and make a GGUF file of that with "
            "convert_hf_to_gguf.py, which comes with llama.cpp"
        )
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
        type: of the matrices: "f32", "f16" or "q8_0"; None leaves them as they are, and makes those that an adapter
            is added to "f16", since rounding the sum as before would undo part of it.

    Raises:
        InputError: the source is no whole GGUF file, llama.cpp would take kept layers for others, the cut or the
            adapters do not fit, `out` exists or can't be written, or the disk is too full.
    """
    source, out = source if isinstance(source, Source) else find_model(str(source)), Path(out)
    check = check_our_gguf if overwrite else check_absent
    clear(out)
    check(out)
    if type not in (None, *TYPES):
        raise InputError(f"type is {type!r}, expected one of {', '.join(TYPES)}: llama-quantize makes the others")
    if not cut.is_of_layers:
        raise InputError(f"cut is {cut}, and no GGUF file states a layer without one of its sublayers: drop layers")
    path, kept = gguf_file(source), cut.kept(source.num_layers)
    check_apart(out, path, *([] if adapter is None else [Path(adapter)]))
    header = read_gguf(path)
    arch = architecture(header)
    _check_kinds(header, source, kept)
    added = _factors(Path(adapter), source, cut, arch, len(kept)) if adapter else {}
    writer = gguf.GGUFWriter(None, arch)
    writer.data_alignment = header.alignment
    for key, entry in _metadata(header, source, kept, type).items():
        writer.add_key_value(key, entry.value, entry.kind, entry.inner)
    tensors, new = {}, {old: position for position, old in enumerate(kept)}
    for tensor in header.tensors:
        if name := _renamed(tensor.name, new):
            kind, shape = _kind(tensor, type or ("f16" if name in added else None)), list(tensor.shape[::-1])
            if name in added and (given := [len(added[name][0]), added[name][1].shape[1]]) != shape:
                raise InputError(f"{name} has the shape {shape}, its adapter in {adapter} {given}: expected the same")
            block, stored = gguf.GGML_QUANT_SIZES[kind]
            tensors[name] = tensor, kind, tensor.elements // block * stored
            writer.add_tensor_info(name, shape, np.dtype(np.float32), tensors[name][2], kind)
    if strange := sorted(added.keys() - tensors):
        raise InputError(f"the adapters in {adapter} are on {strange[0]}, which {source.name} does not have")
    total = sum(stored for _, _, stored in tensors.values())
    try:
        with atomic_file(out, check) as made:
            if total > (free := shutil.disk_usage(made.parent).free):
                raise InputError(f"{out} needs {in_bytes(total)}, where {in_bytes(free)} are free: free some space")
            with contextlib.closing(writer):
                writer.write_header_to_file(made)
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
            head = made.read_bytes()
            bar = tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr)
            with bar, HashedFile(made) as file:
                file.write(head + bytes(-len(head) % header.alignment))
                for name, (tensor, kind, stored) in tensors.items():
                    data = tensor.data(path)
                    if name in added or kind != tensor.kind:
                        data = _changed(data, tensor, added.get(name), kind).reshape(-1).view(np.uint8)
                    for first in range(0, stored, CHUNK):
                        file.write(data[first : first + CHUNK].tobytes())
                    file.write(bytes(-stored % header.alignment))
                    bar.update(stored)
                sha256 = file.finish()
            with open(made, "r+b") as mark:
                mark.seek(head.index(BEFORE_MARK) + len(BEFORE_MARK))
                mark.write(sha256.encode())
            if f"sha256:{hash_once(path)}" != source.weights:
                raise InputError(f"{path} was changed after it was read for its hash: begin again")
    except OSError as error:
        raise InputError(f"can't write {out} ({error.strerror or error}): mend that, or name another place") from error
    return out


def check_our_gguf(out: Path) -> None:
    """Raise InputError where OUT is there, and is not a GGUF file that we wrote and nobody changed since."""
    if os.path.lexists(out) and not _is_ours(out):
        raise InputError(
            f"{out} exists and is no GGUF file with a {MARK} of ours, as it was written: --overwrite replaces nothing "
            "else; move it away, or name another place"
        )


def _is_ours(out: Path) -> bool:
    try:
        said, found = read_gguf(out).get(MARK), out.lstat()
        stamp = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        return said is not None and not out.is_symlink() and _hash_but_mark(out, stamp) == said
    except (InputError, OSError, ValueError):
        return False


@functools.lru_cache
def _hash_but_mark(path: Path, stamp: tuple[int, ...]) -> str:
    """SHA-256 of a file with zeros in the place of MARK's value; read once, as long as its size and times stay."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(BEFORE_MARK) + len(BEFORE_MARK)
        digest = hashlib.sha256(file.read(place) + ZEROS.encode())
        file.seek(place + len(ZEROS))
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def tensor_bytes(source: Source, cut: Cut) -> int:
    """Bytes of the tensors that a GGUF file keeps after a cut."""
    new = dict.fromkeys(cut.kept(source.num_layers), 0)
    return sum(tensor.bytes for tensor in read_gguf(gguf_file(source)).tensors if _renamed(tensor.name, new))


def _check_kinds(header: Header, source: Source, kept: list[int]) -> None:
    """Raise InputError where a sliced file would not be the model without these layers in llama.cpp."""
    arch = architecture(header)
    if arch not in PERIODS:
        raise InputError(
            f"{source.name} has the architecture {arch}, whose layers may differ by their number: expected one of "
            f"{', '.join(PERIODS)}; slice its safetensors"
        )
    period = PERIODS[arch]
    if period > 1:
        period = header.get(f"{arch}.attention.sliding_window_pattern", period)
    if type(period) is not int or period < 1:
        raise InputError(f"{source.name} has the sliding_window_pattern {period!r}: expected a whole number from 1 up")
    if wrong := of_another_kind(kept, period):
        raise InputError(
            f"layer {wrong[0]} of {source.name} would be of another kind: in llama.cpp every {nth(period)} layer of "
            f"{arch} sees all tokens, by its number; drop a multiple of {period} layers"
        )


def _kind(tensor: Tensor, wanted: str | None) -> gguf.GGMLQuantizationType:
    """The type of a matrix; where its rows are no multiple of that type's blocks it is F16."""
    if wanted is None or len(tensor.shape) < 2:
        return tensor.kind
    return TYPES[wanted] if tensor.shape[0] % gguf.GGML_QUANT_SIZES[TYPES[wanted]][0] == 0 else TYPES["f16"]


def _renamed(name: str, new: dict[int, int]) -> str | None:
    """The new name of a tensor; None for one of a dropped layer."""
    number = layer_of(name)
    if number is None:
        return name
    return f"blk.{new[number]}.{name.split('.', 2)[2]}" if number in new else None


def _metadata(header: Header, source: Source, kept: list[int], type: str | None) -> dict[str, Entry]:
    """What the file says of itself: entries with one value a layer are cut, and what was done is added."""
    layers, arch = source.num_layers, architecture(header)
    entries = {MARK: Entry(ZEROS, gguf.GGUFValueType.STRING)}
    for key, entry in header.entries.items():
        # the writer makes the first of these itself, and no empty lists; the size in words is no longer true
        if key in (MARK, "general.architecture", "general.size_label") or entry.value == []:
            continue
        if key == f"{arch}.block_count":
            entry = dataclasses.replace(entry, value=len(kept))
        elif key == "general.file_type" and type:
            entry = Entry(FILE_TYPES[type], gguf.GGUFValueType.UINT32)
        elif entry.inner and key.startswith(f"{arch}.") and len(entry.value) == layers:
            entry = dataclasses.replace(entry, value=[entry.value[index] for index in kept])
        entries[key] = entry
    before = header.get(KEPT, list(range(layers)))
    if not (isinstance(before, list) and len(before) == layers and all(isinstance(n, int) and n >= 0 for n in before)):
        raise InputError(f"{source.name} has the {KEPT} {before!r}: expected {layers} numbers of layers")
    entries[KEPT] = Entry([before[index] for index in kept], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    origin = header.get(ORIGIN, source.weights.removeprefix("sha256:"))
    entries[ORIGIN] = Entry(origin, gguf.GGUFValueType.STRING)
    return entries


def _factors(folder: Path, source: Source, cut: Cut, arch: str, layers: int) -> dict[str, tuple]:
    """For each adapted tensor, by its name in a GGUF file, the two factors and the scale of what is added."""
    adapter = read_adapter(folder)
    if adapter.base:  # the same weights can go by the name of the model and that of the file
        adapter.check(adapter.base | {"weights": source.weights}, cut)
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names, found = gguf.get_tensor_name_map(architecture, layers), {}
    for module in adapter.shapes:
        tensor = names.get_name(module)
        # others may lie in a file in an order of rows that is llama.cpp's own
        if tensor is None or ".ffn_" not in tensor or adapter.settings.get("fan_in_fan_out"):
            raise InputError(
                f"the adapters in {folder} are on {module}: expected feed-forward modules only, in llama.cpp's order; "
                "merge them into safetensors and convert those"
            )
        down, up = (factor.numpy() for factor in adapter.factors(module))
        found[f"{tensor}.weight"] = up, down, adapter.scale(len(down))
    return found


def _changed(data: np.ndarray, tensor: Tensor, update: tuple | None, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor in another type, with what an adapter adds to it."""
    try:
        values = gguf.quants.dequantize(data.reshape(*tensor.shape[:0:-1], -1), tensor.kind)
    except NotImplementedError as error:
        raise InputError(
            f"{tensor.name} is of the type {tensor.kind.name}, which can't be changed ({error})"
        ) from error
    if update:
        up, down, scale = update
        values = values + scale * (up @ down)
    if not (largest := np.abs(values).max()) <= LARGEST.get(kind, np.finfo(np.float32).max):
        raise InputError(f"{tensor.name} would hold {largest}, too large for {kind.name}: give the type f32")
    return gguf.quants.quantize(values.astype(np.float32), kind)
