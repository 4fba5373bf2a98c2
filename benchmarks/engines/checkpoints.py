"""The folders that engines are given, the tokens that are expected of them, and what came of it.

A checkpoint of each family is saved by the oldest transformers that we name, as most checkpoints on the hub are, or by
the newest where the oldest does not know the family. Cut, it has to generate what the newest transformers generates of
the same checkpoint without these layers, cut in memory.
"""

import functools
import subprocess
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.engines.environments import ENGINES, quantizer
from deeper_layers.cuts import Cut
from deeper_layers.export import slice_checkpoint, slice_gguf
from deeper_layers.export.engines import find_misreadings
from deeper_layers.models.checkpoint_files import read_json
from deeper_layers.pruning import drop_layers
from tests.tiny import VOCABULARY, model_type, settings_of

LAYERS, TOKENS = 6, 12
CUTS = (Cut(2, 1), Cut(1, 2))
WHOLE = Cut(0, 0)
CLOSE = 1e-3  # two tokens whose logits differ by less are tied: sums in another order can put either first
END = 2  # the token that ends texts
# wide enough for every engine's kernels, and not so small that its heads are refused; what is no version's default, as
# in checkpoints that are released: an entry that gets lost shows
SIZES = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 64, "head_dim": 32}
SIZES |= {"rope_theta": 500_000.0}
# kinds of layers as checkpoints are released, where tests/tiny.py has others on purpose; an entry that is None is left
# out
RELEASED: dict[str, dict] = {
    family: {"layer_types": None}
    for family in ("gemma3", "olmo3", "cohere2", "exaone4", "gpt_oss", "qwen3_next", "smollm3")
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RELEASED["smollm3"] |= {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None}
RELEASED["llama4"] = {"no_rope_layers": None, "moe_layers": None, "interleave_moe_layer_step": 2}
RELEASED["opt"] = {"word_embed_proj_dim": 128}
RELEASED["llama"] = {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}
RELEASED["gemma3"] |= {"rope_local_base_freq": 20_000.0}
RELEASED["phi"] = {"partial_rotary_factor": 0.25}
# of several cuts the first of these that any of them has is a family's
WORST = (
    "silently wrong", "refused", "wrong, warned of", "refused, warned of", "refused by us",
    "wrong as the whole model is", "not read", "equal", "not tried",
)  # fmt: skip
UNEXPLAINED = WORST[:4]  # unless the whole model fares no better
OURS = "we refuse: "  # how what we say ourselves begins


class NotConverted(Exception):
    """An engine's own converter refuses the model."""


def name_of(family: str, cut: Cut) -> str:
    return f"{family}-{cut.start}-{cut.size}"


def source_job(work: Path, family: str) -> dict:
    """What answering.py needs to write a family's whole checkpoint."""
    found = settings_of(family, LAYERS, **SIZES) | RELEASED.get(family, {})
    left_out = {name for name, value in found.items() if value is None and name.endswith(("types", "layers"))}
    left_out |= {"head_dim"} if family in ("falcon", "deepseek_v3") else set()  # it follows from others there
    settings = {name: value for name, value in found.items() if name not in left_out}
    place = {"name": family, "folder": str(work / "sources" / family)}
    return place | {"model_type": model_type(family), "settings": settings, "vocabulary": VOCABULARY}


def job(family: str, cut: Cut, folder: Path, tokens: int = TOKENS) -> dict:
    return {"name": name_of(family, cut), "folder": str(folder), "prompt": prompt(), "tokens": tokens}


def folder_of(work: Path, family: str, cut: Cut) -> Path:
    """A family's checkpoint without the layers of a cut. Raises InputError where the cut is refused."""
    source, out = work / "sources" / family, work / "cut" / name_of(family, cut)
    return source if cut == WHOLE else out if out.exists() else slice_checkpoint(source, cut, out)


def gguf_of(work: Path, family: str, cut: Cut) -> Path:
    """A family's GGUF file, converted whole, then cut by us. Raises InputError where the cut is refused, NotConverted
    where there is no whole one."""
    whole, out = work / "sources" / f"{family}.gguf", work / "cut" / f"{name_of(family, cut)}.sliced.gguf"
    if not whole.exists():
        raise NotConverted("llama.cpp's converter makes no GGUF file of the whole model")
    return whole if cut == WHOLE else out if out.exists() else slice_gguf(whole, cut, out)


def pruned_gguf_of(work: Path, family: str, cut: Cut) -> Path:
    """The same file as llama.cpp's own quantizer cuts it, in the types that it has. Raises NotConverted where there is
    no whole one, or the quantizer refuses it."""
    whole, out = gguf_of(work, family, WHOLE), work / "cut" / f"{name_of(family, cut)}.pruned.gguf"
    if cut == WHOLE or out.exists():
        return whole if cut == WHOLE else out
    command = [quantizer(work), "--prune-layers", ",".join(map(str, cut.dropped)), whole, out, "COPY"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if said.returncode:
        out.unlink(missing_ok=True)
        lines = [line for line in (said.stderr + said.stdout).splitlines() if "error" in line or "failed" in line]
        raise NotConverted(f"llama-quantize ends with {said.returncode}: {(lines or ['it says nothing'])[0]}")
    return out


def prompt() -> list[int]:
    """24 tokens, three times as long as a sliding window."""
    return torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(1)).tolist()


@functools.cache
def reference(work: Path, family: str, cut: Cut):
    """The model of a family's checkpoint without the layers of a cut, cut in memory."""
    model = AutoModelForCausalLM.from_pretrained(work / "sources" / family, dtype=torch.float32).eval()
    return drop_layers(model, cut) if cut.size else model


def same(work: Path, family: str, cut: Cut, found: list[int]) -> tuple[bool, int]:
    """Whether an engine's tokens are the likeliest, and at how many it chose the other of two that are tied.

    After a tie its own tokens are what comes next is expected of. A text that ends with the token that ends texts is
    compared as far as it goes.
    """
    if len(found) < TOKENS and (not found or found[-1] != END):
        return False, 0
    model, ties = reference(work, family, cut), 0
    for position, token in enumerate(found):
        with torch.no_grad():
            logits = model(torch.tensor([prompt() + found[:position]]), use_cache=False).logits[0, -1]
        if logits.max() - logits[token] > CLOSE:
            return False, ties
        ties += int(logits.argmax() != token)
    return True, ties


def judge(work: Path, engine: str, family: str, answers: dict[str, dict]) -> dict:
    """What came of a family's cuts in an engine, and of the whole model, whose failures are none of the cut."""
    cuts = {cut: _of_cut(work, family, cut, answers.get(name_of(family, cut))) for cut in (WHOLE, *CUTS)}
    whole = cuts.pop(WHOLE)
    for cut, found in cuts.items():
        if found["result"] in ("differs", "refused"):
            found["result"] = _blame(work, engine, family, cut, found["result"], whole["result"])
    result = min((found["result"] for found in cuts.values()), key=WORST.index)
    return {"result": result, "cuts": {f"{cut.start}-{cut.size}": found for cut, found in cuts.items()}, "whole": whole}


def _of_cut(work: Path, family: str, cut: Cut, answer: dict | None) -> dict:
    if answer is None:
        return {"result": "not tried"}
    if "error" in answer:
        ours = answer["error"].startswith(OURS)
        return {"result": "refused by us" if ours else "refused", "said": answer["error"].removeprefix(OURS)}
    equal, ties = same(work, family, cut, answer["tokens"])
    return {"result": "equal" if equal else "differs"} | ({"ties": ties} if ties else {})


def _blame(work: Path, engine: str, family: str, cut: Cut, result: str, whole: str) -> str:
    """Whether what an engine makes of a cut was warned of, or is its own doing: the whole model fares no better."""
    if whole == "refused":
        return "not read"
    counts_as = ENGINES[engine].counts_as
    if counts_as and find_misreadings(read_json(work / "sources" / family / "config.json"), cut, [counts_as]):
        return f"{'wrong' if result == 'differs' else 'refused'}, warned of"
    if result == "refused":
        return "refused"
    return "wrong as the whole model is" if whole == "differs" else "silently wrong"
