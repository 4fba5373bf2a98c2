"""How lib/deeper_layers is built: rooms import downwards, each says what to read first, and what reads stays light."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.extension.running import HEAVY
from deeper_layers.results.places import AROUND as ROOT

pytestmark = pytest.mark.quick
HOUSE = ROOT / "lib" / "deeper_layers"
# from the ground up: a room imports only from those before it
ROOMS = """errors checks markup files cuts package_index presets results data models pruning similarity rules
sweeping report export healing prices experiments studies command __main__""".split()
LIGHT = ("cuts", "results", "rules", "report", "studies", "experiments")
HEAVY_FILES = [HOUSE / "rules" / name for name in ("changing.py", "end_maps.py", "geometry.py")]  # of these the rest
FILES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(HOUSE.rglob("*.py"))}
FACES = [path for path in FILES if path.name == "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def rooms_imported(tree: ast.Module) -> set[str]:
    """By imports at the top of a file, and within its functions."""
    lines = [line for line in ast.walk(tree) if isinstance(line, ast.ImportFrom | ast.Import)]
    names = {f"{getattr(line, 'module', '')}.{alias.name}".lstrip(".") for line in lines for alias in line.names}
    return {name.split(".")[1] for name in names if name.startswith("deeper_layers.")}


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
    files = [path for path in FILES if room_of(path) in light and path not in [*FACES, *HEAVY_FILES]]
    paths = [path.relative_to(HOUSE.parent).with_suffix("") for path in files]
    # papermill first: one of them is its plug-in, which it imports itself
    modules = ["papermill", *(".".join(path.parts) for path in paths)] if paths else light
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(HOUSE.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    loaded = {*done.stdout.split()}
    assert {*modules} <= loaded and not loaded & (HEAVY if paths else {"numpy", "pandas", *HEAVY}), done.stderr
