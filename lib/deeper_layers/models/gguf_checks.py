"""Whether a GGUF file is a model: its header is whole, and what it says of the model is what its tensors are."""

import math
import re
import reprlib
from pathlib import Path

import gguf
from gguf import GGUFValueType as Kind

from deeper_layers.errors import InputError, first_line, forbidden
from deeper_layers.models.gguf_header import Header, Tensor, read_header

# architectures whose layers all have the same tensors in llama.cpp
UNIFORM = frozenset(
    "falcon gemma gemma2 gemma3 gpt2 gptneox llama olmo phi2 qwen2 qwen2moe qwen3 qwen3moe stablelm starcoder2".split()
)
WHOLE_NUMBERS = (Kind.UINT8, Kind.INT8, Kind.UINT16, Kind.INT16, Kind.UINT32, Kind.INT32, Kind.UINT64, Kind.INT64)
MOST = 2**31 - 1  # of a number of anything: what llama.cpp counts in
# entries of an architecture that are whole numbers, and the least of each; those of the second row can be one a layer
COUNTS = {"block_count": 1, "embedding_length": 1, "context_length": 1, "vocab_size": 1}
COUNTS_OF_LAYERS = dict.fromkeys(
    ["feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
     "attention.value_length", "rope.dimension_count"], 0,
)  # fmt: skip
FLOATS = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"]
TOKENS = "tokenizer.ggml.tokens"


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file, checked. Raises InputError where it is not a whole file of one model."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give the path of a .gguf file")
    try:
        header = read_header(path)
        _check_metadata(header)
        _check_tokens(header)
        _check_layers(header)
        _check_others(header)
    except PermissionError as error:
        raise forbidden(path) from error
    # ValueError: also what an unknown type, or bytes that are no text, raise
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a whole GGUF file ({first_line(error)}): it may be truncated; fetch it again"
        ) from error
    return header


def architecture(header: Header) -> str:
    """The name of a model's architecture in llama.cpp."""
    return header.get("general.architecture")


def layers_of(header: Header) -> int:
    """The number of a model's layers."""
    return header.get(f"{architecture(header)}.block_count")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is of; None for one of no layer."""
    head, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if head == "blk" else None


def _check_metadata(header: Header) -> None:
    """The entries that say how large the model is, by kind and range."""
    kind = header.entries["general.architecture"].kind if "general.architecture" in header.entries else None
    if kind != Kind.STRING or not re.fullmatch(r"[\w.-]+", architecture(header)):
        raise ValueError("it names no general.architecture")
    if header.get("split.count", 0) not in (0, 1):
        raise ValueError("it is one of several files: join them with llama-gguf-split --merge")
    arch = architecture(header)
    if f"{arch}.block_count" not in header.entries:
        raise ValueError(f"it has no {arch}.block_count")
    for name, least in (COUNTS | COUNTS_OF_LAYERS).items():
        entry = header.entries.get(f"{arch}.{name}")
        if entry is None:
            continue
        many = entry.kind == Kind.ARRAY and name in COUNTS_OF_LAYERS
        values = entry.value if many else [entry.value]
        if (entry.inner if many else entry.kind) not in WHOLE_NUMBERS or not all(least <= v <= MOST for v in values):
            raise ValueError(
                f"its {arch}.{name} is {reprlib.repr(entry.value)}, expected a whole number from {least} up"
            )
    floats = {f"{arch}.{name}" for name in FLOATS}
    for key, entry in header.entries.items():
        if (
            key in floats
            and entry.kind != Kind.FLOAT32
            or isinstance(entry.value, float)
            and not math.isfinite(entry.value)
        ):
            raise ValueError(f"its {key} is {entry.value}, expected a finite number")


def _check_tokens(header: Header) -> None:
    """The tokenizer's lists have as many entries as the embedding has rows."""
    arch, embedding = architecture(header), _tensors(header).get("token_embd.weight")
    rows = embedding.shape[1] if embedding and len(embedding.shape) == 2 else None
    lists = {
        TOKENS: (Kind.STRING,),
        "tokenizer.ggml.scores": (Kind.FLOAT32,),
        "tokenizer.ggml.token_type": WHOLE_NUMBERS,
    }
    for key, kinds in lists.items():
        if (entry := header.entries.get(key)) is None:
            continue
        if entry.inner not in kinds or rows not in (None, len(entry.value)):
            raise ValueError(
                f"its {key} is {reprlib.repr(entry.value)}, expected a list of {rows}, one a row of token_embd"
            )
    if rows and header.get(f"{arch}.vocab_size", rows) != rows:
        raise ValueError(f"its {arch}.vocab_size is {header.get(f'{arch}.vocab_size')}, its token_embd has {rows} rows")
    if (merges := header.entries.get("tokenizer.ggml.merges")) and merges.inner != Kind.STRING:
        raise ValueError("its tokenizer.ggml.merges is no list of texts")


