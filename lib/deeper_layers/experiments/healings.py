"""A pruned model, healed and scored: for each cut and each way of healing a result of the run and one of the scores."""

import dataclasses
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from deeper_layers import data, healing, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.losses import loss_rows, of_corpus
from deeper_layers.experiments.measurement import Data, Measurement, items_of, text_of
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.experiments.scoring import as_cut, score_all, tasks_asked
from deeper_layers.files import read_json, write_file
from deeper_layers.models.sources import Source
from deeper_layers.package_index import cache_folder, file_hash
from deeper_layers.presets import HealingConfig
from deeper_layers.results.schema import GIVEN, Course
from deeper_layers.results.store import Result, key_hash

VERSION = 2  # raise it when adapters in the cache are no longer what training gives
ADAPTER, RECORD = "adapter", "record.json"  # of a healing in the cache; the record is written last
FILES = ("adapter_model.safetensors", "adapter_config.json", "healing.json")  # of adapters
TOKENS_OF_A_DOCUMENT = 200  # at least, on average: so many documents are read for a budget of tokens


def heal(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable
) -> Result | None:
    """The run of a healing, its training loss by step: read from results, else healed; adapters stay in the cache."""

    def measure(_):
        record = _healed(*opened(), cut, config, parameters, source)[1]
        kept = dataclasses.asdict(record)
        return [{"step": step, "loss": loss} for step, loss in enumerate(kept.pop("losses"), start=1)], kept

    settings = {**parameters.key, "cut": cut.name, "healing": config.settings, "text": parameters.text}
    reads = [_healing_text(config, parameters)]
    return Measurement(kind="healing", source=source, settings=settings, reads=reads, measure=measure).result(
        parameters
    )


def course_of(run: Result) -> dict:
    """The course of a healing, as `healing.Record` has it."""
    kept = {name: run.details[name] for name in ("tokens", "distinct_tokens", "trained_parameters", "seconds")}
    return {"losses": [row["loss"] for row in run.records]} | kept


def heal_and_score(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable,
    rules: Sequence[str] = (GIVEN,),
) -> tuple[Result, Result] | None:  # fmt: skip
    """A healing, and the healed model's loss on text and scores: read from results, else healed and measured.

    The first has the training loss by step; `rules` are those whose choice the cut is. The adapters stay in the cache,
    so that other tasks can be scored without healing again. None where nothing is to be measured and results hold not
    both.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """

    def measure(shards):
        whole, tokenizer = opened()
        healed, record = _healed(whole, tokenizer, cut, config, parameters, source)
        base = healed.get_base_model()
        requests = predicted.requests(base, tokenizer)
        losses = sweeping.request_loss(base, [UNPRUNED], requests, shards=shards.part("loss"))
        rows = loss_rows(predicted.text, *losses, [UNPRUNED])
        of_tasks, details = score_all(base, tokenizer, [UNPRUNED], parameters, shards)
        counted = {"vocabulary": base.get_output_embeddings().weight.shape[0], "healed_tokens": record.tokens}
        return as_cut(rows + of_tasks, cut), details | counted

    predicted = of_corpus(parameters.loss_key, parameters.datasets)
    how = {**parameters.key, "healing": config.settings, "text": parameters.text}
    heals = _healing_text(config, parameters)
    run = heal(cut, config, parameters, source, opened)
    asked = {predicted.text: predicted.asked} | tasks_asked(parameters)
    scores = Measurement(
        kind="scores", source=source, measure=measure,
        settings=how | {"tasks": asked, "cuts": {rule: [cut.name] for rule in rules}},
        reads=[heals, predicted.reads, *items_of(parameters.asked, parameters.datasets)],
    ).result(parameters)  # fmt: skip
    return (run, scores) if run and scores else None


def check_apart(healing: list[str], loss: list[str]) -> None:
    """Raise InputError where a document is in both: a loss on what was learned by heart says nothing."""
    if shared := set(healing) & set(loss):
        raise InputError(
            f"{len(shared)} documents are among those that heal and those of the loss ({min(shared)[:40]!r}, ...): "
            "expected none, choose another text"
        )


def adapter_folder(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable
) -> Path:
    """The folder of a healing's adapters, as `save_adapters` writes it: in the cache, healed where it is not there yet.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    folder = _folder(cut, config, parameters, source)
    if healed_record(folder) is None:
        _healed(*opened(), cut, config, parameters, source)
    return folder / ADAPTER


class Kept(Course):
    """What is written down of a healing in the cache, when all its files are there."""

    sha256: dict[str, str] = {}  # of the files of adapters, by name


def healed_record(folder: Path) -> dict | None:
    """The course of a healing in the cache, as `healing.Record` has it; None where it is not there.

    With a warning also where its files are not those that were written.
    """
    try:
        content = read_json(folder / RECORD)
        kept = Kept.model_validate(content)
        for name, sha256 in kept.sha256.items():
            if file_hash(folder / ADAPTER / Path(name).name) != sha256:
                raise ValueError(f"{name} is not the file that was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        warnings.warn(f"{folder} holds no whole healing ({said}): the model is healed again", stacklevel=2)
        return None
    return kept.model_dump(exclude={"sha256"})


def _healed(whole, tokenizer, cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source):
    """The healed model and its record: from the cache where it was healed before, else trained and put there."""
    from deeper_layers.pruning import drop_layers  # torch, where there is something to heal

    texts = data.texts(parameters.text, split="train", datasets=parameters.datasets, documents=_documents(config))
    check_apart(texts, data.texts(parameters.text, split="validation", datasets=parameters.datasets))
    pruned, folder = drop_layers(whole, cut), _folder(cut, config, parameters, source)
    if (found := healed_record(folder)) is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a process that did the same and was killed
        return healing.load_adapters(pruned, folder / ADAPTER, source.key, cut), healing.Record(**found)
    print(f"healing {source.name}: {cut.describe(source.num_layers)}, {config.tokens:,} tokens", file=sys.stderr)
    beside = whole if config.auxiliary or config.objective == "distill" else None
    healed, record = healing.train(
        pruned, tokenizer, texts, config, folder=folder / "checkpoints", cut=cut, whole=beside
    )
    course = dataclasses.asdict(record)
    of_it = {"config": config.settings, "text": parameters.text} | course
    healing.save_adapters(healed, folder / ADAPTER, source.key, cut, of_it)
    hashes = {name: file_hash(folder / ADAPTER / name) for name in FILES}
    write_file(folder / RECORD, json.dumps(course | {"sha256": hashes}).encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return healed, record


def _folder(cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source) -> Path:
    """Where the adapters of a healing are kept, named after all that determines them."""
    settings = _training_settings(cut, config, parameters)
    text = _healing_text(config, parameters).fingerprint()
    key = {"model": source.key, "dtype": source.dtype, **settings, "version": VERSION, "data": text}
    return cache_folder() / "healed" / key_hash(key)


def _training_settings(cut: Cut, config: HealingConfig, parameters: HealingParameters) -> dict:
    """What determines a healing, besides the model and the fingerprint of its text."""
    return {
        **parameters.key,
        "cut": cut.key,
        "healing": config.settings,
        "text": parameters.text,
    }


def _healing_text(config: HealingConfig, parameters: HealingParameters) -> Data:
    return text_of(parameters.text, parameters.datasets, split="train", documents=_documents(config))


def _documents(config: HealingConfig) -> int:
    return max(1000, config.tokens // TOKENS_OF_A_DOCUMENT)
