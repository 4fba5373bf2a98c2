"""Open a model: a hub id, a local folder, a `.gguf` file, or the embedded default.

The embedded model and the others in `lib.packaged` come from the Python package index. GGUF files are
dequantized to float32 once and kept as safetensors in the cache folder, named after the hash of the file they
came from.
"""

import hashlib
import os
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as hub_logging

from lib.decoder import decoder_layers, num_layers
from lib.errors import InputError
from lib.packaged import EMBEDDED, PACKAGED
from lib.results import RESULTS, all_units
from lib.wheels import cache_folder, check_hash, file_hash, hash_once
from lib.widened import multiplies_sixteen_bits, widen

__all__ = ["EMBEDDED", "PACKAGED", "Source", "decoder_layers", "find_model", "load_model", "num_layers"]

# what transformers raises for a checkpoint that it can't open
UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def find_model(
    model: str = "embedded", *, revision: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> Source:
    """Identify a model and check that it can be used, reading no weights into memory.

    For a `.gguf` file `revision`, where given, is the SHA-256 it must have.
    Raises InputError for a name that is neither a file, a folder nor a reachable hub id, a folder without
    config.json or safetensors, a damaged GGUF file, an encoder-decoder model, an unknown dtype.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    path = Path(model).expanduser()
    if packaged := PACKAGED.get(model):
        default, layers = "float32", packaged.num_layers
        weights = f"sha256:{packaged.sha256}"
        found = dict(name=packaged.name, weights=weights, quantized=packaged.quantized, folder=packaged.name)
    elif path.suffix == ".gguf":
        found, default = _find_gguf(path, revision), "float32"
        layers = found.pop("layers")
    else:
        if path.is_dir():
            if not (path / "config.json").exists():
                raise InputError(f"{path} has no config.json: give a folder saved by save_pretrained")
            config = _config(str(path), None, trust_remote_code)
            if not list(path.glob("*.safetensors")):
                raise InputError(
                    f"{path} has no *.safetensors weights: load it where you trust it and save it again with "
                    "save_pretrained(folder, safe_serialization=True)"
                )
            name, fingerprint, revision = model_name(model), _fingerprint(path), None
        else:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
                raise InputError(f"{model!r} is no file, no folder and no hub id (ORGANISATION/NAME)")
            config = _config(model, revision, trust_remote_code)
            revision = getattr(config, "_commit_hash", None) or revision
            name, fingerprint = model, f"hub:{revision}"
        layers = _layers_of(config, model)
        default = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
        quantized = (getattr(config, "quantization_config", None) or {}).get("quant_method", "none")
        found = dict(name=name, weights=fingerprint, quantized=quantized, folder=model, revision=revision)
    return Source(**found, num_layers=layers, dtype=default if dtype == "auto" else dtype)


def model_name(model: str) -> str:
    """What figures call a model, known from what the user typed."""
    path = Path(model).expanduser()
    if model in PACKAGED:
        return PACKAGED[model].name
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model


def model_key(model: str, checkpoint: Path) -> dict:
    """`Source.key` of a model whose checkpoint is in a folder (see `checkpoint_folder`); a local one is read for it."""
    path = Path(model).expanduser()
    if model in PACKAGED:
        weights = f"sha256:{PACKAGED[model].sha256}"
    elif path.suffix == ".gguf":
        weights = f"sha256:{hash_once(path)}"
    else:  # the hub's cache names a folder after its commit
        weights = _fingerprint(path) if path.is_dir() else f"hub:{checkpoint.name}"
    return {"name": model_name(model), "weights": weights}


def recorded_model(name: str, dtype: str = "auto", folder: Path = RESULTS) -> Source | None:
    """A model as results know it, by its name there: enough to show what was measured, whether or not it is at hand.

    None where they know none of this name and data type.
    """
    for unit in all_units(folder, model=name):
        if unit.key["model"]["name"] == name and dtype in ("auto", unit.key["dtype"]) and "weights" in unit.details:
            return Source(
                **unit.key["model"], num_layers=unit.details["num_layers"], dtype=unit.key["dtype"],
                quantized=unit.details["weights"], folder=name,
            )  # fmt: skip
    return None


def load_model(
    model: str | Source = "embedded",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
):
    """Open a decoder-only language model for measuring: (model, tokenizer), the model in evaluation mode.

    Parameters
    ----------
    model: "embedded" or another name in PACKAGED, a hub id, a folder saved by `save_pretrained`, or a `.gguf` file
        (dequantized); or what `find_model` returned for one.
    revision: hub branch, tag or commit; for a `.gguf` file its expected SHA-256.
    dtype: "auto" (the checkpoint's own; float32 for GGUF and the embedded model), "float32", "bfloat16" or "float16".
    device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", "mps".
    quantization: None, "nf4" or "int8" (bitsandbytes).
    trust_remote_code: run code that comes with the checkpoint; never unless you ask for it.

    Raises InputError as `find_model` does, and for an unknown device or quantization.
    """
    source = model
    if not isinstance(source, Source):
        source = find_model(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    folder, where = source.folder, _device(device)
    hub_logging.disable_progress_bar()
    options = {"revision": source.revision} if source.revision else {}
    try:
        if packaged := PACKAGED.get(folder):
            folder = _converted(packaged.file(), packaged.sha256)
        elif source.gguf is not None:
            folder = _converted(source.gguf, source.weights.removeprefix("sha256:"))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
        network, report = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=DTYPES[source.dtype],
            device_map=where,
            quantization_config=_quantization(quantization, DTYPES[source.dtype]),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **options,
        )
    except InputError:
        raise
    except UNUSABLE as error:
        raise InputError(
            f"can't open the model {source.name!r} ({_first_line(error)}): mend that, or give a whole model with its "
            "tokenizer, as save_pretrained writes them"
        ) from error
    _check_whole(report, source.name)
    decoder_layers(network)  # refuses what can't be pruned, before anything is measured
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack weights of four bits at the first answer, on some processors: their scales are
            # rounded then, and no gradient goes through them any more
            module.support_avx512bf16_for_cpu = False
    if where == "cpu" and not multiplies_sixteen_bits():
        widen(network)
    return network.eval(), tokenizer


def checkpoint_folder(model: str, revision: str | None = None) -> Path:
    """The folder that holds a model's checkpoint: fetched from the hub, or converted from GGUF, where it must be.

    Raises InputError as `find_model` does, and where the hub does not give the files.
    """
    if packaged := PACKAGED.get(model):
        return Path(_converted(packaged.file(), packaged.sha256))
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        _find_gguf(path, revision)
        return Path(_converted(path, file_hash(path)))
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise InputError(f"{model!r} is no file, no folder and no hub id (ORGANISATION/NAME)")
    try:
        kinds = ["*.safetensors", "*.json", "*.txt", "*.model", "*.py", "*.jinja", "LICENSE*"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=kinds))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(f"can't fetch {model!r} ({_first_line(error)}): check the name and the connection") from error


def _config(model: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    options = {"revision": revision} if revision else {}
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **options)
    except UNUSABLE as error:
        advice = (
            "repair its config.json, or save the model again with save_pretrained"
            if Path(model).is_dir()
            else "check the name and the connection, or give a local folder, a .gguf file or 'embedded'"
        )
        raise InputError(f"can't open the model {model!r} ({_first_line(error)}): {advice}") from error


def _check_whole(report: dict, name: str) -> None:
    """Raise InputError where transformers filled in random weights for some that the checkpoint lacks."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {name!r} lack {len(missing)} tensors that its configuration asks for ({missing[0]}, "
            "...), which would be random: give a model whose configuration and weights belong together"
        )


def _layers_of(config: PretrainedConfig, model: str) -> int:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{model!r} is an encoder-decoder model ({config.model_type}): give a decoder-only one")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise InputError(f"{model!r} ({config.model_type}) states no number of layers: give a decoder-only one")
    return layers


def _find_gguf(path: Path, expected: str | None) -> dict:
    """Name, hash and number of layers of a GGUF file, after checking that it is whole."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a .gguf file")
    from gguf import GGUFReader

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
            f"{path} is not a whole GGUF file ({_first_line(error)}): it may be truncated; fetch it again"
        ) from error
    if expected is not None:
        check_hash(path, expected.removeprefix("sha256:"), "the model")
    weights = f"sha256:{file_hash(path)}"
    return dict(
        name=path.stem, weights=weights, quantized="+".join(sorted(kinds)), folder=str(path), gguf=path,
        layers=layers,
    )  # fmt: skip


def _converted(path: Path, sha256: str) -> str:
    """The folder of a GGUF file converted to float32 safetensors, made once."""
    target = cache_folder() / "models" / f"{path.stem}-{sha256[:16]}"
    if target.exists():  # renamed into place when it was complete
        return str(target)
    check_hash(path, sha256, "the model")
    from transformers import GgufConfig

    print(f"converting {path.name} to safetensors, once")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=target.parent, prefix=".partial-")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            output_loading_info=True,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        _check_whole(report, path.name)
        # the weights are plain from here on: a quantization entry would make the next reader look for more
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.is_quantized = False
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(temporary)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.exists():  # another process may have been quicker
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(target)


def _quantization(name: str | None, compute: torch.dtype):
    if name is None:
        return None
    if name not in ("nf4", "int8"):
        raise InputError(f"quantization is {name!r}, expected None, 'nf4' or 'int8'")
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device is {name!r} ({_first_line(error)}): use 'auto', 'cpu' or an existing one") from error
    return name


def _fingerprint(folder: Path) -> str:
    """A hash of a checkpoint: its configuration, its weights, and the tokenizer, which puts tokens to them."""
    files = [folder / "config.json", *sorted(folder.glob("tokenizer*")), *sorted(folder.glob("*.safetensors"))]
    return f"sha256:{hashlib.sha256(''.join(map(hash_once, files)).encode()).hexdigest()}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a first line that announces the reason is followed by it
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
