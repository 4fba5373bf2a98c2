"""What a model's configuration says, soon and without torch, or as transformers reads it, and whether all is there."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_config_json, read_json
from deeper_layers.models.packaged import PACKAGED

if TYPE_CHECKING:  # slow: much of a folder can be refused without it
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig

# What transformers raises for a checkpoint that it can't open: what strangers write into a configuration or a tokenizer
# fails at any line that reads it, with any error.
UNUSABLE = (Exception,)
# what configurations call the number of layers
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
DEEPEST = 10_000  # layers of a part that is not the decoder
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # also of the hub's oldest models, which are of no organisation


def stated_config(model: str, revision: str | None = None) -> dict:
    """What config.json of a model holds; of a GGUF file, or a packaged model, kind and number of layers alone.

    Raises InputError for a name that is neither a file, a folder nor a hub id, and for a file that can't be read.
    """
    check_revision(model, revision)
    path = local_path(model)
    if packaged := PACKAGED.get(model):
        return {"model_type": packaged.model_type, "num_hidden_layers": packaged.num_layers}
    if is_gguf(path):
        from deeper_layers.models.gguf_header import architecture, layers_of, read_gguf  # slow

        header = read_gguf(path)
        return {"model_type": architecture(header).replace("-", "_"), "num_hidden_layers": layers_of(header)}
    if os.path.isdir(path):
        return read_config_json(path)
    check_hub_id(model)
    from huggingface_hub import hf_hub_download  # slow

    try:
        return read_json(Path(hf_hub_download(model, "config.json", revision=revision)))
    except InputError:
        raise
    except Exception as error:  # whatever a server and the ways to it can answer
        raise InputError(f"can't fetch {model!r} ({first_line(error)}): check the name and the connection") from error


def check_revision(model: str, revision: str | None) -> None:
    """Raise InputError for a revision of what has none."""
    if revision is not None and (model in PACKAGED or os.path.isdir(local_path(model))):
        what = "packaged, in one version" if model in PACKAGED else "a folder"
        raise InputError(f"revision is {revision!r}, and {model!r} is {what}: leave it out, it is for hub ids")


def check_hub_id(model: str) -> None:
    """Raise InputError for a name that can't be a hub id."""
    if os.path.isfile(local_path(model)):
        raise InputError(f"{model!r} is a file that is no GGUF: give a .gguf file, a folder or a hub id")
    if not ID.fullmatch(model):
        raise InputError(f"{model!r} is no file, no folder and no hub id (ORGANISATION/NAME)")


def read_config(model: str, revision: str | None, trust_remote_code: bool) -> "PretrainedConfig":
    """The configuration of a folder or hub id. Raises InputError where transformers can't read it."""
    from transformers import AutoConfig, PretrainedConfig

    options = {"revision": revision} if revision else {}
    try:
        check_configuration(PretrainedConfig.get_config_dict(model, **options)[0], model)
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **options)
    except InputError:
        raise
    except UNUSABLE as error:
        raise InputError(
            f"can't open the model {model!r} ({first_line(error)}): repair its config.json, or check the name and the "
            "connection, or give a local folder, a .gguf file or 'embedded'"
        ) from error


def auto_class(config: "PretrainedConfig") -> "type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]":
    """What opens a model of transformers: one that sees images too goes by another name than one that only reads."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind, both = type(config), MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText if kind in both else AutoModelForCausalLM
    sees = kind in both and getattr(both[kind], "__name__", None) in (config.architectures or [])
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def check_configuration(config: dict, where: str | Path, groups: dict[str, set[int]] | None = None) -> None:
    """Raise InputError for weights of another name, a quantization without a method, or a number of no model's layers.

    Before a model is built, since transformers makes lists of so many layers. `groups` are the numbered tensors of its
    checkpoint, where they are known, see `numbered_groups`.
    """
    quantized, text, wrong = config.get("quantization_config"), text_part(config), None
    if config.get("transformers_weights") is not None:
        wrong = "names its weights (transformers_weights), expected model.safetensors or its index"
    methods = {"quant_method", "load_in_4bit", "load_in_8bit"}
    if quantized is not None and not (isinstance(quantized, dict) and methods & quantized.keys()):
        wrong = "has a quantization_config of no known method (quant_method)"
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in DEPTHS:
            value = part.get(name)
            # elsewhere than in the decoder's part the word may mean another thing
            if value is None or not (type(value) is int or part is config or part is text):
                continue
            if type(value) is not int or not 0 <= value <= DEEPEST:
                wrong = f"has {name} = {value!r:.40}, expected a number of layers from 1 to {DEEPEST:,}"
    depth = stated_layers(config)
    prefix, numbers = max((groups or {}).items(), key=lambda group: len(group[1]), default=("model.layers.", ()))
    if wrong is None and depth is not None and groups is not None and not 1 <= depth <= len(numbers):
        wrong = f"states {depth} layers, where its tensors are of {len(numbers)} (none of {prefix}{len(numbers)}.)"
    if wrong:
        raise InputError(f"the configuration of {where} {wrong}: repair its config.json")


def text_part(config: dict) -> dict:
    """The part of a config.json that describes the decoder."""
    return next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), config)


def stated_layers(config: dict) -> int | None:
    """Number of layers that a configuration states in plain words; None where only its code knows."""
    text = text_part(config)
    return next((text[name] for name in DEPTHS if type(text.get(name)) is int), None)


def layers_of(config: "PretrainedConfig", model: str) -> int:
    """Number of decoder layers that a configuration states. Raises InputError where it is no decoder's."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{model!r} is an encoder-decoder model ({config.model_type}): give a decoder-only one")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise InputError(f"{model!r} ({config.model_type}) states no number of layers: give a decoder-only one")
    return layers


def check_whole(report: dict, name: str) -> None:
    """Raise InputError where transformers filled in random weights for some that the checkpoint lacks."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {name!r} lack {len(missing)} tensors that its configuration asks for ({missing[0]}, "
            "...), which would be random: give a model whose configuration and weights belong together"
        )
