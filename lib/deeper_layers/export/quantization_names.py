"""What a quantization_config says of single layers, once only some of the layers stay.

Such configurations name modules: plainly, or by patterns, whose syntax each method has its own. A name is changed only
where that can be tried: on every module of the checkpoint that stays it has to say the same as before.
"""

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

from deeper_layers.errors import InputError

PLAIN = re.compile(r"[\w.\-/]+")  # a name, or part of one
REGEX = re.compile(r"^(?:re:|[-+]:)", re.DOTALL)  # compressed-tensors and GPTQModel write these
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
    modules |= {other + name.removeprefix(first) for name in modules for other in others if name.startswith(first)}
    ours = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})(\d+)(?=\.|$)")
    lists = "|".join(sorted({re.escape(prefix.split(".")[-2]) for prefix in prefixes}))
    written = re.compile(rf"(?:{lists})(?:\.|\\\.|\[\.\])(\d+)(?!\d)")  # a layer's number in a name or a pattern

    def renumbered(text: str, found: re.Match) -> str:
        return f"{text[: found.start(1)]}{new[int(found[1])]}{text[found.end(1) :]}"

    pairs = []  # modules that stay: names before and after
    for module in sorted(modules):
        found = ours.match(module)
        if found is None or int(found[1]) in new:
            pairs.append((module, module if found is None else renumbered(module, found)))

    def name(text: str) -> str | None:
        """A name or pattern that says the same of the modules that stay; None where it only names dropped ones."""
        places = list(written.finditer(text))
        if not re.search(r"[\d*]", text) or (PLAIN.fullmatch(text) and not places):
            return text
        says, candidates = _matcher(text), [text]
        # a name has to be one of these modules, at least up to its layer
        begins = _matcher(text[: places[0].end()]) if PLAIN.fullmatch(text) else None
        if says is not None and (begins is None or any(map(begins, modules))):
            matched = [says(old) for old, _ in pairs]
            if places and (len(places) == 1 or PLAIN.fullmatch(text)):  # of a name the first number
                if int(places[0][1]) in new:
                    candidates.insert(0, renumbered(text, places[0]))
                elif not any(matched):
                    return None
            for candidate in candidates:
                if (after := _matcher(candidate)) and [after(kept) for _, kept in pairs] == matched:
                    return candidate
        raise InputError(
            f"the quantization_config of {where} has the pattern {text!r:.80}, which names layers in a way that can't "
            "be renumbered surely: write the names of these modules there instead"
        )

    def changed(value):
        if isinstance(value, dict):
            entries = {name(key): changed(entry) for key, entry in value.items()}
            # a group of dropped layers alone goes as a whole
            if value.get("targets") and not entries["targets"]:
                return GONE
            return {key: entry for key, entry in entries.items() if key is not None and entry is not GONE}
        if isinstance(value, list):
            return [entry for entry in map(changed, value) if entry is not GONE]
        return (name(value) or GONE) if isinstance(value, str) and value else value

    return changed(quantization)


def _matcher(text: str) -> Callable[[str], bool] | None:
    """Whether a name or a pattern is of a module, as the methods that write such patterns have it."""
    if PLAIN.fullmatch(text):  # "layers.3.mlp" may stand for what is "model.layers.3.mlp" in full
        return lambda module: f".{text}." in f".{module}."
    if SLOW.search(text):
        return None
    if "*" in text and not REGEX.match(text) and not re.search(r"[\\^$+(){}|]|\.\*", text):
        return lambda module: fnmatch.fnmatchcase(module, text)
    try:
        pattern = re.compile(REGEX.sub("", text))
    except (re.error, RecursionError, OverflowError):
        return None
    return lambda module: pattern.match(module) is not None
