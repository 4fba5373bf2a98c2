"""A GGUF file without some of its layers, with healed adapters added where there are any, for llama.cpp.

The tensors that stay are copied as bytes, however they are quantized, under the numbers of their new layers. The
model is not opened, and one tensor is in memory at a time. The file appears when it is complete.
"""

import contextlib
import dataclasses
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import read_adapter
from deeper_layers.export.engines import TABLE, nth, of_another_kind
from deeper_layers.export.lineage import check_apart
from deeper_layers.export.llama_cpp import ROUNDED, quantize
from deeper_layers.export.tensor_writer import CHUNK, check_space, progress, read_bytes, write_hashed
from deeper_layers.files import atomic_file, check_absent, clear, passing_dir
from deeper_layers.models.gguf_header import UNIFORM, Entry, Header, Tensor, architecture, layer_of, read_gguf
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source, find_model
from deeper_layers.package_index import cache_folder, hash_once

Kind = gguf.GGMLQuantizationType
STATED = ("gemma4", "lfm2")  # architectures whose files say of each layer of which kind it is
COUNTED = {line.family.replace("_", "-"): line.every for line in TABLE if line.engine == "llama.cpp"}
# After how many layers llama.cpp repeats their kinds, by architecture: it knows the kind of a layer by its number.
# 1: all layers are alike, or a file states their kinds.
PERIODS: dict[str, int] = dict.fromkeys(sorted([*UNIFORM, *STATED]), 1) | {
    arch: every for arch, every in COUNTED.items() if arch in UNIFORM
}
TYPES = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's numbers for a file mostly of this type
LARGEST = 65504  # in float16, in which the others hold their numbers or their scales
KEPT, ORIGIN = "pruning.kept_layers", "pruning.source_sha256"
MARK = "pruning.sha256"  # our mark: of the whole file as it was written, with zeros in the place of this
ZEROS = "0" * 64
# as MARK stands in a file before its value: the name, the type, the length
BEFORE_MARK = MARK.encode() + struct.pack("<IQ", gguf.GGUFValueType.STRING, len(ZEROS))


