"""A GGUF file without some of its layers, with healed adapters added where there are any, for llama.cpp.

The tensors that stay are copied as bytes, however they are quantized, under the numbers of their new layers. The
model is not opened, and one tensor is in memory at a time. The file appears when it is complete.
"""

import os
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file
from tqdm import tqdm

from deeper_layers.checkpoints.adapter_files import BEFORE, WEIGHTS, read_adapter
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source, find_model

# After how many layers llama.cpp repeats their kinds, by architecture: it knows the kind of a layer by its number, and
# a file can't say otherwise. 1: all layers are alike.
PERIODS = dict.fromkeys(
    "falcon gemma gpt2 gptneox llama olmo phi2 qwen2 qwen2moe qwen3 qwen3moe stablelm starcoder2".split(), 1
) | {"gemma2": 2, "gemma3": 6}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
TYPES |= {"q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's numbers for a file mostly of this type
KEPT, ORIGIN = "pruning.kept_layers", "pruning.source_sha256"


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
) -> Path:
    """Write a GGUF file without the layers of a cut.

    Args:
        source: a `.gguf` file, or the name of a packaged model ("embedded").
        cut: the layers to drop.
        out: the file to write, which must not exist.
        adapter: a folder of adapters on feed-forward modules, trained after this cut; they are added to the weights.
        type: of the matrices: "f32", "f16" or "q8_0"; None leaves them as they are, and makes those that an adapter
            is added to "f16", since rounding the sum as before would undo part of it.

    Raises:
        InputError: the source is no whole GGUF file, llama.cpp would take kept layers for others, the cut or the
            adapters do not fit, `out` exists, or the disk is too full.
    """
    source, out = source if isinstance(source, Source) else find_model(str(source)), Path(out)
    if out.exists():
        raise InputError(f"{out} exists: give a file that does not, so that nothing is overwritten")
    if type not in (None, *TYPES):
        raise InputError(f"type is {type!r}, expected one of {', '.join(TYPES)}: llama-quantize makes the others")
    kept = cut.kept(source.num_layers)
    reader = gguf.GGUFReader(gguf_file(source))
    arch = reader.fields["general.architecture"].contents()
    _check(reader, arch, source, kept)
    new = {old: position for position, old in enumerate(kept)}
    tensors = [(name, tensor) for tensor in reader.tensors if (name := _renamed(tensor.name, new))]
    updates = _updates(Path(adapter), source, cut, arch, len(kept)) if adapter else {}
    if strange := sorted(set(updates) - {name for name, _ in tensors}):
        raise InputError(f"the adapters in {adapter} are on {strange[0]}, which {source.name} does not have")

    def kind(name, tensor):
        if len(tensor.shape) < 2 or not (type or name in updates):
            return tensor.tensor_type
        wanted = TYPES[type or "f16"]
        return wanted if tensor.shape[0] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else TYPES["f16"]

    writer = gguf.GGUFWriter(None, arch, endianess=reader.endianess)
    writer.data_alignment = reader.alignment
    for key, value, *types in _metadata(reader, arch, source, kept, type):
        writer.add_key_value(key, value, *types)
    total = 0
    for name, tensor in tensors:
        block, size = gguf.GGML_QUANT_SIZES[kind(name, tensor)]
        bytes, shape = int(tensor.n_elements) // block * size, [int(width) for width in tensor.shape[::-1]]
        if name in updates and (given := [len(updates[name][0]), updates[name][1].shape[1]]) != shape:
            raise InputError(f"{name} has the shape {shape}, its adapter in {adapter} {given}: expected the same")
        writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes, kind(name, tensor))
        total += bytes
    out.parent.mkdir(parents=True, exist_ok=True)
    if total > (free := shutil.disk_usage(out.parent).free):
        raise InputError(f"{out} needs {total / 1e9:.2f} GB, where {free / 1e9:.2f} GB are free: free some space")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr) as bar:
            for name, tensor in tensors:
                data = tensor.data
                if name in updates or kind(name, tensor) != tensor.tensor_type:
                    data = _changed(name, tensor, updates.get(name), kind(name, tensor))
                writer.write_tensor_data(data)
                bar.update(data.nbytes)
        writer.close()
        os.replace(partial, out)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return out


def tensor_bytes(source: Source, cut: Cut) -> int:
    """Bytes of the tensors that a GGUF file keeps after a cut."""
    new = dict.fromkeys(cut.kept(source.num_layers), 0)
    return sum(int(t.n_bytes) for t in gguf.GGUFReader(gguf_file(source)).tensors if _renamed(t.name, new))


