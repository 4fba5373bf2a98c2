"""The rooms of the library, read from its source.

A room is what a newcomer sees on opening the package: a module or a folder. Which room imports from which, on which
floor it therefore stands, and whether it loads PyTorch, is found in the source; what it is for, in its docstring.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from book.extension.imports import graph_of, imported, modules_of, outside, reached

# what a machine needs to measure, and does not need to draw what was measured
HEAVY = frozenset({"torch", "transformers", "lm_eval", "peft", "bitsandbytes", "accelerate", "datasets"})


@dataclass(frozen=True)
class Room:
    """One module or folder at the top of the package."""

    name: str
    purpose: str  # the first paragraph of its docstring
    imports: tuple[str, ...]  # rooms that are loaded with it
    when_asked: tuple[str, ...]  # rooms that some function of it imports besides
    weight: str  # "light": loads no PyTorch; "partly": some of its modules do, not the room itself; "heavy"
    floor: int  # 0 is the ground; every room that it imports lies below
    wing: str  # "reporting": what stands for showing results, and all that carries it; "measuring": all else


def rooms_of(folder: Path) -> list[Room]:
    """The rooms of the package in a folder, from the ground up."""
    modules = modules_of(folder)
    graph = graph_of(modules)
    face = folder.name

    def room_of(module: str) -> str:
        return module.split(".")[1]

    # the face hands on what rooms make, and __main__ is a door: neither is a room
    inside = {name: path for name, path in modules.items() if name not in (face, f"{face}.__main__")}
    names = dict.fromkeys(map(room_of, inside))
    loads: dict[str, set[str]] = {name: set() for name in names}
    asks: dict[str, set[str]] = {name: set() for name in names}
    for module, path in inside.items():
        others = graph[module] - {face}
        anywhere = imported(path.read_text(encoding="utf-8"), modules, module, everywhere=True) - {face}
        loads[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
        asks[room_of(module)] |= {room_of(other) for other in anywhere} - {room_of(module)}
    heavy = {module for module, path in inside.items() if outside(path.read_text(encoding="utf-8")) & HEAVY}
    loading = {module for module in inside if reached([module], graph) & heavy}
    floors, reporting = floors_of(loads), reporting_wing(loads, {room_of(module) for module in loading})
    rooms = []
    for name in names:
        own = {module for module in inside if room_of(module) == name}
        weight = "heavy" if f"{face}.{name}" in loading else "partly" if own & loading else "light"
        imports, when_asked = sorted(loads[name]), sorted(asks[name] - loads[name])
        purpose = purpose_of(inside[f"{face}.{name}"]) if f"{face}.{name}" in inside else ""
        wing = "reporting" if name in reporting else "measuring"
        rooms.append(Room(name, purpose, tuple(imports), tuple(when_asked), weight, floors[name], wing))
    return sorted(rooms, key=lambda room: (room.floor, room.name))


def reporting_wing(loads: Mapping[str, set[str]], heavy: set[str]) -> set[str]:
    """The rooms that show results, and those that they stand on: none of them has anything to do with PyTorch.

    A room shows results where it stands on no heavy room and no room that does imports it.
    """
    measuring = {name for name in loads if reached([name], loads) & heavy}
    used = set().union(*(loads[name] for name in measuring))
    return reached([name for name in loads if name not in measuring | used and loads[name]], loads)


def floors_of(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports. Raises ValueError for rooms in a circle."""
    floors: dict[str, int] = {}

    def floor(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join([*above, name])}")
        if name not in floors:
            floors[name] = 1 + max((floor(other, (*above, name)) for other in sorted(graph[name])), default=-1)
        return floors[name]

    for name in graph:
        floor(name, ())
    return floors


def purpose_of(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())