class Plan(NamedTuple):
    """A file to write: its beginning, up to the tensors; of each of these, by its new name, what it is in the source,
    its type, how many bytes it will have, and what an adapter adds to it; to how many bytes they are aligned."""

    head: bytes
    tensors: dict[str, tuple[Tensor, Kind, int, tuple | None]]
    alignment: int

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return len(self.head) + sum(size + -size % self.alignment for _, _, size, _ in self.tensors.values())


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
        type: of the matrices: "f32", "f16" or "q8_0", or one of ROUNDED, to which llama.cpp's quantizer rounds them
            in the end; None leaves them as they are, and makes those that an adapter is added to "f16", since rounding
            the sum as before would undo part of it.

    Raises:
        InputError: the source is no whole GGUF file, llama.cpp would take kept layers for others, the cut or the
            adapters do not fit, llama.cpp is needed and not installed, `out` exists or can't be written, or the disk is
            too full.
    """
    source, out = source if isinstance(source, Source) else find_model(str(source)), Path(out)
    check = check_our_gguf if overwrite else check_absent
    clear(out)
    check(out)
    path = gguf_file(source)
    check_apart(out, path, *([] if adapter is None else [Path(adapter)]))
    if type in ROUNDED:
        with atomic_file(out, check) as made, passing_dir(cache_folder() / "rounded") as folder:
            plain = slice_gguf(source, cut, folder / "plain.gguf", adapter=adapter)
            _mark(quantize(plain, made, type.upper()))
        return out
    try:
        plan = plan_gguf(source, read_gguf(path), cut, type, adapter)
        with atomic_file(out, check) as made:
            check_space(out, made.parent, plan.bytes)
            with progress(plan.bytes) as bar:
                sha256 = write_hashed(made, _content(plan, path), bar)
            _mark(made, sha256)
            if f"sha256:{hash_once(path)}" != source.weights:
                raise InputError(f"{path} was changed after it was read for its hash: begin again")
    except OSError as error:
        raise InputError(f"can't write {out} ({error.strerror or error}): mend that, or name another place") from error
    return out


def plan_gguf(
    source: Source,
    header: Header,
    cut: Cut,
    type: str | None,
    adapter: str | Path | None = None,
    *,
    healed: bool = False,
) -> Plan:
    """What `slice_gguf` will write, of a file with this header; `healed`: with adapters that are not there yet.

    Raises InputError as that.
    """
    if type not in (None, *TYPES):
        raise InputError(f"type is {type!r}, expected one of {', '.join((*TYPES, *ROUNDED))}")
    if not cut.is_of_layers:
        raise InputError(f"cut is {cut}, and no GGUF file states a layer without one of its sublayers: drop layers")
    kept, tensors = cut.kept(source.num_layers), {}
    _check_kinds(header, source, kept)
    added = {} if adapter is None else _updates(Path(adapter), source, cut, header)
    writer = gguf.GGUFWriter(None, architecture(header))
    writer.data_alignment = header.alignment
    for key, entry in _metadata(header, source, kept, type).items():
        writer.add_key_value(key, entry.value, entry.kind, entry.inner)
    for name, tensor in _kept_tensors(header, kept).items():
        update, shape = added.pop(name, None), list(tensor.shape[::-1])
        if update and (given := [len(update[0]), update[1].shape[1]]) != shape:
            raise InputError(f"{name} has the shape {shape}, its adapter {given}: expected the same")
        kind = _kind(tensor, type or ("f16" if update or healed and ".ffn_" in name else None))
        block, width = gguf.GGML_QUANT_SIZES[kind]
        tensors[name] = tensor, kind, tensor.elements // block * width, update
        writer.add_tensor_info(name, shape, np.dtype(np.float32), tensors[name][2], kind)
    if added:
        raise InputError(f"the adapters are on {min(added)}, which {source.name} does not have")
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(writer):  # gguf writes into files alone
        writer.write_header_to_file(Path(folder) / "head")
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        head = (Path(folder) / "head").read_bytes()
    return Plan(head + bytes(-len(head) % header.alignment), tensors, header.alignment)


def tensor_bytes(source: Source, cut: Cut) -> int:
    """Bytes of the tensors that a GGUF file keeps after a cut."""
    kept = _kept_tensors(read_gguf(gguf_file(source)), cut.kept(source.num_layers))
    return sum(tensor.bytes for tensor in kept.values())


def check_our_gguf(out: Path) -> None:
    """Raise InputError where OUT is there, and is not a GGUF file that we wrote and nobody changed since."""
    if not os.path.lexists(out):
        return
    try:
        is_ours = not out.is_symlink() and (said := read_gguf(out).get(MARK)) and _hash_but_mark(out) == said
    except (InputError, OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise InputError(
            f"{out} exists and is no GGUF file with a {MARK} of ours, as it was written: --overwrite replaces nothing "
            "else; move it away, or name another place"
        )


def _mark(path: Path, sha256: str | None = None) -> None:
    """Write MARK's value into a file that has it; None is computed."""
    sha256 = sha256 or _hash_but_mark(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.find(BEFORE_MARK) + len(BEFORE_MARK)
        content[place : place + len(ZEROS)] = sha256.encode()


def _hash_but_mark(path: Path) -> str:
    """SHA-256 of a file with zeros in the place of MARK's value."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(BEFORE_MARK) + len(BEFORE_MARK)
        digest = hashlib.sha256(content[:place] + ZEROS.encode())
        for first in range(place + len(ZEROS), len(content), CHUNK):
            digest.update(content[first : first + CHUNK])
    return digest.hexdigest()


def _content(plan: Plan, path: Path) -> Iterator[bytes]:
    """The file, some bytes at a time."""
    yield plan.head
    for tensor, kind, stored, update in plan.tensors.values():
        if update is None and kind == tensor.kind:
            yield from read_bytes(path, tensor.offset, stored)
        else:
            yield _changed(tensor, path, kind, update).tobytes()
        yield bytes(-stored % plan.alignment)


def _changed(tensor: Tensor, path: Path, kind: Kind, update: tuple | None) -> np.ndarray:
    """A tensor in another type, with what an adapter adds to it."""
    try:
        values = gguf.quants.dequantize(tensor.data(path).reshape(*tensor.shape[:0:-1], -1), tensor.kind)
    except NotImplementedError as error:
        raise InputError(f"{tensor.name} is {tensor.kind.name}, which can't be changed ({error})") from error
    if update:
        up, down, scale = update
        values = values + scale * (up @ down)
    largest = np.abs(values).max()
    if not largest <= (np.finfo(np.float32).max if kind == Kind.F32 else LARGEST):
        raise InputError(f"{tensor.name} would hold {largest}, too large for {kind.name}: give the type f32")
    return gguf.quants.quantize(values.astype(np.float32), kind)


def _check_kinds(header: Header, source: Source, kept: list[int]) -> None:
    """Raise InputError where a sliced file would not be the model without these layers in llama.cpp."""
    arch = architecture(header)
    if arch not in PERIODS:
        raise InputError(
            f"{source.name} has the architecture {arch}, whose layers may differ by their number: expected one of "
            f"{', '.join(PERIODS)}; slice its safetensors"
        )
    period = PERIODS[arch]
    if f"{arch}.attention.sliding_window" in header.entries and arch == "olmo2":  # as files of OLMo 3 name it
        period = COUNTED["olmo3"]
    elif period > 1:
        period = header.get(f"{arch}.attention.sliding_window_pattern", period)
    if type(period) is not int or period < 1:
        raise InputError(f"{source.name} has the sliding_window_pattern {period!r}: expected a whole number from 1 up")
    if wrong := of_another_kind(kept, period):
        raise InputError(
            f"layer {wrong[0]} of {source.name} would be of another kind: in llama.cpp every {nth(period)} layer of "
            f"{arch} sees all tokens, by its number; drop a multiple of {period} layers"
        )


def _kind(tensor: Tensor, wanted: str | None) -> Kind:
    """The type of a matrix; where its rows are no multiple of that type's blocks it is F16."""
    if wanted is None or len(tensor.shape) < 2:
        return tensor.kind
    return TYPES[wanted] if tensor.shape[0] % gguf.GGML_QUANT_SIZES[TYPES[wanted]][0] == 0 else Kind.F16


def _kept_tensors(header: Header, kept: list[int]) -> dict[str, Tensor]:
    """The tensors that stay, by their new names."""
    new, found = {old: position for position, old in enumerate(kept)}, {}
    for tensor in header.tensors:
        number = layer_of(tensor.name)
        if number is None:
            found[tensor.name] = tensor
        elif number in new:
            found[f"blk.{new[number]}.{tensor.name.split('.', 2)[2]}"] = tensor
    return found


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


def _updates(folder: Path, source: Source, cut: Cut, header: Header) -> dict[str, tuple]:
    """For each adapted tensor, by its new name in a GGUF file, the two factors and the scale of what is added."""
    adapter = read_adapter(folder)
    if adapter.base:  # the same weights can go by the name of the model and that of the file
        adapter.check(adapter.base | {"weights": source.weights}, cut)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture(header)], source.num_layers - cut.size)
    found = {}
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
