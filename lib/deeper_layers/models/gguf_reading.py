"""Read the header of a GGUF file within bounds, check that it describes one model, and convert the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header may come from a stranger: no length in
it is followed beyond the end of the file. A file is read alone in a folder: otherwise transformers would take a
tokenizer, a configuration and even code from the files beside it.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Kind
from gguf.gguf_writer import GGUFValue

from deeper_layers.errors import as_input_error
from deeper_layers.files import atomic_dir, locked
from deeper_layers.package_index import cache_folder, check_hash, writing_to_cache

MAX_HEADER_BYTES = 2**26  # of a header: four times what a vocabulary of 262,000 tokens takes
OUT_OF_BOUNDS = "it ends too early, has a longer header than any model, or is in the byte order of other processors"
LAYER_PREFIX = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.")
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
# architectures whose layers all have the same tensors in llama.cpp
UNIFORM = frozenset(
    "bloom cohere2 command-r falcon falcon-h1 gemma gemma2 gemma3 gpt-oss gpt2 gptneox granite llama nemotron olmo "
    "olmo2 phi2 qwen2 qwen2moe qwen3 qwen3moe smollm3 stablelm starcoder starcoder2".split()
)
ISOLATED_NAME = "model.gguf"  # the name of the file in a folder of its own


class Header(gguf.GGUFReader):
    """The metadata and the table of tensors of a GGUF file, read by the package gguf, and never beyond the file."""

    data_offset = 0  # until the header is read

    def __init__(self, path: Path):
        super().__init__(path)
        self.entries = {}
        for field in list(self.fields.values())[3:]:  # after three that gguf adds
            last = field.parts[-1]
            value = last if isinstance(last, list) else field.contents()
            self.entries[field.name] = GGUFValue(value, *field.types)
        self.alignment = int(self.alignment)
        self.architecture = self.get("general.architecture")
        self.num_layers = self.get(f"{self.architecture}.block_count")

    @property
    def quantized(self) -> str:
        """The types in which its matrices are stored."""
        return "+".join(
            sorted({tensor.tensor_type.name for tensor in self.tensors if len(tensor.shape) > 1})
        )

    @property
    def config(self) -> dict:
        """What its metadata say about layers, in the keys of config.json."""
        key = f"{self.architecture}.attention.sliding_window"
        pattern = "attention.sliding_window_pattern"
        kind = self.architecture.replace("-", "_")
        if kind == "olmo2" and key in self.entries:  # files of OLMo 3 say olmo2 too
            kind = "olmo3"
        return {
            "model_type": kind,
            "num_hidden_layers": self.num_layers,
            pattern: self.get(f"{key}_pattern"),
        }

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata."""
        return self.entries[key].value if key in self.entries else default

    def _get(self, offset, dtype, count=1, override_order=None):
        limit = len(self.data)
        if not self.data_offset:
            limit = min(limit, MAX_HEADER_BYTES)
        if offset + np.dtype(dtype).itemsize * int(count) > limit or self.byte_order == "S":
            raise ValueError(OUT_OF_BOUNDS)
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        """Read a list at once. Value by value, as gguf does it, a vocabulary takes 10 seconds."""
        if raw_type != Kind.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        inner = Kind(self._get(orig_offs, np.uint32)[0])
        place = orig_offs + 12
        length = int(self._get(orig_offs + 4, np.uint64)[0])
        if inner != Kind.STRING:
            values = self._get(place, self.gguf_scalar_to_np[inner], length)
            return 12 + values.nbytes, [values], [0], [Kind.ARRAY, inner]
        content = self.data[:MAX_HEADER_BYTES].data
        texts = []
        for _ in range(length):
            start = place + 8
            place = start + int.from_bytes(content[place:start], "little")
            if place > len(content):
                raise ValueError(OUT_OF_BOUNDS)
            texts.append(str(content[start:place], "utf-8"))
        return place - orig_offs, [texts], [0], [Kind.ARRAY, inner]


def read_gguf(path: Path) -> Header:
    """Read and check the header of a GGUF file. Raises InputError where it is not a whole file of one model."""
    with as_input_error(f"{path} is not a whole GGUF file"):
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("there is no such file")
        header = Header(path)
        _check_model(header)
    return header


def split_tensor_name(name: str) -> tuple[int | None, str]:
    """Split a tensor's name into the number of its layer, None where it is in no layer, and its name in that."""
    match = LAYER_PREFIX.match(name)
    return (int(match[1]), name[match.end() :]) if match else (None, name)


