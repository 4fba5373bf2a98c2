"""How lib/deeper_layers is built: who imports whom, what each room says of itself, and what stays light."""

import ast
import functools
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deeper_layers
import deeper_layers.command
from book.extension.running import HEAVY
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.results.places import AROUND as ROOT

pytestmark = pytest.mark.quick
HOUSE = ROOT / "lib" / "deeper_layers"
# from the ground up: a room imports only from those before it
ROOMS = [
    "errors", "checks", "markup", "files", "cuts", "package_index", "faults", "presets", "results", "data", "models",
    "pruning", "similarity", "rules", "sweeping", "report", "export", "healing", "prices",
    "experiments", "studies", "command", "__main__",
]  # fmt: skip
LIGHT_ROOMS = ("cuts", "results", "rules", "report", "studies")
HEAVY_FILES = [HOUSE / "rules" / name for name in ("bridges.py", "geometry.py", "merging.py")]  # of these the rest
# tasks/items.py is read by lm-eval from a task's definition, by its path
FILES = sorted(path for path in HOUSE.rglob("*.py") if path.name != "__init__.py")
FACES = sorted(path for path in HOUSE.rglob("__init__.py") if path.parent != HOUSE)


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def face_of(path: Path) -> str:
    return path.parent.relative_to(HOUSE).as_posix()


@functools.cache
def handed_on(face: Path) -> dict[str, tuple[str, str]]:
    """For each name of a face the module that it comes from, relative to the face, and its name there."""
    stub = face.with_suffix(".pyi")
    lines = ast.parse(stub.read_text(encoding="utf-8")).body if stub.exists() else []
    return {alias.asname or alias.name: (line.module, alias.name) for line in lines for alias in line.names}


def module_file(module: str) -> Path | None:
    """The file of a module of ours, a face where it is a room; None where there is no such module."""
    path = HOUSE.joinpath(*module.split(".")[1:])
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in found if candidate.exists()), None)


def file_of(module: str, name: str) -> Path:
    """The file that `from module import name` reads: through a face the one where the name is made."""
    if (file := module_file(f"{module}.{name}")) is not None and name not in handed_on(module_file(module)):
        return file
    face = module_file(module)
    if face.name != "__init__.py":
        return face
    assert name in handed_on(face), f"{module} has no {name}"
    return file_of(f"{module}.{handed_on(face)[name][0]}", handed_on(face)[name][1])


def imports(path: Path) -> set[Path]:
    """The files of ours that a file reads: by its imports, those in functions too, and by what it asks of rooms."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, rooms = set(), {}
    for line in ast.walk(tree):
        if isinstance(line, ast.Import):
            assert not any(alias.name.startswith("deeper_layers") for alias in line.names), "import it from its room"
        if not isinstance(line, ast.ImportFrom) or (line.module or "").split(".")[0] != "deeper_layers":
            continue
        for alias in line.names:
            file = file_of(line.module, alias.name)
            if file.name == "__init__.py":
                rooms[alias.asname or alias.name] = f"{line.module}.{alias.name}"
            else:
                found.add(file)
    for asked in ast.walk(tree):
        if isinstance(asked, ast.Attribute) and isinstance(asked.value, ast.Name) and asked.value.id in rooms:
            found.add(file_of(rooms[asked.value.id], asked.attr))
    return found - {path}


def test_no_file_imports_itself_by_way_of_others():
    list(graphlib.TopologicalSorter({path: imports(path) for path in FILES}).static_order())  # raises CycleError


def test_rooms_import_downwards():
    assert {room_of(path) for path in FILES} == set(ROOMS), "a room has no place in the order"
    upwards = [
        f"{path.relative_to(HOUSE)} imports {other.relative_to(HOUSE)}"
        for path in FILES
        for other in sorted(imports(path))
        if room_of(other) in ROOMS and ROOMS.index(room_of(other)) > ROOMS.index(room_of(path))
    ]
    assert upwards == []


def test_the_house_lists_its_rooms_and_the_command_its_subcommands():
    house, command = (" ".join(face.__doc__.split()) for face in (deeper_layers, deeper_layers.command))
    assert f"from the ground up: {', '.join(ROOMS[:-1])}. Each" in house  # all but __main__
    assert command.startswith(f"The command `deeper-layers`: {', '.join(SUBCOMMANDS)}. ")


@pytest.mark.parametrize("face", FACES, ids=face_of)
def test_each_room_says_what_happens_in_it(face):
    tree = ast.parse(face.read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    lines = said.splitlines()
    assert lines[0].endswith(".") and 4 <= len(lines) <= 10
    for word in ("In: ", "Out: ", "Read first: "):
        assert word in said, f"it does not say: {word}"
    for name in (word.strip("():,;.") for word in said.split("Read first: ")[1].split() if ".py" in word):
        assert (face.parent / name).exists() or any(face.parent.rglob(name)), f"{name} is no file of this room"


@pytest.mark.parametrize("face", [HOUSE / "__init__.py", *FACES], ids=face_of)
def test_no_name_of_a_face_is_also_that_of_a_file(face):
    """Which of both is meant would hang on what was imported before."""
    package = ".".join(face.parent.relative_to(HOUSE.parent).parts)
    assert [name for name in handed_on(face) if module_file(f"{package}.{name}")] == []


def test_files_are_short():
    lengths = {path.relative_to(HOUSE).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


# --- what stays light -------------------------------------------------------------------------------------


def test_light_rooms_import_nothing_heavy():
    for path in FILES:
        if room_of(path) not in LIGHT_ROOMS or path in HEAVY_FILES:
            continue
        for line in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [line.module or ""] if isinstance(line, ast.ImportFrom) else []
            modules += [alias.name for alias in line.names] if isinstance(line, ast.Import) else []
            assert not {module.split(".")[0] for module in modules} & set(HEAVY), f"{path}, line {line.lineno}"


def fresh(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Code in a process of its own that has imported nothing yet, away from the repository."""
    ours = os.pathsep.join([str(HOUSE.parent), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": ours, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def loaded_after(code: str, folder: Path) -> set[str]:
    done = fresh(f"import sys\n{code}\nprint(*sys.modules)", folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_costs_nothing(tmp_path):
    loaded = loaded_after("import deeper_layers", tmp_path)
    assert "deeper_layers" in loaded and not loaded & {"numpy", "pandas", *HEAVY}


def test_experiments_and_reports_are_imported_without_anything_heavy(tmp_path):
    rooms = ("experiments", *LIGHT_ROOMS)
    light = [path for path in FILES if room_of(path) in rooms and path not in HEAVY_FILES]
    paths = [path.relative_to(HOUSE.parent).with_suffix("") for path in light]
    modules = [".".join(path.parts) for path in paths]
    # papermill first: one of them is its plug-in, which it imports itself
    loaded = loaded_after("\n".join(f"import {module}" for module in ["papermill", *modules]), tmp_path)
    assert set(modules) <= loaded and not loaded & set(HEAVY)