def _check_layers(header: Header) -> None:
    """Every layer has tensors, and no other number has; where all layers are alike, all have the same."""
    layers, arch = layers_of(header), architecture(header)
    found: dict[int, dict[str, tuple]] = {}
    for tensor in header.tensors:
        if tensor.name.partition(".")[0] != "blk":
            continue
        match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,9})\.(.+)", tensor.name, re.ASCII)
        if match is None:
            raise ValueError(f"its tensor {tensor.name!r} is of no layer that has a number")
        found.setdefault(int(match[1]), {})[match[2]] = tensor.shape
    if len(found) != layers or max(found) != layers - 1:
        last = f", the last one {max(found)}" if found else ""
        raise ValueError(f"its {arch}.block_count is {layers}, and it has tensors of {len(found)} layers{last}")
    if arch not in UNIFORM:
        return
    whole = found[0]
    shaped = not any(key.startswith(f"{arch}.") and entry.kind == Kind.ARRAY for key, entry in header.entries.items())
    for number, tensors in found.items():
        for name in sorted(whole.keys() ^ tensors.keys()):
            lacks, has = (number, 0) if name in whole else (0, number)
            raise ValueError(f"its layer {lacks} has no tensor {name!r}, as blk.{has}.{name}")
        for name in sorted(whole) if shaped else ():
            if tensors[name] != whole[name]:
                raise ValueError(
                    f"its tensor 'blk.{number}.{name}' has the shape {list(tensors[name])}, that of layer 0 "
                    f"{list(whole[name])}"
                )


def _check_others(header: Header) -> None:
    """The tensors of no layer: those that a model can't be without, none of an unknown name, as wide as the model."""
    arch, tensors = architecture(header), _tensors(header)
    width = header.get(f"{arch}.embedding_length")
    if arch in UNIFORM:
        number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
        known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[number]}
        for name in tensors:
            if layer_of(name) is None and name.rpartition(".")[0] not in known:
                raise ValueError(f"its tensor {name!r} is none of {arch}")
        for name in ("token_embd", *({"output_norm"} & known)):
            if f"{name}.weight" not in tensors:
                raise ValueError(f"it has no tensor '{name}.weight'")
    for name, dimensions in (("token_embd", 2), ("output_norm", 1), ("output", 2)):
        if (tensor := tensors.get(f"{name}.weight")) is None:
            continue
        if len(tensor.shape) != dimensions or width not in (None, tensor.shape[0]):
            raise ValueError(
                f"its tensor {tensor.name!r} has the shape {list(tensor.shape)}, and the model is {width} wide"
            )
    ends = [tensors[name].shape for name in ("token_embd.weight", "output.weight") if name in tensors]
    if len(set(ends)) > 1:
        raise ValueError("its tensors 'output.weight' and 'token_embd.weight' differ in shape")


def _tensors(header: Header) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in header.tensors}
