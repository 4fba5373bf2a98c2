"""The way to a file that runs elsewhere, gone once: sliced, healed, merged, a GGUF file, its answers in llama.cpp."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from deeper_layers import export, models, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.bits import opened_gguf
from deeper_layers.experiments.healings import adapter_folder, healed_record
from deeper_layers.experiments.measurement import Measurement, items_of, text_of
from deeper_layers.experiments.parameters import TakeAwayParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit

VERSION = 2  # part of every unit's key: raise it when a change here or in healing.training changes numbers
PROMPTS = ("The capital of France is", "Once upon a time there was a", "Water is made of")
TOKENS = 24  # of each answer


def take_away_unit(cut: Cut, parameters: TakeAwayParameters, source: Source) -> Unit | None:
    """The files on the way, their sizes, scores and answers: read from results, else made, measured and removed.

    Rows: variant, task, metric, start, size, value, stderr, items. The variants are the file as it is ("whole"),
    without the layers ("sliced"), healed ("healed"), and that rounded by llama.cpp ("rounded"). Besides scores there
    are task "file" with metric "bytes" and, for the healed one in float32, task "llama.cpp" with metric "tokens
    equal": those that transformers gives too. Details: what llama.cpp answered to PROMPTS, and what healing took.

    None where nothing is to be measured and results hold no such unit.

    Raises:
        InputError: the model is no GGUF file, llama.cpp is not installed, or what slicing and healing raise.
    """

    def measure(_):
        with tempfile.TemporaryDirectory() as folder:
            return _gone(cut, parameters, source, Path(folder))

    return Measurement(
        kind="take-away", name=f"{cut.start}-{cut.size}", version=VERSION, source=source,
        dtype=parameters.healing().dtype, measure=measure,
        settings={
            "cut": [cut.start, cut.size], "healing": parameters.healing().config().settings, "text": parameters.text,
            "type": parameters.gguf_type, "tasks": dict(sorted(parameters.shots.items())),
            "limits": dict(sorted(parameters.limits.items())), "prompts": [*PROMPTS, TOKENS],
        },
        reads=[
            text_of(parameters.text, parameters.datasets, split="train"),
            *items_of(parameters.shots, parameters.datasets),
        ],
    ).unit(parameters)  # fmt: skip


def _gone(cut: Cut, parameters: TakeAwayParameters, source: Source, folder: Path) -> tuple[pd.DataFrame, dict]:
    """Rows and details; the files lie in a folder that goes."""
    files = {
        "whole": export.gguf_file(source),
        "sliced": export.slice_gguf(source, cut, folder / "sliced.gguf"),
    }
    answers, tables = {"whole": _answers(files["whole"])}, []  # first, as it says whether llama.cpp is there
    healing = parameters.healing()
    half = dataclasses.replace(source, dtype=healing.dtype)
    adapters = adapter_folder(cut, healing.config(), healing, half, lambda: healing.open(half))
    record = healed_record(adapters.parent)
    files["healed"] = export.slice_gguf(source, cut, folder / "healed.gguf", adapter=adapters)
    files["rounded"] = export.quantize(files["healed"], folder / "rounded.gguf", parameters.gguf_type)

    whole, tokenizer = models.load_model(dataclasses.replace(source, dtype="float32"), device=parameters.device)
    scored = _scores(whole, tokenizer, [UNPRUNED, cut], parameters)
    tables += [scored[scored["size"] == 0].assign(variant="whole"), scored[scored["size"] > 0].assign(variant="sliced")]
    del whole
    exact = export.slice_gguf(source, cut, folder / "healed-f32.gguf", adapter=adapters, type="f32")
    with opened_gguf(exact, parameters.device) as (model, tokenizer):
        tables.append(_scores(model, tokenizer, [UNPRUNED], parameters).assign(variant="healed"))
        equal = _equal(model, tokenizer, exact)
    with opened_gguf(files["rounded"], parameters.device) as (model, tokenizer):
        tables.append(_scores(model, tokenizer, [UNPRUNED], parameters).assign(variant="rounded"))
    answers |= {variant: _answers(path) for variant, path in files.items() if variant not in answers}

    rows = [{"variant": variant, "task": "file", "metric": "bytes", "value": path.stat().st_size, "items": 1}
            for variant, path in files.items()]  # fmt: skip
    rows.append({"variant": "healed", "task": "llama.cpp", "metric": "tokens equal", "value": equal,
                 "items": len(PROMPTS) * TOKENS})  # fmt: skip
    table = pd.concat([*tables, pd.DataFrame(rows)], ignore_index=True).assign(start=cut.start, size=cut.size)
    table.loc[table["variant"] == "whole", ["start", "size"]] = 0
    columns = ["variant", "task", "metric", "start", "size", "value", "stderr", "items"]
    return table[columns], {"answers": answers, "healing": record}


def _scores(model, tokenizer, cuts: list[Cut], parameters: TakeAwayParameters) -> pd.DataFrame:
    options = {task: parameters.sweep_options(task) for task in parameters.task_list}
    return pd.concat([sweeping.sweep(model, tokenizer, [task], cuts, **own) for task, own in options.items()])


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
