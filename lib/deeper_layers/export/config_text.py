"""config.json after a cut: the source's own JSON, in its order, with what the cut changes.

Whether it says what it should is for transformers to tell: it reads it again, and what it reads has to be the
configuration that the cut model has in memory.
"""

import copy
import json
from pathlib import Path

from transformers import PreTrainedConfig

from deeper_layers.errors import InputError, first_line
from deeper_layers.export.transformers4_config import find_transformers4_entries, write_plainly
from deeper_layers.models.configuration import DEPTHS, text_part
from deeper_layers.models.per_layer import cut_entry

# what of a configuration no cut changes and building a model may, or what is renumbered by name (quantization_names.py)
BESIDE = ("transformers_version", "_name_or_path", "architectures", "dtype", "quantization_config")


def cut_entries(config: dict, kept: list[int], layers: int) -> dict:
    """A config.json whose entries that describe layers are those of the kept ones; the others stay as they are."""
    text = text_part(config)
    # some hold the entries of the decoder twice, at the top and in its part
    at_top = text is config or any(config.get(name) == layers for name in DEPTHS)

    def cut(key: str, value):
        if key in DEPTHS and type(value) is int and value == layers:
            return len(kept)
        return value if key in BESIDE else cut_entry(key, value, kept, layers)

    return {
        key: {name: cut(name, entry) for name, entry in text.items()}
        if value is text
        else cut(key, value)
        if at_top
        else value
        for key, value in config.items()
    }


def write_cut_config(
    source: dict, kept: list[int], layers: int, whole: PreTrainedConfig, pruned: PreTrainedConfig, where: Path
) -> dict:
    """The config.json of a model without some layers, for this and older versions of transformers.

    Args:
        source: the config.json that `whole` was read from.
        kept: original indices of the `layers` that stay.
        pruned: what the cut model in memory has.
        where: the folder of the source, for errors.

    Raises:
        InputError: transformers would read something else than `pruned`.
    """
    kind, before, after = type(whole), _entries(whole), _entries(pruned)
    cut = write_plainly(cut_entries(source, kept, layers))
    for part, key in _unlike(_read(cut, kind, where), after):
        # what transformers had worked out from the depth, and the source does not state
        if _at(before, part).get(key) == _at(after, part).get(key):
            raise _other_words(where, part, key)
        held = _at(cut, part) if not part or part[0] in cut else cut  # some hold their parts at the top
        held[key] = _at(after, part)[key]
    cut = write_plainly(cut)
    for part, words in find_transformers4_entries(cut):
        _add(cut, part, words, after, kind, where)
    if unlike := _unlike(_read(cut, kind, where), after):
        raise _other_words(where, *unlike[0])
    return cut


def _add(
    cut: dict, part: tuple[str, ...], words: dict, expected: dict, kind: type[PreTrainedConfig], where: Path
) -> None:
    """Add entries to a part of a configuration, in place: all, or those with which it still says the same."""
    for some in (words, *({name: value} for name, value in words.items())):
        trial = copy.deepcopy(cut)
        _at(trial, part).update({name: value for name, value in some.items() if name not in _at(cut, part)})
        try:
            says_the_same = not _unlike(_read(trial, kind, where), expected)
        except InputError:
            says_the_same = False
        if says_the_same:
            _at(cut, part).update(_at(trial, part))
            if some is words:
                return


def _read(config: dict, kind: type[PreTrainedConfig], where: Path) -> dict:
    """What transformers reads of a config.json."""
    try:
        return _entries(kind.from_dict(copy.deepcopy(config)))
    except Exception as error:
        raise InputError(
            f"transformers can't read what a cut makes of {where / 'config.json'} ({first_line(error)}): choose "
            "another cut, or save the model again with save_pretrained"
        ) from error


def _entries(config: PreTrainedConfig) -> dict:
    return json.loads(config.to_json_string(use_diff=False))


def _unlike(found: dict, expected: dict, part: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Part and name of every entry that is not as expected. Entries that nobody asked for may be there."""
    unlike = []
    for key, value in expected.items():
        if key in BESIDE or (key in found and found[key] == value):
            continue
        if isinstance(value, dict) and isinstance(found.get(key), dict) and "model_type" in value:
            unlike += _unlike(found[key], value, (*part, key))
        else:
            unlike.append((part, key))
    return unlike


def _at(config: dict, part: tuple[str, ...]) -> dict:
    for key in part:
        config = config.setdefault(key, {})
    return config


def _other_words(where: Path, part: tuple[str, ...], key: str) -> InputError:
    return InputError(
        f"{where / 'config.json'} can't say in its own words what the cut makes of {'.'.join((*part, key))}: save the "
        "model again with save_pretrained of a current transformers, or choose another cut"
    )
