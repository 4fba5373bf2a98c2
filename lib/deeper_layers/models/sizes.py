"""How large a model is, and without some of its layers, by its header or configuration alone."""

from dataclasses import dataclass

from deeper_layers.cuts import Cut
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
        """Of a GGUF file after a cut; None for a model that is none, or whose file is not read."""
        return None if self.of_file is None else self.of_file.parameters(cut)


def sizes_of(source: Source, *, trust_remote_code: bool = False) -> Sizes:
    """The sizes of a model, from its header or configuration alone."""
    if packaged := PACKAGED.get(source.folder):
        layers = (packaged.layer_parameters,) * packaged.num_layers
        return Sizes(layers, packaged.parameters - sum(layers))
    if source.gguf is not None:
        from deeper_layers.models.gguf_header import placed, read_gguf  # slow

        elements, stored, tensors = [0] * source.num_layers, [0] * source.num_layers, read_gguf(source.gguf).tensors
        for tensor in tensors:
            if (number := placed(tensor.name)[0]) is not None:
                elements[number] += tensor.n_elements
                stored[number] += tensor.n_bytes
        of_file = Sizes(tuple(stored), source.gguf.stat().st_size - sum(stored))
        return Sizes(tuple(elements), sum(tensor.n_elements for tensor in tensors) - sum(elements), of_file)
    from deeper_layers.models.decoder import decoder_layers  # slow, as is the next
    from deeper_layers.models.opening import empty_model

    model = empty_model(source, trust_remote_code=trust_remote_code)
    whole, *layers = (sum(p.numel() for p in module.parameters()) for module in (model, *decoder_layers(model)))
    return Sizes(tuple(layers), whole - sum(layers))
