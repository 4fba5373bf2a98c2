"""Count the parameters of a model, with and without some layers, without opening it."""

from collections import Counter
from dataclasses import dataclass

from deeper_layers.cuts import Cut
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source


@dataclass(frozen=True)
class Sizes:
    """Parameters of each layer and of the rest, tied ones counted once; for a GGUF file also its bytes."""

    layers: tuple[int, ...]
    rest: int
    file_bytes: "Sizes | None" = None  # of a GGUF file: bytes in the place of parameters

    def parameters(self, cut: Cut) -> int:
        """Parameters of the model without the layers of a cut. Raises InputError where the cut does not fit."""
        return self.rest + sum(self.layers[index] for index in cut.kept(len(self.layers)))


def find_sizes(source: Source, *, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model, from its header or configuration alone."""
    packaged = PACKAGED.get(source.folder)
    if packaged:
        layers = (packaged.layer_parameters,) * packaged.num_layers
        return Sizes(layers, packaged.parameters - sum(layers))
    if source.gguf is not None:
        from deeper_layers.models.gguf_reading import read_gguf, split_tensor_name  # slow

        parameters = Counter()
        stored = Counter()
        for tensor in read_gguf(source.gguf).tensors:
            layer, _ = split_tensor_name(tensor.name)
            parameters[layer] += tensor.n_elements
            stored[layer] += tensor.n_bytes
        numbers = range(source.num_layers)
        layers = tuple(parameters[number] for number in numbers)
        file_bytes = tuple(stored[number] for number in numbers)
        return Sizes(
            layers,
            parameters[None],
            Sizes(file_bytes, source.gguf.stat().st_size - sum(file_bytes)),
        )
    from deeper_layers.models.decoder import decoder_layers  # slow, as is the next
    from deeper_layers.models.opening import load_empty_model

    model = load_empty_model(source, trust_remote_code=trust_remote_code)
    layers = tuple(map(_count_parameters, decoder_layers(model)))
    return Sizes(layers, _count_parameters(model) - sum(layers))


def _count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
