"""How lib/ is built: the method imports nothing of the companion, rooms import downwards, what reads stays light."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.extension.running import HEAVY
from deeper_layers_companion.results.places import AROUND as ROOT

pytestmark = pytest.mark.quick
LIBRARY = ROOT / "lib"
# from the ground up: a room imports only from those before it
METHOD = """errors checks markup files cuts packing package_index presets schema data models pruning similarity sweeping
export healing""".split()
COMPANION = "results rules report jobs studies command __main__".split()
ROOMS = [f"deeper_layers.{room}" for room in METHOD] + [f"deeper_layers_companion.{room}" for room in COMPANION]
READING = ("results", "rules", "report", "studies", "jobs")
LIGHT = ["deeper_layers.cuts", *(f"deeper_layers_companion.{room}" for room in READING)]
# of the rules, and of jobs
HEAVY_FILES = "changing.py end_maps.py geometry.py needs.py check.py trials.py".split()
FILES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(LIBRARY.rglob("*.py"))}
PACKAGES = {"deeper_layers", "deeper_layers_companion"}
FACES = [path for path in FILES if path.name == "__init__.py"]


def room_of(path: Path) -> str:
    package, *inside = path.relative_to(LIBRARY).with_suffix("").parts
    return package if inside == ["__init__"] else f"{package}.{inside[0]}"


def rooms_imported(tree: ast.Module) -> set[str]:
    """By imports at the top of a file, and within its functions."""
    lines = [line for line in ast.walk(tree) if isinstance(line, ast.ImportFrom | ast.Import)]
    names = {f"{getattr(line, 'module', '')}.{alias.name}".lstrip(".") for line in lines for alias in line.names}
    return {".".join(name.split(".")[:2]) for name in names if name.partition(".")[0] in PACKAGES}


def test_rooms_import_downwards():
    above = {room: ROOMS[ROOMS.index(room) + 1 :] for room in ROOMS}
    upwards = {
        path: rooms_imported(tree) & {*above[room_of(path)]} for path, tree in FILES.items() if path not in FACES
    }
    assert {path: rooms for path, rooms in upwards.items() if rooms} == {}


@pytest.mark.parametrize("face", FACES, ids=room_of)
def test_a_room_names_what_to_read_first_and_no_name_of_it_is_also_a_file(face):
    first = re.findall(r"[\w/]+\.py", ast.get_docstring(FILES[face]).partition("Read first: ")[2])
    assert first and all(any(face.parent.rglob(name)) for name in first)
    stub = face.with_suffix(".pyi")
    names = re.findall(r" as (\w+)", stub.read_text(encoding="utf-8")) if stub.exists() else []
    assert not {*names} & {path.stem for path in face.parent.iterdir()}


@pytest.mark.parametrize("light", [["deeper_layers"], LIGHT], ids=["the package", "what reads and plans"])
def test_what_stays_light(light, tmp_path):
    """In a process of its own that has imported nothing yet, away from the repository."""
    files = [path for path in FILES if room_of(path) in light and path not in FACES and path.name not in HEAVY_FILES]
    paths = [path.relative_to(LIBRARY).with_suffix("") for path in files]
    modules = [".".join(path.parts) for path in paths] if paths else light
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(LIBRARY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    loaded = {*done.stdout.split()}
    assert {*modules} <= loaded and not loaded & (HEAVY if paths else {"numpy", "pandas", *HEAVY}), done.stderr
