"""Engines that take the kind of a layer from its number, and which cuts they therefore read wrongly.

transformers finds in config.json what each layer is, and a cut keeps that right. Some engines count instead: "every 6th
layer sees all tokens". After a cut they load the model without a word and compute something else. Each line of
engines.csv was read in the source of its engine. Needs no torch.
"""

import csv
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import text_part

# what such layers do; the entry of config.json in which transformers finds them, and what stands there for one (None:
# their indices)
KINDS = {
    "full": ("sees all tokens", "layer_types", "full_attention"),
    "experts": ("is a mixture of experts", "moe_layers", None),
    "unrotated": ("has no rotary positions", "no_rope_layers", 0),
}


class Counting(NamedTuple):
    """A line of the table: in this engine every so-many-th layer of a family is of another kind than the rest.

    Where a GGUF file holds a flag a layer llama.cpp takes that, but its converter writes none for these families; for
    olmo3 it does, which only later versions take. Of exaone4 it counts unless the layers are the 64 of the 32B. What
    names the period for it stands in a GGUF file alone.
    """

    engine: str
    family: str  # the `model_type` of the decoder's configuration without "_text"
    every: int
    kind: str
    named: str  # the entry of config.json that says after how many; "-" where none does
    source: str  # in which this was read

    def period(self, config: dict) -> int:
        """After how many layers the kinds repeat in the engine; the entry holds a number or a letter each, "LLLG"."""
        value = config.get(self.named)
        value = len(value) if isinstance(value, str) else value
        return value if type(value) is int and value > 0 else self.every

    def misread(self, config: dict, kept: list[int]) -> list[int]:
        """Which of the kept layers the engine takes for another kind than config.json says, or else than it did."""
        _, entry, other = KINDS[self.kind]
        layers, stated = config["num_hidden_layers"], config.get(entry)
        kinds = counted = [(index + 1) % self.period(config) == 0 for index in range(layers)]
        if isinstance(stated, list) and stated and other is None:
            kinds = [index in stated for index in range(layers)]
        elif isinstance(stated, list) and len(stated) == layers:
            kinds = [kind == other for kind in stated]
        return [old for new, old in enumerate(kept) if kinds[old] != counted[new]]


class Miscounted(NamedTuple):
    """What an engine would take for another layer: the engine, the old indices of these layers, and why."""

    engine: str
    layers: list[int]
    why: str


_, *LINES = csv.reader(Path(__file__).with_suffix(".csv").read_text(encoding="utf-8").splitlines())
TABLE = tuple(Counting(engine, family, int(every), *rest) for engine, family, every, *rest in LINES)
ENGINES = tuple(dict.fromkeys(line.engine for line in TABLE))


def wrong_in(config: dict, cut: Cut, engines: Collection[str] = ENGINES) -> list[Miscounted]:
    """Which of some engines would read a checkpoint without the layers of a cut wrongly, an entry for each line.

    `config` is what the config.json of the whole model holds. Raises InputError where an engine is none of the table,
    or the cut does not fit.
    """
    text, found = text_part(config), []
    layers, family = text.get("num_hidden_layers"), str(text.get("model_type", config.get("model_type")))
    if strange := [name for name in engines if name not in ENGINES]:
        raise InputError(f"the engine is {strange[0]!r:.40}, expected one of {', '.join(ENGINES)}")
    if not cut.size or type(layers) is not int:
        return []
    for line in TABLE:
        if line.engine in engines and line.family == family.removesuffix("_text"):
            if wrong := line.misread(text, cut.kept(layers)):
                why = (
                    f"{line.engine} takes {len(wrong)} of its layers for another kind, first {wrong[0]}: there one "
                    f"layer in {line.period(text)} {KINDS[line.kind][0]}, by its number ({line.source})"
                )
                found.append(Miscounted(line.engine, wrong, why))
    return found


def safe_cuts(config: dict, cuts: Iterable[Cut], engines: Collection[str] = ENGINES) -> list[Cut]:
    """Those of some cuts that these engines read rightly."""
    return [cut for cut in cuts if not wrong_in(config, cut, engines)]


def nearest_safe(config: dict, cut: Cut, engines: Collection[str] = ENGINES) -> Cut | None:
    """The cut that these engines read rightly whose ends are moved least, a smaller one first; None: there is none."""
    layers = text_part(config).get("num_hidden_layers", 0)
    every = (Cut(start, size) for size in range(1, layers) for start in range(layers - size + 1))

    def moved(new: Cut) -> tuple:
        return abs(new.start - cut.start) + abs(new.stop - cut.stop), new.size, new.stop != cut.stop

    return min(safe_cuts(config, every, engines), key=moved, default=None)
