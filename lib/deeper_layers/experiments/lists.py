"""Lists in a text, as notebooks and the command hold them, and the marks of parameters that are lists or choices."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field

LIST = r"[\s,]*({0})(\s*,[\s,]*({0}))*[\s,]*"
NUMBER = r"[0-9]{1,5}(\s*-\s*[0-9]{1,5})?"
# a name of lm-eval's, examples in the prompt, items; block sizes of its own
TASK = r"([\w.()-]+)(?::([0-9]{1,3}))?(?:@([1-9][0-9]{0,8}))?"
OWN_SIZES = rf"(?:/({NUMBER}(?:\+{NUMBER})*))?"


def split(text: str) -> list[str]:
    """The parts of a list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers_in(text: str) -> list[int]:
    """The whole numbers of a list like "0-8, 12", rising; none of a word that stands for them."""
    found = set()
    for ends in re.findall(r"([0-9]+)(?:\s*-\s*([0-9]+))?", text):
        low, high = sorted((int(ends[0]), int(ends[1] or ends[0])))
        found |= set(range(low, high + 1))
    return sorted(found)


def one_of(known: Iterable[str], description: str | None = None) -> Any:
    """Marks one of the known names."""
    return Field(pattern=f"^({'|'.join(map(re.escape, known))})$", description=description)


def listed(item: str | Iterable[str], *words: str, description: str | None = None) -> Any:
    """Marks a list of what is like `item`, or of known names; or one of some words that stand for a list."""
    item = item if isinstance(item, str) else "|".join(map(re.escape, item))
    return Field(pattern=f"^({'|'.join([*words, LIST.format(item)])})$", description=description)
