"""Identify a model by its name, its fingerprint and its depth, without opening it."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.models.configuration import count_layers, read_config
from deeper_layers.models.origins import find_origin
from deeper_layers.models.packaged import PACKAGED

DTYPES = ("float32", "bfloat16", "float16")
NOT_HASHED = "not read"  # the fingerprint of weights that were not hashed: no result has it
CONFIG_ONLY = "none"  # the fingerprint of a model of which there is a configuration alone
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OF_HUB = "hub:"  # begins the fingerprint of a model of the hub


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
    origin = find_origin(model, revision)
    facts = origin.read_facts(trust_remote_code)
    weights = NOT_HASHED
    if hashed or not origin.is_hashed:
        weights = origin.fingerprint()
    commit = weights.removeprefix(OF_HUB) if weights.startswith(OF_HUB) else None
    dtype = _choose_dtype(dtype, facts.dtype)
    return Source(
        origin.name,
        weights,
        facts.num_layers,
        dtype,
        facts.quantized,
        origin.place,
        origin.gguf,
        commit,
    )


def checkpoint_folder(model: str, revision: str | None = None) -> Path:
    """The folder of a model's checkpoint, which is fetched from the hub or converted from GGUF where needed."""
    return find_origin(model, revision).checkpoint()


def read_raw_config(model: str, revision: str | None = None) -> dict:
    """A model's config.json; for a GGUF file or a packaged model only its type and number of layers."""
    return find_origin(model, revision).read_raw_config()


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
        raise InputError(
            f"dtype is {dtype!r:.40}, expected one of {', '.join(map(repr, ('auto', *DTYPES)))}"
        )
    return dtype


def model_name(model: str) -> str:
    """The name of a model in figures, derived from what the user typed: what is no place of a model may be a name that
    results have."""
    with contextlib.suppress(InputError):
        return find_origin(model).name
    return model


def model_key(model: str, checkpoint: Path) -> dict:
    """`Source.key` of a model whose checkpoint is in a folder (see `checkpoint_folder`)."""
    origin = find_origin(model)
    return {"name": origin.name, "weights": origin.fingerprint(checkpoint)}
