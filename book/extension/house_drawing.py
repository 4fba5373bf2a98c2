"""The rooms of the library as a picture: one box a room on its floor, arrows to the rooms that it imports.

Written by hand as SVG: its text is text, its colours are the theme's, light and dark (assets/site.css).
"""

import html
from collections.abc import Mapping, Sequence

from book.extension.rooms import Room

WIDTH, HEIGHT = 132, 44  # of a box
ASIDE, BELOW = 22, 54  # between boxes, between floors
MARGIN, LABEL = 12, 26  # round a wing, above its rooms
WINGS = {"measuring": "measuring", "reporting": "reporting, without PyTorch"}
ARROW = (
    '<defs><marker id="house-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
)
CAPTION = (
    "Each box is a room of the library, each arrow an import; what follows from two arrows is left out. At the right "
    "the wing that shows what was measured, without PyTorch; at the left the one that measures. A dashed frame: the "
    "room loads PyTorch."
)
SAID = {"light": "no PyTorch", "partly": "PyTorch in part", "heavy": "PyTorch"}


def drawn(rooms: Sequence[Room]) -> str:
    """The HTML of the picture."""
    floors: list[list[str]] = [[] for _ in range(1 + max(room.floor for room in rooms))]
    for room in rooms:
        floors[room.floor].append(room.name)
    arrows = {room.name: set(room.imports) for room in rooms}
    order(floors, arrows)
    high = LABEL + len(floors) * (HEIGHT + BELOW) - BELOW + 2 * MARGIN
    places, wings, wide = {}, [], 0.0
    for wing, label in WINGS.items():
        names = {room.name for room in rooms if room.wing == wing}
        rows = [[name for name in floor if name in names] for floor in floors]
        if not names:
            continue
        across = max(map(len, rows)) * (WIDTH + ASIDE) - ASIDE
        for number, row in enumerate(rows):
            left = wide + MARGIN + (across - len(row) * (WIDTH + ASIDE) + ASIDE) / 2
            top = high - MARGIN - HEIGHT - number * (HEIGHT + BELOW)
            places |= {name: (left + column * (WIDTH + ASIDE), top) for column, name in enumerate(row)}
        top = min(places[name][1] for name in names) - LABEL - MARGIN
        wings.append(_wing(label, wide, top, across + 2 * MARGIN, high - top))
        wide += across + 2 * MARGIN + ASIDE
    wide -= ASIDE
    lines = [_arrow(places[name], places[other]) for name, others in direct(arrows).items() for other in sorted(others)]
    boxes = [_box(room, *places[room.name]) for room in rooms]
    words = "; ".join(f"{room.name} imports {', '.join(room.imports)}" for room in reversed(rooms) if room.imports)
    alt = f"The rooms of the library on {len(floors)} floors; every arrow leads down. {words}."
    picture = "".join([*wings, *lines, *boxes])
    return (
        f'<figure class="house"><div class="scrolls"><svg viewBox="0 0 {wide:g} {high:g}" role="img" '
        f'aria-label="{html.escape(alt)}">{ARROW}{picture}</svg></div><figcaption>{CAPTION}</figcaption></figure>'
    )


def direct(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others."""

    def below(name: str) -> set[str]:
        return {far for near in arrows[name] for far in {near, *below(near)}}

    far = {name: set().union(*map(below, others)) if others else set() for name, others in arrows.items()}
    return {name: others - far[name] for name, others in arrows.items()}


def order(floors: list[list[str]], arrows: Mapping[str, set[str]]) -> None:
    """Put the rooms of each floor near those that they have to do with, so that few arrows cross."""
    kin = {name: others | {other for other in arrows if name in arrows[other]} for name, others in arrows.items()}
    for _ in range(8):
        place = {name: (i + 0.5) / len(names) for names in floors for i, name in enumerate(names)}
        for names in floors:
            names.sort(key=lambda name: sum(place[k] for k in kin[name]) / len(kin[name]) if kin[name] else 0.5)
            place |= {name: (i + 0.5) / len(names) for i, name in enumerate(names)}


def _wing(label: str, left: float, top: float, width: float, height: float) -> str:
    return (
        f'<g class="wing"><rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="10"/>'
        f'<text x="{left + width / 2:g}" y="{top + 24:g}">{label}</text></g>'
    )


def _box(room: Room, left: float, top: float) -> str:
    middle = left + WIDTH / 2
    return (
        f'<g class="room {room.weight}"><rect x="{left:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{middle:g}" y="{top + 20:g}">{html.escape(room.name)}</text>'
        f'<text class="weight" x="{middle:g}" y="{top + 35:g}">{SAID[room.weight]}</text></g>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to_x, to_y = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1] - 2
    bend = (to_y - y) / 2
    return (
        f'<path class="import" marker-end="url(#house-arrow)" '
        f'd="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"/>'
    )
