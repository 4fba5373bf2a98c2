"""How large a model is, known without its weights, and a model of its shape that has none.

Enough to plan: parameters of every layer, bytes of a GGUF file's tensors, what lm-eval needs to tokenize.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.cuts import ATTENTION, MLP, UNPRUNED, Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source

GGUF_SUBLAYER = re.compile(r"blk\.\d+\.(attn|ffn)_(?!norm\b)")  # a tensor of one; a norm before it is the layer's


@dataclass(frozen=True)
class Sizes:
    """Parameters of each layer and of all the rest, tied ones once; of a GGUF file also the bytes of its tensors.

    Those of each layer's attention and MLP are among the layer's; none where these parts have no known names.
    """

    layers: tuple[int, ...]
    rest: int
    layer_bytes: tuple[int, ...] | None = None
    rest_bytes: int = 0
    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def parameters(self, cut: Cut) -> int:
        """Of the model without the layers of a cut. Raises InputError where it does not fit."""
        return self.rest + sum(self.layers[index] for index in cut.kept(len(self.layers)))

    def share_dropped(self, cut: Cut) -> float | None:
        """Of all parameters those of what a cut drops, layers and sublayers; None where a sublayer's are not known.

        Raises InputError where the cut does not fit.
        """
        cut.check(len(self.layers))
        of_parts = ((self.layers, cut.dropped), (self.attention, cut.attention), (self.mlp, cut.mlp))
        if any(indices and not sizes for sizes, indices in of_parts):
            return None
        return sum(sizes[index] for sizes, indices in of_parts for index in indices) / self.parameters(UNPRUNED)

    def file_bytes(self, cut: Cut) -> int | None:
        """Of the tensors that a GGUF file keeps after a cut; None for a model that is none, or whose file is not read.

        Raises InputError where the cut does not fit.
        """
        if self.layer_bytes is None:
            return None
        return self.rest_bytes + sum(self.layer_bytes[index] for index in cut.kept(len(self.layers)))


def sizes_of(source: Source, *, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model, from its header or configuration alone.

    Raises InputError where transformers can't build an empty model from the configuration.
    """
    if packaged := PACKAGED.get(source.folder):
        layers = packaged.num_layers
        each = packaged.layer_parameters
        return Sizes(
            (each,) * layers, packaged.parameters - each * layers,
            attention=(packaged.attention_parameters,) * layers, mlp=(packaged.mlp_parameters,) * layers,
        )  # fmt: skip
    if source.gguf is not None:
        return _of_gguf(source.gguf, source.num_layers)
    from deeper_layers.models.decoder import decoder_layers  # torch: see the head of sources.py
    from deeper_layers.models.sublayers import sublayer

    model = empty_model(source, trust_remote_code=trust_remote_code)
    layers = decoder_layers(model)
    of_layers = tuple(map(_parameters, layers))
    attention, mlp = (), ()
    with contextlib.suppress(InputError):  # parts of unknown names
        parts = [[_parameters(sublayer(layer, part)) for layer in layers] for part in (ATTENTION, MLP)]
        attention, mlp = map(tuple, parts)
    return Sizes(of_layers, _parameters(model) - sum(of_layers), attention=attention, mlp=mlp)


def empty_model(source: Source, *, trust_remote_code: bool = False):
    """A model of the same shape without weights, on the device "meta".

    Raises InputError where transformers can't build it, or the file of a packaged model is not in the cache.
    """
    import torch  # slow: see the head of sources.py
    from transformers import AutoConfig

    from deeper_layers.models.configuration import auto_class

    try:
        with _where(source, trust_remote_code) as (folder, options):
            config = AutoConfig.from_pretrained(folder, **options)
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=options["trust_remote_code"])
    except InputError:
        raise
    except Exception as error:  # whatever transformers raises for an entry that it did not expect
        raise InputError(
            f"can't build {source.name!r} without weights from its configuration ({first_line(error)}): mend that"
        ) from error


def tokenizer_of(source: Source, *, trust_remote_code: bool = False):
    """The model's tokenizer, without the model.

    Raises InputError where transformers can't open it, or the file of a packaged model is not in the cache.
    """
    from transformers import AutoTokenizer  # slow: see the head of sources.py

    try:
        with _where(source, trust_remote_code) as (folder, options):
            return AutoTokenizer.from_pretrained(folder, **options)
    except InputError:
        raise
    except Exception as error:  # whatever transformers raises for an entry that it did not expect
        raise InputError(f"can't open the tokenizer of {source.name!r} ({first_line(error)}): mend that") from error


@contextlib.contextmanager
def _where(source: Source, trust_remote_code: bool) -> Iterator[tuple[str | Path, dict]]:
    """What transformers is told to read a configuration or a tokenizer from, converting nothing."""
    from deeper_layers.models.gguf_conversion import ALONE, alone, conversion_of  # slow: see the head of sources.py

    packaged = PACKAGED.get(source.folder)
    path = packaged.path if packaged else source.gguf
    if path is None:
        options = {"revision": source.revision} if source.revision else {}
        yield source.folder, options | {"trust_remote_code": trust_remote_code}
        return
    if converted := conversion_of(source.weights.removeprefix("sha256:")):
        yield converted, {"trust_remote_code": False}
        return
    if not path.exists():
        raise InputError(f"the file of {source.name} is not on this machine yet: the first run fetches it")
    with alone(path) as folder:
        yield folder, {"gguf_file": ALONE, "trust_remote_code": False}


def _parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _of_gguf(path: Path, layers: int) -> Sizes:
    """From the header of a GGUF file."""
    from deeper_layers.models.gguf_checks import layer_of, read_gguf  # slow: see the head of sources.py

    numbers, bytes = [0] * (layers + 1), [0] * (layers + 1)  # the rest is last
    parts = {"attn": [0] * layers, "ffn": [0] * layers}
    for tensor in read_gguf(path).tensors:
        layer = layer_of(tensor.name)
        place = layers if layer is None else layer
        numbers[place] += tensor.elements
        bytes[place] += tensor.bytes
        if part := GGUF_SUBLAYER.match(tensor.name):
            parts[part[1]][place] += tensor.elements
    attention, mlp = (tuple(of_layers) if all(of_layers) else () for of_layers in parts.values())
    return Sizes(
        tuple(numbers[:-1]), numbers[-1], tuple(bytes[:-1]), bytes[-1],
        attention=attention, mlp=mlp,
    )  # fmt: skip
