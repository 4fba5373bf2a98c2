"""A folder of low-rank adapters on disk: its base model and cut, and the update of each module. In place of adapters it
may hold all weights of modules that were trained.

It is read without peft and without the model, so that adapters can be added to a checkpoint while it is copied.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.files import write_file
from deeper_layers.models.checkpoint_files import read_json
from deeper_layers.package_index import file_hash
from deeper_layers.schema import (
    Count,
    CutName,
    ModelKey,
    Number,
    Settings,
    StrictModel,
    describe_error,
)

if TYPE_CHECKING:  # slow
    from torch import Tensor

IDENTITY = "healing.json"  # beside the adapters: their base and cut, and how they were healed
SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# peft's settings that matter in training only, or that follow from the tensors
IGNORED = (
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout layers_pattern "
    "megatron_core qalora_group_size ensure_weight_tying exclude_modules layers_to_transform"
).split()
PREFIX = "base_model.model."  # of the names of all tensors
FACTOR_NAME = re.compile(rf"^{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight$")
Rank = Annotated[int, Field(ge=1)]


class LoraSettings(StrictModel):
    """The settings of peft that are used here. All others have to be off, or in IGNORED."""

    peft_type: Literal["LORA"]
    r: Rank
    rank_pattern: dict[str, Rank] = {}
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = (
        True  # others change the weights below the adapters
    )
    # peft's word for no adapters stands beside modules that were trained with all their weights
    target_modules: list[str] | Literal["dummy-target-modules"]
    modules_to_save: list[str] = []


class HealingCourse(StrictModel):
    """How adapters were healed: settings, text, and the course, with the fields of `deeper_layers.healing.Record`."""

    config: Settings
    text: str
    tokens: Count
    distinct_tokens: Count
    trained_parameters: Count
    seconds: Number
    losses: Annotated[list[Number], Field(min_length=1)]
    tuned: str = ""


class Identity(StrictModel):
    """The content of healing.json, which `write_identity` writes."""

    base: ModelKey
    cut: Annotated[list[Count] | CutName, AfterValidator(Cut.named)]
    healing: HealingCourse | None = None


@dataclass(frozen=True)
class Adapter:
    """A folder of adapters."""

    folder: Path
    settings: dict  # peft's
    factors: (
        "dict[str, tuple[Tensor, Tensor]]"  # by module: A [rank, in] and B [out, rank], in float32
    )
    weights: "dict[str, Tensor]"  # in place of adapters, by name: all weights of modules that were trained
    base: dict | None = (
        None  # `Source.key` of the model that was pruned and healed; None where peft wrote the folder
    )
    cut: Cut | None = None  # what was dropped before; None where peft wrote the folder
    healing: dict | None = None  # settings, text and course of the healing, where they are recorded

    @property
    def trained_modules(self) -> list[str]:
        """The modules that were trained with all their weights."""
        return list(self.settings.get("modules_to_save") or [])

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the updates."""
        parts = json.dumps(self.settings, sort_keys=True) + file_hash(self.folder / WEIGHTS)
        return hashlib.sha256(parts.encode()).hexdigest()

    def check(self, base: dict, cut: Cut) -> None:
        """Raise InputError unless the adapters record this base and this cut."""
        if (self.base, self.cut) != (base, cut):
            raise InputError(
                f"the adapters in {self.folder} are by their {IDENTITY} of {self.base} and {self.cut}, expected {base} "
                f"and {cut}: give adapters of that model and cut, or heal anew"
            )

    def compute_update(self, module: str) -> "Tensor":
        """The update of a module's weight: B A times alpha / rank, or alpha / sqrt(rank) where the settings say so."""
        a, b = self.factors[module]
        rank = math.sqrt(len(a)) if self.settings.get("use_rslora") else len(a)
        update = b @ a * (self.settings["lora_alpha"] / rank)
        return update.T if self.settings.get("fan_in_fan_out") else update


