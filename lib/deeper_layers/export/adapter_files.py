"""A folder of low-rank adapters on disk: of which base and cut it is, and what it adds to a tensor.

Read without peft and without the model, so that a checkpoint can be healed while it is copied: W + alpha / rank * B A,
in float32, then rounded to the tensor's own type, some rows at a time.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.files import read_json, write_file
from deeper_layers.models.checkpoint_files import NUMBERED, read_header
from deeper_layers.package_index import file_hash
from deeper_layers.results.schema import Checked, Course, CutName, ModelKey, Open, Settings, in_words

IDENTITY = "healing.json"  # beside the adapter: of which base and cut it is, and how it was healed
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # every name in a file of adapters
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by their names in the file, as torch has them
BLOCK = 2**20  # elements of a tensor in work at a time
# settings of peft that matter in training only; any other than these and those of `LoraSettings` must be off
TRAINING = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
Rank = Annotated[int, Field(ge=1)]
# what peft takes for a regular expression is read as the name that it is, or refused: one can be made to run for ever
Named = Annotated[str, Field(pattern=r"^[\w.]+$")]


class LoraSettings(Open):
    """The settings of peft that are heeded here."""

    peft_type: str
    r: Rank
    rank_pattern: dict[Named, Rank] | None = None
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    bias: str | None = None
    init_lora_weights: bool | str | None = None
    target_modules: Annotated[list[Named], Field(min_length=1)]
    exclude_modules: list[Named] | None = None
    layers_to_transform: list[int] | int | None = None

    def rank(self, module: str) -> int:
        """The rank that a module's adapter must have."""
        patterns = (self.rank_pattern or {}).items()
        return next((rank for end, rank in patterns if _ends(module, end)), self.r)

    def adapts(self, module: str) -> bool:
        """Whether a module has an adapter."""
        only, place = self.layers_to_transform, NUMBERED.match(module)
        return (
            any(_ends(module, end) for end in self.target_modules)
            and not any(_ends(module, end) for end in self.exclude_modules or [])
            and (
                only is None
                or (place is not None and int(place["number"]) in ([only] if isinstance(only, int) else only))
            )
        )


class OfHealing(Course):
    """How adapters were healed."""

    config: Settings
    text: str


class Identity(Checked):
    """What `write_identity` writes."""

    base: ModelKey
    cut: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=2, max_length=2)] | CutName
    healing: Annotated[dict, Field(max_length=0)] | OfHealing = {}


