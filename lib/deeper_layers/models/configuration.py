"""What transformers says of a checkpoint: its configuration, and whether it is whole."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from deeper_layers.errors import InputError, first_line

# what transformers raises for a checkpoint that it can't open
UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)


def read_config(model: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of a folder or hub id. Raises InputError where transformers can't read it."""
    options = {"revision": revision} if revision else {}
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **options)
    except UNUSABLE as error:
        advice = (
            "repair its config.json, or save the model again with save_pretrained"
            if Path(model).is_dir()
            else "check the name and the connection, or give a local folder, a .gguf file or 'embedded'"
        )
        raise InputError(f"can't open the model {model!r} ({first_line(error)}): {advice}") from error


def layers_of(config: PretrainedConfig, model: str) -> int:
    """Number of decoder layers that a configuration states. Raises InputError where it is no decoder's."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{model!r} is an encoder-decoder model ({config.model_type}): give a decoder-only one")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise InputError(f"{model!r} ({config.model_type}) states no number of layers: give a decoder-only one")
    return layers


def check_whole(report: dict, name: str) -> None:
    """Raise InputError where transformers filled in random weights for some that the checkpoint lacks."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {name!r} lack {len(missing)} tensors that its configuration asks for ({missing[0]}, "
            "...), which would be random: give a model whose configuration and weights belong together"
        )
