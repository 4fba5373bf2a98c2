"""Depth by bits, and the way to a file that runs elsewhere, gone once: sliced, healed, rounded, in llama.cpp."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import export, models
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.healings import adapter_folder, heal, healed_record
from deeper_layers.experiments.measurement import Measurement, items_of, text_of
from deeper_layers.experiments.notebook_parameters import TakeAwayParameters
from deeper_layers.experiments.parameters import BITSANDBYTES
from deeper_layers.experiments.scoring import CutsOf, Scored, as_cut, distinct_cuts, named_cuts, score_all, tasks_asked
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result

PROMPTS = ("The capital of France is", "Once upon a time there was a", "Water is made of")
TOKENS = 24  # of each answer


def score_rounded(bits: str, cuts_of: CutsOf, parameters: TakeAwayParameters, source: Source) -> Result | None:
    """Scores of pruned models in one kind of weights, and their bytes: read from results, else measured.

    `bits` is a data type ("bfloat16"), a quantization of bitsandbytes ("int8", "nf4"), which computes in bfloat16, or
    a type of llama.cpp's quantizer ("Q8_0", "Q2_K"), dequantized to float32 for the answers. A type that a GGUF file
    has already is that file as it is. None where nothing is to be measured and results hold no such scores.
    """
    plain = bits if bits in DTYPES else "bfloat16" if bits in BITSANDBYTES else "float32"

    def measure(shards):
        with _opened(bits, dataclasses.replace(source, dtype=plain), parameters) as (model, tokenizer, bytes_of):
            cuts = distinct_cuts(cuts_of)
            rows, details = score_all(model, tokenizer, cuts, parameters, shards)
            bytes = {cut.name: bytes_of(cut) for cut in cuts}
        return [row | {"bytes": bytes[row["cut"]]} for row in rows], details

    return Measurement(
        kind="scores", source=source, dtype=plain, measure=measure,
        reads=items_of(parameters.asked, parameters.datasets),
        settings={"bits": bits, "tasks": tasks_asked(parameters), "cuts": named_cuts(cuts_of)},
    ).result(parameters)  # fmt: skip


def score_files(rule: str, cut: Cut, parameters: TakeAwayParameters, source: Source) -> Result | None:
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
            return _gone(cut, parameters, source, Path(folder), shards)

    healing = parameters.healing()
    return Measurement(
        kind="scores", source=source, dtype=healing.dtype, measure=measure,
        settings={
            "tasks": tasks_asked(parameters), "cuts": named_cuts({rule: [UNPRUNED, cut]}),
            "healing": healing.config().settings, "text": parameters.text, "bits": parameters.gguf_type,
            "prompts": list(PROMPTS), "answer_tokens": TOKENS,
        },
        reads=[
            text_of(parameters.text, parameters.datasets, split="train"),
            *items_of(parameters.asked, parameters.datasets),
        ],
    ).result(parameters)  # fmt: skip


def _gone(cut: Cut, parameters: TakeAwayParameters, source: Source, folder: Path, shards: Shards) -> Scored:
    """Rows and details; the files lie in a folder that goes."""
    files = {"whole": export.gguf_file(source), "sliced": export.slice_gguf(source, cut, folder / "sliced.gguf")}
    answers = {"whole": _answers(files["whole"])}  # first, as it says whether llama.cpp is there
    healing = parameters.healing()
    half = dataclasses.replace(source, dtype=healing.dtype)
    adapters = adapter_folder(cut, healing.config(), healing, half, lambda: healing.open(half))
    heal(cut, healing.config(), healing, half, lambda: healing.open(half))
    record = healed_record(adapters.parent)
    assert record is not None, "adapters are there, and no record of them"
    files["healed"] = export.slice_gguf(source, cut, folder / "healed.gguf", adapter=adapters)
    files["rounded"] = export.quantize(files["healed"], folder / "rounded.gguf", parameters.gguf_type)
    rows: list[dict] = []

    def add(variant: str, model, tokenizer, as_if: Cut | None = None) -> dict:
        scored, details = score_all(model, tokenizer, [as_if or UNPRUNED], parameters, shards.part(variant))
        rows.extend(as_cut([row | {"variant": variant} for row in scored], UNPRUNED if variant == "whole" else cut))
        return details

    whole, tokenizer = models.load_model(dataclasses.replace(source, dtype="float32"), device=parameters.device)
    details = add("whole", whole, tokenizer)
    add("sliced", whole, tokenizer, cut)
    del whole
    exact = export.slice_gguf(source, cut, folder / "healed-f32.gguf", adapter=adapters, type="f32")
    with opened_gguf(exact, parameters.device) as (model, tokenizer):
        add("healed", model, tokenizer)
        equal = {"task": "llama.cpp", "metric": "tokens equal", "cut": cut.name, "stderr": None, "variant": "healed"}
        equal = equal | {"value": float(_equal(model, tokenizer, exact)), "items": len(PROMPTS) * TOKENS}
        rows.append(equal | {"engine": "llama.cpp"})
    with opened_gguf(files["rounded"], parameters.device) as (model, tokenizer):
        add("rounded", model, tokenizer)
    answers |= {variant: _answers(path) for variant, path in files.items() if variant not in answers}
    bytes = {variant: path.stat().st_size for variant, path in files.items()}
    rows = [row | {"bytes": bytes[row["variant"]]} for row in rows]
    return rows, details | {"answers": answers, "healed_tokens": record["tokens"]}


@contextlib.contextmanager
def _opened(bits: str, source: Source, parameters: TakeAwayParameters) -> Iterator[tuple]:
    """The model in this kind of weights, its tokenizer, and what gives the bytes of it after a cut."""
    from deeper_layers.pruning import drop_layers  # torch, where there is something to measure

    if bits in DTYPES or bits in BITSANDBYTES:
        model, tokenizer = models.load_model(
            source, device=parameters.device, quantization=bits if bits in BITSANDBYTES else None,
            trust_remote_code=parameters.trust_remote_code,
        )  # fmt: skip
        yield model, tokenizer, lambda cut: checkpoint_bytes(drop_layers(model, cut))
    elif bits == source.quantized:
        yield *models.load_model(source, device=parameters.device), lambda cut: export.tensor_bytes(source, cut)
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain = export.slice_gguf(source, UNPRUNED, Path(folder) / "plain.gguf", type="f32")
            path = export.quantize(plain, Path(folder) / f"{source.name}.{bits}.gguf", bits)
            with opened_gguf(path, parameters.device) as found:
                yield *found, lambda cut: export.tensor_bytes(models.find_model(str(path)), cut)


@contextlib.contextmanager
def opened_gguf(path: Path, device: str = "auto") -> Iterator[tuple]:
    """Model and tokenizer of a GGUF file, whose converted weights are not kept in the cache."""
    folder = models.checkpoint_folder(str(path))
    try:
        yield models.load_model(str(path), device=device)
    finally:
        shutil.rmtree(folder)


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
            ours = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
            ours = ours[0, prompt["input_ids"].shape[1] :].tolist()
            theirs = opened.greedy(opened.tokens(text), TOKENS)
            same = [a == b for a, b in zip(ours, theirs, strict=True)]
            equal += same.index(False) if False in same else len(same)
    return equal