@dataclass(frozen=True)
class Adapter:
    """A folder of adapters.

    Attributes:
        folder: where they are.
        settings: peft's.
        shapes: of each module the shapes of A, (rank, in), and of B, (out, rank).
        base: `Source.key` of the model that was pruned and healed; None where peft alone wrote the folder.
        cut: what was dropped before; None likewise.
        healing: settings, text and course of the healing, as far as they were written down.
    """

    folder: Path
    settings: dict
    shapes: dict[str, dict[str, tuple[int, int]]]
    base: dict | None
    cut: Cut | None
    healing: dict

    @property
    def fingerprint(self) -> str:
        """Of all that decides what is added."""
        parts = json.dumps(self.settings, sort_keys=True) + file_hash(self.folder / WEIGHTS)
        return hashlib.sha256(parts.encode()).hexdigest()

    def check(self, base: dict, cut: Cut) -> None:
        """Raise InputError for adapters that record another base or another cut."""
        assert self.base is not None and self.cut is not None
        check_identity(self.folder, self.base, self.cut, base, cut)

    def updates(self, entries: dict[str, dict], prefix: str, module: str | None) -> dict[str, Callable]:
        """For each tensor that has adapters what changes it, see `deeper_layers.models.checkpoint_files.Tensor`.

        Args:
            entries: of the pruned model's tensors, by name, as the header of a safetensors file has them.
            prefix: of its layers' tensors.
            module: of its layers' modules; None where that is not known.

        Raises:
            InputError: adapters of a module that it lacks, of another shape, or of a quantized tensor.
        """
        found = {}
        for name, shapes in self.shapes.items():
            place = NUMBERED.match(name)
            if place is None or not (place["prefix"].endswith(prefix) if module is None else place["prefix"] == module):
                raise self._refusal(f"for {name}, and the decoder layers are {module or prefix}0 and so on")
            tensor = f"{prefix}{place['number']}.{place['rest']}.weight"
            if tensor not in entries:
                raise self._refusal(f"for {name}, and the pruned checkpoint has no {tensor}")
            (rank, width), (height, of_b) = shapes["A"], shapes["B"]
            transposed = bool(self.settings.get("fan_in_fan_out"))
            shape = (width, height) if transposed else (height, width)
            if rank != of_b or tuple(entries[tensor]["shape"]) != shape:
                raise self._refusal(f"of shape {shape} and ranks {rank} and {of_b} for {tensor} of shape "
                                    f"{tuple(entries[tensor]['shape'])}")  # fmt: skip
            if (dtype := entries[tensor]["dtype"]) not in DTYPES:
                raise InputError(
                    f"{tensor} is stored as {dtype}, expected one of {', '.join(DTYPES)}: adapters can't be added to "
                    "quantized weights; give the checkpoint that they were made of"
                )
            found[tensor] = self._update(name, shape, DTYPES[dtype], transposed)
        modules = (f"{module or place['prefix']}{name.removeprefix(prefix)}" for name in entries)
        self.check_whole(name.removesuffix(".weight") for name in modules if name.endswith(".weight"))
        return found

    def check_whole(self, modules: Iterable[str]) -> None:
        """Raise InputError where one of a model's modules should have an adapter, by the settings, and has none."""
        settings = LoraSettings.model_validate(self.settings)
        if lost := [name for name in modules if settings.adapts(name) and name not in self.shapes]:
            raise InputError(
                f"{self.folder / WEIGHTS} lacks the adapters of {lost[0]}, which {SETTINGS} asks for: it is not whole, "
                "heal anew"
            )

    def _update(self, module: str, shape: tuple[int, int], type: str, transposed: bool) -> Callable:
        def update(read: Callable[[int], bytes]) -> Iterator[bytes]:
            import torch  # slow: a folder of adapters can be refused without it

            dtype = getattr(torch, type)
            with safe_open(self.folder / WEIGHTS, framework="pt") as file:
                a, b = (file.get_tensor(f"{BEFORE}{module}.lora_{which}.weight").float() for which in "AB")
            alpha, rank = self.settings["lora_alpha"], len(a)
            scale = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
            rows, width = shape
            step = max(1, BLOCK // width)
            for first in range(0, rows, step):
                part = slice(first, min(first + step, rows))
                data = bytearray(read((part.stop - first) * width * dtype.itemsize))
                weight = torch.frombuffer(data, dtype=dtype).view(-1, width).float()
                change = (b @ a[:, part]).T if transposed else b[part] @ a
                healed = (weight + change * scale).to(dtype)
                if not torch.isfinite(healed).all() and torch.isfinite(weight).all():
                    raise self._refusal(f"too large for {module} in {dtype}: added to it they are infinite")
                yield healed.contiguous().view(torch.uint8).numpy().tobytes()

        return update

    def _refusal(self, what: str) -> InputError:
        return InputError(
            f"the adapters in {self.folder} are {what}: give adapters that were trained on this model after this cut"
        )


def write_identity(folder: Path, base: dict, cut: Cut, healing: dict | None = None) -> None:
    """Put beside adapters of which base and cut they are, and how they were healed."""
    content = {"base": base, "cut": cut.key, "healing": healing or {}}
    write_file(Path(folder) / IDENTITY, json.dumps(content).encode())


def read_identity(folder: Path) -> tuple[dict, Cut, dict]:
    """What `write_identity` wrote: base, cut, healing. Raises InputError where it did not."""
    try:
        identity = read_json(Path(folder) / IDENTITY)
        Identity.model_validate(identity)
        return identity["base"], Cut.of_key(identity["cut"]), identity.get("healing", {})
    except (OSError, ValueError) as error:
        said = in_words(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{folder} holds no adapters of ours ({IDENTITY}: {said}): give a folder written by save_adapters"
        ) from error


def check_identity(folder: Path, of_base: dict, of_cut: Cut, base: dict, cut: Cut) -> None:
    """Raise InputError unless adapters of one base and cut are wanted for the same base and cut."""
    if of_base != base:
        raise InputError(
            f"the adapters in {folder} were trained on {_name(of_base)}, not on {_name(base)}: open that model, or "
            "heal this one"
        )
    if of_cut != cut:
        raise InputError(
            f"the adapters in {folder} were trained for {of_cut}, not for {cut}: drop those layers, or heal anew"
        )


def read_adapter(folder: str | Path) -> Adapter:
    """The adapters in a folder that `save_adapters` wrote, or peft alone.

    Raises:
        InputError: there are none, or they are more than low-rank updates of weights.
    """
    folder = Path(folder)
    base, cut, healing = read_identity(folder) if (folder / IDENTITY).exists() else (None, None, {})
    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} lacks {SETTINGS} or {WEIGHTS}: give a folder of adapters, as save_adapters or peft's "
            "save_pretrained writes it; other files of weights can run code when they are read, and are not opened"
        )
    settings = _settings(folder)
    shapes = _shapes(folder / WEIGHTS)
    asked = LoraSettings.model_validate(settings)
    for module, of_module in shapes.items():
        (rank, _), (_, of_b) = of_module["A"], of_module["B"]
        if not rank == of_b == asked.rank(module):
            raise InputError(
                f"{folder / WEIGHTS} has an A of rank {rank} and a B of rank {of_b} for {module}, and {SETTINGS} says "
                f"{asked.rank(module)}: it is not what was saved, heal anew"
            )
    if lost := [end for end in asked.target_modules if not any(_ends(module, end) for module in shapes)]:
        raise InputError(f"{folder / WEIGHTS} has no adapters for {lost[0]}, which {SETTINGS} asks for: heal anew")
    _check_finite(folder / WEIGHTS)
    return Adapter(folder, settings, shapes, base, cut, healing)


