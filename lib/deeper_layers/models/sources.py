"""Which model: a name, its fingerprint and its depth, known without opening it.

What results know of a model, and the packaged models, need neither torch nor transformers, which take seconds to
import: they are imported below only where a folder, a hub id or a GGUF file has to be read.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import is_gguf, local_path, numbered_groups, read_json, read_shards
from deeper_layers.models.configuration import check_configuration, check_model_name, layers_of, read_config
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.package_index import check_hash, hash_once
from deeper_layers.results.store import all_results

DTYPES = ("float32", "bfloat16", "float16")
UNREAD = "not read"  # of a Source whose weights were not hashed: nothing in results is of it
CONFIGURED = "none"  # of a Source of which there is a configuration alone


@dataclass(frozen=True)
class Source:
    """Where a model comes from, known without opening it.

    `name` is what figures call it, `weights` its fingerprint (a hub commit or the SHA-256 of its files),
    `dtype` the data type that "auto" stands for.
    """

    name: str
    weights: str
    num_layers: int
    dtype: str
    quantized: str
    folder: str
    gguf: Path | None = None
    revision: str | None = None

    @property
    def key(self) -> dict:
        """What of it determines a measurement."""
        return {"name": self.name, "weights": self.weights}

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, given or packaged."""
        return self.gguf is not None or self.folder in PACKAGED

    def described(self, quantization: str | None) -> str:
        """Name, depth, how the weights are kept, how they are opened, and in what the model computes."""
        opened = f"opened in {quantization}, " if quantization else ""
        return f"{self.name}, {self.num_layers} layers, {self.quantized} weights, {opened}computed in {self.dtype}"


def find_model(
    model: str = "embedded",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    hashed: bool = True,
) -> Source:
    """Identify a model and check that it can be used, reading no weights into memory.

    For a `.gguf` file `revision`, where given, is the SHA-256 it must have. Local weights are read for their hash,
    unless `hashed` is False: then they go by UNREAD, which is enough to plan, and not to measure.
    Raises InputError for a name that is neither a file, a folder nor a reachable hub id, a folder without
    config.json or safetensors, a damaged GGUF file, an encoder-decoder model, an unknown dtype.
    """
    _check_dtype(dtype, "auto")
    check_model_name(model, revision)
    path, folder, gguf, default = local_path(model), model, None, "float32"
    if packaged := PACKAGED.get(model):
        layers, quantized, folder, hashed = packaged.num_layers, packaged.quantized, packaged.name, True
    elif is_gguf(path):
        from deeper_layers.models.gguf_header import read_gguf  # slow: see the head of this file

        header = read_gguf(path)
        if revision is not None:
            check_hash(path, revision.removeprefix("sha256:"), "the model")
        layers = header.layers
        quantized, folder, gguf, revision = header.quantized, str(path), path, None
    else:
        if local := os.path.isdir(path):
            folder = str(path)
            names = [tensor.name for shard in read_shards(path) for tensor in shard.tensors]
            check_configuration(read_json(path / "config.json"), path, numbered_groups(names))
        config = read_config(folder, revision, trust_remote_code)
        if not local:
            path, hashed = _snapshot(model, revision), True
            revision = path.name
        layers = layers_of(config)
        default = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        quantized = (getattr(config, "quantization_config", None) or {}).get("quant_method", "unquantized")
    weights = model_key(model, path)["weights"] if hashed else UNREAD
    dtype = default if dtype == "auto" else dtype
    return Source(model_name(model), weights, layers, dtype, quantized, folder, gguf, revision)


def _check_dtype(dtype: object, *others: str) -> None:
    if dtype not in (expected := [*others, *DTYPES]):
        raise InputError(f"dtype is {dtype!r:.40}, expected one of {', '.join(map(repr, expected))}")


def _snapshot(model: str, revision: str | None) -> Path:
    """The folder of a hub id's commit in the hub's cache, which its configuration was just fetched into.

    Raises InputError where it has none: then nothing tells the model from a later one of its name.
    """
    from huggingface_hub import try_to_load_from_cache  # slow: see the head of this file

    path = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(path, str):
        raise InputError(
            f"can't tell which commit of {model!r} is meant, as its config.json is not in the hub's cache: fetch the "
            "model into a folder, and give that"
        )
    return Path(path).parent


def configured(path: Path, dtype: str = "auto") -> Source:
    """A model of which only its config.json is there: enough to plan. Raises InputError where it is no decoder's."""
    check_configuration(content := read_json(path), path)
    config = read_config(str(path), None, trust_remote_code=False)
    default = content.get("dtype") or content.get("torch_dtype") or "float32"
    _check_dtype(resolved := default if dtype == "auto" else dtype)
    name = path.stem if path.name != "config.json" else path.resolve().parent.name
    return Source(name, CONFIGURED, layers_of(config), str(resolved), "no", str(path))


def model_name(model: str) -> str:
    """What figures call a model, known from what the user typed."""
    path = local_path(model)
    if model in PACKAGED:
        return PACKAGED[model].name
    if is_gguf(path):
        return path.stem
    return os.path.basename(os.path.realpath(path)) if os.path.isdir(path) else model


def model_key(model: str, checkpoint: Path) -> dict:
    """`Source.key` of a model whose checkpoint is in a folder (see `checkpoint_folder`); a local one is read for it."""
    path = local_path(model)
    if model in PACKAGED:
        weights = f"sha256:{PACKAGED[model].sha256}"
    elif is_gguf(path):
        weights = f"sha256:{hash_once(path)}"
    else:  # the hub's cache names a folder after its commit
        weights = checkpoint_fingerprint(path) if os.path.isdir(path) else f"hub:{checkpoint.name}"
    return {"name": model_name(model), "weights": weights}


def recorded_model(name: str, dtype: str = "auto", folder: Path | None = None) -> Source | None:
    """A model as results know it, by its name there: enough to show what was measured, whether or not it is at hand.

    None where they know none of this name and data type.
    """
    for unit in all_results(folder, model=name):
        key, details = unit.key, unit.details
        if key["model"]["name"] == name and dtype in ("auto", key["dtype"]) and "weights" in details:
            weights, layers = key["model"]["weights"], details["num_layers"]
            return Source(name, weights, layers, key["dtype"], details["weights"], folder=name)
    return None


def checkpoint_fingerprint(folder: Path) -> str:
    """A hash of a checkpoint: its configuration, its weights, and the tokenizer, which puts tokens to them."""
    files = [folder / "config.json", *sorted(folder.glob("tokenizer*")), *sorted(folder.glob("*.safetensors"))]
    return f"sha256:{hashlib.sha256(''.join(map(hash_once, files)).encode()).hexdigest()}"
