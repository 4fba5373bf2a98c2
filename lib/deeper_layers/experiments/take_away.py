"""Depth by bits, and the way to a file that runs elsewhere, gone once: sliced, healed, rounded, in llama.cpp."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import export, models
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.experiment import CutsOf, Data, Experiment, distinct_cuts, named
from deeper_layers.experiments.healings import Healing
from deeper_layers.experiments.parameters import BITSANDBYTES
from deeper_layers.experiments.scoring import answered, data_of
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result

PROMPTS = ("The capital of France is", "Once upon a time there was a", "Water is made of")
TOKENS = 24  # of each answer


def score_rounded(bits: str, cuts_of: CutsOf, experiment: Experiment) -> Result | None:
    """Scores of pruned models in one kind of weights, and their bytes: read from results, else measured.

    `bits` is a data type ("bfloat16"), a quantization of bitsandbytes ("int8", "nf4"), which computes in bfloat16, or
    a type of llama.cpp's quantizer ("Q8_0", "Q2_K"), dequantized to float32 for the answers. A type that a GGUF file
    has already is that file as it is. None where nothing is to be measured and results hold no such scores.
    """
    plain = bits if bits in DTYPES else "bfloat16" if bits in BITSANDBYTES else "float32"
    experiment = experiment.but(dtype=plain)
    parameters = experiment.parameters

    def measure(shards):
        cuts = distinct_cuts(cuts_of)
        with _opened(bits, experiment.source, parameters) as (opened, bytes_of):
            rows, details = answered(parameters.questions, opened, cuts, parameters, shards)
            bytes = {cut.name: bytes_of(cut) for cut in cuts}
        return [row | {"bytes": bytes[row["cut"]]} for row in rows], details

    settings = {"tasks": parameters.questions, "cuts": named(cuts_of), "bits": bits}
    return experiment.result("scores", settings, data_of(parameters.questions), measure)


def score_files(rule: str, cut: Cut, experiment: Experiment) -> Result | None:
    """The files on the way, their bytes, scores and answers: read from results, else made, measured and removed.

    Variants are the file as it is ("whole"), without the layers ("sliced"), healed ("healed"), and that rounded by
    llama.cpp ("rounded"). Besides scores there is, of the healed one in float32, the metric "tokens equal": those of
    llama.cpp's answers to PROMPTS that transformers gives too.

    None where nothing is to be measured and results hold no such file.

    Raises:
        InputError: the model is no GGUF file, llama.cpp is not installed, or what slicing and healing raise.
    """

    def measure(shards):
        with tempfile.TemporaryDirectory() as folder:
            return _variants(cut, experiment, Path(folder), shards)

    parameters = experiment.parameters
    healing, asked = parameters.healing(), parameters.questions
    settings = {
        "tasks": asked,
        "cuts": named({rule: [UNPRUNED, cut]}),
        "healing": healing.config().settings,
        "text": parameters.text,
        "bits": parameters.gguf_type,
        "prompts": list(PROMPTS),
        "answer_tokens": TOKENS,
    }
    reads = [Data(parameters.text, {"split": "train"}), *data_of(asked)]
    return experiment.but(dtype=healing.dtype).result("scores", settings, reads, measure)


def _variants(cut: Cut, experiment: Experiment, folder: Path, shards: Shards) -> tuple[list[dict], dict]:
    """Rows and details; the files lie in a folder that goes."""
    parameters, source, asked = experiment.parameters, experiment.source, experiment.parameters.healing()
    files = {"whole": export.gguf_file(source), "sliced": export.slice_gguf(source, cut, folder / "sliced.gguf")}
    answers = {"whole": _answers(files["whole"])}  # first, as it says whether llama.cpp is there
    heals = Experiment(asked, dataclasses.replace(source, dtype=asked.dtype))
    healing = Healing(cut, asked.config(), heals)
    run, adapter = heals.required(healing.run(), "the healing"), healing.adapters()
    files["healed"] = export.slice_gguf(source, cut, folder / "healed.gguf", adapter=adapter)
    files["rounded"] = export.quantize(files["healed"], folder / "rounded.gguf", parameters.gguf_type)
    exact = export.slice_gguf(source, cut, folder / "healed-f32.gguf", adapter=adapter, type="f32")
    rows, details = [], {}
    for variant, path in files.items():
        read = exact if variant == "healed" else path
        with _opened_gguf(read, parameters.device, kept=variant == "whole") as opened:
            found, details = answered(parameters.questions, opened, [UNPRUNED], parameters, shards.part(variant))
            if variant == "healed":
                equal = {"value": float(_equal(*opened, exact)), "stderr": None, "items": len(PROMPTS) * TOKENS}
                found.append({"task": "llama.cpp", "metric": "tokens equal", "engine": "llama.cpp"} | equal)
        dropped = UNPRUNED if variant == "whole" else cut
        rows += [row | {"cut": dropped.name, "variant": variant, "bytes": path.stat().st_size} for row in found]
    answers |= {variant: _answers(path) for variant, path in files.items() if variant not in answers}
    return rows, details | {"answers": answers, "healed_tokens": run.details["tokens"]}


@contextlib.contextmanager
def _opened(bits: str, source: Source, parameters) -> Iterator[tuple]:
    """The model in this kind of weights with its tokenizer, and what gives the bytes of it after a cut."""
    from deeper_layers.pruning import drop_layers  # torch, where there is something to measure

    if bits == source.quantized:
        yield models.load_model(source, device=parameters.device), lambda cut: export.tensor_bytes(source, cut)
    elif bits in (*DTYPES, *BITSANDBYTES):
        opened = parameters.but(quantization=bits if bits in BITSANDBYTES else None).open(source)
        yield opened, lambda cut: checkpoint_bytes(drop_layers(opened[0], cut))
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain = export.slice_gguf(source, UNPRUNED, Path(folder) / "plain.gguf", type="f32")
            path = export.quantize(plain, Path(folder) / f"{source.name}.{bits}.gguf", bits)
            with _opened_gguf(path, parameters.device) as opened:
                yield opened, lambda cut: export.tensor_bytes(models.find_model(str(path)), cut)


@contextlib.contextmanager
def _opened_gguf(path: Path, device: str, *, kept: bool = False) -> Iterator[tuple]:
    """Model and tokenizer of a GGUF file; its converted weights stay in the cache where they are to be `kept`."""
    try:
        yield models.load_model(str(path), device=device)
    finally:
        if not kept:
            shutil.rmtree(models.checkpoint_folder(str(path)))


def checkpoint_bytes(model) -> int:
    """Bytes of what a checkpoint of the model holds, scales of quantized weights included, tied weights once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def _answers(path: Path) -> list[str]:
    """What llama.cpp says after each prompt."""
    with contextlib.closing(export.LlamaCpp(path)) as opened:
        return [opened.text(opened.greedy(opened.tokens(prompt), TOKENS)) for prompt in PROMPTS]


def _equal(model, tokenizer, path: Path) -> int:
    """How many tokens of llama.cpp's answers are those of transformers, each answer counted up to the first other."""
    equal = 0
    model.generation_config.eos_token_id = None  # both go on to the last token
    with contextlib.closing(export.LlamaCpp(path)) as opened:
        for text in PROMPTS:
            prompt = tokenizer(text, return_tensors="pt").to(model.device)
            ours = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
            asked = prompt["input_ids"].shape[1]
            equal += len(os.path.commonprefix([ours[asked:], opened.greedy(opened.tokens(text), TOKENS)]))
    return equal
