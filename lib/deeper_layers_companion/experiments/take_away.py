"""Scores by number of layers and of bits, and one file made for llama.cpp: sliced, healed, and rounded."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import export, models
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.experiments.experiment import CutsByRule, Data, Experiment, name_cuts, sort_cuts
from deeper_layers_companion.experiments.healings import Healing
from deeper_layers_companion.experiments.parameters import BITSANDBYTES
from deeper_layers_companion.experiments.scoring import list_data, score_models
from deeper_layers_companion.results.store import Result

PROMPTS = ("The capital of France is", "Once upon a time there was a", "Water is made of")
TOKENS = 24  # of each answer


def score_rounded(bits: str, cuts_by_rule: CutsByRule, experiment: Experiment) -> Result | None:
    """The scores and bytes of pruned models in one type of weights: read from results, else measured.

    `bits` is a data type ("bfloat16"), a quantization of bitsandbytes ("int8", "nf4"), which computes in bfloat16, or
    a type of llama.cpp's quantizer ("Q8_0", "Q2_K"), dequantized to float32 for the answers. If a GGUF file has this
    type already, the file is used as it is.
    """
    plain_dtype = bits if bits in DTYPES else "bfloat16" if bits in BITSANDBYTES else "float32"
    experiment = experiment.replace(dtype=plain_dtype)
    parameters = experiment.parameters

    def measure(shards):
        cuts = sort_cuts(cuts_by_rule)
        with _opened_in(bits, experiment.source, parameters) as (opened, count_bytes):
            rows, details = score_models(parameters.task_settings, opened, cuts, parameters, shards)
            bytes_by_cut = {cut.name: count_bytes(cut) for cut in cuts}
        return [row | {"bytes": bytes_by_cut[row["cut"]]} for row in rows], details

    settings = {"tasks": parameters.task_settings, "cuts": name_cuts(cuts_by_rule), "bits": bits}
    return experiment.find_or_measure("scores", settings, list_data(parameters.task_settings), measure)


def score_files(rule: str, cut: Cut, experiment: Experiment) -> Result | None:
    """The bytes, scores and answers of each file on the way: read from results, else made, measured and removed.

    Variants are the file as it is ("whole"), without the layers ("sliced"), healed ("healed"), and healed and rounded
    by llama.cpp ("rounded"). The healed one in float32 also has the metric "tokens equal": how many tokens of
    llama.cpp's answers to PROMPTS are those of transformers. Raises InputError if the model is no GGUF file or
    llama.cpp is not installed, and what slicing and healing raise.
    """
    parameters, training = experiment.parameters, experiment.parameters.healing_parameters()
    experiment = experiment.replace(dtype=training.dtype)
    healing = Healing(cut, training.make_config(), Experiment(training, experiment.source))

    def measure(shards):
        with tempfile.TemporaryDirectory() as folder:
            return _score_variants(healing, experiment, Path(folder), shards)

    settings = {
        "tasks": parameters.task_settings,
        "cuts": name_cuts({rule: [UNPRUNED, cut]}),
        "healing": healing.config.settings,
        "text": parameters.text,
        "bits": parameters.gguf_type,
        "prompts": list(PROMPTS),
        "answer_tokens": TOKENS,
    }
    reads = [Data(parameters.text, {"split": "train"}), *list_data(parameters.task_settings)]
    return experiment.find_or_measure("scores", settings, reads, measure)


def _score_variants(healing: Healing, experiment: Experiment, folder: Path, shards: Shards) -> tuple[list[dict], dict]:
    """Rows and details of all variants, whose files are written to `folder`."""
    parameters, source, cut = experiment.parameters, experiment.source, healing.cut
    files = {"whole": export.find_gguf_file(source), "sliced": export.slice_gguf(source, cut, folder / "sliced.gguf")}
    answers = {"whole": _generate_answers(files["whole"])}  # first, as it fails where llama.cpp is not installed
    run, adapter = experiment.require(healing.heal(), "the healing"), healing.find_adapters()
    files["healed"] = export.slice_gguf(source, cut, folder / "healed.gguf", adapter=adapter)
    files["rounded"] = export.quantize(files["healed"], folder / "rounded.gguf", parameters.gguf_type)
    exact = export.slice_gguf(source, cut, folder / "healed-f32.gguf", adapter=adapter, type="f32")
    rows, details = [], {}
    for variant, path in files.items():
        scored_path = exact if variant == "healed" else path
        with _opened_gguf(scored_path, parameters.device, kept=variant == "whole") as opened:
            more, details = score_models(parameters.task_settings, opened, [UNPRUNED], parameters, shards.part(variant))
            if variant == "healed":
                equal = {"value": float(_count_equal(*opened, exact)), "stderr": None, "items": len(PROMPTS) * TOKENS}
                more.append({"task": "llama.cpp", "metric": "tokens equal", "engine": "llama.cpp"} | equal)
        dropped = UNPRUNED if variant == "whole" else cut
        rows += [row | {"cut": dropped.name, "variant": variant, "bytes": path.stat().st_size} for row in more]
    answers |= {variant: _generate_answers(path) for variant, path in files.items() if variant not in answers}
    return rows, details | {"answers": answers, "healed_tokens": run.details["tokens"]}


@contextlib.contextmanager
def _opened_in(bits: str, source: Source, parameters) -> Iterator[tuple]:
    """Yield (model, tokenizer) in this type of weights, and a function from a cut to the bytes of the pruned model."""
    from deeper_layers.pruning import drop_layers  # imports torch

    if bits == source.quantized:
        yield models.load_model(source, device=parameters.device), lambda cut: export.count_tensor_bytes(source, cut)
    elif bits in (*DTYPES, *BITSANDBYTES):
        opened = parameters.replace(quantization=bits if bits in BITSANDBYTES else None).open(source)
        yield opened, lambda cut: count_checkpoint_bytes(drop_layers(opened[0], cut))
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain = export.slice_gguf(source, UNPRUNED, Path(folder) / "plain.gguf", type="f32")
            path = export.quantize(plain, Path(folder) / f"{source.name}.{bits}.gguf", bits)
            with _opened_gguf(path, parameters.device) as opened:
                yield opened, lambda cut: export.count_tensor_bytes(models.find_model(str(path)), cut)


@contextlib.contextmanager
def _opened_gguf(path: Path, device: str, *, kept: bool = False) -> Iterator[tuple]:
    """Yield model and tokenizer of a GGUF file. Its converted weights are removed from the cache unless `kept`."""
    try:
        yield models.load_model(str(path), device=device)
    finally:
        if not kept:
            shutil.rmtree(models.checkpoint_folder(str(path)))


def count_checkpoint_bytes(model) -> int:
    """The bytes of a checkpoint of the model: with the scales of quantized weights, and tied weights counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def _generate_answers(path: Path) -> list[str]:
    """llama.cpp's greedy answer to each of PROMPTS."""
    with contextlib.closing(export.LlamaCpp(path)) as llama:
        return [llama.detokenize(llama.generate(llama.tokenize(prompt), TOKENS)) for prompt in PROMPTS]


def _count_equal(model, tokenizer, path: Path) -> int:
    """How many tokens of llama.cpp's answers equal those of transformers, up to the first difference in each answer."""
    equal = 0
    model.generation_config.eos_token_id = None  # so that both engines write all TOKENS
    with contextlib.closing(export.LlamaCpp(path)) as llama:
        for text in PROMPTS:
            prompt = tokenizer(text, return_tensors="pt").to(model.device)
            ours = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
            prompt_length = prompt["input_ids"].shape[1]
            equal += len(os.path.commonprefix([ours[prompt_length:], llama.generate(llama.tokenize(text), TOKENS)]))
    return equal
