"""Read a model's configuration, and check that a checkpoint holds the weights that it asks for.

Only transformers knows what a checkpoint's tensors are called in the model, and which are tied, joined or not needed.
So it loads the tensors, without their contents, into an empty model, and reports what does not fit.
"""

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers.checks import LAYERS
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.checkpoint_files import read_json

if TYPE_CHECKING:  # slow: much of a folder can be refused without it
    from transformers import PreTrainedConfig, PreTrainedModel

# what configurations call the number of layers
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
)
# the most tokens of a sequence, as lm-eval reads them
POSITIONS = (
    "n_positions",
    "max_position_embeddings",
    "n_ctx",
)
TOGETHER = "give a model whose configuration and weights belong together"
Shapes = dict[str, tuple[int, ...]]  # of tensors, by their names


def text_part(config: dict) -> dict:
    """The part of a config.json that describes the decoder."""
    return next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)),
        config,
    )


def count_stated_layers(config: dict) -> int | None:
    """The number of layers that a config.json states under a usual name; None where it uses none of these."""
    text = text_part(config)
    return next((text[name] for name in DEPTHS if type(text.get(name)) is int), None)


def check_configuration(config: dict, where: Path) -> None:
    """Raise InputError for values that no model has, before transformers builds a list of that many layers."""
    depths = []
    for part in (config, text_part(config)):
        depths += [part[name] for name in DEPTHS if part.get(name) is not None]
    faults = [
        f"{depth!r:.40} layers"
        for depth in depths
        if type(depth) is not int or not 0 < depth <= LAYERS
    ]
    if config.get("transformers_weights") is not None:
        faults.append("other names of weights (transformers_weights)")
    quantized = config.get("quantization_config")
    if quantized is not None and not (isinstance(quantized, dict) and quantized):
        faults.append("a quantization_config of no known method")
    if faults:
        raise InputError(
            f"the configuration of {where} states {faults[0]}, which no model has: repair its config.json"
        )


def read_config(place: Path, *, trust_remote_code: bool = False) -> "PreTrainedConfig":
    """Read and check the configuration in a folder, or in a file like config.json."""
    from transformers import AutoConfig

    file = place / "config.json" if place.is_dir() else place
    stated = read_json(file)
    check_configuration(stated, file)
    if trust_remote_code:
        _check_own_code(stated, file)
    with as_input_error(f"can't read the model's {file}", "repair it"):
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)


def _check_own_code(stated: dict, file: Path) -> None:
    """Raise InputError where the code of a checkpoint lies in another repository: the model's key does not see it, so
    numbers of a code that changed would be taken for those of today's."""
    for classes in (stated.get("auto_map") or {}).values():
        for name in [classes] if isinstance(classes, str) else classes:
            repository, _, _ = str(name).rpartition("--")
            if repository:
                raise InputError(
                    f"{file} takes its code from {repository}, whose changes nobody would see: copy that code beside "
                    "the checkpoint, and name it there without the repository"
                )


def text_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The part of a model's configuration that describes its decoder, not a copy: often the configuration itself."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{config.model_type} is an encoder-decoder model: choose a decoder-only language model"
        )
    return config.get_text_config(decoder=True)


def count_layers(config: "PreTrainedConfig") -> int:
    """Number of decoder layers L that a configuration states. Raises InputError where it states none."""
    layers = getattr(text_config(config), "num_hidden_layers", None)
    if type(layers) is not int or layers < 1:
        raise InputError(
            f"a {config.model_type} model states num_hidden_layers = {layers!r}: choose a decoder-only language model"
        )
    return layers


def count_positions(config: "PreTrainedConfig") -> int | None:
    """Tokens of the longest sequence that a configuration provides for; None where it states no limit. Rotary positions
    that are stretched count as stretched."""
    text = text_config(config)
    numbers = [getattr(text, name, None) for name in POSITIONS]
    stated = next((number for number in numbers if type(number) is int), None)
    rotary = getattr(text, "rope_parameters", None) or {}
    factor = rotary.get("factor")
    before = rotary.get("original_max_position_embeddings")
    if stated is None or not factor:
        return stated
    return max(stated, int(factor * (before or stated)))


def check_docstrings() -> None:
    """Raise InputError where Python runs without docstrings: transformers reads them when it defines a model."""
    if sys.flags.optimize > 1:
        raise InputError(
            "PYTHONOPTIMIZE is 2 (python -OO), without docstrings, which transformers reads: leave it out"
        )


def choose_auto_class(config: "PreTrainedConfig"):
    """The auto class of transformers that opens a model: models that also take images have another one."""
    import transformers

    image_class = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    is_stated = getattr(image_class, "__name__", None) in (config.architectures or [])
    if image_class is not None and (
        is_stated or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def build_empty_model(
    config: "PreTrainedConfig", place: Path | str, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Build a model without weights, on the device "meta". Raises InputError where that fails."""
    import torch

    check_docstrings()
    with (
        as_input_error(f"can't build an empty model from {place}", "repair its configuration"),
        torch.device("meta"),
    ):
        return choose_auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def check_tensors(model: "PreTrainedModel", folder: Path, shapes: Shapes) -> None:
    """Raise InputError where an empty model needs a tensor that these names and shapes do not have. The head may be
    missing, as some models have none. Quantized weights are not checked: other names and shapes."""
    if getattr(model.config, "quantization_config", None) is None:
        prefix = f"{model.base_model_prefix}.".lstrip(".")
        if any(name.startswith(prefix) for name in shapes):
            prefix = ""  # else the model without its head was saved
        # weights that transformers joins raise where they do not fit
        with as_input_error(
            f"the weights in {folder} are not what its config.json asks for", TOGETHER
        ):
            check_loading_report(_load_shapes(model, shapes, shapes), folder, prefix)


def check_loading_report(report: dict, place: Path | str, prefix: str = "") -> None:
    """Raise InputError for weights of other shapes, and for missing ones with this prefix, which would be random."""
    faults = [
        f"it lacks {name}" for name in sorted(report["missing_keys"]) if name.startswith(prefix)
    ]
    for name, actual, expected in report["mismatched_keys"]:
        faults.append(f"{name} has the shape {list(actual)}, expected {list(expected)}")
    if faults:
        message = f"{faults[0]}, {len(faults)} in all" if len(faults) > 1 else faults[0]
        raise InputError(
            f"the weights in {place} are not what its configuration asks for ({message}): {TOGETHER}"
        )


def find_weights_filled_by(model: "PreTrainedModel", shapes: Shapes, prefix: str) -> set[str]:
    """The weights of an empty model that only tensors with this prefix fill, by their names in the model."""
    others = [name for name in shapes if not name.startswith(prefix)]
    try:
        missing_anyway = _load_shapes(model, shapes, shapes)["missing_keys"]
        missing = _load_shapes(model, shapes, others)["missing_keys"]
    except Exception:  # joined tensors raise
        return set()
    return set(missing) - set(missing_anyway)


def _load_shapes(model: "PreTrainedModel", shapes: Shapes, names: Iterable[str]) -> dict:
    """The report of transformers after it loads tensors without contents into a model without contents."""
    import torch
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    is_bar_shown = logging.is_progress_bar_enabled()
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        tensors = {name: torch.empty(shapes[name]) for name in names}
    options: dict = {
        "device_map": {"": "meta"},
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return type(model).from_pretrained(None, config=config, state_dict=tensors, **options)[1]  # ty: ignore[not-subscriptable]
    finally:
        logging.set_verbosity(verbosity)
        if is_bar_shown:
            logging.enable_progress_bar()
