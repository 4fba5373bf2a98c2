"""A folder of low-rank adapters on disk: of which base and cut it is, and what it adds to which module.

Read without peft and without the model, so that a checkpoint can be healed while it is copied.
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
from deeper_layers.errors import InputError, telling
from deeper_layers.files import write_file
from deeper_layers.models.checkpoint_files import read_json
from deeper_layers.package_index import file_hash
from deeper_layers.results.schema import Count, CutName, ModelKey, Number, Settings, StrictModel, describe_error

if TYPE_CHECKING:  # slow
    from torch import Tensor

IDENTITY = "healing.json"  # beside the adapter: of which base and cut it is, and how it was healed
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# settings of peft that matter in training only, or of which the tensors say what they mean
TRAINING = (
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout layers_pattern "
    "megatron_core qalora_group_size ensure_weight_tying exclude_modules layers_to_transform"
).split()
NAME = re.compile(r"^base_model\.model\.(.+)\.lora_[AB]\.weight$")
Rank = Annotated[int, Field(ge=1)]


class LoraSettings(StrictModel):
    """The settings of peft that are heeded here; all others but TRAINING have to be off."""

    peft_type: Literal["LORA"]
    r: Rank
    rank_pattern: dict[str, Rank] = {}
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True  # others change the weights below the adapters
    target_modules: list[str]


class OfHealing(StrictModel):
    """How adapters were healed: settings, text, and course, as `deeper_layers.healing.Record` has it."""

    config: Settings
    text: str
    tokens: Count
    distinct_tokens: Count
    trained_parameters: Count
    seconds: Number
    losses: Annotated[list[Number], Field(min_length=1)]


class Identity(StrictModel):
    """What `write_identity` writes."""

    base: ModelKey
    cut: Annotated[list[Count] | CutName, AfterValidator(Cut.named)]
    healing: OfHealing | None = None


@dataclass(frozen=True)
class Adapter:
    """A folder of adapters."""

    folder: Path
    settings: dict  # peft's
    factors: "dict[str, tuple[Tensor, Tensor]]"  # of each module A, [rank, in], and B, [out, rank], in float32
    base: dict | None = None  # `Source.key` of the model that was pruned and healed; None where peft wrote the folder
    cut: Cut | None = None  # what was dropped before; None likewise
    healing: dict | None = None  # settings, text and course of the healing, as far as they were written down

    @property
    def fingerprint(self) -> str:
        """Of all that decides what is added."""
        parts = json.dumps(self.settings, sort_keys=True) + file_hash(self.folder / WEIGHTS)
        return hashlib.sha256(parts.encode()).hexdigest()

    def check(self, base: dict, cut: Cut) -> None:
        """Raise InputError for adapters that record another base or another cut, or none."""
        if (self.base, self.cut) != (base, cut):
            raise InputError(
                f"the adapters in {self.folder} are by their {IDENTITY} of {self.base} and {self.cut}, expected {base} "
                f"and {cut}: give adapters of that model and cut, or heal anew"
            )

    def scale(self, rank: int) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank) where the settings say so."""
        return self.settings["lora_alpha"] / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def change(self, module: str) -> "Tensor":
        """What is added to the weight of a module."""
        a, b = self.factors[module]
        change = b @ a * self.scale(len(a))
        return change.T if self.settings.get("fan_in_fan_out") else change


def write_identity(folder: Path, base: dict, cut: Cut, healing: dict | None = None) -> None:
    """Put beside adapters of which base and cut they are, and how they were healed."""
    content = {"base": base, "cut": cut.key, "healing": healing or {}}
    write_file(Path(folder) / IDENTITY, json.dumps(content).encode())


def read_adapter(folder: str | Path) -> Adapter:
    """The adapters in a folder that `save_adapters` wrote, or peft alone.

    Raises InputError where there are none, they are more than low-rank updates of weights, or damaged.
    """
    folder, base, cut, healing = Path(folder), None, None, None
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} lacks {WEIGHTS}: give a folder that save_adapters or peft's save_pretrained wrote")
    settings = _checked(folder / SETTINGS, LoraSettings)
    if (folder / IDENTITY).exists():
        said = _checked(folder / IDENTITY, Identity)
        base, cut, healing = said["base"], Cut.named(said["cut"]), said.get("healing")
    with telling(f"{folder / WEIGHTS} is no whole file of low-rank adapters", "heal anew"):
        return Adapter(folder, settings, _factors(folder / WEIGHTS, settings), base, cut, healing)


def _checked(path: Path, kind: type[StrictModel]) -> dict:
    """What a file of JSON holds, of which all that is not off has to be of this kind."""
    try:
        content = read_json(path)
        kind.model_validate({name: value for name, value in content.items() if value and name not in TRAINING})
    except ValueError as error:
        said = describe_error(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{path.parent} holds no plain LoRA adapters ({path.name}: {said}): merge others by peft's merge_and_unload"
        ) from error
    return content


def _factors(path: Path, settings: dict) -> "dict[str, tuple[Tensor, Tensor]]":
    """A and B of each module. Raises ValueError for a file of anything else, or not of what its settings say."""
    import torch  # slow, as is the next
    from safetensors.torch import load_file

    held, found = load_file(path), {}
    ranks = {settings["r"], *(settings.get("rank_pattern") or {}).values()}
    for module in dict.fromkeys(NAME.sub(r"\1", name) for name in held):
        names = (f"base_model.model.{module}.lora_{which}.weight" for which in "AB")
        a, b = (held.get(name, torch.empty(0)).float() for name in names)
        fit = a.ndim == b.ndim == 2 and len(a) == b.shape[1] and len(a) in ranks
        if not fit or not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"{module} has no A and B, matrices of finite numbers that fit, of a rank in {ranks}")
        found[module] = a, b
    if lacking := [end for end in settings["target_modules"] if not any(f".{m}".endswith(f".{end}") for m in found)]:
        raise ValueError(f"no adapters of {lacking[0]}, which {SETTINGS} asks for")
    return found
