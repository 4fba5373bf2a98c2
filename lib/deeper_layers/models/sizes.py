"""How large a model is, known without its weights, and a model of its shape that has none.

Enough to plan: parameters of every layer, bytes of a GGUF file's tensors, what lm-eval needs to tokenize.
"""

import contextlib
from collections.abc import Callable
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
    of_file: "Sizes | None" = None  # bytes in the place of parameters

    def parameters(self, cut: Cut) -> int:
        """Of the model without the layers of a cut. Raises InputError where it does not fit."""
        return self.rest + sum(self.layers[index] for index in cut.kept(len(self.layers)))

    def file_bytes(self, cut: Cut) -> int | None:
        """Of a GGUF file after a cut; None for a model that is none, or whose file is not read.

        Raises InputError where the cut does not fit.
        """
        return None if self.of_file is None else self.of_file.parameters(cut)


def sizes_of(source: Source, *, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model, from its header or configuration alone.

    Raises InputError where transformers can't build an empty model from the configuration.
    """
    if packaged := PACKAGED.get(source.folder):
        layers = (packaged.layer_parameters,) * packaged.num_layers
        return Sizes(layers, packaged.parameters - sum(layers))
    if source.gguf is not None:
        from deeper_layers.models.gguf_header import placed, read_gguf  # slow: see the head of sources.py

        sizes, tensors = [], read_gguf(source.gguf).tensors
        for number in range(source.num_layers):
            own = [tensor for tensor in tensors if placed(tensor.name)[0] == number]
            sizes.append((sum(tensor.n_elements for tensor in own), sum(tensor.n_bytes for tensor in own)))
        layers, stored = zip(*sizes, strict=True)
        of_file = Sizes(stored, source.gguf.stat().st_size - sum(stored))
        return Sizes(layers, sum(tensor.n_elements for tensor in tensors) - sum(layers), of_file)
    from deeper_layers.models.decoder import decoder_layers  # torch: see the head of sources.py

    model = empty_model(source, trust_remote_code=trust_remote_code)
    whole, *layers = (sum(p.numel() for p in module.parameters()) for module in (model, *decoder_layers(model)))
    return Sizes(tuple(layers), whole - sum(layers))


def empty_model(source: Source, *, trust_remote_code: bool = False):
    """A model of the same shape without weights, on the device "meta".

    Raises InputError where transformers can't build it, or the file of a packaged model is not in the cache.
    """
    import torch  # slow: see the head of sources.py
    from transformers import AutoConfig

    from deeper_layers.models.configuration import auto_class

    def build(folder: str | Path, **options):
        config = AutoConfig.from_pretrained(folder, **options)
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=options["trust_remote_code"])

    return _read(source, trust_remote_code, build, "configuration")


def tokenizer_of(source: Source, *, trust_remote_code: bool = False):
    """The model's tokenizer, without the model.

    Raises InputError where transformers can't open it, or the file of a packaged model is not in the cache.
    """
    from transformers import AutoTokenizer  # slow: see the head of sources.py

    return _read(source, trust_remote_code, AutoTokenizer.from_pretrained, "tokenizer")


def _read(source: Source, trust_remote_code: bool, read: Callable, what: str):
    """What transformers reads of a model, converting nothing: `read` gets a folder or hub id, and options."""
    from deeper_layers.models.gguf_conversion import ALONE, alone, conversion_of  # slow: see the head of sources.py

    packaged = PACKAGED.get(source.folder)
    options: dict = {"trust_remote_code": trust_remote_code and not source.is_gguf}
    try:
        with contextlib.ExitStack() as stack:
            if (path := packaged.path if packaged else source.gguf) is None:
                folder, options["revision"] = source.folder, source.revision
            elif not (folder := conversion_of(source.weights)).is_dir():
                if not path.exists():
                    raise InputError(f"the file of {source.name} is not on this machine yet: the first run fetches it")
                folder, options["gguf_file"] = stack.enter_context(alone(path)), ALONE
            return read(folder, **{name: value for name, value in options.items() if value is not None})
    except InputError:
        raise
    except Exception as error:  # whatever transformers raises for an entry that it did not expect
        raise InputError(f"can't open the {what} of {source.name!r} ({first_line(error)}): mend that") from error
