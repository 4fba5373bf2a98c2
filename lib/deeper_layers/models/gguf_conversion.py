"""GGUF files: what one says of itself, and its conversion to float32 safetensors, once.

Converted files are kept in the cache folder, named after the hash of the file that they came from.
"""

import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.configuration import check_whole
from deeper_layers.package_index import cache_folder, check_hash, file_hash


def inspect_gguf(path: Path, expected: str | None, *, hashed: bool = True) -> dict:
    """Name, hash (None unless `hashed`) and number of layers of a GGUF file, after checking that it is whole."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a .gguf file")
    try:
        reader = GGUFReader(path)
        end = max(int(t.data_offset) + int(t.n_bytes) for t in reader.tensors)
        if end > path.stat().st_size:
            raise ValueError("its last tensor ends after the end of the file")
        fields = reader.fields
        architecture = fields["general.architecture"].contents()
        layers = int(fields[f"{architecture}.block_count"].contents())
        kinds = {t.tensor_type.name for t in reader.tensors if len(t.shape) > 1}
    except (ValueError, IndexError, KeyError, OSError, struct.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a whole GGUF file ({first_line(error)}): it may be truncated; fetch it again"
        ) from error
    if expected is not None:
        check_hash(path, expected.removeprefix("sha256:"), "the model")
    weights = f"sha256:{file_hash(path)}" if hashed else None
    return dict(
        name=path.stem, weights=weights, quantized="+".join(sorted(kinds)), folder=str(path), gguf=path,
        layers=layers,
    )  # fmt: skip


def converted_gguf(path: Path, sha256: str) -> str:
    """The folder of a GGUF file converted to float32 safetensors, made once."""
    target = cache_folder() / "models" / f"{path.stem}-{sha256[:16]}"
    if target.exists():  # renamed into place when it was complete
        return str(target)
    check_hash(path, sha256, "the model")
    print(f"converting {path.name} to safetensors, once", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=target.parent, prefix=".partial-")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(  # ty: ignore[not-iterable]
            path.parent,
            gguf_file=path.name,
            output_loading_info=True,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        check_whole(report, path.name)
        # the weights are plain from here on: a quantization entry would make the next reader look for more
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.is_quantized = False
        model.save_pretrained(temporary)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer.save_pretrained(temporary)  # ty: ignore[missing-union-attribute]
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.exists():  # another process may have been quicker
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(target)
