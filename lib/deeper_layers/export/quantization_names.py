"""What a quantization_config says of single layers, once only some of the layers stay.

Such configurations name modules: plainly, or by patterns, whose syntax each method has its own. A pattern is changed
only where that can be tried: on every module of the checkpoint that stays it has to say the same as before.
"""

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

from deeper_layers.errors import InputError

PLAIN = re.compile(r"[\w.\-/]+")  # a name, or part of one
REGEX = re.compile(r"^(?P<mark>re:|[-+]:)(?P<pattern>.*)$", re.DOTALL)  # compressed-tensors and GPTQModel write these
SLOW = re.compile(r"\)[*+{]|(?:[*+}].*){5}", re.DOTALL)  # what a name could keep a pattern busy with for very long
GONE = object()  # what is of a dropped layer


def cut_quantization(
    quantization: dict, new: dict[int, int], tensors: list[str], prefixes: tuple[str, ...], where: Path
) -> dict:
    """The quantization_config of a checkpoint without some layers: names renumbered, those of dropped layers left out.

    Args:
        quantization: of the whole checkpoint.
        new: numbers of the layers that stay, by their old ones.
        tensors: names of all tensors of the whole checkpoint.
        prefixes: before the number of a layer, in names of tensors and of modules: "model.layers.".
        where: for errors.

    Raises:
        InputError: a pattern names layers in a way that is not understood.
    """
    modules = {name.rpartition(".")[0] for name in tensors}
    first, *others = prefixes
    modules |= {other + name[len(first) :] for name in modules for other in others if name.startswith(first)}
    pairs = [(name, to) for name in sorted(modules) if (to := _renumbered(name, new, prefixes)) is not GONE]

    def changed(value):
        if isinstance(value, dict):
            entries = {name(key): changed(entry) for key, entry in value.items()}
            if value.get("targets") and not entries["targets"]:  # a group of dropped layers alone
                return GONE
            return {key: entry for key, entry in entries.items() if GONE not in (key, entry)}
        if isinstance(value, list):
            return [entry for entry in map(changed, value) if entry is not GONE]
        return name(value) if isinstance(value, str) else value

    def name(text: str):
        if PLAIN.fullmatch(text):
            found = _renumbered(text, new, prefixes)
            if found == text and _layer_numbers(text, prefixes) and not any(m.startswith(text) for m in modules):
                found = None  # almost a name of ours
        elif not any(character.isdigit() for character in text) and "*" not in text:
            return text
        else:
            found = _cut_pattern(text, new, prefixes, pairs)
        if found is None:
            raise InputError(
                f"the quantization_config of {where} has the pattern {text!r:.80}, which names layers in a way that "
                "can't be renumbered surely: write the names of these modules there instead"
            )
        return found

    return changed(quantization)


def _renumbered(name: str, new: dict[int, int], prefixes: tuple[str, ...]):
    """A name of a module, or the end of one, with the number of its new layer; GONE where its layer is."""
    for prefix in prefixes:
        # "layers.3.mlp" may stand for what is "model.layers.3.mlp" in full
        words = prefix.split(".")
        for begin in range(len(words) - 1):
            if found := re.match(rf"{re.escape('.'.join(words[begin:]))}(\d+)(?=\.|$)", name):
                number = int(found[1])
                return f"{name[: found.start(1)]}{new[number]}{name[found.end(1) :]}" if number in new else GONE
    return name


def _cut_pattern(text: str, new: dict[int, int], prefixes: tuple[str, ...], pairs: list[tuple[str, str]]):
    """A pattern that says the same of the modules that stay; GONE where it only says something of dropped ones."""
    before = _matcher(text)
    if before is None:
        return None
    matched = [before(old) for old, _ in pairs]
    numbers = _layer_numbers(text, prefixes)
    candidates = [text]
    if len(numbers) == 1:
        (start, stop), number = numbers[0], int(text[slice(*numbers[0])])
        if number not in new:
            return GONE if not any(matched) else None
        candidates.insert(0, f"{text[:start]}{new[number]}{text[stop:]}")
    for candidate in candidates:
        after = _matcher(candidate)
        if after is not None and [after(name) for _, name in pairs] == matched:
            return candidate
    return None


def _layer_numbers(text: str, prefixes: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where a pattern has the number of a layer, written out."""
    lists = "|".join(sorted({re.escape(prefix.split(".")[-2]) for prefix in prefixes}))
    return [found.span(1) for found in re.finditer(rf"(?:{lists})(?:\.|\\\.|\[\.\])(\d+)(?!\d)", text)]


def _matcher(text: str) -> Callable[[str], bool] | None:
    """Whether a pattern matches a name, as the methods that write such patterns have it."""
    found = REGEX.match(text)
    if SLOW.search(text):
        return None
    try:
        if found:
            return lambda name, pattern=re.compile(found["pattern"]): pattern.match(name) is not None
        if "*" in text and not re.search(r"[\\^$+(){}|]|\.\*", text):
            return lambda name: fnmatch.fnmatchcase(name, text)
        return lambda name, pattern=re.compile(text): pattern.match(name) is not None
    except (re.error, RecursionError, OverflowError):
        return None
