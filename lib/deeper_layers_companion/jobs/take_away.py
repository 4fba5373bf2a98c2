"""Scores by number of layers and of bits, and one file made for llama.cpp: sliced, healed, and rounded."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deeper_layers import export, models
from deeper_layers.cuts import UNPRUNED
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.jobs import healings
from deeper_layers_companion.jobs.job import ANSWER_TOKENS, PROMPTS, Job
from deeper_layers_companion.jobs.options import BITSANDBYTES
from deeper_layers_companion.jobs.scoring import Measured, score_models
from deeper_layers_companion.jobs.subject import Subject
from deeper_layers_companion.results.store import Result


def measure_rounded(job: Job, _needs: list[Result], subject: Subject, shards: Shards) -> Measured:
    """Scores and bytes of pruned models in one type of weights. If a GGUF file has this type already, the file is used
    as it is."""
    source = dataclasses.replace(subject.source, dtype=job.key["dtype"])
    with _opened_in(job.key["bits"], source, subject) as (opened, count_bytes):
        rows, details = score_models(job, opened, job.cuts, subject.options, shards)
        bytes_by_cut = {cut.name: count_bytes(cut) for cut in job.cuts}
    return [row | {"bytes": bytes_by_cut[row["cut"]]} for row in rows], details


def measure_file(job: Job, needs: list[Result], subject: Subject, shards: Shards) -> Measured:
    """The bytes, scores and answers of each file on the way, which is made and removed.

    Variants are the file as it is ("whole"), without the layers ("sliced"), healed ("healed"), and healed and rounded
    by llama.cpp ("rounded"). The healed one in float32 also has the metric "tokens equal": how many tokens of
    llama.cpp's answers to PROMPTS are those of transformers. Raises InputError if the model is no GGUF file or
    llama.cpp is not installed, and what slicing and healing raise.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows, details = _score_variants(job, subject, Path(folder), shards)
    return rows, details | {"healed_tokens": needs[0].details["tokens"]}


def _score_variants(job: Job, subject: Subject, folder: Path, shards: Shards) -> Measured:
    """Rows and details of all variants, whose files are written to `folder`."""
    source = dataclasses.replace(subject.source, dtype=job.key["dtype"])
    (healing,) = job.needs
    (cut,) = (cut for cut in job.cuts if cut.size)
    files = {
        "whole": export.find_gguf_file(source),
        "sliced": export.slice_gguf(source, cut, folder / "sliced.gguf"),
    }
    answers = {"whole": _generate_answers(files["whole"])}
    adapter = healings.find_adapters(healing, subject)
    files["healed"] = export.slice_gguf(source, cut, folder / "healed.gguf", adapter=adapter)
    files["rounded"] = export.quantize(files["healed"], folder / "rounded.gguf", job.key["bits"])
    exact = export.slice_gguf(source, cut, folder / "healed-f32.gguf", adapter=adapter, type="f32")
    rows = []
    details = {}
    for variant, path in files.items():
        scored_path = exact if variant == "healed" else path
        with _opened_gguf(scored_path, subject.options.device, kept=variant == "whole") as opened:
            more, details = score_models(
                job, opened, [UNPRUNED], subject.options, shards.part(variant)
            )
            if variant == "healed":
                items = len(PROMPTS) * ANSWER_TOKENS
                equal = {
                    "value": float(_count_equal(*opened, exact)),
                    "stderr": None,
                    "items": items,
                }
                more.append(
                    {"task": "llama.cpp", "metric": "tokens equal", "engine": "llama.cpp"} | equal
                )
        dropped = UNPRUNED if variant == "whole" else cut
        rows += [
            row | {"cut": dropped.name, "variant": variant, "bytes": path.stat().st_size}
            for row in more
        ]
    answers |= {
        variant: _generate_answers(path)
        for variant, path in files.items()
        if variant not in answers
    }
    return rows, details | {"answers": answers}


@contextlib.contextmanager
def _opened_in(bits: str, source: Source, subject: Subject) -> Iterator[tuple]:
    """Yield (model, tokenizer) in this type of weights, and a function from a cut to the bytes of the pruned model."""
    from deeper_layers.pruning import drop_layers  # imports torch

    device = subject.options.device
    if bits == source.quantized:
        yield (
            models.load_model(source, device=device),
            lambda cut: export.count_tensor_bytes(source, cut),
        )
    elif bits in (*DTYPES, *BITSANDBYTES):
        opened = subject.open(
            {"dtype": source.dtype, "quantization": bits if bits in BITSANDBYTES else None}
        )
        yield opened, lambda cut: count_checkpoint_bytes(drop_layers(opened[0], cut))
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain = export.slice_gguf(source, UNPRUNED, Path(folder) / "plain.gguf", type="f32")
            path = export.quantize(plain, Path(folder) / f"{source.name}.{bits}.gguf", bits)
            with _opened_gguf(path, device) as opened:
                yield (
                    opened,
                    lambda cut: export.count_tensor_bytes(models.find_model(str(path)), cut),
                )


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
    return sum(
        {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values()
    )


def _generate_answers(path: Path) -> list[str]:
    """llama.cpp's greedy answer to each of PROMPTS."""
    with contextlib.closing(export.LlamaCpp(path)) as llama:
        return [
            llama.detokenize(llama.generate(llama.tokenize(prompt), ANSWER_TOKENS))
            for prompt in PROMPTS
        ]


def _count_equal(model, tokenizer, path: Path) -> int:
    """How many tokens of llama.cpp's answers equal those of transformers, up to the first difference in each answer."""
    equal = 0
    model.generation_config.eos_token_id = None  # so that both engines write all ANSWER_TOKENS
    with contextlib.closing(export.LlamaCpp(path)) as llama:
        for text in PROMPTS:
            prompt = tokenizer(text, return_tensors="pt").to(model.device)
            prompt_length = prompt["input_ids"].shape[1]
            [ours] = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)
            written = llama.generate(llama.tokenize(text), ANSWER_TOKENS)
            equal += len(os.path.commonprefix([ours[prompt_length:].tolist(), written]))
    return equal