def write_identity(folder: Path, base: dict, cut: Cut, healing: dict | None = None) -> None:
    """Write the base and cut of adapters into their folder, and how they were healed."""
    content = {"base": base, "cut": cut.key, "healing": healing or {}}
    write_file(Path(folder) / IDENTITY, json.dumps(content).encode())


def read_adapter(folder: str | Path) -> Adapter:
    """The adapters in a folder that `save_adapters` or peft wrote.

    Raises InputError where there are none, they are damaged, or they do more than low-rank updates of weights.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} lacks {WEIGHTS}: give a folder that save_adapters or peft's save_pretrained wrote"
        )
    settings = _read_checked(folder / SETTINGS, LoraSettings)
    recorded: dict = {}
    if (folder / IDENTITY).exists():
        identity = _read_checked(folder / IDENTITY, Identity)
        recorded = {
            "base": identity["base"],
            "cut": Cut.named(identity["cut"]),
            "healing": identity.get("healing"),
        }
    with as_input_error(f"{folder / WEIGHTS} is no whole file of low-rank adapters", "heal anew"):
        return Adapter(folder, settings, *_read_tensors(folder / WEIGHTS, settings), **recorded)


def _read_checked(path: Path, schema: type[StrictModel]) -> dict:
    """The content of a JSON file. Raises InputError where a setting that is not off or ignored violates the schema."""
    content = read_json(path)
    try:
        schema.model_validate(
            {name: value for name, value in content.items() if value and name not in IGNORED}
        )
    except ValidationError as error:
        why = f"{path.name}: {describe_error(error)}"
        advice = "merge others by peft's merge_and_unload"
        raise InputError(f"{path.parent} holds no plain LoRA adapters ({why}): {advice}") from error
    return content


def _read_tensors(
    path: Path, settings: dict
) -> "tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]":
    """A and B of each module, or all weights of each. Raises ValueError for tensors that the settings deny."""
    from safetensors.torch import load_file  # slow to import

    tensors = load_file(path)
    if settings.get("modules_to_save"):
        return {}, _check_weights(tensors, settings)
    return _check_factors(tensors, settings), {}


def _check_weights(tensors: "dict[str, Tensor]", settings: dict) -> "dict[str, Tensor]":
    """The weights of modules that were trained with all of them, by the names that they have in the model."""
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    modules = tuple(f"{module}." for module in settings["modules_to_save"])
    for name, tensor in weights.items():
        if not name.startswith(modules) or not tensor.isfinite().all():
            raise ValueError(f"{name} is no tensor of finite numbers of a module that was trained")
    for module in modules:
        if not any(name.startswith(module) for name in weights):
            raise ValueError(f"no weights of {module[:-1]}, which {SETTINGS} asks for")
    if isinstance(settings["target_modules"], list):
        raise ValueError("it holds adapters beside whole modules, expected one of both")
    return weights


def _check_factors(
    tensors: "dict[str, Tensor]", settings: dict
) -> "dict[str, tuple[Tensor, Tensor]]":
    """A and B of each module. Raises ValueError for other tensors, and for ranks or modules that the settings deny."""
    import torch  # slow

    factors = {}
    missing = torch.empty(0)
    ranks = {settings["r"], *(settings.get("rank_pattern") or {}).values()}
    for module in dict.fromkeys(FACTOR_NAME.sub(r"\1", name) for name in tensors):
        a = tensors.get(f"{PREFIX}{module}.lora_A.weight", missing).float()
        b = tensors.get(f"{PREFIX}{module}.lora_B.weight", missing).float()
        is_pair = a.ndim == b.ndim == 2 and len(a) == b.shape[1] and len(a) in ranks
        if not is_pair or not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(
                f"{module} has no A and B, matrices of finite numbers that fit, of a rank in {ranks}"
            )
        factors[module] = a, b
    for end in settings["target_modules"]:
        if not any(f".{module}".endswith(f".{end}") for module in factors):
            raise ValueError(f"no adapters of {end}, which {SETTINGS} asks for")
    return factors
