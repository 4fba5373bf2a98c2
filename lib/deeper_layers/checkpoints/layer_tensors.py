"""Which tensors of a checkpoint belong to which layer, and what its configuration becomes after a cut.

For a model of transformers an empty one is built, which says whether the tensors are all there, and cut, which says
both. Code that comes with a checkpoint is not run: then config.json and the names of the tensors have to say it
themselves.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import CONFIG_MAPPING

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import NUMBERED, Shard, numbered_groups, read_json
from deeper_layers.models.configuration import DEPTHS, check_configuration, read_config, text_part
from deeper_layers.models.decoder import decoder_layers, num_layers, text_config
from deeper_layers.models.per_layer import cut_entry
from deeper_layers.models.weight_check import built_empty, check_tensors
from deeper_layers.pruning import drop_layers


@dataclass(frozen=True)
class Layout:
    """What becomes of a checkpoint: its new configuration, and which of its tensors belong to which layer.

    Attributes:
        config: of the cut model, as config.json holds it.
        layers: number of layers before the cut, L.
        prefix: before the number of a layer in the names of tensors, as in "model.layers.".
        module: the same in the names of modules, which can be longer; None where no model is built.
        kept: original index of every kept layer.
    """

    config: dict
    layers: int
    prefix: str
    module: str | None
    kept: tuple[int, ...]

    def cut(self, shard: Shard) -> Shard:
        """The kept tensors of a shard under their new names; entries still point into the old file."""
        names = self.renamed([tensor.name for tensor in shard.tensors])
        kept = [dataclasses.replace(t, name=names[t.name]) for t in shard.tensors if t.name in names]
        return dataclasses.replace(shard, tensors=tuple(kept))

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """New names of the tensors that stay, by their old ones."""
        new = {old: position for position, old in enumerate(self.kept)}
        found = {}
        for name in names:
            number = _number(name, self.prefix)
            if number is None:
                found[name] = name
            elif number in new:
                found[name] = f"{self.prefix}{new[number]}{name[len(f'{self.prefix}{number}') :]}"
        return found


def number_of_layers(folder: Path) -> int:
    """Number of layers L of a checkpoint, as its configuration states it.

    Raises:
        InputError: it states none, is of an encoder-decoder model, or can't be read.
    """
    config = read_json(folder / "config.json")
    check_configuration(config, folder)
    if not _is_known(folder, config):
        return _depth(folder, config)[2]
    layers = getattr(text_config(_known_config(folder)), "num_hidden_layers", None)
    if type(layers) is not int:
        raise InputError(f"{folder / 'config.json'} states no number of layers: give a decoder-only model")
    return layers


def layout_after(cut: Cut, folder: Path, shards: list[Shard]) -> Layout:
    """The layout of the checkpoint in `folder`, whose safetensors are these, after a cut.

    Raises:
        InputError: the cut does not fit, tensors are missing or of other shapes than the configuration says, or which
            of them are layers is not understood; they are listed.
    """
    config = read_json(folder / "config.json")
    shapes = {tensor.name: tuple(tensor.entry["shape"]) for shard in shards for tensor in shard.tensors}
    check_configuration(config, folder, numbered_groups(shapes))
    if _is_known(folder, config):
        return _known(cut, folder, shapes)
    return _by_itself(cut, folder, config, list(shapes))


def _is_known(folder: Path, config: dict) -> bool:
    """Whether the model is one of transformers; else its code comes with it. InputError where neither is so."""
    kind, code = config.get("model_type"), config.get("auto_map")
    if "auto_map" in config and isinstance(code, dict) and code:
        return False
    if "auto_map" in config or not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(
            f"{folder / 'config.json'} has model_type {kind!r:.40}, which this transformers does not know, and names "
            "no code that comes with it (auto_map): repair it, or install a newer transformers"
        )
    return True


def _known_config(folder: Path):
    return read_config(str(folder), None, trust_remote_code=False)


def _known(cut: Cut, folder: Path, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """For a model of transformers: an empty one is cut, and says what its configuration has to be."""
    config, names = _known_config(folder), list(shapes)
    text_config(config)  # refuses an encoder-decoder model
    model = built_empty(config, folder, len(names))
    layers = num_layers(model)
    cut.check(layers)
    check_tensors(model, folder, shapes)
    pruned = drop_layers(model, cut)
    module = next(name for name, found in model.named_modules() if found is decoder_layers(model)) + "."
    groups = numbered_groups(names)
    fitting = [prefix for prefix, numbers in groups.items() if numbers >= set(range(layers))]
    # checkpoints of a base model lack the name of what holds it: "h." in the file is "transformer.h." in the model
    chosen = [prefix for prefix in fitting if module.endswith(prefix)] or fitting
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers "
            f"({', '.join(groups) or 'none'}): expected exactly one, like {module}0"
        )
    # as many of something else, which the model does not know, may belong to the layers, one to each
    lists = [f"{name}." for name, _ in model.named_modules()]
    others = {p for p in fitting if p not in chosen and not any(name.endswith(p) for name in lists)}
    _refuse(folder, [name for name in names if _prefix(name) in others], "numbered like layers, of no known name")
    beyond = [name for name in names if (_number(name, chosen[0]) or 0) >= layers]
    _refuse(folder, beyond, f"of layers beyond the {layers} that its configuration states")
    pruned.config.architectures = [type(pruned).__name__]  # as save_pretrained does
    written = json.loads(pruned.config.to_json_string())
    layout = Layout(written, layers, chosen[0], module, tuple(cut.kept(layers)))
    # names that are almost those of layers may stand for others after the cut
    check_tensors(pruned, folder, {new: shapes[old] for old, new in layout.renamed(names).items()})
    return layout


def _refuse(folder: Path, names: list[str], what: str) -> None:
    if names:
        raise InputError(
            f"{folder} holds {len(names)} tensors {what} ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)}): "
            "what becomes of them after a cut is not guessed; leave them out of the checkpoint"
        )


def _by_itself(cut: Cut, folder: Path, config: dict, names: list[str]) -> Layout:
    """For a model whose code comes with it, and is not run: what config.json itself says of each layer."""
    text, depth, layers = _depth(folder, config)
    cut.check(layers)
    groups = numbered_groups(names)
    fitting = [prefix for prefix, numbers in groups.items() if numbers == set(range(layers))]
    odd = sorted(name for name in names if (_prefix(name) or "") in set(groups) - set(fitting))
    if len(fitting) != 1 or odd:
        shown = ", ".join(odd[:3]) or ", ".join(fitting) or "none"
        raise InputError(
            f"{folder} has {len(fitting)} groups of tensors numbered like its {layers} layers, and {len(odd)} numbered "
            f"otherwise ({shown}): its code is not run, so which are layers is not guessed"
        )
    kept = cut.kept(layers)
    changed = {key: cut_entry(key, value, kept, layers) for key, value in text.items()}
    changed[depth] = len(kept)
    if text is not config:
        name = next(key for key, value in config.items() if value is text)
        changed = config | {name: changed}
    return Layout(changed, layers, fitting[0], None, tuple(kept))


def _depth(folder: Path, config: dict) -> tuple[dict, str, int]:
    """The part of config.json that describes the decoder, its entry for the number of layers, and that number."""
    text = text_part(config)
    depth = next((key for key in DEPTHS if type(text.get(key)) is int), None)
    if depth is None:
        raise InputError(
            f"{folder / 'config.json'} states no number of layers ({', '.join(DEPTHS)}): expected one of these"
        )
    return text, depth, text[depth]


def _prefix(name: str) -> str | None:
    found = NUMBERED.match(name)
    return found["prefix"] if found else None


def _number(name: str, prefix: str) -> int | None:
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else None