def _settings(folder: Path) -> dict:
    """peft's settings. Raises InputError where they are none, or of more than low-rank updates of weights."""
    try:
        settings = read_json(folder / SETTINGS)
        if not isinstance(settings, dict):
            raise ValueError(f"it is {str(settings)[:40]!r}")
        if settings.get("peft_type") == "LORA":
            LoraSettings.model_validate(settings)
    except (OSError, ValueError) as error:
        said = in_words(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{folder / SETTINGS} holds no settings of low-rank adapters ({said}): give a folder of adapters, as "
            "save_adapters or peft's save_pretrained writes it"
        ) from error
    odd = {
        key: value
        for key, value in settings.items()
        if value and key not in LoraSettings.model_fields.keys() | TRAINING
    }
    odd |= {key: settings[key] for key in ("bias",) if settings.get(key) not in (None, "none")}
    if settings.get("init_lora_weights") not in (None, True, False, "gaussian", "orthogonal"):
        odd["init_lora_weights"] = settings["init_lora_weights"]  # others change the weights below the adapters
    if settings.get("peft_type") != "LORA" or odd:
        found = ", ".join(f"{key} = {value!r}" for key, value in odd.items()) or f"{settings.get('peft_type')!r}"
        raise InputError(
            f"the adapters in {folder} are no plain LoRA ({found[:200]}): merge them with peft's merge_and_unload, and "
            "slice nothing but the layers"
        )
    return settings


def _shapes(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Of each module the shapes of A and B. Raises InputError for a file that holds anything else."""
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for tensor in read_header(path).tensors:
        module, dot, which = tensor.name.removeprefix(BEFORE).rpartition(".lora_")
        shape = tuple(tensor.entry["shape"])
        if not tensor.name.startswith(BEFORE) or not dot or which not in ("A.weight", "B.weight") or len(shape) != 2:
            raise InputError(
                f"{path} holds {tensor.name}, expected only names like {BEFORE}MODULE.lora_A.weight: merge it with "
                "peft's merge_and_unload"
            )
        if tensor.entry["dtype"] not in (*DTYPES, "F64") or 0 in shape:
            raise InputError(
                f"{path} holds {tensor.name} of type {tensor.entry['dtype']} and shape {shape}, expected real numbers "
                f"({', '.join(DTYPES)}): heal anew"
            )
        shapes.setdefault(module, {})[which[0]] = shape
    if odd := [module for module, found in shapes.items() if set(found) != {"A", "B"}] or ([] if shapes else ["all"]):
        raise InputError(f"{path} lacks A or B of {odd[0]}: heal anew")
    return shapes


def _check_finite(path: Path) -> None:
    """Raise InputError where a file of adapters holds not-a-number or infinity, or is none to safetensors itself."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # which imports torch, and is the last check
                if not file.get_tensor(name).isfinite().all():
                    raise InputError(f"{path} holds numbers in {name} that are not finite: heal anew")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): heal anew") from error


def _ends(module: str, end: str) -> bool:
    """Whether a module goes by a name, or by the end of its own, as peft has it."""
    return module == end or module.endswith(f".{end}")


def _name(base: dict) -> str:
    return f"{base.get('name')} ({str(base.get('weights'))[:19]})"
