"""The conversion of a GGUF file to float32 safetensors, once.

A file is read as if it were alone: transformers would take a tokenizer, a configuration and even code from what lies
beside it. Converted files are kept in the cache folder, named after the hash of the file that they came from.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers.errors import telling
from deeper_layers.files import atomic_dir, locked
from deeper_layers.package_index import cache_folder, check_hash, keeping

ALONE = "model.gguf"  # the name of the file in a folder of its own


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """A folder for the moment that holds a GGUF file as ALONE, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="deeper-layers-") as folder:
        os.symlink(path.absolute(), Path(folder) / ALONE)
        yield Path(folder)


def conversion_of(weights: str) -> Path:
    """The folder of the conversion of a GGUF file, by its hash, whether or not it is there."""
    return cache_folder() / "models" / weights.removeprefix("sha256:") / "checkpoint"


def converted_gguf(path: Path, sha256: str) -> Path:
    """The folder of a GGUF file of this hash converted to float32 safetensors, made once.

    Raises InputError where the file has another hash, transformers can't read it, or the cache can't be written.
    """
    target = conversion_of(sha256)
    if target.is_dir():
        return target
    wait = f"waiting for another process, which converts {path.name}"
    with keeping(f"the conversion of {path}", target), locked(target, wait):
        if not target.is_dir():
            print(f"converting {path.name} to safetensors, once", file=sys.stderr, flush=True)
            with atomic_dir(target, None) as made:
                _convert(path, made)
                check_hash(path, sha256, "the model")  # afterwards: it may have been changed meanwhile
    return target


def _convert(path: Path, out: Path) -> None:
    import torch  # slow: see the head of sources.py
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from deeper_layers.models.configuration import check_whole
    from deeper_layers.models.gguf_header import read_gguf

    read_gguf(path)
    how = {"gguf_file": ALONE, "trust_remote_code": False}
    numbers = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    advice = "give a GGUF file of a model that it knows, and room for it in the cache"
    with telling(f"transformers can't convert {path}", advice), alone(path) as folder:
        model, report = AutoModelForCausalLM.from_pretrained(  # ty: ignore[not-iterable]
            folder, output_loading_info=True, **numbers, **how
        )
        check_whole(report, path.name)
        # the weights are plain from here on: a quantization entry would make the next reader look for more
        vars(model.config).pop("quantization_config", None)
        model.is_quantized = False
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, **how).save_pretrained(out)  # ty: ignore[missing-union-attribute]
