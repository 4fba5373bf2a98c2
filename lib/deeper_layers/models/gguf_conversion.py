"""GGUF files: what one says of itself, and its conversion to float32 safetensors, once.

A file is read as if it were alone: transformers would take a tokenizer, a configuration and even code from what lies
beside it. Converted files are kept in the cache folder, named after the hash of the file that they came from, with a
list of their own hashes.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers.errors import InputError, disk_is_full, first_line
from deeper_layers.files import atomic_dir, locked
from deeper_layers.models.gguf_header import layers_of, read_gguf
from deeper_layers.package_index import cache_folder, check_hash, file_hash, hash_once

ALONE = "model.gguf"  # the name of the file in a folder of its own
CHECKPOINT, HASHES = "checkpoint", "hashes.json"  # of a conversion in the cache


def inspect_gguf(path: Path, expected: str | None, *, hashed: bool = True) -> dict:
    """Name, hash (None unless `hashed`), types of weights and number of layers of a GGUF file, checked to be whole."""
    header = read_gguf(path)
    kinds = {tensor.kind.name for tensor in header.tensors if len(tensor.shape) > 1}
    if expected is not None:
        check_hash(path, expected.removeprefix("sha256:"), "the model")
    weights = f"sha256:{hash_once(path)}" if hashed else None
    return dict(name=path.stem, weights=weights, quantized="+".join(sorted(kinds)), layers=layers_of(header))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """A folder for the moment that holds a GGUF file as ALONE, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="deeper-layers-") as folder:
        os.symlink(path.absolute(), Path(folder) / ALONE)
        yield Path(folder)


def converted_gguf(path: Path, sha256: str, *, hashed: bool = False) -> str:
    """The folder of a GGUF file converted to float32 safetensors, made once, and again where it was changed.

    With `hashed` every file of it is read for its hash, which else only those are whose time is another.
    Raises InputError where the file has another hash, transformers can't read it, or the cache can't be written.
    """
    if whole := conversion_of(sha256, hashed=hashed):
        return str(whole)
    read_gguf(path)
    target = _place(sha256)
    try:
        with locked(target, f"waiting for another process, which converts {path.name}"):
            if whole := conversion_of(sha256, hashed=hashed):
                return str(whole)
            print(f"converting {path.name} to safetensors, once", file=sys.stderr, flush=True)
            with atomic_dir(target, None) as made:
                _convert(path, made / CHECKPOINT)
                check_hash(path, sha256, "the model")  # afterwards: it may have been changed meanwhile
                (made / HASHES).write_text(json.dumps(_stamps(made / CHECKPOINT)), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"can't keep the conversion of {path} at {target} ({error.strerror or error}): mend that, or let "
            "XDG_CACHE_HOME name another folder for the cache"
        ) from error
    return str(target / CHECKPOINT)


def conversion_of(sha256: str, *, hashed: bool = False) -> Path | None:
    """The folder of a GGUF file converted before, by its hash; None where there is none, or where it was changed."""
    target = _place(sha256)
    try:
        stamps = json.loads((target / HASHES).read_text(encoding="utf-8"))
        if stamps.keys() != {path.name for path in (target / CHECKPOINT).iterdir()}:
            return None
        for name, (expected, size, time) in stamps.items():
            path = target / CHECKPOINT / name
            found = path.stat()
            if found.st_size != size or (hashed or found.st_mtime_ns != time) and hash_once(path) != expected:
                return None
    except (OSError, ValueError, TypeError, AttributeError):  # no such file, or not as it was written
        return None
    return target / CHECKPOINT


def _place(sha256: str) -> Path:
    return cache_folder() / "models" / sha256


def _stamps(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Hash, size and time of each file."""
    return {path.name: (file_hash(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


def _convert(path: Path, out: Path) -> None:
    import torch  # slow: see the head of sources.py
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from deeper_layers.models.configuration import check_whole

    try:
        with alone(path) as folder:
            how = {"gguf_file": ALONE, "trust_remote_code": False}
            model, report = AutoModelForCausalLM.from_pretrained(  # ty: ignore[not-iterable]
                folder,
                output_loading_info=True,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **how,
            )
            check_whole(report, path.name)
            # the weights are plain from here on: a quantization entry would make the next reader look for more
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.is_quantized = False
            model.save_pretrained(out)
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
            tokenizer.save_pretrained(out)  # ty: ignore[missing-union-attribute]
    except InputError:
        raise
    except Exception as error:  # whatever transformers raises for an entry or a tensor that it did not expect
        if disk_is_full(error):
            raise OSError(first_line(error)) from error
        raise InputError(
            f"transformers can't convert {path} ({first_line(error)}): give a GGUF file of a model that it knows"
        ) from error
