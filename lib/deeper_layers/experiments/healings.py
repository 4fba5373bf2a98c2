"""A pruned model, healed and scored: for each cut and each way of healing one unit."""

import dataclasses
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from deeper_layers import data, healing, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.losses import loss_sequences
from deeper_layers.experiments.measurement import Data, Measurement, items_of, text_of
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.files import read_json, write_file
from deeper_layers.models.sources import Source
from deeper_layers.package_index import cache_folder, file_hash
from deeper_layers.presets import HealingConfig
from deeper_layers.results.schema import Course
from deeper_layers.results.units import Unit, key_hash

VERSION = (
    2  # part of every unit's key: raise it when a change here or in deeper_layers.healing.training changes numbers
)
ADAPTER, RECORD = "adapter", "record.json"  # of a healing in the cache; the record is written last
FILES = ("adapter_model.safetensors", "adapter_config.json", "healing.json")  # of adapters
TOKENS_OF_A_DOCUMENT = 200  # at least, on average: so many documents are read for a budget of tokens


def healing_unit(
    cut: Cut, config: HealingConfig, parameters: HealingParameters, source: Source, opened: Callable
) -> Unit | None:
    """A healed model's loss on text and scores: read from results, else healed and measured.

    Rows: task, metric, start, size, value, stderr, items, as a sweep has them, with the name of a cut that is no
    block, and the loss on text as metric "loss". Details: the curve of the training loss, tokens, seconds in training,
    and what a sweep keeps. The adapters stay in the cache, so that other tasks can be scored without healing again.
    None where nothing is to be measured and results hold no such unit.

    Raises InputError where documents of the loss are among those that heal, and what `train` raises.
    """
    settings = _training_settings(cut, config, parameters) | {
        "loss": parameters.loss_key,
        "tasks": dict(sorted(parameters.shots.items())),
        "limit": parameters.limit,
    }
    if set(parameters.limits.values()) != {parameters.limit}:  # "task@20"
        settings["limits"] = dict(sorted(parameters.limits.items()))

    def measure(shards):
        whole, tokenizer = opened()
        healed, record = _healed(whole, tokenizer, cut, config, parameters, source)
        base = healed.get_base_model()
        whole_of_it = [UNPRUNED]
        losses = loss_sequences(tokenizer, parameters.datasets, **parameters.loss_key)
        rows, of_sequences = sweeping.text_loss(base, whole_of_it, losses, shards=shards.part("loss"))
        rows.insert(0, "task", parameters.text)
        tables, outcomes, levels = [rows], {}, {}
        for task in parameters.task_list:
            options = parameters.sweep_options(task)
            table = sweeping.sweep(base, tokenizer, [task], whole_of_it, shards=shards.part(task), **options)
            tables.append(table)
            outcomes |= table.attrs["outcomes"]["0,0"]
            levels |= table.attrs["levels"]
        table = pd.concat(tables, ignore_index=True).assign(start=cut.start, size=cut.size)
        if not cut.is_block:
            table["cut"] = cut.name
        return table, {
            "healing": dataclasses.asdict(record),
            "by_sequence": of_sequences["0,0"],
            "vocabulary": base.get_output_embeddings().weight.shape[0],
            "outcomes": outcomes,
            "levels": levels,
        }

    name = cut.name.replace(",", "-").replace(" ", "-")
    return Measurement(
        kind="healing", name=name, version=VERSION, source=source, settings=settings,
        reads=[
            _healing_text(config, parameters), text_of(parameters.text, parameters.datasets, split="validation"),
            *items_of(parameters.shots, parameters.datasets),
        ],
        measure=measure,
    ).unit(parameters)  # fmt: skip


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
