"""Generate answers with vLLM in the place of our tree, where it is installed.

Each pruned model is written to a temporary folder, which lm-eval's own model of the engine opens: prompts, stop strings
and sampling are lm-eval's in both ways. vLLM leaves out an unfinished character at the end of an answer.
"""

import importlib.util
import os
import re

from deeper_layers.checks import short_repr
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.files import temporary_dir
from deeper_layers.package_index import cache_folder

ENGINES = ("vllm",)
# run in this process, so that memory is free again when a model goes, and silently
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def check_installed(engine: str | None) -> None:
    """Raise InputError for an engine that is unknown or not installed."""
    if engine not in ENGINES:
        raise InputError(f"engine is {short_repr(engine)}, expected None or one of {', '.join(map(repr, ENGINES))}")
    if importlib.util.find_spec(engine) is None:
        raise InputError(f"engine is {engine!r}, which is not installed: pip install vllm, or leave it out")


def check_engine(engine: str, model, tasks: list[str]) -> None:
    """Raise InputError for a model that the engine would read in another way, and where `tasks` is not empty. `tasks`
    are those that are scored by log-likelihoods, which the engine does not compute here."""
    is_on_disk = any(parameter.is_meta for parameter in model.parameters())
    if tasks or is_on_disk or getattr(model.config, "quantization_config", None) is not None:
        why = f"{tasks[0]!r} is scored by log-likelihoods" if tasks else "the model is quantized, or its layers on disk"
        raise InputError(f"engine is {engine!r}, and {why}: leave it out")


def generate(pruned, tokenizer, instances: list) -> list[str]:
    """Answers of a pruned model by lm-eval's VLLM. Raises InputError where vLLM can't open or run it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with temporary_dir(cache_folder() / "pruned") as folder:
        for item in (pruned, tokenizer):
            item.save_pretrained(folder)
        with as_input_error("vLLM can't generate from this model", "leave it out"):
            from lm_eval.models.vllm_causallms import VLLM  # exists only with vLLM

            lm = VLLM(pretrained=str(folder), dtype=str(pruned.dtype).removeprefix("torch."))
            texts = lm.generate_until(instances, disable_tqdm=True)
    # HFLM leaves out special tokens such as `<filename>`; vLLM's own option would also hide one that is a stop string
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [re.sub("|".join(map(re.escape, special)) or "$^", "", text) for text in texts]
