"""Engines that derive the kind of a layer from its number, and the cuts that they misread for that reason.

transformers reads the kind of each layer in config.json, which a cut keeps right. Some engines count instead: "every
6th layer sees all tokens". They load a pruned model without a warning and compute something else. Each line of
engines.csv was read in the source of its engine. Needs no torch.
"""

import csv
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import text_part

# kind: what such a layer does, the entry of config.json that names these layers, and its value (None: their indices)
KINDS = {
    "full": ("sees all tokens", "layer_types", "full_attention"),
    "experts": ("is a mixture of experts", "moe_layers", None),
    "unrotated": ("has no rotary positions", "no_rope_layers", 0),
}


class CountingRule(NamedTuple):
    """A line of engines.csv: an engine takes every n-th layer of a family for another kind than the rest.

    llama.cpp would read a flag for each layer in a GGUF file, but its converter writes none for these families. For
    olmo3 the converter writes them, and only later versions read them. In exaone4 llama.cpp counts unless there are 64
    layers, as in the 32B. The entries that `named` gives for llama.cpp are in GGUF files only.
    """

    engine: str
    family: str  # the `model_type` of the decoder's configuration without "_text"
    every: int  # n, where no entry names it
    kind: str  # of every n-th layer: a key of KINDS
    named: str  # the entry of the configuration that names n; "-" where none does
    source: str  # file and version in which the rule was read

    def period(self, config: dict) -> int:
        """After how many layers the kinds repeat. The entry is a number, or a text with a letter a layer: "LLLG"."""
        value = config.get(self.named)
        if isinstance(value, str):
            value = len(value)
        return value if type(value) is int and value > 0 else self.every

    def misread_layers(self, config: dict, kept: list[int]) -> list[int]:
        """The kept layers of which the engine assumes another kind than config.json states, or than before the cut."""
        _, entry, marker = KINDS[self.kind]
        layers = config["num_hidden_layers"]
        stated = config.get(entry)
        kinds = counted = [(index + 1) % self.period(config) == 0 for index in range(layers)]
        if isinstance(stated, list) and stated and marker is None:
            kinds = [index in stated for index in range(layers)]
        elif isinstance(stated, list) and len(stated) == layers:
            kinds = [kind == marker for kind in stated]
        return [old for new, old in enumerate(kept) if kinds[old] != counted[new]]


class Misreading(NamedTuple):
    """The layers that an engine would take for another kind, by their old indices, and why."""

    engine: str
    layers: list[int]
    why: str


_, *LINES = csv.reader(Path(__file__).with_suffix(".csv").read_text(encoding="utf-8").splitlines())
TABLE = tuple(
    CountingRule(engine, family, int(every), *rest) for engine, family, every, *rest in LINES
)
ENGINES = tuple(dict.fromkeys(line.engine for line in TABLE))


def find_misreadings(
    config: dict, cut: Cut, engines: Collection[str] = ENGINES
) -> list[Misreading]:
    """The engines that would misread a checkpoint after a cut, with an entry for each line of engines.csv that applies.

    `config` is the whole model's config.json. Raises InputError for an unknown engine, or a cut that does not fit.
    """
    text = text_part(config)
    misreadings = []
    layers = text.get("num_hidden_layers")
    family = str(text.get("model_type", config.get("model_type")))
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise InputError(
            f"the engine (--for) is {unknown[0]!r:.40}, expected one of {', '.join(ENGINES)}"
        )
    if not cut.size or type(layers) is not int:
        return []
    for rule in TABLE:
        if rule.engine not in engines or rule.family != family.removesuffix("_text"):
            continue
        misread = rule.misread_layers(text, cut.kept(layers))
        if misread:
            why = (
                f"{rule.engine} takes {len(misread)} of its layers for another kind, first {misread[0]}: there one "
                f"layer in {rule.period(text)} {KINDS[rule.kind][0]}, by its number ({rule.source})"
            )
            misreadings.append(Misreading(rule.engine, misread, why))
    return misreadings


def select_safe_cuts(
    config: dict, cuts: Iterable[Cut], engines: Collection[str] = ENGINES
) -> list[Cut]:
    """The cuts that these engines read correctly."""
    return [cut for cut in cuts if not find_misreadings(config, cut, engines)]


def find_nearest_safe(config: dict, cut: Cut, engines: Collection[str] = ENGINES) -> Cut | None:
    """The nearest block, by its ends, that these engines read correctly, the smallest of equals; None without one."""
    layers = text_part(config).get("num_hidden_layers", 0)
    places = itertools.product(range(1, layers), range(layers))
    blocks = [Cut(start, size) for size, start in places if start + size <= layers]

    def distance(new: Cut) -> tuple:
        return abs(new.start - cut.start) + abs(new.stop - cut.stop), new.size, new.stop != cut.stop

    return min(select_safe_cuts(config, blocks, engines), key=distance, default=None)