def _check(reader: gguf.GGUFReader, arch: str, source: Source, kept: list[int]) -> None:
    """Raise InputError where a sliced file would not be the model without these layers in llama.cpp."""
    if reader.byte_order != "I":
        raise InputError(f"{source.name} is in the byte order of other processors: expected this one's")
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        raise InputError(f"{source.name} is one of several files: join them with llama-gguf-split --merge")
    if arch not in PERIODS:
        raise InputError(
            f"{source.name} has the architecture {arch}, whose layers may differ by their number: expected one of "
            f"{', '.join(PERIODS)}; slice its safetensors"
        )
    period = PERIODS[arch]
    if period > 1 and f"{arch}.attention.sliding_window_pattern" in reader.fields:
        period = reader.fields[f"{arch}.attention.sliding_window_pattern"].contents()
    if wrong := [old for new, old in enumerate(kept) if (old + 1) % period == 0 and (new + 1) % period or
                 (old + 1) % period and (new + 1) % period == 0]:  # fmt: skip
        raise InputError(
            f"layer {wrong[0]} of {source.name} would be of another kind: in llama.cpp every {period}th layer of "
            f"{arch} sees all tokens, by its number; drop a multiple of {period} layers"
        )


def _renamed(name: str, new: dict[int, int]) -> str | None:
    """The new name of a tensor; None for one of a dropped layer."""
    head, _, rest = name.partition(".")
    if head != "blk":
        return name
    number, _, rest = rest.partition(".")
    return f"blk.{new[int(number)]}.{rest}" if int(number) in new else None


def _metadata(reader: gguf.GGUFReader, arch: str, source: Source, kept: list[int], type: str | None):
    """Key, value and types of every entry: those with one value a layer are cut, and what was done is added."""
    layers = source.num_layers
    for key, field in reader.fields.items():
        # the writer makes the first three of these itself; the size in words is no longer true
        if key.startswith("GGUF.") or key in ("general.architecture", "general.size_label", KEPT, ORIGIN):
            continue
        value, kind = field.contents(), field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        if kind == gguf.GGUFValueType.ARRAY and len(value) == 0:
            continue
        if key == f"{arch}.block_count":
            value = len(kept)
        elif key == "general.file_type" and type:
            value = FILE_TYPES[type]
        elif inner and key.startswith(f"{arch}.") and len(value) == layers:
            value = [value[index] for index in kept]
        yield key, value, kind, inner
    before = reader.fields[KEPT].contents() if KEPT in reader.fields else range(layers)
    origin = reader.fields[ORIGIN].contents() if ORIGIN in reader.fields else source.weights.removeprefix("sha256:")
    yield KEPT, [int(before[index]) for index in kept], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
    yield ORIGIN, origin, gguf.GGUFValueType.STRING


def _updates(folder: Path, source: Source, cut: Cut, arch: str, layers: int) -> dict[str, tuple]:
    """For each adapted tensor, by its name in a GGUF file, the two factors and the scale of what is added to it."""
    adapter = read_adapter(folder)
    if adapter.base:  # the same weights can go by the name of the model and that of the file
        adapter.check(adapter.base | {"weights": source.weights}, cut)
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names, factors, found = gguf.get_tensor_name_map(architecture, layers), load_file(folder / WEIGHTS), {}
    for module in adapter.shapes:
        tensor = names.get_name(module)
        # others may lie in a file in an order of rows that is llama.cpp's own
        if tensor is None or ".ffn_" not in tensor or adapter.settings.get("fan_in_fan_out"):
            raise InputError(
                f"the adapters in {folder} are on {module}: expected feed-forward modules only, in llama.cpp's order; "
                "merge them into safetensors and convert those"
            )
        down, up = (factors[f"{BEFORE}{module}.lora_{which}.weight"].float().numpy() for which in "AB")
        rank = len(down)
        scale = adapter.settings["lora_alpha"] / (rank**0.5 if adapter.settings.get("use_rslora") else rank)
        found[f"{tensor}.weight"] = up, down, scale
    return found


def _changed(name: str, tensor, update: tuple | None, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A tensor in another type, with what an adapter adds to it."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if update:
        up, down, scale = update
        values = values + scale * (up @ down)
    return gguf.quants.quantize(values.astype(np.float32), kind)
