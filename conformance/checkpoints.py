"""The folders that engines are given, and the tokens that are expected of them.

A checkpoint of each family is saved by the oldest transformers that we name, as most checkpoints on the hub are, or by
the newest where the oldest does not know the family. Cut, it has to generate what the newest transformers generates of
the same checkpoint without these layers, cut in memory.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from conformance.environments import NEWEST, OLDEST, python_of
from deeper_layers.cuts import Cut
from deeper_layers.export import slice_checkpoint, slice_gguf
from deeper_layers.models.checkpoint_files import read_json
from deeper_layers.pruning import drop_layers
from tests.plain import generate
from tests.tiny import ALL_FAMILIES, VOCABULARY, model_type, settings_of

LAYERS, TOKENS = 6, 12
CUTS = (Cut(2, 1), Cut(1, 2))
WHOLE = Cut(0, 0)
CLOSE = 1e-3  # two tokens whose logits differ by less are tied: sums in another order can put either first
# wide enough for every engine's kernels, and not so small that its heads are refused
SIZES = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 64, "head_dim": 32}
# kinds of layers as checkpoints are released, where tests/tiny.py has others on purpose
RELEASED = {
    family: {"layer_types": None}
    for family in ("gemma3", "olmo3", "cohere2", "exaone4", "gpt_oss", "qwen3_next", "smollm3")
}
RELEASED["smollm3"] |= {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None}
RELEASED["llama4"] = {"no_rope_layers": None, "moe_layers": None, "interleave_moe_layer_step": 2}
RELEASED["opt"] = {"word_embed_proj_dim": 128}
# what is no version's default, as in checkpoints that are released: an entry that gets lost shows
ROTARY = {"rope_theta": 500_000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RELEASED["llama"] = {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}
RELEASED["gemma3"] |= {"rope_local_base_freq": 20_000.0}
RELEASED["phi"] = {"partial_rotary_factor": 0.25}


class NotConverted(Exception):
    """An engine's own converter refuses the whole model."""


def write_sources(work: Path, families: list[str] = ALL_FAMILIES) -> dict[str, str]:
    """Which environment saved the checkpoint of each family, made where it is not there."""
    place, record = work / "sources", work / "sources.json"
    saved = read_json(record) if record.exists() else {}
    for name, python in ((OLDEST, python_of(OLDEST, work)), (NEWEST, sys.executable)):
        missing = [family for family in families if family not in saved]
        if not missing:
            break
        jobs = [
            {
                "name": family,
                "folder": str(place / family),
                "model_type": model_type(family),
                "settings": settings(family),
                "vocabulary": VOCABULARY,
            }
            for family in missing
        ]
        (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        script = Path(__file__).with_name("write_sources.py")
        command = [str(python), "-P", str(script), str(work / "jobs.json"), str(work / "answers.json")]
        with open(work / "sources.log", "a", encoding="utf-8") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        answers = read_json(work / "answers.json")
        saved |= {family: name for family, error in answers.items() if error is None}
    record.write_text(json.dumps(saved), encoding="utf-8")
    return saved


def settings(family: str) -> dict:
    """The settings of a tiny model of a family as it is released; an entry that is None there is left out."""
    found = settings_of(family, LAYERS, **SIZES, **ROTARY) | RELEASED.get(family, {})
    left_out = {name for name, value in found.items() if value is None and name.endswith(("types", "layers"))}
    left_out |= {"head_dim"} if family in ("falcon", "deepseek_v3") else set()  # it follows from others there
    return {name: value for name, value in found.items() if name not in left_out}


def name_of(family: str, cut: Cut) -> str:
    return f"{family}-{cut.start}-{cut.size}"


def folder_of(work: Path, family: str, cut: Cut) -> Path:
    """A family's checkpoint without the layers of a cut. Raises InputError where the cut is refused."""
    source = work / "sources" / family
    if cut == WHOLE:
        return source
    out = work / "cut" / name_of(family, cut)
    return out if out.exists() else slice_checkpoint(source, cut, out)


def gguf_of(work: Path, family: str, cut: Cut) -> Path:
    """A family's GGUF file, converted whole and then cut by us. Raises InputError where the cut is refused.

    Raises NotConverted where there is no whole one.
    """
    whole = work / "sources" / f"{family}.gguf"
    if not whole.exists():
        raise NotConverted("llama.cpp's converter makes no GGUF file of the whole model")
    out = work / "cut" / f"{name_of(family, cut)}.sliced.gguf"
    return whole if cut == WHOLE else out if out.exists() else slice_gguf(whole, cut, out)


def prompt() -> list[int]:
    """24 tokens, three times as long as a sliding window."""
    return torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(1)).tolist()


@functools.cache
def reference(work: Path, family: str, cut: Cut):
    """The model of a family's checkpoint without the layers of a cut, cut in memory."""
    model = AutoModelForCausalLM.from_pretrained(work / "sources" / family, dtype=torch.float32).eval()
    return drop_layers(model, cut) if cut.size else model


@functools.cache
def expected(work: Path, family: str, cut: Cut) -> list[int]:
    """The tokens that it generates."""
    found = generate(reference(work, family, cut), torch.tensor([prompt()]), use_cache=False)
    return found[0, len(prompt()) :].tolist()


def same(work: Path, family: str, cut: Cut, found: list[int]) -> tuple[bool, int]:
    """Whether an engine's tokens are those expected, and at how many it chose the other of two that are tied.

    After a tie its own tokens are what comes next is expected of. A text that ends with the token that ends texts is
    compared as far as it goes.
    """
    wanted, ties = expected(work, family, cut), 0
    if len(found) < len(wanted) and (not found or found[-1] != 2):
        return False, 0
    model = reference(work, family, cut)
    for position in range(len(found)):
        if found[position] == wanted[position]:
            continue
        logits = _next(model, found[:position])
        if logits.max() - logits[found[position]] > CLOSE:
            return False, ties
        ties += 1
        wanted = found[: position + 1] + _greedy(model, found[: position + 1], len(wanted) - position - 1)
    return True, ties


@torch.no_grad()
def _next(model, found: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt() + found]), use_cache=False).logits[0, -1]


def _greedy(model, found: list[int], number: int) -> list[int]:
    found = list(found)
    for _ in range(number):
        found.append(int(_next(model, found).argmax()))
    return found[len(found) - number :]
