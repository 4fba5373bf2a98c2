"""Lists as the parameters of notebooks write them: in one text, separated by commas."""

import re
from typing import NamedTuple

from deeper_layers.checks import DIGITS, LAYERS, MANY, SHOTS
from deeper_layers.errors import InputError

# a name of lm-eval's; the last is that of a file too
TASK = re.compile(r"([\w.()-]+)(?::([0-9]+))?(?:@([0-9]+))?(?:/([0-9+-]+))?")


class Asked(NamedTuple):
    """What stands after a task's name, or holds for all tasks."""

    shots: int | None  # examples in the prompt; None: the task's own number
    limit: int | None  # items, from the beginning; None: all
    sizes: str  # block sizes, "all" or like "0-8, 12"


def split(text: str) -> list[str]:
    """The parts of a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str, least: int = 0, most: int = MANY) -> int | None:
    """A whole number in ASCII digits; None for all else, and for one outside of `least` to `most`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS):
        return None
    return int(text) if least <= int(text) <= most else None


def whole_numbers(name: str, text: str, least: int = 0, most: int = MANY) -> list[int]:
    """The numbers of the parameter `name`, like "0, 1, 2". Raises InputError for what is no such list."""
    found = [number(part, least, most) for part in split(text)]
    if not found or None in found:
        raise InputError(
            f"{name} is {text!r}, expected whole numbers separated by commas, from {least} to {most}: correct the list"
        )
    return [part for part in found if part is not None]


def layer_list(name: str, text: str) -> list[int]:
    """The layers of a list like "3, 7-9", in order. Raises InputError for what is no such list."""
    ranges = [_range(part) for part in split(text)]
    if not ranges or None in ranges:
        raise InputError(f"{name} is {text!r}, expected layers, counted from 0: write like '3, 7-9'")
    return sorted({layer for found in ranges if found for layer in range(found[0], found[1] + 1)})


def block_sizes(text: str, num_layers: int | None) -> list[int]:
    """The sizes of "all" (0 to L-2) or a list like "0-8, 12", in order; 0 is always among them.

    Without `num_layers` only the writing is checked, and nothing is listed yet.

    Raises InputError for what is no list of sizes, or a size outside 0..L-1.
    """
    if text == "all":
        return [] if num_layers is None else list(range(num_layers - 1))
    ranges = []
    for part in split(text):
        if (found := _range(part)) is None:
            raise InputError(
                f"sizes is {text!r}: {part!r} is no block size from 0 to {LAYERS}, write like '0-8, 12' or 'all'"
            )
        ranges.append(found)
    if not ranges:
        raise InputError(f"sizes is {text!r}: expected a list of block sizes, write like '0-8, 12' or 'all'")
    if num_layers is None:
        return []
    if (largest := max(last for _, last in ranges)) > num_layers - 1:
        raise InputError(
            f"size is {largest}, expected 0 to {num_layers - 1} for a model of {num_layers} layers, as the "
            "last layer is never dropped: choose sizes in that range"
        )
    return sorted({0}.union(*(range(first, last + 1) for first, last in ranges)))


def places(name: str, text: str, most: int) -> list[int]:
    """The numbers of "all" (0 to `most`) or a list like "0-8, 12", in order.

    Raises InputError for what is no such list.
    """
    found: set[int] = set()
    for part in ["0-" + str(most)] if text == "all" else split(text) or [text]:
        if (ends := _range(part, most)) is None:
            raise InputError(
                f"{name} is {text!r}, expected whole numbers from 0 to {most}, like '0-8, 12' or 'all': correct it"
            )
        found |= set(range(ends[0], ends[1] + 1))
    return sorted(found)


def _range(part: str, most: int = LAYERS) -> tuple[int, int] | None:
    """First and last number of "7" or "7-9"; None where it is neither, or a number is above `most`."""
    first, dash, last = (word.strip() for word in part.partition("-"))
    low, high = number(first, most=most), number(last if dash else first, most=most)
    return None if low is None or high is None or low > high else (low, high)


def tasks_asked(text: str, of_all: Asked) -> dict[str, Asked]:
    """Tasks and what is asked of each: "mmlu:5@20/0-8+12" is 5 examples, 20 items, sizes 0 to 8 and 12.

    Raises InputError for what stands after a name and is no such thing.
    """
    asked: dict[str, Asked] = {}
    for part in split(text):
        found = TASK.fullmatch(part)
        name, shots, limit, sizes = found.groups() if found else (part, "", "", "")
        examples, items = number(shots or "0", most=SHOTS), number(limit or "1", least=1)
        if found is None or examples is None or items is None:
            raise InputError(
                f"tasks has {part!r}, expected a task or, for 5 examples in its prompt (at most {SHOTS}), 20 items "
                "(from 1) and block sizes of its own, like 'mmlu:5@20/0-8+12'"
            )
        of_task = Asked(
            of_all.shots if shots is None else examples,
            of_all.limit if limit is None else items,
            of_all.sizes if sizes is None else sizes.replace("+", ", "),
        )
        if asked.setdefault(name, of_task) != of_task:
            raise InputError(f"tasks has {name!r} twice, and asks other things of it: leave one of them out")
    return asked
