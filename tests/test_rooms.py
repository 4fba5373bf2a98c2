"""The picture of the library's rooms: read from the source, on floors, arrows downward only."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from book.extension import house_drawing
from book.extension.imports import graph_of, imported, modules_of, reached
from book.extension.pages import LIBRARY
from book.extension.rooms import rooms_of

FILES = {
    "__init__.py": '"""All."""',
    "ground.py": '"""The ground, with `code`.\nOn two lines.\n\nMore."""\nX = 1',
    "lazy/__init__.py": '"""Hands out when asked."""\ndef __getattr__(name): ...',
    "lazy/heavy.py": "import torch\nfrom house.ground import X",
    "lazy/light.py": "from ..ground import X",
    "top.py": "from house import lazy\nfrom house.lazy import light\n\ndef f():\n    from house.hidden import g",
    "hidden.py": "import typing\nif typing.TYPE_CHECKING:\n    import house.top\nimport house.ground",
    "roof.py": "from house.lazy import heavy, thing\nimport house.top",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_imports_are_read_from_the_source(folder):
    modules = modules_of(folder)
    graph = graph_of(modules)
    assert graph["house.top"] == {"house", "house.lazy", "house.lazy.light"}
    assert graph["house.lazy.light"] == {"house", "house.lazy", "house.ground"}, "a relative import"
    assert graph["house.hidden"] == {"house", "house.ground"}, "what only types need does not count"
    source = modules["house.top"].read_text()
    assert "house.hidden" in imported(source, modules, "house.top", everywhere=True)
    # a name that a package makes when asked may come from any of its modules
    assert {"house.lazy.heavy", "house.lazy.light"} <= imported("from house.lazy import thing", modules)
    assert reached(["house.top"], graph) == {"house", "house.top", "house.lazy", "house.lazy.light", "house.ground"}


def test_rooms_stand_on_what_they_import(folder):
    rooms = {room.name: room for room in rooms_of(folder)}
    assert {name: room.floor for name, room in rooms.items()} == {
        "ground": 0, "hidden": 1, "lazy": 1, "top": 2, "roof": 3
    }  # fmt: skip
    assert {name: room.weight for name, room in rooms.items()} == {
        "ground": "light", "hidden": "light", "lazy": "partly", "top": "light", "roof": "heavy"
    }  # fmt: skip
    assert {name for name, room in rooms.items() if room.wing == "reporting"} == {"hidden", "ground"}
    assert rooms["top"].when_asked == ("hidden",)
    assert rooms["ground"].purpose == "The ground, with `code`. On two lines."
    assert all(rooms[other].floor < room.floor for room in rooms.values() for other in room.imports)


def test_rooms_in_a_circle_are_told(folder):
    (folder / "ground.py").write_text("import house.roof")
    with pytest.raises(ValueError, match="in a circle: .*ground"):
        rooms_of(folder)


def test_the_picture_has_every_room_once_and_arrows_that_lead_down(folder):
    rooms = rooms_of(folder)
    svg = re.search(r"<svg.*</svg>", house_drawing.drawn(rooms))[0]
    ElementTree.fromstring(svg)
    texts = re.findall(r"<text x[^>]*>([^<]+)</text>", svg)
    assert sorted(texts) == sorted([*(room.name for room in rooms), *house_drawing.WINGS.values()])
    arrows = re.findall(r'd="M[\d.]+ ([\d.]+)C[^"]* ([\d.]+)"', svg)
    assert len(arrows) == 4 and all(float(start) < float(end) for start, end in arrows)


def test_what_follows_from_two_arrows_is_left_out():
    arrows = {"roof": {"top", "ground"}, "top": {"ground"}, "ground": set()}
    assert house_drawing.direct(arrows) == {"roof": {"top"}, "top": {"ground"}, "ground": set()}


def test_the_library_is_such_a_house():
    """No room imports from above, none in a circle; the wing that reports loads no PyTorch."""
    rooms = {room.name: room for room in rooms_of(LIBRARY)}
    assert rooms["report"].wing == "reporting" and rooms["experiments"].wing == "measuring"
    assert rooms["report"].weight == rooms["results"].weight == rooms["cuts"].weight == "light"
    assert [name for name, room in rooms.items() if not room.purpose] == [], "a room without a docstring"
