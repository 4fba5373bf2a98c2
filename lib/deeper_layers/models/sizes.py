"""How large a model is, known without its weights, and a model of its shape that has none.

Enough to plan: parameters of every layer, bytes of a GGUF file's tensors, what lm-eval needs to tokenize.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source


@dataclass(frozen=True)
class Sizes:
    """Parameters of each layer and of all the rest, tied ones once; of a GGUF file also its bytes."""

    layers: tuple[int, ...]
    rest: int
    layer_bytes: tuple[int, ...] | None = None
    rest_bytes: int = 0

    def parameters(self, cut: Cut) -> int:
        """Of the model without the layers of a cut. Raises InputError where it does not fit."""
        return self.rest + sum(self.layers[index] for index in cut.kept(len(self.layers)))

    def file_bytes(self, cut: Cut) -> int | None:
        """Of a GGUF file after a cut; None for a model that is none, or whose file is not read.

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
        layers = (packaged.layer_parameters,) * packaged.num_layers
        return Sizes(layers, packaged.parameters - sum(layers))
    if source.gguf is not None:
        return _of_gguf(source.gguf, source.num_layers)
    from deeper_layers.models.decoder import decoder_layers  # torch: see the head of sources.py

    model = empty_model(source, trust_remote_code=trust_remote_code)
    layers = tuple(map(_parameters, decoder_layers(model)))
    return Sizes(layers, _parameters(model) - sum(layers))


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
    from deeper_layers.models.gguf_header import layer_of, read_gguf  # slow: see the head of sources.py

    numbers, bytes = [0] * (layers + 1), [0] * (layers + 1)  # the rest is last
    for tensor in read_gguf(path).tensors:
        layer = layer_of(tensor.name)
        place = layers if layer is None else layer
        numbers[place] += tensor.elements
        bytes[place] += tensor.bytes
    return Sizes(tuple(numbers[:-1]), numbers[-1], tuple(bytes[:-1]), path.stat().st_size - sum(bytes[:-1]))