def _check_model(header: Header) -> None:
    """Raise ValueError unless the tensors are those of the one model that the metadata describe, and lie as llama.cpp
    demands: aligned, one after another, up to the file's end."""
    arch = header.architecture
    num_layers = header.num_layers
    end = int(header.data_offset)
    if not re.fullmatch(r"[\w.-]+", arch):
        raise ValueError("it names no general.architecture")
    not_numbers = [key for key, entry in header.entries.items() if entry.value != entry.value]
    if not_numbers:
        raise ValueError(f"its {not_numbers[0]} is no number")
    layers: dict[int | None, dict[str, list[int]]] = {None: {}}
    for tensor in header.tensors:
        if not 1 <= len(tensor.shape) <= 4 or not tensor.n_elements or tensor.data_offset != end:
            raise ValueError(f"its tensor {tensor.name!r} has no numbers, or lies elsewhere")
        end += tensor.n_bytes + -tensor.n_bytes % header.alignment
        number, name = split_tensor_name(tensor.name)
        layers.setdefault(number, {})[name] = tensor.shape.tolist()
    if len(header.data) > end:
        raise ValueError("it has bytes after the last tensor")
    outside = {name.rpartition(".")[0]: shape for name, shape in layers.pop(None).items()}
    if (
        type(num_layers) is not int
        or num_layers != len(layers)
        or layers.keys() != {*range(num_layers)}
    ):
        message = f"its {arch}.block_count is {num_layers!r:.40}, and it has tensors of {len(layers)} layers"
        raise ValueError(f"{message}: join the parts of a model with llama-gguf-split --merge")
    width = header.get(f"{arch}.embedding_length")
    tokens = header.get("tokenizer.ggml.tokens")
    shape = outside.get("token_embd")
    if width and tokens and shape not in (None, [width, len(tokens)]):
        raise ValueError(f"its embedding has the shape {shape}, expected {[width, len(tokens)]}")
    if arch not in UNIFORM:
        return
    different = [number for number, tensors in layers.items() if tensors.keys() != layers[0].keys()]
    if different:
        raise ValueError(f"its layers 0 and {different[0]} have unlike tensors")
    names = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[ARCHITECTURES[arch]]}
    unexpected = sorted(
        outside.keys() - names | {"token_embd", "output_norm"} & names - outside.keys()
    )
    if unexpected:
        raise ValueError(f"its tensor {unexpected[0]!r} is missing, or none of {arch}")


# ---- as safetensors ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def isolated(path: Path) -> Iterator[Path]:
    """Inside, a temporary folder holds a GGUF file as ISOLATED_NAME, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="deeper-layers-") as folder:
        os.symlink(path.absolute(), Path(folder) / ISOLATED_NAME)
        yield Path(folder)


def conversion_folder(weights: str) -> Path:
    """The folder for the conversion of a GGUF file of this hash, whether or not it exists yet."""
    return cache_folder() / "models" / weights.removeprefix("sha256:") / "checkpoint"


def convert_gguf(path: Path, sha256: str) -> Path:
    """Convert a GGUF file of this hash to float32 safetensors, once, and return the folder in the cache."""
    return _make_once(
        conversion_folder(sha256), path, sha256, "converting {} to safetensors", _convert
    )


def extract_header(path: Path, sha256: str) -> Path:
    """Write the configuration and the tokenizer of a GGUF file of this hash, without its weights, once. Returns the
    folder in the cache; that of the conversion, which holds the same, where there is one."""
    converted = conversion_folder(sha256)
    if converted.is_dir():
        return converted
    action = "reading shapes and tokenizer in the header of {}"
    return _make_once(converted.with_name("header"), path, sha256, action, _extract_header)


def _make_once(
    target: Path, path: Path, sha256: str, action: str, make: Callable[[Path, Path], None]
) -> Path:
    """The folder `target` in the cache, which `make` fills from a GGUF file; `action` says on stderr what is done."""
    if not target.is_dir():
        message = f"waiting for another process, which reads {path.name}"
        with writing_to_cache(f"what {path} holds", target), locked(target, message):
            if not target.is_dir():
                print(f"{action.format(path.name)}, once", file=sys.stderr, flush=True)
                with atomic_dir(target, None) as folder:
                    make(path, folder)
                    # afterwards: it may have been changed meanwhile
                    check_hash(path, sha256, "the model")
    return target


def _extract_header(path: Path, out: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer  # slow: see the head of origins.py

    with as_input_error(f"transformers can't read the header of {path}"), isolated(path) as folder:
        for auto_class in (AutoConfig, AutoTokenizer):
            read: Any = auto_class.from_pretrained(folder, gguf_file=ISOLATED_NAME)
            read.save_pretrained(out)


def _convert(path: Path, out: Path) -> None:
    import torch  # slow: see the head of origins.py
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from deeper_layers.models.configuration import check_loading_report

    read_gguf(path)
    options: dict = {"gguf_file": ISOLATED_NAME, "trust_remote_code": False}
    dtypes = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    advice = "give a GGUF file of a model that it knows, and room for it in the cache"
    with as_input_error(f"transformers can't convert {path}", advice), isolated(path) as folder:
        model, report = AutoModelForCausalLM.from_pretrained(  # ty: ignore[not-iterable]
            folder, output_loading_info=True, **dtypes, **options
        )
        check_loading_report(report, path.name)
        # the weights are plain from here on: a quantization entry would make the next reader look for more
        vars(model.config).pop("quantization_config", None)
        model.is_quantized = False
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, **options).save_pretrained(out)  # ty: ignore[missing-union-attribute]
