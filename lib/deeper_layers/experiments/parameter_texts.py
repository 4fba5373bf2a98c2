"""Lists as the parameters of notebooks write them: in one text, separated by commas."""

import re
from typing import NamedTuple

from deeper_layers.errors import InputError


class Asked(NamedTuple):
    """What stands after a task's name, or holds for all tasks."""

    shots: int | None  # examples in the prompt; None: the task's own number
    limit: int | None  # items, from the beginning; None: all
    sizes: str  # block sizes, "all" or like "0-8, 12"


def split(text: str) -> list[str]:
    """The parts of a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(name: str, text: str) -> list[int]:
    """The numbers of the parameter `name`, like "0, 1, 2". Raises InputError for what is no such list."""
    parts = split(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"{name} is {text!r}, expected whole numbers separated by commas")
    return [int(part) for part in parts]


def block_sizes(text: str, num_layers: int | None) -> list[int]:
    """The sizes of "all" (0 to L-2) or a list like "0-8, 12", in order; 0 is always among them.

    Without `num_layers` only the writing is checked, and "all" is no list yet.

    Raises InputError for what is no list of sizes, or a size outside 0..L-1.
    """
    if text == "all":
        return [] if num_layers is None else list(range(num_layers - 1))
    found = {0}
    for part in split(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise InputError(f"sizes is {text!r}: {part!r} is no block size, write like '0-8, 12' or 'all'")
        found |= set(range(int(first), int(last or first) + 1))
    if num_layers is not None and max(found) > num_layers - 1:
        raise InputError(
            f"size is {max(found)}, expected 0 to {num_layers - 1} for a model of {num_layers} layers, as the "
            "last layer is never dropped: choose sizes in that range"
        )
    return sorted(found)


def tasks_asked(text: str, of_all: Asked) -> dict[str, Asked]:
    """Tasks and what is asked of each: "mmlu:5@20/0-8+12" is 5 examples, 20 items, sizes 0 to 8 and 12.

    Raises InputError for what stands after a name and is no such thing.
    """
    asked = {}
    for part in split(text):
        found = re.fullmatch(r"([^:@]+?)(?::(\d+))?(?:@(\d+))?(?:/([\d+-]+))?", part)
        if found is None:
            raise InputError(
                f"tasks has {part!r}, expected a task or, for 5 examples in its prompt, 20 items and block sizes "
                "of its own, like 'mmlu:5@20/0-8+12'"
            )
        name, shots, limit, sizes = found.groups()
        asked[name.strip()] = Asked(
            of_all.shots if shots is None else int(shots),
            of_all.limit if limit is None else int(limit),
            of_all.sizes if sizes is None else sizes.replace("+", ", "),
        )
    return asked
