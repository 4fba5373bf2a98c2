"""What a model's configuration says, soon and without torch, or as transformers reads it, and whether all is there."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers.checks import LAYERS
from deeper_layers.errors import InputError, first_line
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_json
from deeper_layers.models.packaged import PACKAGED

if TYPE_CHECKING:  # slow: much of a folder can be refused without it
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig

# what configurations call the number of layers
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_model_name(model: str, revision: str | None = None) -> None:
    """Raise InputError for what is no packaged model, folder, GGUF file or hub id, or has no revisions."""
    path = local_path(model)
    if model in PACKAGED or os.path.isdir(path):
        if revision is not None:
            what = "packaged, in one version" if model in PACKAGED else "a folder"
            raise InputError(f"revision is {revision!r}, and {model!r} is {what}: leave it out, it is for hub ids")
    elif not is_gguf(path):
        if os.path.isfile(path):
            raise InputError(f"{model!r} is a file that is no GGUF: give a .gguf file, a folder or a hub id")
        # the hub's oldest models are of no organisation
        if not HUB_ID.fullmatch(model) and not re.fullmatch(r"[\w.-]+", model):
            raise InputError(f"{model!r} is no file, no folder and no hub id (ORGANISATION/NAME)")


def stated_config(model: str, revision: str | None = None) -> dict:
    """What config.json of a model holds; of a GGUF file, or a packaged model, kind and number of layers alone.

    Raises InputError for a name that is neither a file, a folder nor a hub id, and for a file that can't be read.
    """
    check_model_name(model, revision)
    path = local_path(model)
    if packaged := PACKAGED.get(model):
        return {"model_type": packaged.model_type, "num_hidden_layers": packaged.num_layers}
    if is_gguf(path):
        from deeper_layers.models.gguf_header import read_gguf  # slow

        return read_gguf(path).config
    if os.path.isdir(path):
        return read_json(path / "config.json")
    from huggingface_hub import hf_hub_download  # slow

    try:
        path = Path(hf_hub_download(model, "config.json", revision=revision))
    except Exception as error:  # whatever a server and the ways to it can answer
        raise InputError(f"can't fetch {model!r} ({first_line(error)}): check the name and the connection") from error
    return read_json(path)


def read_config(model: str, revision: str | None, trust_remote_code: bool) -> "PretrainedConfig":
    """The configuration of a folder or hub id. Raises InputError where transformers can't read it."""
    from transformers import AutoConfig, PretrainedConfig

    options = {"revision": revision} if revision else {}
    try:
        check_configuration(PretrainedConfig.get_config_dict(model, **options)[0], model)
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **options)
    except InputError:
        raise
    except Exception as error:  # what strangers write into a configuration fails at any line that reads it
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
    quantized, wrong = config.get("quantization_config"), None
    stated = [part[name] for part in (config, text_part(config)) for name in DEPTHS if part.get(name) is not None]
    if odd := [depth for depth in stated if type(depth) is not int or not 0 <= depth <= LAYERS]:
        wrong = f"states {odd[0]!r:.40} layers, expected 1 to {LAYERS:,}"
    elif groups is not None and (depth := stated_layers(config)) is not None:
        prefix, numbers = max(groups.items(), key=lambda group: len(group[1]), default=("model.layers.", ()))
        if not 1 <= depth <= len(numbers):
            wrong = f"states {depth} layers, where its tensors are of {len(numbers)} (none of {prefix}{len(numbers)}.)"
    if config.get("transformers_weights") is not None:
        wrong = "names its weights (transformers_weights), expected model.safetensors or its index"
    if quantized is not None and not (isinstance(quantized, dict) and quantized):
        wrong = "has a quantization_config of no known method"
    if wrong:
        raise InputError(f"the configuration of {where} {wrong}: repair its config.json")


def text_part(config: dict) -> dict:
    """The part of a config.json that describes the decoder."""
    return next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), config)


def stated_layers(config: dict) -> int | None:
    """Number of layers that a config.json states in plain words; None where only its code knows."""
    text = text_part(config)
    return next((text[name] for name in DEPTHS if type(text.get(name)) is int), None)


def text_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """The part of a model's configuration that describes its decoder: often the configuration itself.

    It is the object held by the model, not a copy. Raises InputError where it is of an encoder-decoder model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{config.model_type} is an encoder-decoder model; expected a decoder-only language model "
            "(Llama, Mistral, Qwen, Gemma, Phi, GPT-NeoX and the like); choose such a model"
        )
    return config.get_text_config(decoder=True)


def layers_of(config: "PretrainedConfig") -> int:
    """Number of decoder layers L that a configuration states. Raises InputError where it is no decoder's."""
    layers = getattr(text_config(config), "num_hidden_layers", None)
    if type(layers) is not int or layers < 1:
        raise InputError(
            f"the configuration of a {config.model_type} model states num_hidden_layers = {layers!r}; expected a whole "
            "number of decoder layers; choose a decoder-only language model"
        )
    return layers


def check_whole(report: dict, name: str) -> None:
    """Raise InputError where transformers filled in random weights for some that the checkpoint lacks."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {name!r} lack {len(missing)} tensors that its configuration asks for ({missing[0]}, "
            "...), which would be random: give a model whose configuration and weights belong together"
        )
